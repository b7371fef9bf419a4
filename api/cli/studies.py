"""``rankwise studies``: what was asked before, and what came of it. Knows nothing of how studies are run."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ...home import Home
from ...optimizer.domain import SCHEMA_VERSION, StudyState
from ..wording import describe_request
from .console import print_json, print_note, results
from .options import AsJson
from .places import home_to_read, home_to_work_in
from .report import STATE_STYLES, Report, state_text

if TYPE_CHECKING:
    from ...store import Store

app = typer.Typer(no_args_is_help=True, help="List, show and cancel studies.")

StudyId = Annotated[str, typer.Argument(metavar="ID", help="The study's id.")]


@app.command("list")
def list_(
    state: Annotated[StudyState | None, typer.Option(help="Only studies in this state.")] = None,
    limit: Annotated[int, typer.Option(help="Most studies to list, newest first.", min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List studies, newest first."""
    from ...runners.interrupted import interrupted

    home = home_to_read()
    with closing(_open_store(home)) as store:
        studies = store.list_studies(limit=limit, state=state)
        left_behind = interrupted(home, store, studies)
        if as_json:
            from ..documents import study_document

            counts = store.count_trials([study.id for study in studies])
            documents = [
                {**study_document(study, counts[study.id]), "interrupted": study.id in left_behind}
                for study in studies
            ]
            print_json({"schema_version": SCHEMA_VERSION, "studies": documents})
            return
    if not studies:
        print_note("no studies yet; start one with rankwise recommend --model M --data D")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in ("id", "state", "created (UTC)"):
        table.add_column(name, no_wrap=True)
    table.add_column("study", overflow="fold")
    for study in studies:
        table.add_row(
            study.id,
            state_text(study, is_interrupted=study.id in left_behind),
            f"{study.created_at:%Y-%m-%d %H:%M}",
            describe_request(study.request),
        )
    results.print(table)
    if left_behind:
        print_note("go on with an interrupted study: rankwise recommend --resume ID")


@app.command(epilog="Example: rankwise studies show 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B")
def show(
    study_id: StudyId,
    all_trials: Annotated[
        bool, typer.Option("--trials", metavar="", help="Every trial in a line of its own.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a study compared and what it recommends; its trials while it is under way."""
    from ...runners.interrupted import interrupted

    home = home_to_read()
    with closing(_open_store(home)) as store:
        report = Report.load(store, store.get_study(study_id))
        is_interrupted = bool(interrupted(home, store, [report.study]))
    if as_json:
        print_json(report.document())
        return
    report.print(is_interrupted=is_interrupted, all_trials=all_trials)
    if is_interrupted:
        results.print("interrupted: nobody works on it any more; what was measured is kept", soft_wrap=True)
    if report.study.reason is not None:
        results.print(Text(f"{report.study.state}: {report.study.reason}", STATE_STYLES[report.study.state]))
    if not report.study.state.is_final:
        print_note(f"go on with: rankwise recommend --resume {study_id}")


@app.command()
def cancel(context: typer.Context, study_id: StudyId, as_json: AsJson = False) -> None:
    """Cancel a study; its running trial is ended, what was measured is kept."""
    with closing(_open_store(home_to_work_in(context))) as store:
        study = store.request_cancel(study_id)
        if as_json:
            from ..documents import study_document

            document = study_document(study, store.count_trials([study_id])[study_id])
            print_json({"schema_version": SCHEMA_VERSION, "study": document})
    if not as_json:
        how = "is cancelled" if study.state.is_final else "will be cancelled once its trial has been stopped"
        results.print(f"Study {study_id} {how}.", soft_wrap=True)


def _open_store(home: Home) -> Store:
    from ...store import Store

    return Store.open(home.database)
