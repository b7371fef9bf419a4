"""``rankwise recommend --plan``: what a study would do, without doing it. Runs no trial."""

from __future__ import annotations

from rich.table import Table

from ...home import Home
from ...optimizer.codec import to_json
from ...optimizer.domain import StudyRequest
from ..units import format_bytes, format_seconds
from .console import print_json, results


def show_plan(home: Home, request: StudyRequest, *, as_json: bool, allow_remote_code: bool) -> None:
    """Read data and model as a study would, and print what its search could run at most.

    Raises:
        InputError: model or data are refused.
        NothingFits: no candidate can meet the memory limit.
    """
    from ...optimizer.levels import enumerate_candidates
    from ...optimizer.recipe import steps_for
    from ...optimizer.search import SearchLimits, outline
    from ...runners.jobs import prepare_once

    facts = prepare_once(home, request, allow_remote_code=allow_remote_code)
    candidates = enumerate_candidates(facts, request)
    limits = SearchLimits(
        memory_limit_bytes=request.memory_limit_bytes,
        max_trials=request.max_trials,
        budget_s=request.budget_s,
        spent_s=0.0,
        full_steps=steps_for(facts.train_rows, facts.recipe),
    )
    expected = outline(candidates, limits)
    trials = expected.max_probes + expected.max_trainings
    bytes_read = facts.dataset.size_bytes + facts.model.weight_bytes
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "request": to_json(request),
                "candidates": [{"id": candidate.id, **to_json(candidate)} for candidate in candidates],
                "max_trials": trials,
                "max_probes": expected.max_probes,
                "max_trainings": expected.max_trainings,
                "max_trials_s": expected.max_trials_s,
                "bytes_read": bytes_read,
            }
        )
        return
    results.print(f"{facts.model.architecture}, {facts.dataset.task.kind}: {facts.dataset.task.reason}")
    results.print(
        f"{facts.train_rows:,} rows to train on, {facts.heldout_rows:,} held out, "
        f"at most {facts.recipe.max_length} tokens each"
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("candidates", f"{expected.candidates}, made of {expected.adapters} adapters")
    table.add_row(
        "trials", f"{trials} at most: {expected.max_probes} probes, {expected.max_trainings} trainings"
    )
    table.add_row("time", f"{format_seconds(expected.max_trials_s)} at most, then the last trial is finished")
    table.add_row("read", f"{format_bytes(bytes_read)} of model and data")
    results.print(table)
    results.print("\nNothing was run. Leave out --plan to start.")
