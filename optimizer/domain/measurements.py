"""What trials measured, and what was foretold of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..estimates.intervals import Fits


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMeasurement:
    """What one process of several measured of itself; columns as in :class:`Measurement`."""

    rank: int
    peak_tensor_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    step_s_mean: float | None = None
    """Of the steps that were timed."""
    communication_share: float | None = None
    """Of a step's time, that in which it talked to the others or waited for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one trial measured. ``None`` is "not measured", never zero.

    Memory columns mean different things and are never mixed: ``peak_tensor_bytes`` live tensor storages
    (an untimed step), ``peak_allocated_bytes`` / ``peak_reserved_bytes`` CUDA's caching allocator,
    ``peak_device_bytes`` NVML for the trial's processes, ``peak_process_bytes`` growth of the host's
    resident set over what the process inherited. Of several processes they are those of the one that holds
    most; host memory, which they share, is the sum.
    """

    tokens_per_s: float | None = None
    """Tokens that carry content (padding not counted) per second of optimizer steps; None of arrays."""
    tokens_per_s_rel_halfwidth: float | None = None
    """Half the 95 % interval of :attr:`speed`, as a share of it."""
    samples_per_s: float | None = None
    steps_per_s: float | None = None
    step_s_mean: float | None = None
    step_s_std: float | None = None
    steps_measured: int = 0
    measured_s: float = 0.0
    """Wall time of the steps that were timed or trained: the useful part of a trial."""
    evaluation_s: float | None = None
    """Wall time of judging the held-out rows after a training; no part of ``measured_s``."""
    peak_tensor_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    trainable_params: int | None = None
    total_params: int | None = None
    trainable_sha256: str | None = None
    """Over names and shapes of what was trained; the exported script compares its own with it."""
    heldout_loss: float | None = None
    heldout_loss_se: float | None = None
    heldout_rows: int | None = None
    metric_name: str | None = None
    metric_value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All that was measured on the held-out rows beside the loss, the one above included."""
    own_metric: float | None = None
    """The number that the user's evaluation command printed."""
    own_loss: float | None = None
    """The same, lower being better."""
    trained_tokens: int | None = None
    train_losses: tuple[float | None, ...] = ()
    """Training loss of each optimizer step, None where it was NaN or infinite. Never scores."""
    disturbances: tuple[str, ...] = ()
    """What spoilt speed and memory every time that the trial was tried, in sentences."""
    ranks: tuple[RankMeasurement, ...] = ()
    """Of each process, where a trial has several."""

    @property
    def judged_loss(self) -> float | None:
        """What quality is compared by, lower being better: the user's own number, else the held-out loss."""
        return self.heldout_loss if self.own_loss is None else self.own_loss

    @property
    def speed(self) -> float | None:
        """Tokens a second, of rows that are no text samples a second."""
        return self.samples_per_s if self.tokens_per_s is None else self.tokens_per_s

    @property
    def speed_unit(self) -> str:
        """What :attr:`speed` counts."""
        return "tokens/s" if self.tokens_per_s is not None or self.samples_per_s is None else "samples/s"

    @property
    def memory_bytes(self) -> int | None:
        """The peak that a limit is held against: the device's where there is one, else the host process's."""
        for value in (self.peak_device_bytes, self.peak_reserved_bytes, self.peak_process_bytes):
            if value is not None:
                return value
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutScores:
    """What a training scored on each held-out row, in the order of the held-out file.

    Equal for all trainings of a study: so two of them can be compared row by row.
    """

    losses: tuple[float, ...]
    """Summed over the row's items."""
    items: tuple[int, ...]
    """What is scored of the row: itself, or the tokens to be predicted."""

    @property
    def loss(self) -> float:
        """The mean over all items."""
        return sum(self.losses) / sum(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a dry run told of a shape on the device that trials run on, before any of it ran there.

    Memory columns are those of :class:`Measurement`, so that each can be held against its own; None is
    "not told", as CUDA's are of a CPU. Of several processes they are those of one, and work is, too; what is
    held against a host's limit (``peak_process_bytes``, and on a CPU ``low_bytes``), speeds and
    ``step_tokens`` are of all together.
    """

    device: str
    """The catalogue's name, or the driver's."""
    fits: Fits | None = None
    """None where nothing can be said: on a CPU processes hold more than tensors, and how much varies."""
    reason: str | None = None
    """Why it cannot fit, or why nothing was told, in a sentence."""
    peak_tensor_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    rank_host_bytes: int | None = None
    """That each process keeps in the host's memory because it is offloaded; None where nothing is. On a CPU
    they are among the tensors."""
    host_bytes: int | None = None
    """The same of all processes."""
    low_bytes: int | None = None
    """Least that it takes of what the memory limit is held against."""
    high_bytes: int | None = None
    capacity_bytes: int | None = None
    """What there was then of what the memory limit is held against; None where it is unknown."""
    tokens_per_s: float | None = None
    """Where rows are no text, samples: see ``unit``."""
    tokens_per_s_low: float | None = None
    tokens_per_s_high: float | None = None
    flops: Mapping[str, int] = field(default_factory=dict)
    """Of one optimizer step with the heaviest batch, by the dtype that they are computed in."""
    moved_bytes: int = 0
    kernels: int = 0
    communication_bytes: int = 0
    """That each process sends in such a step to the others, and to the host and back where it offloads."""
    step_tokens: float = 0.0
    """Tokens with content that the work of such a step does, at the padding that these data have."""
    unit: str = "tokens"
    """What the three speeds and ``step_tokens`` count: ``tokens`` or ``samples``."""
    seconds: float = 0.0
    """That it took to tell."""
