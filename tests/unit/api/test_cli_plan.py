from __future__ import annotations

from dataclasses import replace

from rankwise.api.cli.plan import FIRST_TRIALS, first_probes
from rankwise.optimizer.domain import OBJECTIVE_WEIGHTS, Candidate, Objective, Rung
from rankwise.optimizer.search import RunTrial, SearchLimits, next_step

WEIGHTS = OBJECTIVE_WEIGHTS[Objective.BALANCED]
LIMITS = SearchLimits(memory_limit_bytes=None, max_trials=16, budget_s=600.0, spent_s=0.0, full_steps=100)


def variants(lora: Candidate, full: Candidate) -> list[Candidate]:
    """A few adapters, each at two micro-batches."""
    adapters = [replace(lora.adapter, rank=rank) for rank in (8, 16, 32)] + [full.adapter]
    return [replace(lora, adapter=adapter, micro_batch=batch) for adapter in adapters for batch in (8, 4)]


def test_the_first_trials_are_distinct_probes_that_start_as_the_search_does(
    candidates: tuple[Candidate, Candidate],
) -> None:
    all_candidates = variants(*candidates)

    plans = list(first_probes(all_candidates, LIMITS, WEIGHTS))

    assert next_step(all_candidates, [], LIMITS, WEIGHTS) == RunTrial(plans[0])
    assert 1 < len(plans) <= FIRST_TRIALS
    assert len({plan.candidate.shape_key for plan in plans}) == len(plans)
    assert {plan.rung for plan in plans} == {Rung.PROBE}


def test_no_more_is_listed_than_may_run(candidates: tuple[Candidate, Candidate]) -> None:
    few = replace(LIMITS, max_trials=2)
    assert len(list(first_probes(variants(*candidates), few, WEIGHTS))) == 1
