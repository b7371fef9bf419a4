"""What finished trials and estimates say about candidates, untried ones included.

Shared by the two halves of the search. Knows nothing of what is tried next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .comparison import OUT_OF_MEMORY, exceeds
from .domain import Adapter, Candidate, Estimate, Measurement, Method, Outcome, Rung, Trial, TrialState
from .estimates.intervals import Fits
from .settings import needs_at_least

ALIKE = 0.05
"""Estimates of one model's shapes are too low or too high together: what is told to need this share more than
a shape that ran out of memory does not fit either, whatever its adapter."""


class Evidence:
    """The finished trials of a study, asked about.

    Args:
        trials: of the study, finished or not.
        memory_limit_bytes: above it a trial counts as one that did not fit.
        estimates: what dry runs told of shapes.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        memory_limit_bytes: int | None,
        estimates: Mapping[Candidate, Estimate] | None = None,
    ) -> None:
        finished = [trial for trial in trials if trial.state is TrialState.FINISHED]
        self.probes = {t.candidate.shape_key: t for t in finished if t.plan.rung is Rung.PROBE}
        self._probed = {_outline(trial.candidate) for trial in self.probes.values()}
        self.launched_probes = [trial for trial in self.probes.values() if trial.reused_from is None]
        self.trainings = [trial for trial in finished if trial.plan.rung is Rung.TRAIN]
        self._trained = {
            (trial.candidate.id, trial.plan.train_steps, trial.plan.replicate): trial
            for trial in self.trainings
        }
        self._memory_limit_bytes = memory_limit_bytes
        told = estimates or {}
        self._estimates = {candidate.shape_key: estimate for candidate, estimate in told.items()}
        self._told = {_outline(candidate) for candidate in told}
        cannot_fit = [candidate for candidate, estimate in told.items() if estimate.fits is Fits.NO]
        self._cannot_fit = by_adapter(cannot_fit)
        failed = [trial for trial in finished if self._did_not_fit(trial)]
        self._too_big = by_adapter([*cannot_fit, *(trial.candidate for trial in failed)])
        # Where others held memory, nobody knows whether it would have fitted.
        alone = [trial for trial in failed if not (trial.measurement and trial.measurement.disturbances)]
        self._failed_told = self._told_of(alone)
        self._fitted_told = self._told_of(filter(self.succeeded, finished)) if self._failed_told else []

    def too_big(self, candidate: Candidate) -> bool:
        """This shape, or one that needs no more memory, did not fit or cannot."""
        return _any_needs_less(self._too_big, candidate) or self._is_told_to_need_more(candidate)

    def cannot_fit(self, candidate: Candidate) -> bool:
        """This shape needs more memory than there is, without its having been run."""
        return _any_needs_less(self._cannot_fit, candidate) or self._is_told_to_need_more(candidate)

    def settled(self, candidate: Candidate) -> bool:
        """A probe of this shape would tell nothing new."""
        return candidate.shape_key in self.probes or self.too_big(candidate)

    def measured(self, candidate: Candidate) -> Measurement | None:
        """Speed and memory of this shape, if it was probed, ran to its end and fits."""
        if _outline(candidate) not in self._probed:
            return None  # without a key: thousands are asked about, and each key is a hash over its JSON
        probe = self.probes.get(candidate.shape_key)
        if probe is None or not self.succeeded(probe) or self.too_big(candidate):
            return None
        return probe.measurement

    def has_measured(self) -> bool:
        """Some probe ran to its end and fits."""
        return any(self.measured(trial.candidate) for trial in self.probes.values())

    def is_dominated(self, candidate: Candidate, by: Candidate) -> bool:
        """Even at its best, as estimated, it is slower and larger than the other was measured to be."""
        told, measured = self._estimates.get(candidate.shape_key), self.measured(by)
        if told is None or measured is None or told.tokens_per_s_high is None or told.low_bytes is None:
            return False
        if measured.speed is None or measured.memory_bytes is None:
            return False
        return told.tokens_per_s_high < measured.speed and told.low_bytes > measured.memory_bytes

    def trained(self, candidate: Candidate, steps: int, replicate: int = 0) -> Trial | None:
        """The finished training of this candidate for so many steps."""
        return self._trained.get((candidate.id, steps, replicate))

    def loss(self, candidate: Candidate, steps: int, replicate: int = 0) -> float | None:
        """What that training left of the held-out loss; None where it did not succeed."""
        trial = self.trained(candidate, steps, replicate)
        if trial is None or not self.succeeded(trial) or trial.measurement is None:
            return None
        return trial.measurement.judged_loss

    def succeeded(self, trial: Trial) -> bool:
        """It ran to its end within the memory limit."""
        return trial.outcome is Outcome.OK and not self._did_not_fit(trial)

    def _is_told_to_need_more(self, candidate: Candidate) -> bool:
        """Than what ran out of memory in this study, and than all that fitted, by the estimates of each."""
        if not self._failed_told or _outline(candidate) not in self._told:
            return False
        told = told_bytes(self._estimates.get(candidate.shape_key))
        least = min(
            (size for other, size in self._failed_told if _speaks_for(other, candidate)), default=None
        )
        if told is None or least is None:
            return False
        return told >= (1 + ALIKE) * max(least, *(size for _, size in self._fitted_told), 0)

    def _told_of(self, trials: Iterable[Trial]) -> list[tuple[Candidate, int]]:
        """Those of which something was told, with the bytes."""
        found = ((t.candidate, told_bytes(self._estimates.get(t.candidate.shape_key))) for t in trials)
        return [(candidate, told) for candidate, told in found if told is not None]

    def _did_not_fit(self, trial: Trial) -> bool:
        return trial.outcome in OUT_OF_MEMORY or exceeds(trial.measurement, self._memory_limit_bytes)


def by_adapter(candidates: Iterable[Candidate]) -> dict[Adapter, list[Candidate]]:
    """Each adapter's candidates, in their order."""
    groups: dict[Adapter, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.adapter, []).append(candidate)
    return groups


def told_bytes(estimate: Estimate | None) -> int | None:
    """What tensors were told to need, which one model's shapes can be ordered by; None where nothing was."""
    if estimate is None:
        return None
    return estimate.peak_allocated_bytes or estimate.peak_tensor_bytes


def _speaks_for(failed: Candidate, other: Candidate) -> bool:
    """Estimates of the two count the same: of frozen embeddings, a CPU need not hold all that is told."""
    same = failed.level.weight_dtype == other.level.weight_dtype
    return same and (failed.adapter.method is not Method.FULL or other.adapter.method is Method.FULL)


def _outline(candidate: Candidate) -> tuple[object, ...]:
    """Equal for candidates of one shape, and for few others; found in no time."""
    adapter = candidate.adapter
    return candidate.level, candidate.micro_batch, adapter.method, adapter.rank, adapter.targets


def _any_needs_less(known: Mapping[Adapter, Sequence[Candidate]], candidate: Candidate) -> bool:
    """Only candidates with the same adapter are comparable."""
    return any(needs_at_least(candidate, other) for other in known.get(candidate.adapter, ()))
