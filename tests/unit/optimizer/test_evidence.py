"""What ran out of memory says of other shapes, by what was estimated of both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.domain import Candidate, Estimate, Method, Outcome, Rung
from rankwise.optimizer.evidence import Evidence
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.search import RunTrial, SearchLimits, next_step

GIB = 2**30


def told(gib: float) -> Estimate:
    return Estimate(device="cpu", peak_tensor_bytes=int(gib * GIB))


@pytest.fixture(scope="module")
def adapters(build) -> list[Candidate]:
    """A LoRA, another one and full fine-tuning, at one level and batch."""
    every = enumerate_candidates(build.facts(), build.request())
    loras = [c for c in every if c.adapter.method is Method.LORA and not c.level.compile]
    first = loras[0]

    def at_its_level(candidate: Candidate) -> bool:
        return (candidate.level, candidate.micro_batch) == (first.level, first.micro_batch)

    second = next(c for c in loras if c.adapter != first.adapter and at_its_level(c))
    full = next(c for c in every if c.adapter.method is Method.FULL and at_its_level(c))
    return [first, second, full]


def test_what_is_told_to_need_more_than_what_failed_does_not_fit(build, adapters):
    small, medium, large = adapters
    estimates = {small: told(1.0), medium: told(2.0), large: told(2.2)}
    failed = build.trial(medium, 1, outcome=Outcome.OOM)
    before, after = Evidence([], None, estimates), Evidence([failed], None, estimates)
    assert not before.too_big(large)
    assert after.too_big(large)
    assert after.cannot_fit(large)
    assert after.settled(large)
    assert not after.too_big(small)


def test_full_fine_tuning_that_fails_says_nothing_of_adapters(build, adapters):
    """Of what adapters leave frozen, a CPU's process holds only what is read."""
    small, _, large = adapters
    failed = build.trial(large, 1, outcome=Outcome.OOM)
    assert not Evidence([failed], None, {large: told(1.0), small: told(2.0)}).too_big(small)


def test_estimates_are_not_trusted_to_a_few_percent(build, adapters):
    _, medium, large = adapters
    evidence = Evidence(
        [build.trial(medium, 1, outcome=Outcome.OOM)], None, {medium: told(2.0), large: told(2.09)}
    )
    assert not evidence.too_big(large)


def test_what_fits_in_spite_of_its_estimate_is_believed(build, adapters):
    """Estimates then say nothing of the order of these two; beyond both they do."""
    small, medium, large = adapters
    trials = [
        build.trial(small, 1, outcome=Outcome.OOM),
        build.trial(medium, 2, tokens_per_s=100.0, peak_process_bytes=GIB),
    ]
    evidence = Evidence(trials, None, {small: told(1.0), medium: told(2.0), large: told(2.05)})
    assert evidence.measured(medium) is not None
    assert not evidence.too_big(large)
    further = Evidence(trials, None, {small: told(1.0), medium: told(2.0), large: told(4.0)})
    assert further.too_big(large)


def test_a_peak_over_the_limit_counts_and_a_disturbed_failure_does_not(build, adapters):
    _, medium, large = adapters
    estimates = {medium: told(2.0), large: told(4.0)}
    over = build.trial(medium, 1, peak_process_bytes=3 * GIB)
    assert Evidence([over], 2 * GIB, estimates).too_big(large)
    beside = build.trial(medium, 1, outcome=Outcome.OOM)
    beside = replace(beside, measurement=replace(over.measurement, disturbances=("Others held 3 GiB.",)))
    assert not Evidence([beside], None, estimates).too_big(large)


def test_the_search_does_not_run_it(build, adapters):
    """The dry run comes first: it is told, and its trial is never started."""
    small, medium, large = adapters
    limits = SearchLimits(memory_limit_bytes=None, max_trials=50, budget_s=1e6, spent_s=0.0, full_steps=100)
    trials = [
        build.trial(small, 1, tokens_per_s=100.0, step_s_mean=0.1, peak_process_bytes=GIB),
        build.trial(medium, 2, outcome=Outcome.OOM),
    ]
    weights = build.request().effective_weights
    asked = next_step([small, large], trials, limits, weights)
    assert isinstance(asked, RunTrial)
    assert asked.plan.candidate == large
    estimates = {small: told(1.0), medium: told(2.0), large: told(4.0)}
    asked = next_step([small, large], trials, limits, weights, estimates=estimates)
    assert isinstance(asked, RunTrial)
    assert (asked.plan.candidate, asked.plan.rung) == (small, Rung.TRAIN)
