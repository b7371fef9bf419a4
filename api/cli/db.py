"""``rankwise db``: care of the database. Knows nothing about its schema."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import print_json, results
from .places import home_to_work_in

app = typer.Typer(
    no_args_is_help=True,
    help="Look after the database: $RANKWISE_DATABASE_URL, else a file below $RANKWISE_HOME.",
)


@app.callback()
def root() -> None:
    """Keeps ``upgrade`` a subcommand: typer makes an application's only command the application itself."""


@app.command()
def upgrade(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Bring the database to the schema of this version of rankwise."""
    from ...store import described
    from ...store import upgrade as upgrade_database

    home = home_to_work_in(context)
    place = described(home.database)
    old, new = upgrade_database(home.database)
    if as_json:
        print_json({"schema_version": 1, "database": place, "old": old, "new": new})
    elif old == new:
        results.print(f"{place} is at version {new} already", soft_wrap=True)
    else:
        results.print(f"{place}: version {old or 'none'} → {new}", soft_wrap=True)
