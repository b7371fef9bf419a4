"""``rankwise export``: a recommendation, or any trial, in another trainer's files."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from .console import print_note, results
from .places import home_to_read

if TYPE_CHECKING:
    from ...runners.exporting import Export

EXAMPLES = """\
[bold]Examples[/bold]

rankwise export 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B --format axolotl

rankwise export 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B --format slurm --out job

[bold]Formats[/bold]

rankwise, peft, transformers, trl, axolotl, llamafactory, accelerate, deepspeed, lightning, pytorch, slurm, \
kubernetes
"""


def export(
    some_id: Annotated[str, typer.Argument(metavar="ID", help="Of a study or of a trial.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="Whose files; see below.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where they go; by default the format's name.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON document, and write files only with --out.")
    ] = False,
) -> None:
    """Write a recommendation, or any trial, as the files of the trainer that you use.

    What a trainer cannot be told is listed; where it would train something else, nothing is written (exit
    code 2).
    """
    from ...optimizer.trainers.formats import named_format
    from ...runners.exporting import export as make_export
    from ...runners.ready_files import write_texts
    from ...store import Store

    wanted = named_format(form)
    with closing(Store.open(home_to_read().database)) as store:
        exported = make_export(store, some_id, wanted)
    folder = Path(wanted.value) if out is None and not as_json else out
    paths = [] if folder is None else write_texts(exported.files, folder)
    if as_json:
        from ..response_schemas.exports import ExportDocument

        document = ExportDocument.of(exported).model_dump(mode="json")
        results.print_json(json.dumps({**document, "written": [str(path) for path in paths]}))
    else:
        _show(exported, paths)


def _show(exported: Export, paths: list[Path]) -> None:
    for warning in exported.warnings:
        print_note(warning)
    results.print(Text(exported.candidate.describe(), "bold"), soft_wrap=True)
    results.print()
    for path in paths:
        results.print(f"  {path}", soft_wrap=True, highlight=False)
    if exported.gaps:
        results.print()
        results.print(Text("Not expressible:", "yellow"))
        for gap in exported.gaps:
            value = json.dumps(gap.value)
            results.print(Text(f"  {gap.setting} {value}: {gap.reason}"), soft_wrap=True)
    if exported.commands:
        results.print()
        results.print(f"Run in {paths[0].parent}:" if paths else "Run:", highlight=False, soft_wrap=True)
        for command in exported.commands:
            results.print(f"  {shlex.join(command)}", highlight=False, soft_wrap=True)
