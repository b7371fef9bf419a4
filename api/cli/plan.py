"""``rankwise recommend --plan``: what a study would do, without doing it. Runs no trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from ...home import Home
from ...optimizer.codec import to_json
from ...optimizer.domain import (
    SCHEMA_VERSION,
    Candidate,
    Measurement,
    Outcome,
    Rung,
    StudyRequest,
    Trial,
    TrialPlan,
    TrialState,
    Weights,
)
from ...optimizer.search import RunTrial, SearchLimits, next_step
from ..units import format_bytes, format_seconds
from ..wording import describe_settings
from .console import print_json, results
from .progress import describe_facts, describe_task

FIRST_TRIALS = 5
"""Trials that are listed: the further ahead, the more what will be measured decides."""


def show_plan(home: Home, request: StudyRequest, *, as_json: bool, allow_remote_code: bool) -> None:
    """Read data and model as a study would, and print what its search could run at most.

    Raises:
        InputError: model or data are refused.
        NothingFits: no candidate can meet the memory limit.
    """
    from ...optimizer.levels import enumerate_candidates, explain_refusals
    from ...optimizer.recipe import steps_for
    from ...optimizer.search import outline
    from ...runners.jobs import prepare_once

    facts = prepare_once(home, request, allow_remote_code=allow_remote_code)
    candidates = enumerate_candidates(facts, request)
    left_out = explain_refusals(facts, request)
    limits = SearchLimits(
        memory_limit_bytes=request.memory_limit_bytes,
        max_trials=request.max_trials,
        budget_s=request.budget_s,
        spent_s=0.0,
        full_steps=steps_for(facts.train_rows, facts.recipe),
        can_learn=facts.model.has_weights,
    )
    expected = outline(candidates, limits)
    trials = min(limits.max_trials, expected.max_probes + expected.max_trainings)
    first = list(first_probes(candidates, limits, request.effective_weights))
    bytes_read = facts.dataset.size_bytes + facts.model.weight_bytes
    if as_json:
        print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "request": to_json(request),
                "candidates": [{"id": candidate.id, **to_json(candidate)} for candidate in candidates],
                "first_trials": [_trial_document(plan) for plan in first],
                "left_out": [
                    {"rule": each.rule.name, "reason": each.rule.reason, "count": each.count}
                    for each in left_out
                ],
                "max_trials": trials,
                "max_probes": expected.max_probes,
                "max_trainings": expected.max_trainings,
                "max_trials_s": expected.max_trials_s,
                "bytes_read": bytes_read,
            }
        )
        return
    results.print(describe_task(facts))
    results.print(describe_facts(facts))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("candidates", f"{expected.candidates:,}, made of {expected.adapters} adapters")
    table.add_row(
        "trials",
        f"{trials} at most: up to {expected.max_probes} probes, up to {expected.max_trainings} trainings",
    )
    table.add_row("time", f"{format_seconds(expected.max_trials_s)} at most, then the last trial is finished")
    table.add_row("read", f"{format_bytes(bytes_read)} of model and data")
    results.print(table)
    results.print("\nThe first probes, where each fits; what is measured decides how it goes on:")
    for number, plan in enumerate(first, start=1):
        results.print(f"{number:3}  {plan.candidate.adapter.describe()} ({plan.reason})")
        results.print(Text(f"     {describe_settings(plan.candidate)}", "dim"))
    if left_out:
        results.print("\nLeft out, adapters at levels:")
        for each in left_out:
            results.print(Text(f"{each.count:7,}  {each.rule.reason}", "dim"))
    results.print("\nNothing was run. Leave out --plan to start.")


def first_probes(
    candidates: Sequence[Candidate], limits: SearchLimits, weights: Weights
) -> Iterator[TrialPlan]:
    """What the search asks for first, if every probe fits and none is better than the one before it."""
    trials: list[Trial] = []
    while len(trials) < FIRST_TRIALS:
        step = next_step(candidates, trials, limits, weights)
        if not isinstance(step, RunTrial) or step.plan.rung is not Rung.PROBE:
            return
        yield step.plan
        number = len(trials) + 1
        trials.append(
            Trial(
                id=str(number),
                study_id="",
                number=number,
                plan=step.plan,
                state=TrialState.FINISHED,
                outcome=Outcome.OK,
                measurement=Measurement(tokens_per_s=1.0, peak_process_bytes=1),
            )
        )


def _trial_document(plan: TrialPlan) -> dict[str, str]:
    return {
        "candidate_id": plan.candidate.id,
        "rung": plan.rung.value,
        "description": plan.candidate.describe(),
        "purpose": plan.reason,
    }
