"""The second half of a search: what is trained, for how long, at which rates, with how many seeds.

Successive halving on token budgets. Many adapters train shortly, the better ones at other rates too; a few
train on, on the same rows in the same order, with two seeds and more while they cannot be told apart. A
training is started only if what must follow it can still be paid for. Knows nothing of processes or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TypeVar

from .comparison import comparable_parts, exceeds_finish, relative_excess, weighted_score
from .domain import Adapter, Candidate, Outcome, Rung, Trial, TrialPlan, Weights
from .evidence import Evidence, by_adapter
from .paired import Run, compare, each_confidence, seed_spread
from .priors import prior_quality
from .probing import level_like
from .quality import run_of
from .tuning import at_rate, is_plateau, is_unstable, with_less_alpha, with_more_capacity

R = TypeVar("R")

RUNG_FACTOR = 4
"""Each rung trains so many times as long as the one before, …"""

SHORT_FACTOR = 2
"""… and the finalists only so many times, where time allows: what is learnt late is seen early then."""

SPEED_CREDIT = 0.04
"""Where quality comes first: excess loss, as a share, that the fastest of the arms is forgiven when it is
decided who goes on."""

MIN_TRAIN_STEPS = 20
"""Below this a held-out loss tells of the warm-up, not of the adapter."""

FINALISTS = 3

SEEDS = 2
"""Of each finalist, at least."""

MOST_SEEDS = 5

MOST_RATES = 3
"""Steps of a sweep in one direction."""

WIDTH_SOUGHT = 0.02
"""Seeds are added until intervals between finalists are this share of the loss to either side."""

STILL_IN = 0.15
"""A finalist whose first training is this far behind the best, as a share, gets no second."""

SAME_RATE = 0.02
"""Two rates of one adapter whose losses differ by a smaller share may both go on."""

GOAL_SHARE = 0.9
"""Of the time that is left; what estimates of trials are short of."""

_Asking = Generator[TrialPlan, None, R]
"""As in :mod:`.probing`: yields each trial that it wants and reads its result from the evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What may still be spent."""

    seconds: float
    trials: int
    full_steps: int
    """Optimizer steps of the user's whole training."""
    setup_s: float
    """Wall time of a training beside its steps, until one has been seen."""
    finish_limit_s: float | None = None
    quality_first: bool = True
    """What learns less is not recommended, however fast it is."""


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained next, from all trials so far."""

    candidates: Sequence[Candidate]
    evidence: Evidence
    weights: Weights
    room: Room

    def next_trial(self) -> TrialPlan | None:
        """None where nothing more is wanted or can be paid for."""
        return next((plan for plan in self._wanted() if self._known(plan) is None), None)

    def conclusion(self) -> str:
        """Whether more time would change the answer, in a sentence."""
        steps = max((t.plan.train_steps for t in self.evidence.trainings), default=0)
        runs = {candidate: own for candidate, own in self._runs_at(steps).items() if len(own) > 1}
        if steps == 0 or len(runs) < 2:
            return "the budget allows no further training"
        width = max(_doubts(runs).values())
        if width <= WIDTH_SOUGHT:
            return (
                f"losses of the finalists are known to ± {width:.1%}, so more time would not change the "
                "answer at this length of training"
            )
        return f"finalists are known apart to ± {width:.1%} only; more time would allow more seeds"

    # What is wanted

    def _wanted(self) -> _Asking[None]:
        front = self._front()
        if not front:
            return
        lengths = self._lengths(front)
        line = yield from self._first_rung(front, lengths)
        for rung in range(1, len(lengths) - 1):
            line = yield from self._middle_rung(line, lengths, rung)
        yield from self._final_rung(line, lengths)

    def _first_rung(self, front: Sequence[Candidate], lengths: Sequence[int]) -> _Asking[list[Candidate]]:
        """Every adapter at its usual rate, then at others, the best so far first.

        Returns those that go on, the best first.
        """
        steps, goal = lengths[0], lengths[-1]
        arms: list[Candidate] = []
        reserve_s = self._reserve_s(front, lengths, 0)
        for place, candidate in enumerate(front):
            reason = "its method's usual rate" if place else "the front-runner, at its method's usual rate"
            arm = yield from self._attempt(candidate, steps, goal, reason, 0.0 if place == 0 else reserve_s)
            if arm is not None:
                arms.append(arm)
        tried = list(arms)
        ranked = self._ranked(arms, steps)
        if ranked:
            reserve_s = self._reserve_s(ranked[:FINALISTS], lengths, 0)
        for arm in ranked:
            tried += yield from self._sweep(arm, steps, goal, reserve_s)
        for arm in self._ranked(tried, steps)[:1]:
            for moved, reason in self._moves(arm, steps):
                found = yield from self._attempt(moved, steps, goal, reason, reserve_s)
                if found is not None:
                    tried.append(found)
        return self._distinct(self._ranked(tried, steps), steps)

    def _attempt(
        self, candidate: Candidate, steps: int, goal: int, reason: str, reserve_s: float
    ) -> _Asking[Candidate | None]:
        """Train shortly; after a divergence again at lower rates. None where nothing came of it."""
        if self.evidence.measured(candidate) is None:
            probe = TrialPlan(candidate=candidate, rung=Rung.PROBE, reason=reason)
            if not self._affords(candidate, steps, reserve_s):
                return None
            yield probe
            if self.evidence.measured(candidate) is None:
                return None
        for _ in range(MOST_RATES):
            if not (yield from self._train(candidate, steps, goal, reason, reserve_s)):
                return None
            if self.evidence.loss(candidate, steps) is not None:
                return candidate
            trial = self.evidence.trained(candidate, steps)
            if trial is None or trial.outcome is not Outcome.DIVERGED:
                return None
            reason = f"a lower rate, because it diverged at {candidate.learning_rate:g}"
            candidate = at_rate(candidate, -1)
        return None

    def _sweep(self, arm: Candidate, steps: int, goal: int, reserve_s: float) -> _Asking[list[Candidate]]:
        """Rates about the arm's, uphill while that helps, else downhill; all that succeeded."""
        found = [arm]
        best = self.evidence.loss(arm, steps)
        for direction, word in ((1, "higher"), (-1, "lower")):
            for distance in range(1, MOST_RATES + 1):
                rival = at_rate(arm, direction * distance)
                reason = f"a {word} rate than {arm.learning_rate:g} compared"
                if not (yield from self._train(rival, steps, goal, reason, reserve_s)):
                    return found
                loss = self.evidence.loss(rival, steps)
                if loss is None:
                    break
                found.append(rival)
                if best is not None and loss >= best:
                    break
                best = loss
            if best is not None and best != self.evidence.loss(arm, steps):
                break
        return found

    def _moves(self, arm: Candidate, steps: int) -> Iterator[tuple[Candidate, str]]:
        """What the best training so far suggests."""
        trial = self.evidence.trained(arm, steps)
        if trial is None or trial.measurement is None:
            return
        if is_unstable(trial.measurement) and (calmer := with_less_alpha(arm)) is not None:
            yield calmer, f"less alpha, because the loss of trial {trial.number} jumps"
        if is_plateau(trial.measurement):
            known = {t.candidate.adapter for t in self.evidence.trainings}
            for larger in with_more_capacity(arm, self._leaders(arm)):
                if larger.adapter not in known or self.evidence.trained(larger, steps) is not None:
                    yield larger, f"more capacity, because the loss of trial {trial.number} no longer fell"
                    return

    def _leaders(self, arm: Candidate) -> list[Candidate]:
        """Each adapter's candidate at the level of this one."""
        return [level_like(arm, own) for own in by_adapter(self.candidates).values()]

    def _middle_rung(
        self, line: Sequence[Candidate], lengths: Sequence[int], rung: int
    ) -> _Asking[list[Candidate]]:
        """The first in line go on, more than will be finalists; they then stand before the rest."""
        steps, goal = lengths[rung], lengths[-1]
        places = max(FINALISTS + 1, math.ceil(len(line) / RUNG_FACTOR))
        reserve_s = self._reserve_s(line[:FINALISTS], lengths, rung)
        tried = []
        for place, arm in enumerate(line[:places]):
            reason = f"place {place + 1} after {lengths[rung - 1]} steps"
            if not (yield from self._train(arm, steps, goal, reason, reserve_s)):
                break
            tried.append(arm)
        return [*self._ranked(tried, steps), *(arm for arm in line if arm not in tried)]

    def _final_rung(self, line: Sequence[Candidate], lengths: Sequence[int]) -> _Asking[None]:
        """Finalists, with as many seeds as it takes to tell them apart, if that can be paid for."""
        goal = lengths[-1]
        finalists: list[Candidate] = []
        for candidate in line:
            if len(finalists) == FINALISTS:
                break
            reason = f"finalist {len(finalists) + 1}"
            # Two are compared with one seed each rather than one with two; a third comes when all have two.
            more = [*finalists, candidate] if len(finalists) > 1 else []
            reserve_s = sum((SEEDS - 1) * self._cost_s(each, goal) for each in more)
            if not (yield from self._train(candidate, goal, goal, reason, reserve_s)):
                break
            if self.evidence.loss(candidate, goal) is not None:
                finalists.append(candidate)
        if len(lengths) > 1:  # else rates were compared at this very length
            finalists += yield from self._final_rates(finalists, goal)
        contenders = self._contenders(finalists, goal)
        for replicate in range(1, MOST_SEEDS):
            if len(finalists) < 2 and replicate >= SEEDS:
                return
            if replicate >= SEEDS:
                contenders = self._undecided(contenders, goal)
            for candidate in contenders:
                reason = "another seed" if replicate < SEEDS else "another seed, to tell finalists apart"
                if not (yield from self._train(candidate, goal, goal, reason, 0.0, replicate=replicate)):
                    return

    def _final_rates(self, finalists: Sequence[Candidate], goal: int) -> _Asking[list[Candidate]]:
        """The leader at the rates beside its own: short trainings favour high ones, so the lower comes first.

        Returns those that succeeded.
        """
        if not finalists:
            return []
        leader = self._ranked(finalists, goal)[0]
        reserve_s = sum((SEEDS - 1) * self._cost_s(each, goal) for each in finalists[:2])
        found: list[Candidate] = []
        for direction, word in ((-1, "lower"), (1, "higher")):
            rival = at_rate(leader, direction)
            if rival in finalists:
                continue
            reason = f"the leader at a {word} rate, now that it trains longer"
            if not (yield from self._train(rival, goal, goal, reason, reserve_s)):
                break
            loss, best = self.evidence.loss(rival, goal), self.evidence.loss(leader, goal)
            if loss is None or best is None:
                continue
            found.append(rival)
            if loss < best:
                break
        return found

    # What was found

    def _front(self) -> list[Candidate]:
        """The best measured candidate of each adapter, by measured speed and memory and by prior quality."""
        begun = min((trial.number for trial in self.evidence.trainings), default=math.inf)
        measured = [
            (candidate, measurement)
            for candidate in self.candidates
            if (measurement := self.evidence.measured(candidate)) is not None
            and self.evidence.probes[candidate.shape_key].number < begun
        ]
        limit_s, steps = self.room.finish_limit_s, self.room.full_steps
        in_time = [pair for pair in measured if not exceeds_finish(pair[1], steps, limit_s)]
        measured = in_time or measured
        parts = comparable_parts([measurement for _, measurement in measured])
        priors = [prior_quality(candidate.adapter) for candidate, _ in measured]
        scores = [
            weighted_score({**part, "quality": prior / max(priors)}, self.weights)
            for part, prior in zip(parts, priors, strict=True)
        ]
        ranked = sorted(zip(scores, measured, strict=True), key=lambda item: -item[0])
        best: dict[Adapter, Candidate] = {}
        for _, (candidate, _) in ranked:
            best.setdefault(candidate.adapter, candidate)
        return list(best.values())

    def _ranked(self, arms: Sequence[Candidate], steps: int) -> list[Candidate]:
        """Arms that succeeded at this length, the most promising first.

        Where quality comes first, by loss, with some credit for speed; else by score.
        """
        losses = {arm: loss for arm in arms if (loss := self.evidence.loss(arm, steps)) is not None}
        if not losses:
            return []
        if not self.room.quality_first:
            scores = self._scores(losses)
            return sorted(losses, key=lambda arm: -scores[arm])
        excess = dict(zip(losses, relative_excess(list(losses.values())), strict=True))
        speeds = {arm: self._speed(arm) for arm in losses}
        fastest = max(speeds.values()) or 1.0
        return sorted(losses, key=lambda arm: excess[arm] - SPEED_CREDIT * speeds[arm] / fastest)

    def _speed(self, arm: Candidate) -> float:
        measurement = self.evidence.measured(arm)
        return (measurement.speed if measurement else None) or 0.0

    def _scores(self, losses: Mapping[Candidate, float]) -> dict[Candidate, float]:
        measurements = {arm: self.evidence.measured(arm) for arm in losses}
        known = [m for m in measurements.values() if m is not None]
        parts = comparable_parts(known, losses=[losses[a] for a, m in measurements.items() if m is not None])
        scored = iter(parts)
        return {
            arm: weighted_score(next(scored), self.weights) if measurement is not None else 0.0
            for arm, measurement in measurements.items()
        }

    def _distinct(self, ranked: Sequence[Candidate], steps: int) -> list[Candidate]:
        """One arm an adapter, its best; two of the best adapter where their losses hardly differ."""
        chosen: list[Candidate] = []
        seconds: list[Candidate] = []
        for arm in ranked:
            twin = next((other for other in chosen if other.adapter == arm.adapter), None)
            if twin is None:
                chosen.append(arm)
                continue
            loss, best = self.evidence.loss(arm, steps), self.evidence.loss(twin, steps)
            is_close = loss is not None and best is not None and loss - best <= SAME_RATE * abs(best)
            if is_close and twin == chosen[0] and not seconds:
                seconds.append(arm)
        return [*chosen[:2], *seconds, *chosen[2:]]

    def _contenders(self, finalists: Sequence[Candidate], goal: int) -> list[Candidate]:
        """Those that one seed does not rule out."""
        losses = {c: loss for c in finalists if (loss := self.evidence.loss(c, goal)) is not None}
        if not losses:
            return []
        excess = dict(zip(losses, relative_excess(list(losses.values())), strict=True))
        if self.room.quality_first:
            return [c for c in losses if excess[c] <= STILL_IN]
        scores = self._scores(losses)
        best = max(scores.values())
        return [c for c in losses if scores[c] >= (1 - STILL_IN) * best or excess[c] == 0]

    def _undecided(self, contenders: Sequence[Candidate], goal: int) -> list[Candidate]:
        """Those that are not known apart from the one with the lowest loss as well as is sought."""
        runs = {c: r for c, r in self._runs_at(goal).items() if c in contenders}
        if len(runs) < 2:
            return []
        doubts = _doubts(runs)
        unsure = {candidate for candidate, doubt in doubts.items() if doubt > WIDTH_SOUGHT}
        return [c for c in contenders if c in unsure or (unsure and c in runs and c not in doubts)]

    def _runs_at(self, steps: int) -> dict[Candidate, list[Run]]:
        """Successful trainings of this length by candidate, in the order of seeds."""
        runs: dict[Candidate, list[Run]] = {}
        for trial in sorted(self.evidence.trainings, key=lambda t: t.plan.replicate):
            measurement = trial.measurement
            if trial.plan.train_steps != steps or not self.evidence.succeeded(trial) or measurement is None:
                continue
            if (loss := measurement.judged_loss) is not None:
                runs.setdefault(trial.candidate, []).append(run_of(trial, measurement, loss))
        return runs

    # What can be paid for

    def _train(
        self, candidate: Candidate, steps: int, goal: int, reason: str, reserve_s: float, replicate: int = 0
    ) -> _Asking[bool]:
        """Want this training, unless it cannot be paid for or its time is over; whether there is one."""
        plan = TrialPlan(
            candidate=candidate,
            rung=Rung.TRAIN,
            replicate=replicate,
            train_steps=steps,
            goal_steps=goal,
            reason=reason,
        )
        if self._known(plan) is None and (
            self._is_over(steps, replicate) or not self._affords(candidate, steps, reserve_s)
        ):
            return False
        yield plan
        return True

    def _is_over(self, steps: int, replicate: int) -> bool:
        """A later part of the search has begun: what was decided before stays."""
        return any(
            (t.plan.train_steps, t.plan.replicate) > (steps, replicate) for t in self.evidence.trainings
        )

    def _affords(self, candidate: Candidate, steps: int, reserve_s: float) -> bool:
        if not self.evidence.trainings:
            return True  # without any training there is nothing to recommend
        if self.room.trials < (SEEDS * 2 if reserve_s else 1):
            return False
        return self._cost_s(candidate, steps) + reserve_s <= self.room.seconds

    def _reserve_s(self, likely: Sequence[Candidate], lengths: Sequence[int], rung: int) -> float:
        """What the rungs after this one will cost: two finalists, at the average of these candidates."""

        def average_s(steps: int) -> float:
            return fmean(self._cost_s(candidate, steps) for candidate in likely)

        middle_s = sum(FINALISTS * average_s(steps) for steps in lengths[rung + 1 : -1])
        seeds = SEEDS if len(lengths) > 1 else SEEDS - 1  # a single rung has given each its first
        return middle_s + 2 * seeds * average_s(lengths[-1])

    def _cost_s(self, candidate: Candidate, steps: int) -> float:
        measurement = self.evidence.measured(candidate)
        step_s = measurement.step_s_mean if measurement else None
        if step_s is None:  # not probed yet: as slow as the slowest that was
            known = [trial.measurement for trial in self.evidence.probes.values()]
            step_s = max((each.step_s_mean or 0.0 for each in known if each), default=0.0)
        return self._setup_s() + steps * step_s

    def _setup_s(self) -> float:
        besides = [
            trial.wall_s - trial.measurement.measured_s
            for trial in self.evidence.trainings
            if trial.wall_s is not None and trial.measurement is not None and trial.reused_from is None
        ]
        return max(0.0, median(besides)) if besides else self.room.setup_s

    def _lengths(self, front: Sequence[Candidate]) -> list[int]:
        """Of the trainings of each rung, shortest first.

        Finalists get the user's whole training, or a half, a quarter … of it: as much as leaves time for a
        small tournament before them. What the first training was planned for stays.
        """
        if self.evidence.trainings:
            plan = self.evidence.trainings[0].plan
            return rungs(plan.goal_steps or plan.train_steps, plan.train_steps)
        seconds = GOAL_SHARE * self.room.seconds
        goal = self.room.full_steps
        while goal // 2 >= MIN_TRAIN_STEPS and self._tournament_s(front[:4], rungs(goal), swept=2) > seconds:
            goal //= 2
        for lengths, swept in (([goal], FINALISTS), (rungs(goal, goal // SHORT_FACTOR), FINALISTS - 1)):
            if lengths[0] >= MIN_TRAIN_STEPS and self._tournament_s(front, lengths, swept=swept) <= seconds:
                return lengths
        return rungs(goal)

    def _tournament_s(self, front: Sequence[Candidate], lengths: Sequence[int], *, swept: int) -> float:
        """What these adapters cost, so many of them at two rates more, and two finalists."""
        shorts = [self._cost_s(candidate, lengths[0]) for candidate in front]
        rates_s = 2 * swept * fmean(shorts)
        return sum(shorts) + rates_s + self._reserve_s(front, lengths, 0)

    def _known(self, plan: TrialPlan) -> Trial | None:
        if plan.rung is Rung.PROBE:
            return self.evidence.probes.get(plan.candidate.shape_key)
        return self.evidence.trained(plan.candidate, plan.train_steps, plan.replicate)


def rungs(goal: int, first: int | None = None) -> list[int]:
    """Lengths of trainings, shortest first: the goal and those before it, each a quarter of the next.

    Args:
        goal: steps of the finalists.
        first: the shortest; None for the goal's last quarter of a quarter … that is long enough to tell.
    """
    if first is None:
        first = goal
        while first // RUNG_FACTOR >= MIN_TRAIN_STEPS:
            first //= RUNG_FACTOR
    lengths = [first]
    while lengths[-1] * RUNG_FACTOR <= goal // SHORT_FACTOR:
        lengths.append(lengths[-1] * RUNG_FACTOR)
    return lengths if lengths[-1] == goal else [*lengths, goal]


def _doubts(runs: Mapping[Candidate, Sequence[Run]]) -> dict[Candidate, float]:
    """Half the interval of each candidate's difference to the lowest loss, as a share of that.

    The candidate with the lowest loss itself has none.
    """
    means = {candidate: fmean(run.loss for run in own) for candidate, own in runs.items()}
    best = min(means, key=means.__getitem__)
    spread, confidence = seed_spread(list(runs.values())), each_confidence(len(runs))
    scale = abs(means[best]) or 1.0
    return {
        candidate: compare(own, runs[best], spread).halfwidth(confidence) / scale
        for candidate, own in runs.items()
        if candidate != best
    }
