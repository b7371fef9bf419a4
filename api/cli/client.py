"""``rankwise client``: a server that runs elsewhere, from the terminal. Knows nothing of how it answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ...optimizer.domain import SCHEMA_VERSION, StudyState
from .answers import AnswerForm, Form
from .console import print_json, print_note, results
from .options import AsJson
from .remote import answer, follow, opened_client

app = typer.Typer(
    no_args_is_help=True,
    help="Use a server: $RANKWISE_URL says which, $RANKWISE_TOKEN or the file $RANKWISE_TOKEN_FILE lets in. "
    "Ask for studies there with rankwise recommend --remote.",
)
studies = typer.Typer(no_args_is_help=True, help="List, show, watch and cancel studies.")
app.add_typer(studies, name="studies")

StudyId = Annotated[str, typer.Argument(metavar="ID", help="The study's id.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Write the files to train with here.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Show no progress.")]


@studies.command("list")
def list_(
    state: Annotated[StudyState | None, typer.Option(help="Only studies in this state.")] = None,
    limit: Annotated[int, typer.Option(help="Most studies to list, newest first.", min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List studies, newest first."""
    with opened_client() as client:
        found = list(client.studies(state=state, limit=limit))
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "studies": [_plain(study) for study in found]})
        return
    if not found:
        print_note(f"no studies at {client.url} yet")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in ("id", "state", "created (UTC)"):
        table.add_column(name, no_wrap=True)
    table.add_column("study", overflow="fold")
    for study in found:
        asked = f"{study.request.model} on {study.request.dataset}"
        table.add_row(study.id, study.state, f"{study.created_at:%Y-%m-%d %H:%M}", asked)
    results.print(table)


@studies.command()
def show(study_id: StudyId, as_json: AsJson = False) -> None:
    """Show where a study stands, and its trials."""
    with opened_client() as client:
        study, trials = client.study(study_id), client.trials(study_id)
    if as_json:
        print_json(
            {"schema_version": SCHEMA_VERSION, "study": _plain(study), "trials": _plain(trials)["trials"]}
        )
        return
    results.print(Text.assemble((f"{study.id}  ", "bold"), study.state), soft_wrap=True)
    results.print(f"{study.request.model} on {study.request.dataset}", soft_wrap=True)
    for trial in trials.trials:
        how = trial.outcome or trial.state
        reason = f": {trial.reason}" if trial.reason else ""
        results.print(f"  {trial.number}  {how}  {trial.description}{reason}", soft_wrap=True)
    if study.reason is not None:
        results.print(study.reason, soft_wrap=True)


@studies.command()
def watch(study_id: StudyId, as_json: AsJson = False) -> None:
    """Show what happens until the study has ended; with --json, each event as a line of JSON."""
    from ..failure import failure_of

    with opened_client() as client:
        if as_json:
            for event in client.events(study_id):
                sys.stdout.write(event.model_dump_json() + "\n")
                sys.stdout.flush()
            study = client.study(study_id)
        else:
            study = follow(client, study_id, form=Form.TEXT, out=None, quiet=False)
    if error := failure_of(study):
        raise error


@studies.command()
def cancel(study_id: StudyId, as_json: AsJson = False) -> None:
    """Cancel a study; its running trial is ended, what was measured is kept."""
    with opened_client() as client:
        study = client.cancel(study_id)
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "study": _plain(study)})
        return
    how = "is cancelled" if study.state.is_final else "will be cancelled once its trial has been stopped"
    results.print(f"Study {study_id} {how}.", soft_wrap=True)


@app.command()
def recommend(
    study_id: StudyId,
    wait: Annotated[bool, typer.Option("--wait", metavar="", help="Stay until it has ended.")] = False,
    form: AnswerForm = Form.TEXT,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a study recommends; exit codes as of rankwise recommend."""
    with opened_client() as client:
        answer(client, study_id, wait=wait, form=form, as_json=as_json, out=out, quiet=quiet)


@app.command()
def export(
    study_id: StudyId,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="As of rankwise export.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the files go; by default the format's name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a recommendation as the files of the trainer that you use."""
    from ...runners.ready_files import write_texts

    with opened_client() as client:
        exported = client.export(study_id, form)
    folder = Path(exported.format.value) if out is None and not as_json else out
    paths = [] if folder is None else write_texts(exported.files, folder)
    if as_json:
        print_json({**_plain(exported), "written": [str(path) for path in paths]})
        return
    for warning in exported.warnings:
        print_note(warning)
    for path in paths:
        results.print(path, soft_wrap=True)
    for gap in exported.not_expressible:
        print_note(f"not expressible: {gap.setting}: {gap.reason}")


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="With the extension that says its format.")],
    as_json: AsJson = False,
) -> None:
    """Send a file of data, and print what --data names it by."""
    with opened_client() as client:
        sent = client.upload(file)
    if as_json:
        print_json(_plain(sent))
    else:
        results.print(sent.dataset, soft_wrap=True)


@app.command()
def devices(as_json: AsJson = False) -> None:
    """Show what trials run on there."""
    from ..units import format_bytes

    with opened_client() as client:
        found = client.hardware()
    if as_json:
        print_json(_plain(found))
        return
    host = found.host
    memory = f"{format_bytes(host.ram_available_bytes)} of {format_bytes(host.ram_total_bytes)} free"
    results.print(f"{host.cpu_model or host.platform}: {host.usable_cores} cores, {memory}", soft_wrap=True)
    for gpu in found.gpus:
        free = "" if gpu.free_bytes is None else f", {format_bytes(gpu.free_bytes)} free"
        results.print(f"{gpu.name}: {format_bytes(gpu.total_bytes)}{free}", soft_wrap=True)
    if found.gpu_note is not None:
        print_note(found.gpu_note)


def _plain(part: object) -> dict[str, object]:
    """A document as JSON data."""
    from pydantic import BaseModel

    assert isinstance(part, BaseModel)  # noqa: S101 - all that the client returns
    plain: dict[str, object] = json.loads(part.model_dump_json())
    return plain
