"""What the processes say to each other: job specs on disk, JSON lines on a socket.

Every line carries ``schema_version`` and ``type``:

    started    pid                        from a job's process, first
    progress   phase, step, loss          from a job, at most about once a second
    result     the job's product          from a job, once
    failure    outcome, reason            from a trial that found itself oom, diverged or invalid;
                                          with rank and signal where one of its processes was killed
    error      kind, message, next_step   from a job that refused its input
    exit       cause, exit_code, signal, rusage …   from the guard, always last

Knows nothing about what jobs do. Imports no torch.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..optimizer.domain import SCHEMA_VERSION

JUDGING = "judge"
"""The phase of a trial in which the user's command runs: what it takes is not the trial's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """Everything that a trial needs, as plain data."""

    model_path: str
    tokens_path: str
    task: Mapping[str, Any]
    candidate: Mapping[str, Any]
    adapter_config: Mapping[str, Any] | None
    """The fields of PEFT's configuration, as exported; None for full fine-tuning."""
    rung: str
    total_steps: int
    """Length of the training and of its schedule, in optimizer steps; probes stop when they know enough."""
    pad_id: int
    seed: int
    """Initialises head and adapter, drives dropout."""
    order_seed: int
    """Orders the rows: equal for all trials of a study, so that all learn the same rows in the same order."""
    threads: int
    """Of all processes together, on a CPU."""
    devices: Sequence[str] = field(default_factory=list)
    """UUIDs of CUDA devices, one for each process; none: the CPU."""
    heldout_rows: int | None = None
    """So many of the held-out rows a training is judged on; None: on all."""
    memory_limit_bytes: int | None = None
    trust_remote_code: bool = False
    has_weights: bool = True
    """False: only a configuration is at hand, and the weights are random."""
    factory: Mapping[str, Any] | None = None
    """What makes the model; None where transformers does."""
    judge: Mapping[str, Any] | None = None
    """The user's evaluation of a training: ``command``, the ``folder`` that it gets, ``limit_s``, and whether
    of its number ``lower_is_better``."""
    deepspeed: Mapping[str, Any] | None = None
    """DeepSpeed's configuration, where it trains."""

    @property
    def on_cpu(self) -> bool:
        """No GPU is used."""
        return not self.devices

    @property
    def processes(self) -> int:
        """That train together."""
        count: int = self.candidate["level"]["processes"]
        return count

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> TrialSpec:
        """The spec out of its JSON form."""
        return cls(**data)

    def to_mapping(self) -> dict[str, Any]:
        """The spec as plain JSON data."""
        return asdict(self)


class Report:
    """Writes a job's JSON lines to its socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last_s = -math.inf

    def __call__(self, kind: str, /, **fields: Any) -> None:
        """Write one line. NaN and infinity are refused (ValueError): they are no JSON."""
        message = {"schema_version": SCHEMA_VERSION, "type": kind, **fields}
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def every_second(self, kind: str, /, **fields: Any) -> None:
        """Write the line unless one was written this way within the last second."""
        if time.monotonic() - self._last_s >= 1.0:
            self._last_s = time.monotonic()
            self(kind, **fields)


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
