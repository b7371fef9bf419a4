"""Which trial next, and when to stop: a plain search that remembers nothing but the stored trials.

Asked with the same trials it gives the same answer, so an interrupted study goes on where it stood.

First the speed: probes of the adapter with the best prior find a level that fits, then vary its settings
one at a time; the other adapters are probed at the level found. Then the quality: the front-runners, each
a different adapter, train on equal budgets. Knows nothing of devices, processes or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import TypeVar

from .comparison import OUT_OF_MEMORY, comparable_parts, exceeds, weighted_score
from .domain import Adapter, Candidate, Measurement, Outcome, Rung, Trial, TrialPlan, TrialState, Weights
from .priors import prior_quality
from .settings import needs_at_least, settings_of, uncheckpointed, varied

R = TypeVar("R")

FINALISTS = 3
"""Adapters that are trained."""

PROBE_BUDGET_SHARE = 0.5
"""Part of the budget that probes may spend; training gets the rest."""

TRAIN_BUDGET_SHARE = 0.8
"""Part of a training's time that is planned as steps; evaluation, unseen by probes, takes the rest."""

MIN_TRAIN_STEPS = 20
"""Below this a held-out loss tells of the warm-up, not of the adapter."""

MAX_RIVALS = 2
"""Values of one setting that are compared with the best so far."""

_COMPARED = {
    "precision": "precision compared",
    "checkpointing": "checkpointing compared",
    "quantization": "quantization compared",
    "loss": "loss implementations compared",
    "compile": "compilation compared",
    "optimizer": "optimizers compared",
    "attention": "attention kernels compared",
}
"""Settings beside the micro-batch, by how much they were seen to change, with the reason to vary each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """What a search may spend, and how far it has got."""

    memory_limit_bytes: int | None
    max_trials: int
    budget_s: float
    spent_s: float
    full_steps: int
    """Optimizer steps of the user's whole training."""
    can_learn: bool = True
    """False where weights are random: then speed and memory are all that can be measured."""
    probe_s_guess: float = 30.0
    """Wall time of a probe, until one has been measured."""


