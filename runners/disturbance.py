"""What becomes of an attempt during which foreign work used the device. Pure.

Speed and memory that were measured beside a neighbour are no evidence, so the attempt is repeated, once.
A neighbour that is there again is taken to be steady: it hits all trials of the study alike, so they are
compared as they are, each with its mark. Nothing is averaged. Knows nothing of how neighbours are noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..optimizer.comparison import OUT_OF_MEMORY
from ..optimizer.domain import Measurement, Outcome, Rung, Trial
from .classify import Ending


def is_spoilt(ending: Ending, rung: Rung) -> bool:
    """Whether a neighbour can have changed this ending.

    A probe's speed and memory; memory that did not suffice. What a training learns is the same beside any
    neighbour, and its speed is used only where its shape was never probed.
    """
    return ending.outcome in OUT_OF_MEMORY or (ending.outcome is Outcome.OK and rung is Rung.PROBE)


def may_repeat(
    trials: Iterable[Trial], *, disturbed_before: int, spent_s: float, wall_s: float, budget_s: float
) -> bool:
    """Whether a disturbed attempt is worth repeating.

    Args:
        trials: all of the study.
        disturbed_before: earlier attempts at this trial that were disturbed.
        spent_s: time in the study's attempts so far, without this one.
        wall_s: time of this one, which a repetition would take again.
        budget_s: what the study may spend.
    """
    neighbour_is_steady = any(trial.measurement and trial.measurement.disturbances for trial in trials)
    return disturbed_before == 0 and not neighbour_is_steady and spent_s + 2 * wall_s <= budget_s


def disturbed(disturbances: Sequence[str]) -> Ending:
    """The end of an attempt that is repeated: nothing of it is kept but the reason."""
    return Ending(Outcome.DISTURBED, " ".join(disturbances))


def marked(ending: Ending, disturbances: Sequence[str]) -> Ending:
    """The same end, with the marks of what disturbed it."""
    measurement = replace(ending.measurement or Measurement(), disturbances=tuple(disturbances))
    return replace(ending, measurement=measurement)
