"""The second half of a search: what is trained, for how long, at which rates, with how many seeds.

All trainings of a study are equally long, since short ones mislead about long ones. Each next one is the one
that promises most for its time: another adapter at its usual rate, or a rate beside the best of one that was
trained (:mod:`.promise`). The best get second seeds, and more while they cannot be told apart. Everything is
told from the trials so far; knows nothing of processes and clocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from .comparison import comparable_parts, exceeds_finish, relative_excess, weighted_score
from .domain import Adapter, Candidate, Outcome, Rung, TrialPlan, Weights
from .evidence import Evidence, by_adapter
from .paired import Run, compare, each_confidence, seed_spread
from .priors import prior_quality
from .probing import ADAPTERS, level_like, near
from .promise import Arm, chance_of_level, hope_of_rate, hope_of_seed, hope_untried, told_by_one_seed
from .quality import run_of
from .tuning import at_rate, is_plateau, is_unstable, with_less_alpha, with_more_capacity

SPEED_CREDIT = 0.04
"""Where quality comes first: excess loss, as a share, that the fastest is forgiven when it is decided who
gets another seed."""

MIN_TRAIN_STEPS = 20
"""Below this a held-out loss tells of the warm-up, not of the adapter."""

FINALISTS = 3

SEEDS = 2
"""Of each finalist, where time allows."""

MOST_SEEDS = 5

LOOK_AT_SEEDS_AFTER = 8
"""Trainings that succeeded; then the best of them is repeated, since it is likely to stay the best, …"""

SEEDS_MATTER = 0.02
"""… and if seeds move the loss by more than this share of it, more are repeated while others are tried: what
looks best first is often lucky."""

LEAST_ADAPTERS = 3
"""Trainings are as long as leaves time for so many adapters …"""

LEAST_RATES = 2
"""… and so many rates more."""

LEAST_HOPE = 0.01
"""What promises less is not worth any time."""

WIDTH_SOUGHT = 0.02
"""Seeds are added until intervals between finalists are this share of the loss to either side."""

STILL_IN = 0.15
"""A finalist whose first training is this far behind the best, as a share, gets no second."""

GOAL_SHARE = 0.9
"""Of the time that is left; what estimates of trials are short of."""


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
class _Move:
    """A training that might come next."""

    candidate: Candidate
    hope: float
    reason: str
    replicate: int = 0


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained next, from all trials so far."""

    candidates: Sequence[Candidate]
    evidence: Evidence
    weights: Weights
    room: Room

    def next_trial(self) -> TrialPlan | None:
        """None where nothing more is wanted or can be paid for."""
        arms = self._arms()
        if not arms:
            return None
        goal = self._goal(arms)
        if (plan := self._first_look_at_seeds(goal)) is not None:
            return plan
        exploring = self._most_promising(arms, goal) if self._is_exploring(goal) else None
        return exploring or self._next_seed(goal)

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

    def _is_exploring(self, goal: int) -> bool:
        """Other adapters and rates may still come: until two have second seeds, or while seeds matter."""
        repeated = {trial.candidate for trial in self.evidence.trainings if trial.plan.replicate}
        return len(repeated) < SEEDS or self._seeds_matter(goal)

    def _first_look_at_seeds(self, goal: int) -> TrialPlan | None:
        """A second seed of the best of the first few: what seeds do decides how all others are read."""
        means = self._means(goal)
        if len(means) < LOOK_AT_SEEDS_AFTER or any(t.plan.replicate for t in self.evidence.trainings):
            return None
        best = min(means, key=means.__getitem__)
        if self.evidence.too_big(best) or not self._affords(best, goal, self._reserve_s(goal)):
            return None
        return _plan(best, goal, "another seed, to see what seeds do", 1)

    def _repeats(self, goal: int) -> Iterator[_Move]:
        """Another seed of the best, and of what might be better, where seeds matter."""
        if not self._seeds_matter(goal):
            return
        means, counts, runs = self._means(goal), self._counts(goal), self._runs_at(goal)
        # A shape that fitted once and then did not is not tried a third time.
        fitting = [candidate for candidate in means if not self.evidence.too_big(candidate)]
        if not fitting:
            return
        best, *others = sorted(fitting, key=means.__getitem__)
        level = abs(means[best]) or 1.0
        for candidate in (best, *others):
            rival = means[others[0]] if candidate == best and others else means[best]
            behind = abs(means[candidate] - rival) / level
            share = self._seed_share(goal, runs[candidate])
            hope = hope_of_seed(behind, share or 0.0, counts[candidate])
            if counts[candidate] < MOST_SEEDS and hope >= LEAST_HOPE:
                reason = f"another seed, since seeds move the loss by {share:.1%}"
                yield _Move(candidate, hope, reason, counts[candidate])

    def _most_promising(self, arms: Sequence[Arm], goal: int) -> TrialPlan | None:
        """The training with the most hope for its time, among those that leave time for two second seeds."""
        reserve_s = self._reserve_s(goal)
        telling = told_by_one_seed(self._seed_share(goal) or 0.0)
        new = (replace(move, hope=telling * move.hope) for move in self._moves(arms, goal))
        moves = [*new, *self._repeats(goal)]
        prices_s = {move: self.price_s(move.candidate, goal) for move in moves}
        for move in sorted(prices_s, key=lambda each: -each.hope / (prices_s[each] or 1.0)):
            if not self._affords(move.candidate, goal, 0.0 if move.replicate else reserve_s):
                continue
            if self.evidence.measured(move.candidate) is None:
                return TrialPlan(candidate=move.candidate, rung=Rung.PROBE, reason=move.reason)
            return _plan(move.candidate, goal, move.reason, move.replicate)
        return None

    def _moves(self, arms: Sequence[Arm], goal: int) -> Iterator[_Move]:
        """Another adapter, a rate beside an adapter's best, or what the best training suggests."""
        shares = self._behind(self._at_first_seed(goal))
        for arm in arms:
            if not arm.rates:
                hope = hope_untried(arm)
                is_first = not self.evidence.trainings
                reason = f"{'the front-runner, at ' if is_first else ''}its method's usual rate"
                yield _Move(arm.candidate, hope, reason)
                continue
            if arm.best is None:
                if (step := arm.next_rate()) is not None:
                    tried = at_rate(arm.candidate, step + 1).learning_rate
                    reason = f"a lower rate, because it diverged at {tried:g}"
                    yield _Move(at_rate(arm.candidate, step), hope_untried(arm), reason)
                continue
            yield from self._rates(arm, shares, goal)
        yield from self._answers(arms, shares, goal)

    def _rates(self, arm: Arm, shares: Mapping[Candidate, float], goal: int) -> Iterator[_Move]:
        """Rates beside the adapter's best, and beside what seeds may have kept from being it."""
        assert arm.best is not None  # noqa: S101 - the caller asked
        own = at_rate(arm.candidate, arm.best)
        first = min(shares, key=shares.__getitem__)
        for known in sorted(arm.rates, key=lambda step: step != arm.best):
            tried, step = at_rate(arm.candidate, known), arm.beside(known)
            if step is None or tried not in shares:
                continue
            level = chance_of_level(shares[tried] - shares[own], self._doubt(goal, tried, own))
            doubt = self._doubt(goal, tried, first)
            hope = level * hope_of_rate(arm, shares[tried], beside=known, doubt=doubt)
            if hope >= LEAST_HOPE:
                word = "higher" if step > known else "lower"
                behind = f", {shares[tried]:.1%} behind the best" if shares[tried] else ", the best so far"
                yield _Move(
                    at_rate(arm.candidate, step), hope, f"a {word} rate than {tried.learning_rate:g}{behind}"
                )

    def _answers(self, arms: Sequence[Arm], shares: Mapping[Candidate, float], goal: int) -> Iterator[_Move]:
        """What the best training suggests beside a rate, once the rates beside its own are known."""
        leader = min(arms, key=lambda arm: self._share(arm, shares))
        if leader.best is None or leader.next_rate() is not None:
            return
        best = at_rate(leader.candidate, leader.best)
        trial = self.evidence.trained(best, goal)
        if trial is None or trial.measurement is None:
            return
        known = {each.candidate.adapter for each in self.evidence.trainings}
        found: list[tuple[Candidate, str]] = []
        if is_unstable(trial.measurement) and (calmer := with_less_alpha(best)) is not None:
            found.append((calmer, f"less alpha, because the loss of trial {trial.number} jumps"))
        if is_plateau(trial.measurement):
            larger = with_more_capacity(best, [level_like(best, own) for own in self._by_adapter().values()])
            reason = f"more capacity, because the loss of trial {trial.number} no longer fell"
            found += [(candidate, reason) for candidate in larger[:1]]
        for candidate, reason in found:
            is_possible = self.evidence.measured(candidate) or not self.evidence.settled(candidate)
            if candidate.adapter not in known and is_possible:
                yield _Move(candidate, hope_of_rate(leader, 0.0), reason)

    def _next_seed(self, goal: int) -> TrialPlan | None:
        """Another seed for the best few: a second for each before a third for any."""
        # A shape that fitted once and then did not, at another rate or seed, is not tried a third time.
        trained = [arm for arm in self._at_first_seed(goal) if not self.evidence.too_big(arm)]
        finalists = self._ranked(trained, goal)[:FINALISTS]
        contenders = self._contenders(finalists, goal)
        for replicate in range(1, MOST_SEEDS):
            if replicate >= SEEDS:
                if len(finalists) < 2:
                    return None
                contenders = self._undecided(contenders, goal)
            for candidate in contenders:
                if self.evidence.trained(candidate, goal, replicate) is not None:
                    continue
                if not self._affords(candidate, goal, 0.0):
                    return None
                reason = "another seed" if replicate < SEEDS else "another seed, to tell finalists apart"
                return _plan(candidate, goal, reason, replicate)
        return None

    # What was found

    def _arms(self) -> list[Arm]:
        """Up to eight adapters in the order of the candidates, at the settings that they are trained with."""
        groups = self._by_adapter()
        measured = {adapter: best for adapter, own in groups.items() if (best := self._best_shape(own))}
        if not measured:
            return []
        first = next(iter(measured.values()))
        last = max(self.evidence.probes.values(), key=lambda trial: trial.number).candidate.adapter
        tried = [*self.evidence.probes.values(), *self.evidence.trainings]
        given_up = {trial.candidate.adapter for trial in tried} - {last}
        found: list[Candidate] = []
        for adapter, own in groups.items():
            candidate = measured.get(adapter)
            if candidate is None and adapter not in given_up:
                candidate = self._unmeasured(first, own)
            if candidate is not None:
                found.append(candidate)
            if len(found) == ADAPTERS:
                break
        limit_s, steps = self.room.finish_limit_s, self.room.full_steps
        late = {
            candidate
            for candidate in found
            if (known := self.evidence.measured(candidate)) and exceeds_finish(known, steps, limit_s)
        }
        in_time = [candidate for candidate in found if candidate not in late] or found
        most = max(prior_quality(candidate.adapter) for candidate in in_time)
        return [self._arm(candidate, place, most) for place, candidate in enumerate(in_time)]

    def _arm(self, candidate: Candidate, place: int, most: float) -> Arm:
        """With what its rates came to; ``most`` is the best published quality."""
        steps = self._steps()
        rates: dict[int, float | None] = {}
        means = self._means(steps)
        gave_up = False
        for step in range(-Arm.MOST_RATES, Arm.MOST_RATES + 1) if steps else ():
            trial = self.evidence.trained(at_rate(candidate, step), steps)
            if trial is not None:
                rates[step] = means.get(trial.candidate)
                gave_up |= rates[step] is None and trial.outcome is not Outcome.DIVERGED
        shortfall = 1 - prior_quality(candidate.adapter) / most
        return Arm(candidate=candidate, place=place, shortfall=shortfall, rates=rates, gave_up=gave_up)

    def _best_shape(self, own: Sequence[Candidate]) -> Candidate | None:
        """Of one adapter's shapes that were measured the one with the best score for speed and memory."""
        measured = [(c, known) for c in own if (known := self.evidence.measured(c)) is not None]
        parts = comparable_parts([known for _, known in measured])
        scores = [weighted_score(part, self.weights) for part in parts]
        return max(zip(scores, measured, strict=True), key=lambda item: item[0])[1][0] if measured else None

    def _unmeasured(self, first: Candidate, own: Sequence[Candidate]) -> Candidate | None:
        """An adapter's candidate at the level found; None where it was probed, or cannot fit."""
        for candidate in near(first, own):
            if not self.evidence.settled(candidate):
                return candidate
            if not self.evidence.too_big(candidate):
                return None
        return None

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

    def _means(self, steps: int) -> dict[Candidate, float]:
        """Loss of each that was trained so long with its first seed, the mean over its seeds."""
        runs = self._runs_at(steps)
        return {
            candidate: fmean(run.loss for run in own)
            for candidate, own in runs.items()
            if self.evidence.loss(candidate, steps) is not None
        }

    def _counts(self, steps: int) -> dict[Candidate, int]:
        """Seeds that each was trained with, whatever came of them."""
        counts: dict[Candidate, int] = {}
        for trial in self.evidence.trainings:
            if trial.plan.train_steps == steps:
                counts[trial.candidate] = max(counts.get(trial.candidate, 0), trial.plan.replicate + 1)
        return counts

    def _seed_share(self, steps: int, own: Sequence[Run] = ()) -> float | None:
        """Standard deviation between seeds of one candidate, as a share of its loss; None where all have one.

        Of all together, or of one, for which all together count as much as one more seed of its own.
        """
        every = [_squares(runs) for runs in self._runs_at(steps).values()]
        squares, degrees = (sum(values) for values in zip(*every, strict=True)) if every else (0.0, 0.0)
        if not degrees:
            return None
        of_own, own_degrees = _squares(own)
        return math.sqrt((squares / degrees + of_own) / (1 + own_degrees))

    def _doubt(self, steps: int, one: Candidate, other: Candidate) -> float:
        """Standard error, for what seeds do, of how far two losses are apart; a share, 0 where unknown."""
        if one == other:
            return 0.0
        counts = self._counts(steps)
        return (self._seed_share(steps) or 0.0) * math.sqrt(1 / counts[one] + 1 / counts[other])

    def _seeds_matter(self, steps: int) -> bool:
        share = self._seed_share(steps)
        return share is not None and share > SEEDS_MATTER

    def _behind(self, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
        """How far each lies behind the best, as a share: in loss where quality comes first, else in score."""
        means = self._means(self._steps())
        losses = {candidate: means[candidate] for candidate in candidates if candidate in means}
        if not losses:
            return {}
        if self.room.quality_first:
            return dict(zip(losses, relative_excess(list(losses.values())), strict=True))
        scores = self._scores(losses)
        best = max(scores.values()) or 1.0
        return {candidate: 1 - score / best for candidate, score in scores.items()}

    def _share(self, arm: Arm, shares: Mapping[Candidate, float]) -> float:
        return math.inf if arm.best is None else shares[at_rate(arm.candidate, arm.best)]

    def _at_first_seed(self, goal: int) -> list[Candidate]:
        """All that were trained."""
        trainings = (trial for trial in self.evidence.trainings if trial.plan.train_steps == goal)
        return list(dict.fromkeys(trial.candidate for trial in trainings if trial.plan.replicate == 0))

    def _by_adapter(self) -> dict[Adapter, list[Candidate]]:
        return by_adapter(self.candidates)

    def _steps(self) -> int:
        """Of this study's trainings; 0 where there is none."""
        return self.evidence.trainings[0].plan.train_steps if self.evidence.trainings else 0

    # What can be paid for

    def _goal(self, arms: Sequence[Arm]) -> int:
        """Steps of all trainings: the user's whole training, or a half, a quarter … of it.

        The longest that leaves time for a few adapters and rates. What the first training lasted stays.
        """
        if steps := self._steps():
            return steps
        goal, seconds = self.room.full_steps, GOAL_SHARE * self.room.seconds
        while goal // 2 >= MIN_TRAIN_STEPS:
            costs = [self.price_s(arm.candidate, goal) for arm in arms[:LEAST_ADAPTERS]]
            if sum(costs) + LEAST_RATES * fmean(costs) <= seconds:
                break
            goal //= 2
        return goal

    def _affords(self, candidate: Candidate, steps: int, reserve_s: float) -> bool:
        if not self.evidence.trainings:
            return True  # without any training there is nothing to recommend
        if self.room.trials < (SEEDS + 1 if reserve_s else 1):
            return False
        return self.price_s(candidate, steps) + reserve_s <= self.room.seconds

    def _reserve_s(self, goal: int) -> float:
        """What second seeds of two finalists will cost, if they take what the best does; at first nothing."""
        shares = self._behind(self._at_first_seed(goal))
        if not shares:
            return 0.0
        counts = self._counts(goal)
        best, *others = sorted(shares, key=shares.__getitem__)
        known = sum(counts[each] >= SEEDS for each in (best, *others[:1]))
        return (2 - known) * (SEEDS - 1) * self.price_s(best, goal)

    def price_s(self, candidate: Candidate, steps: int) -> float:
        """What this training takes, with the probe that must come before it."""
        measurement = self.evidence.measured(candidate)
        step_s = measurement.step_s_mean if measurement else None
        known = [trial for trial in self.evidence.probes.values() if trial.measurement is not None]
        if step_s is None:  # not probed yet: as slow as the slowest that was
            each_s = (trial.measurement.step_s_mean for trial in known if trial.measurement is not None)
            step_s = max((seconds or 0.0 for seconds in each_s), default=0.0)
        probe_s = 0.0
        if measurement is None:
            probe_s = fmean([trial.wall_s or 0.0 for trial in self.evidence.launched_probes] or [0.0])
        return probe_s + self._setup_s() + steps * step_s

    def _setup_s(self) -> float:
        besides = [
            trial.wall_s - trial.measurement.measured_s
            for trial in self.evidence.trainings
            if trial.wall_s is not None and trial.measurement is not None and trial.reused_from is None
        ]
        return max(0.0, median(besides)) if besides else self.room.setup_s


def _squares(runs: Sequence[Run]) -> tuple[float, int]:
    """Of what seeds moved the loss by, as shares of their mean, and the degrees of freedom."""
    if len(runs) < 2:
        return 0.0, 0
    middle = fmean(run.loss for run in runs) or 1.0
    return sum((run.loss / middle - 1) ** 2 for run in runs), len(runs) - 1


def _plan(candidate: Candidate, steps: int, reason: str, replicate: int = 0) -> TrialPlan:
    return TrialPlan(
        candidate=candidate,
        rung=Rung.TRAIN,
        replicate=replicate,
        train_steps=steps,
        goal_steps=steps,
        reason=reason,
    )


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
