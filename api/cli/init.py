"""``rankwise init``: writes a commented study file. Looks at neither model nor data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import InputError
from .console import print_note

EXAMPLES = """\
[bold]Examples[/bold]

rankwise init

rankwise init studies/reviews.yaml --model ./all-MiniLM-L6-v2 --data reviews.csv
"""


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")] = Path("study.yaml"),
    model: Annotated[
        str, typer.Option(metavar="M", help="Folder with a model, a config.json, or an id on the hub.")
    ] = "./my-model",
    data: Annotated[
        str, typer.Option(metavar="D", help="CSV, TSV, JSONL, Parquet or text, or an id on the hub.")
    ] = "data.csv",
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Replace the file if there is one.")
    ] = False,
) -> None:
    """Write a study file with every key, its default and what it means.

    Run it with: rankwise recommend --config PATH
    """
    from ..study_template import study_template

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(study_template(model, data))
    except FileExistsError as error:
        raise InputError(f"{path} exists", next_step="name another file, or add --force") from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", next_step="name another file") from error
    print_note(f"Written to {path}. Run it with: rankwise recommend --config {path}")