@dataclass(frozen=True, slots=True)
class RunTrial:
    """Run this next."""

    plan: TrialPlan


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing more to run."""

    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOutline:
    """What a search would run, seen before it starts."""

    candidates: int
    adapters: int
    max_probes: int
    max_trainings: int
    """Trainings that succeed; one that fails is replaced while trials are left."""
    max_trials_s: float
    """Time in trials after which none is started any more; the one under way is finished."""


def next_step(
    candidates: Sequence[Candidate],
    trials: Sequence[Trial],
    limits: SearchLimits,
    weights: Weights,
    *,
    cannot_fit: Sequence[Candidate] = (),
) -> RunTrial | Stop:
    """The next trial of a study, from all its trials so far.

    An unfinished trial comes first whatever the limits: it had been granted. No candidate is repeated at
    the same rung, no shape in a second probe.

    Args:
        cannot_fit: known to need more memory than there is; neither they nor larger ones are run.
    """
    unfinished = [trial for trial in trials if trial.state is not TrialState.FINISHED]
    if unfinished:
        return RunTrial(min(unfinished, key=lambda trial: trial.number).plan)
    if sum(trial.reused_from is None for trial in trials) >= limits.max_trials:
        return Stop(f"the limit of {limits.max_trials} trials was reached")
    if limits.spent_s >= limits.budget_s:
        return Stop(f"the budget of {limits.budget_s / 60:.3g} minutes was spent")
    evidence = _Evidence(trials, limits.memory_limit_bytes, cannot_fit)
    plan = None if evidence.trainings else _next_probe(candidates, evidence, limits, weights)
    if plan is None and limits.can_learn:
        plan = _next_training(candidates, evidence, limits, weights)
    if plan is not None:
        return RunTrial(plan)
    if not any(evidence.measured(candidate) for candidate in candidates):
        return Stop("nothing fits: no probe ran to its end within the memory that there is")
    if not limits.can_learn:
        return Stop("the search is complete; quality cannot be measured without the model's weights")
    return Stop("the search is complete")


def outline(candidates: Sequence[Candidate], limits: SearchLimits) -> PlanOutline:
    """How far a search over these candidates would go at most."""
    shapes = {candidate.shape_key for candidate in candidates}
    reserve = _reserve(candidates, limits)
    return PlanOutline(
        candidates=len(candidates),
        adapters=len(_adapters(candidates)),
        max_probes=min(len(shapes), limits.max_trials - reserve),
        max_trainings=reserve,
        max_trials_s=limits.budget_s,
    )


class _Evidence:
    """What finished trials say about candidates, untried ones included."""

    def __init__(
        self, trials: Sequence[Trial], memory_limit_bytes: int | None, cannot_fit: Sequence[Candidate]
    ) -> None:
        self.probes = {t.candidate.shape_key: t for t in trials if t.plan.rung is Rung.PROBE}
        self.launched_probes = [trial for trial in self.probes.values() if trial.reused_from is None]
        self.trainings = [trial for trial in trials if trial.plan.rung is Rung.TRAIN]
        self._memory_limit_bytes = memory_limit_bytes
        self._cannot_fit = cannot_fit
        self._too_big = [*cannot_fit, *(trial.candidate for trial in trials if self._did_not_fit(trial))]

    def too_big(self, candidate: Candidate) -> bool:
        """This shape, or one that needs no more memory, did not fit or cannot."""
        return any(needs_at_least(candidate, failed) for failed in self._too_big)

    def cannot_fit(self, candidate: Candidate) -> bool:
        """This shape needs more memory than there is, without its having been run."""
        return any(needs_at_least(candidate, hopeless) for hopeless in self._cannot_fit)

    def settled(self, candidate: Candidate) -> bool:
        """A probe of this shape would tell nothing new."""
        return candidate.shape_key in self.probes or self.too_big(candidate)

    def measured(self, candidate: Candidate) -> Measurement | None:
        """Speed and memory of this shape, if it was probed, ran to its end and fits."""
        probe = self.probes.get(candidate.shape_key)
        if probe is None or not self.succeeded(probe) or self.too_big(candidate):
            return None
        return probe.measurement

    def has_measured(self) -> bool:
        """Some probe ran to its end and fits."""
        return any(self.measured(trial.candidate) for trial in self.probes.values())

    def succeeded(self, trial: Trial) -> bool:
        """It ran to its end within the memory limit."""
        return trial.outcome is Outcome.OK and not self._did_not_fit(trial)

    def _did_not_fit(self, trial: Trial) -> bool:
        return trial.outcome in OUT_OF_MEMORY or exceeds(trial.measurement, self._memory_limit_bytes)


_Asking = Generator[tuple[Candidate, str], None, R]
"""Yields each probe that it wants, with the reason, and reads the result from the evidence when resumed.

