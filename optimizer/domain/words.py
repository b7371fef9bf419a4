"""The words of which there is a fixed list."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """How weights are adapted."""

    LORA = "lora"
    ADALORA = "adalora"
    IA3 = "ia3"
    OFT = "oft"
    MISS = "miss"
    HEAD = "head"
    """Without an adapter, like all that follow: only the head is trained."""
    LAST_BLOCKS = "last-blocks"
    """The last blocks and a new head."""
    BITFIT = "bitfit"
    """All biases and a new head."""
    NORMS = "norms"
    """All norms and a new head."""
    FULL = "full"
    """Every weight."""

    @property
    def unfreezes(self) -> bool:
        """Some of the model's own weights are trained, and all others are frozen."""
        return self in (Method.HEAD, Method.LAST_BLOCKS, Method.BITFIT, Method.NORMS)

    @property
    def has_adapter(self) -> bool:
        """PEFT puts something beside the model's weights."""
        return self is not Method.FULL and not self.unfreezes


class Quantization(StrEnum):
    """How bitsandbytes stores frozen linear layers."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"
    FP4 = "fp4"

    @property
    def is_4bit(self) -> bool:
        """Blocks of 4-bit numbers with a scale each."""
        return self in (Quantization.NF4, Quantization.FP4)


class Preset(StrEnum):
    """Named LoRA configurations; what they are is in :mod:`.presets`."""

    EFFICIENT = "efficient"
    BALANCED = "balanced"
    EXPRESSIVE = "expressive"
    QLORA_MEMORY = "qlora_memory"
    QLORA_QUALITY = "qlora_quality"
    AUTO = "auto"
    """One of them, by the task and the number of rows."""


class LossMask(StrEnum):
    """Which tokens a language model learns."""

    ALL = "all"
    COMPLETION = "completion"
    """What follows the prompt."""
    ASSISTANT = "assistant"
    """What the assistant says in a conversation."""


class Complexity(StrEnum):
    """How hard the user takes the task to be; asked by the tiers of the first design only."""

    SIMPLE = "simple"
    MEDIUM = "medium"
    COMPLEX = "complex"
    VERY_COMPLEX = "very complex"


class Rung(StrEnum):
    """How far a trial takes its candidate."""

    PROBE = "probe"
    """Speed and memory are measured; the training loss says nothing yet."""
    TRAIN = "train"
    """Trained on a token budget; held-out loss is measured."""


class StudyState(StrEnum):
    """queued → running → succeeded | failed | cancelled."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """No transition leaves this state."""
        return self in (StudyState.SUCCEEDED, StudyState.FAILED, StudyState.CANCELLED)


class TrialState(StrEnum):
    """queued → running → finished; a lost attempt takes it back to queued."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


class Outcome(StrEnum):
    """How a trial or one attempt at it ended."""

    OK = "ok"
    OOM = "oom"
    """The device's memory, or the study's limit on it, did not suffice."""
    HOST_OOM = "host-oom"
    DIVERGED = "diverged"
    """A loss was NaN or infinite."""
    INVALID = "invalid"
    """It ran, but not as configured: an adapter without gradient, a frozen weight that moved, …"""
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    """The trial's own code failed; trying again would fail again."""
    LOST = "lost"
    """The infrastructure failed: a process was killed or vanished. Tried again, up to a limit."""
    CANCELLED = "cancelled"
    DISTURBED = "disturbed"
    """Of attempts only: foreign work on the device spoilt the measurement. Tried again, up to a limit."""


class Objective(StrEnum):
    """Named sets of weights, see :data:`OBJECTIVE_WEIGHTS`."""

    BALANCED = "balanced"
    SPEED = "speed"
    QUALITY = "quality"
    MEMORY = "memory"
    COST = "cost"
    """What the whole training costs, in money where a price is known, else in time."""


class Scoring(StrEnum):
    """Which formula ranks the trials."""

    COMPARABLE = "comparable"
    """Weighted mean of parts between 0 and 1 that all compared candidates have."""
    CLASSIC = "classic"
    """The literal formula of the first design, kept for comparison with old reports."""


class Relation(StrEnum):
    """What a comparison of two held-out losses found."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference"
    """None was found at this budget."""
    UNKNOWN = "unknown"
    """There is nothing to judge it by, or so little (single seeds) that the interval leaves it open."""
