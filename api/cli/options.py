"""Parameters that several commands share. Knows nothing about commands."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="Print one JSON document on standard output.")
]