The caller runs it up to the first probe that is missing from the evidence; once that trial has run, the
whole is replayed.
"""


def _next_probe(
    candidates: Sequence[Candidate], evidence: _Evidence, limits: SearchLimits, weights: Weights
) -> TrialPlan | None:
    left = _probes_left(candidates, evidence, limits)
    if left <= 0:
        return None
    done = len(evidence.launched_probes)
    others = len(_adapters(candidates)) - 1
    # Refining one adapter's level may take half of the probes, and those that the others leave over.
    may_refine = done < max((done + left) // 2, done + left - others)
    for candidate, reason in _probing(candidates, evidence, weights, may_refine=may_refine):
        if not evidence.settled(candidate):
            return TrialPlan(candidate=candidate, rung=Rung.PROBE, reason=reason)
    return None


def _probing(
    candidates: Sequence[Candidate], evidence: _Evidence, weights: Weights, *, may_refine: bool
) -> _Asking[None]:
    best: Candidate | None = None
    by_adapter = _by_adapter(candidates)
    adapters = list(by_adapter)
    probed = {trial.candidate.adapter for trial in evidence.probes.values()}
    for position, own in enumerate(by_adapter.values()):
        if best is not None:
            yield from _first_fitting(_near(best, own), evidence, "another adapter at the level found")
            continue
        # Compiling takes long, and nobody can rely on its saving memory: it is only compared.
        plain = [candidate for candidate in own if not candidate.level.compile]
        if fitting := (yield from _first_fitting(plain, evidence, "the best prior that is left")):
            went_on = not probed.isdisjoint(adapters[position + 1 :])
            best = yield from _refine(fitting, own, evidence, weights, may_refine=may_refine and not went_on)


def _first_fitting(
    ladder: Iterable[Candidate], evidence: _Evidence, reason: str
) -> _Asking[Candidate | None]:
    """The first of these candidates, rung by rung of the ladder, that runs and fits.

    A rung is a level, checkpointed or not, with those of its micro-batches that may fit. Where the first of a
    rung does not fit, the leanest comes next: if that does not fit either, the rung is out. So it is after
    any other failure: that would repeat itself at every micro-batch.
    """
    for _, group in groupby(ladder, key=uncheckpointed):
        possible = [candidate for candidate in group if not evidence.cannot_fit(candidate)]
        if not possible:
            reason = "less memory, because a setting before it cannot fit"
            continue
        first, *rest = possible
        lean = rest[-1] if rest else None
        lean_fits = False
        for candidate in (first, *rest[-1:], *rest[:-1]):
            if evidence.too_big(candidate):
                continue
            yield candidate, reason
            reason = "less memory, because a setting before it failed"
            if evidence.measured(candidate) is None:
                if evidence.too_big(candidate):
                    continue
                break
            if candidate is not lean:
                return candidate
            lean_fits = True
        if lean_fits:
            return lean
    return None


def _refine(
    best: Candidate, own: Sequence[Candidate], evidence: _Evidence, weights: Weights, *, may_refine: bool
) -> _Asking[Candidate]:
    """Vary one setting after the other, the micro-batch last, and keep what serves the objective better.

    Micro-batches only shrink: a larger one than the first that fits has failed.
    """

    def beats(rival: Candidate, reason: str) -> _Asking[bool]:
        if may_refine:
            yield rival, reason
        ours, theirs = evidence.measured(best), evidence.measured(rival)
        if ours is None or theirs is None:
            return False
        our_score, their_score = (weighted_score(part, weights) for part in comparable_parts((ours, theirs)))
        return their_score > our_score

    for setting, reason in _COMPARED.items():
        for rival in varied(best, own, setting)[:MAX_RIVALS]:
            if (yield from beats(rival, reason)):
                best = rival
    for rival in varied(best, own, "micro_batch"):
        if rival.micro_batch > best.micro_batch:
            continue
        if not (yield from beats(rival, "a smaller micro-batch compared")):
            break
        best = rival
    return best


def _near(best: Candidate, own: Sequence[Candidate]) -> list[Candidate]:
    """Another adapter's candidate at the settings of the best, as far as it has them, and its leanest."""
    settings = settings_of(best)

    def differences(candidate: Candidate) -> int:
        return sum(value != settings[name] for name, value in settings_of(candidate).items())

    twin = min(own, key=differences)
    lean = [candidate for candidate in own if uncheckpointed(candidate) == uncheckpointed(twin)][-1]
    return list(dict.fromkeys((twin, lean)))


