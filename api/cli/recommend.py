"""``rankwise recommend``: runs a study from the terminal. Knows nothing of how trials are run."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from ...home import Home
from ...optimizer.domain import Method, Objective, Scoring, StudyRequest
from ...probes.profiles import TaskKind
from .console import EXIT_INTERRUPTED, print_json, print_note
from .options import parse_weights
from .plan import show_plan
from .progress import show_progress
from .report import Report

if TYPE_CHECKING:
    from ...store import Store

EXAMPLES = """\
[bold]Examples[/bold]

rankwise recommend --model ./all-MiniLM-L6-v2 --data reviews.csv

rankwise recommend --model ./llama --data chats.jsonl --memory-limit 10GiB --budget 30m --out tuned

rankwise recommend --model ./llama --data chats.jsonl --plan

rankwise recommend --resume 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B
"""

_default = StudyRequest(model="", dataset="")
_task_option = partial(typer.Option, rich_help_panel="What to learn")
_choice_option = partial(typer.Option, rich_help_panel="How to choose")
_limit_option = partial(typer.Option, rich_help_panel="Limits")
_run_option = partial(typer.Option, rich_help_panel="Running and results")


def recommend(
    model: Annotated[
        str | None, _task_option(metavar="M", help="Folder with a model, or its id on the hub.")
    ] = None,
    data: Annotated[str | None, _task_option(metavar="FILE", help="CSV, JSON or JSONL file.")] = None,
    task: Annotated[
        TaskKind | None, _task_option(metavar="TASK", help=f"{' or '.join(TaskKind)}; told from the columns.")
    ] = None,
    text_column: Annotated[str | None, _task_option(metavar="NAME", help="Column with the text.")] = None,
    label_column: Annotated[str | None, _task_option(metavar="NAME", help="Column with the labels.")] = None,
    max_length: Annotated[
        int | None, _task_option(metavar="N", help="Tokens per row; from the data if left out.")
    ] = None,
    effective_batch: Annotated[
        int, _task_option(metavar="N", help="Rows per optimizer step.")
    ] = _default.effective_batch,
    epochs: Annotated[
        float, _task_option(metavar="N", help="Passes over the data in the final run.")
    ] = _default.epochs,
    objective: Annotated[
        Objective, _choice_option(metavar="NAME", help=f"What counts most: {', '.join(Objective)}.")
    ] = _default.objective,
    weights: Annotated[
        str | None, _choice_option(metavar="W", help="In its place, like speed=0.5,memory=0.1,quality=0.4.")
    ] = None,
    scoring: Annotated[
        Scoring, _choice_option(metavar="NAME", help=f"{' or '.join(Scoring)}, the first design's formula.")
    ] = _default.scoring,
    method: Annotated[
        list[Method] | None,
        _choice_option(metavar="NAME", help=f"Only this of {', '.join(Method)}; may be repeated."),
    ] = None,
    memory_limit: Annotated[
        str | None, _limit_option(metavar="SIZE", help="Most memory a trial may take, like 10GiB.")
    ] = None,
    budget: Annotated[
        str, _limit_option(metavar="TIME", help="Time to spend, like 90s, 10m or 1h30m.")
    ] = "10m",
    max_trials: Annotated[int, _limit_option(metavar="N", help="Most trials to run.")] = _default.max_trials,
    seed: Annotated[int, _limit_option(metavar="N", help="Equal seeds make equal choices.")] = _default.seed,
    plan: Annotated[bool, _run_option("--plan", help="Show what would run, and stop.")] = False,
    resume: Annotated[str | None, _run_option(metavar="ID", help="Go on with this study.")] = None,
    out: Annotated[
        Path | None, _run_option(metavar="DIR", help="Write the files to train with here.")
    ] = None,
    as_json: Annotated[bool, _run_option("--json", help="Print one JSON document instead of text.")] = False,
    allow_remote_code: Annotated[
        bool,
        _run_option("--allow-remote-code", help="Run code that comes with the model. Trust its author."),
    ] = False,
    quiet: Annotated[bool, _run_option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Measure the few configurations that matter, and recommend one of them.

    Progress goes to standard error, results to standard output. Ctrl-C keeps what was measured.
    """
    from ...store import Store
    from ..submission import check_request
    from ..units import parse_bytes, parse_seconds

    home = Home.from_environment().create()
    run = partial(_run, home=home, out=out, as_json=as_json, quiet=quiet, allow_remote_code=allow_remote_code)
    if out is not None:
        _create_folder(out)
    if resume is not None:
        if model is not None or data is not None or plan:
            raise InputError(
                "--resume goes on with a study as it was asked for", next_step="leave out the rest"
            )
        with closing(Store.open(home.database)) as store:
            run(store, resume)
        return
    if model is None or data is None:
        missing = " and ".join(
            name for name, value in (("--model", model), ("--data", data)) if value is None
        )
        raise InputError(f"{missing} missing", next_step="see rankwise recommend --help")
    request = check_request(
        StudyRequest(
            model=model,
            dataset=data,
            objective=objective,
            weights=None if weights is None else parse_weights(weights),
            scoring=scoring,
            memory_limit_bytes=None if memory_limit is None else parse_bytes(memory_limit),
            budget_s=parse_seconds(budget),
            max_trials=max_trials,
            seed=seed,
            text_column=text_column,
            label_column=label_column,
            task=task,
            max_length=max_length,
            effective_batch=effective_batch,
            epochs=epochs,
            methods=tuple(method or ()),
        ),
        roots=None,
        allow_remote_code=allow_remote_code,
    )
    if plan:
        show_plan(home, request, as_json=as_json, allow_remote_code=allow_remote_code)
        return
    with closing(Store.open(home.database)) as store:
        run(store, store.create_study(request).id)


def _create_folder(folder: Path) -> None:
    """Now rather than after the study: by then it would be late to learn that it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create {folder}: {error.strerror}", next_step="choose another --out"
        ) from error


def _run(
    store: Store,
    study_id: str,
    *,
    home: Home,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    allow_remote_code: bool,
) -> None:
    from ...runners.ready_files import write_ready_files
    from ..following import failure_of, follow

    try:
        with show_progress(quiet=quiet) as display:
            study = follow(
                store, study_id, home, display.update, display.note, allow_remote_code=allow_remote_code
            )
    except KeyboardInterrupt:
        print_note(
            f"interrupted; what was measured is kept. Go on with: rankwise recommend --resume {study_id}"
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    report = Report.load(store, study)
    if report.recommendation is not None and out is not None:
        report = replace(report, files=tuple(write_ready_files(store, study_id, out)))
    if as_json:
        print_json(report.document())
    else:
        report.print()
    if error := failure_of(study):
        raise error
    if out is None and not quiet:
        print_note(f"files to train with: rankwise recommend --resume {study_id} --out DIR")
