"""The first half of a search: which shapes have their speed and memory measured.

Probes of the adapter with the best prior find a level that fits, then vary its settings one at a time; the
other adapters are probed at the level found, and at a larger micro-batch if that was lowered. Knows nothing
of budgets and of what is learnt.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

from .comparison import comparable_parts, weighted_score
from .domain import Candidate, Measurement, Rung, TrialPlan, Weights
from .evidence import Evidence, by_adapter
from .settings import settings_of, uncheckpointed, varied

R = TypeVar("R")

MAX_RIVALS = 2
"""Values of one setting that are compared with the best so far …"""

MAX_SPREADS = 4
"""… and ways to spread it: the mildest, and what divides weights three times over."""

ADAPTERS = 8
"""So many that fit are enough: more are hardly ever trained."""

FIRST_ADAPTERS = 3
"""So many are probed before the first training, another only when it is about to be trained."""

PLATEAU = 0.98
"""A smaller micro-batch that keeps this share of the best speed is taken: it needs less memory."""

COMPARED = {
    "precision": "precision compared",
    "checkpointing": "checkpointing compared",
    "quantization": "quantization compared",
    "processes": "several processes compared",
    "loss": "loss implementations compared",
    "compile": "compilation compared",
    "optimizer": "optimizers compared",
    "attention": "attention kernels compared",
}
"""Settings beside the micro-batch, by how much they were seen to change, with the reason to vary each."""

_Asking = Generator[tuple[Candidate, str], None, R]
"""Yields each probe that it wants, with the reason, and reads the result from the evidence when resumed.

The caller runs it up to the first probe that is missing from the evidence; once that trial has run, the
whole is replayed.
"""


def next_probe(
    candidates: Sequence[Candidate],
    evidence: Evidence,
    weights: Weights,
    *,
    left: int,
    adapters: int = ADAPTERS,
) -> TrialPlan | None:
    """The next shape to probe; None where nothing more is to be learnt, or no probe is left.

    Args:
        candidates: best prior first.
        evidence: of all trials so far.
        weights: what is wanted.
        left: probes that may still be launched.
        adapters: that fit, of which so many are enough.
    """
    if left <= 0:
        return None
    done = len(evidence.launched_probes)
    others = min(adapters, len(by_adapter(candidates))) - 1
    # Refining one adapter's level may take half of the probes, and those that the others leave over.
    may_refine = done < max((done + left) // 2, done + left - others)
    for candidate, reason in _probing(candidates, evidence, weights, adapters, may_refine=may_refine):
        if not evidence.settled(candidate):
            return TrialPlan(candidate=candidate, rung=Rung.PROBE, reason=reason)
    return None


def level_like(best: Candidate, own: Sequence[Candidate]) -> Candidate:
    """Another adapter's candidate at the settings of the best, as far as it has them."""
    settings = settings_of(best)

    def differences(candidate: Candidate) -> int:
        return sum(value != settings[name] for name, value in settings_of(candidate).items())

    return min(own, key=differences)


def _probing(
    candidates: Sequence[Candidate], evidence: Evidence, weights: Weights, enough: int, *, may_refine: bool
) -> _Asking[None]:
    best: Candidate | None = None
    groups = by_adapter(candidates)
    adapters = list(groups)
    successes = 0
    probed = {trial.candidate.adapter for trial in evidence.probes.values()}
    for position, own in enumerate(groups.values()):
        if successes == enough:
            return
        successes += any(evidence.measured(candidate) for candidate in own)
        went_on = not probed.isdisjoint(adapters[position + 1 :])
        if best is not None:
            reason = "another adapter at the level found"
            fitting = yield from _first_fitting(near(best, own), evidence, reason)
            larger = _larger(fitting, own) if fitting and may_refine and not went_on else None
            if larger and not evidence.too_big(replace(best, micro_batch=larger.micro_batch)):
                yield larger, "a larger micro-batch compared, since the first adapter's need not suit another"
            continue
        # Compiling takes long, and nobody can rely on its saving memory: it is only compared.
        plain = [candidate for candidate in own if not candidate.level.compile]
        if fitting := (yield from _first_fitting(plain, evidence, "the best prior that is left")):
            best = yield from _refine(fitting, own, evidence, weights, may_refine=may_refine and not went_on)


def _larger(candidate: Candidate, own: Sequence[Candidate]) -> Candidate | None:
    """The same shape with the next larger micro-batch."""
    larger = [
        other for other in varied(candidate, own, "micro_batch") if other.micro_batch > candidate.micro_batch
    ]
    return min(larger, key=lambda other: other.micro_batch, default=None)


def _first_fitting(ladder: Iterable[Candidate], evidence: Evidence, reason: str) -> _Asking[Candidate | None]:
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
    best: Candidate, own: Sequence[Candidate], evidence: Evidence, weights: Weights, *, may_refine: bool
) -> _Asking[Candidate]:
    """Vary one setting after the other, the micro-batch last, and keep what serves the objective better.

    What the estimates put behind the best in speed and memory alike is not measured. Micro-batches only
    shrink: a larger one than the first that fits has failed.
    """

    def tried(rival: Candidate, reason: str) -> _Asking[tuple[Measurement, Measurement] | None]:
        if may_refine and not evidence.is_dominated(rival, best):
            yield rival, reason
        ours, theirs = evidence.measured(best), evidence.measured(rival)
        return None if ours is None or theirs is None else (ours, theirs)

    def serves_better(ours: Measurement, theirs: Measurement) -> bool:
        own, other = (weighted_score(part, weights) for part in comparable_parts((ours, theirs)))
        return other > own

    for setting, reason in COMPARED.items():
        rivals, most = varied(best, own, setting), MAX_RIVALS
        if setting == "processes":
            rivals, most = _spread(best, rivals, evidence), MAX_SPREADS
        for rival in rivals[:most]:
            pair = yield from tried(rival, reason)
            if pair and serves_better(*pair):
                best = rival
    measured = evidence.measured(best)
    fastest = (measured.speed if measured else None) or 0.0
    for rival in varied(best, own, "micro_batch"):
        if rival.micro_batch > best.micro_batch:
            continue
        pair = yield from tried(rival, "a smaller micro-batch compared")
        if pair is None:
            break
        speed = pair[1].speed or 0.0
        if speed < PLATEAU * fastest and not serves_better(*pair):
            break
        best, fastest = rival, max(fastest, speed)
    return best


def _spread(best: Candidate, rivals: Sequence[Candidate], evidence: Evidence) -> list[Candidate]:
    """Those that may fit, first those of as many processes: what they do otherwise is all that differs."""
    fitting = (rival for rival in rivals if not evidence.too_big(rival))
    return sorted(fitting, key=lambda rival: rival.level.processes != best.level.processes)


def near(best: Candidate, own: Sequence[Candidate]) -> list[Candidate]:
    """Another adapter's candidate at the settings of the best, as far as it has them, and its leanest."""
    twin = level_like(best, own)
    lean = [candidate for candidate in own if uncheckpointed(candidate) == uncheckpointed(twin)][-1]
    return list(dict.fromkeys((twin, lean)))