def _next_training(
    candidates: Sequence[Candidate], evidence: _Evidence, limits: SearchLimits, weights: Weights
) -> TrialPlan | None:
    """The next finalist; one whose training failed is replaced by the adapter that follows."""
    entered = {trial.candidate.adapter for trial in evidence.trainings}
    succeeded = sum(evidence.succeeded(trial) for trial in evidence.trainings)
    open_places = min(
        FINALISTS - succeeded, limits.max_trials - len(evidence.launched_probes) - len(evidence.trainings)
    )
    front = [c for c in _front(candidates, evidence, weights) if c.adapter not in entered]
    finalists = front[: max(0, open_places)]
    if not finalists:
        return None
    if evidence.trainings:
        steps = evidence.trainings[0].plan.train_steps
    else:
        steps = _train_steps(finalists, evidence, limits)
    place = len(evidence.trainings) + 1
    return TrialPlan(
        candidate=finalists[0], rung=Rung.TRAIN, train_steps=steps, reason=f"front-runner {place}"
    )


def _front(candidates: Sequence[Candidate], evidence: _Evidence, weights: Weights) -> list[Candidate]:
    """The best measured candidate of each adapter, by measured speed and memory and by prior quality."""
    measured = [(c, m) for c in candidates if (m := evidence.measured(c)) is not None]
    parts = comparable_parts([measurement for _, measurement in measured])
    priors = [prior_quality(candidate.adapter) for candidate, _ in measured]
    scores = [
        weighted_score({**part, "quality": prior / max(priors)}, weights)
        for part, prior in zip(parts, priors, strict=True)
    ]
    ranked = sorted(zip(scores, measured, strict=True), key=lambda item: -item[0])
    best: dict[Adapter, Candidate] = {}
    for _, (candidate, _) in ranked:
        best.setdefault(candidate.adapter, candidate)
    return list(best.values())


def _train_steps(finalists: Sequence[Candidate], evidence: _Evidence, limits: SearchLimits) -> int:
    """Equal steps for all finalists: what the slowest can do in its part of the time that is left."""
    probes = [evidence.probes[candidate.shape_key] for candidate in finalists]
    step_s = [p.measurement.step_s_mean for p in probes if p.measurement and p.measurement.step_s_mean]
    if not step_s:
        return min(MIN_TRAIN_STEPS, limits.full_steps)
    setups_s = [
        (p.wall_s or 0.0) - p.measurement.measured_s for p in evidence.launched_probes if p.measurement
    ]
    setup_s = max(setups_s, default=limits.probe_s_guess)
    share_s = (limits.budget_s - limits.spent_s) / len(finalists)
    steps = int((share_s - setup_s) * TRAIN_BUDGET_SHARE / max(step_s))
    return min(limits.full_steps, max(MIN_TRAIN_STEPS, steps))


def _probes_left(candidates: Sequence[Candidate], evidence: _Evidence, limits: SearchLimits) -> int:
    """Probes that the limits on trials and time still allow; one may begin while probing has time left."""
    # While nothing fits there is nothing to train: one trial is reserve enough.
    reserve = _reserve(candidates, limits)
    if not evidence.has_measured():
        reserve = min(reserve, 1, limits.max_trials - 1)
    by_count = limits.max_trials - reserve - len(evidence.launched_probes)
    durations = [trial.wall_s for trial in evidence.launched_probes if trial.wall_s]
    probe_s = fmean(durations) if durations else limits.probe_s_guess
    share = PROBE_BUDGET_SHARE if limits.can_learn else 1.0
    by_time = math.ceil((limits.budget_s * share - limits.spent_s) / probe_s)
    return min(by_count, by_time)


def _reserve(candidates: Sequence[Candidate], limits: SearchLimits) -> int:
    """Trials that are kept for training."""
    if not limits.can_learn:
        return 0
    return min(FINALISTS, limits.max_trials // 2, len(_adapters(candidates)))


def _adapters(candidates: Iterable[Candidate]) -> list[Adapter]:
    return list(dict.fromkeys(candidate.adapter for candidate in candidates))


def _by_adapter(candidates: Iterable[Candidate]) -> dict[Adapter, list[Candidate]]:
    """Each adapter's candidates, in their order."""
    groups: dict[Adapter, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.adapter, []).append(candidate)
    return groups
