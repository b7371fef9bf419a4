"""``rankwise report``: a finished study as one page of HTML. Knows nothing of what is on it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from .console import results
from .places import home_to_read

EXAMPLES = """\
[bold]Examples[/bold]

rankwise report 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B

rankwise report 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B --out results/llama.html
"""


def report(
    study_id: Annotated[str, typer.Argument(metavar="ID", help="The study's id.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")] = Path("report.html"),
) -> None:
    """Write a finished study as a page that any browser shows, without a network."""
    from ...store import Store
    from ..handover import write_report

    with closing(Store.open(home_to_read().database)) as store:
        write_report(store, study_id, out)
    results.print(f"Written to {out}", soft_wrap=True)
