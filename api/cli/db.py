"""``rankwise db``: care of the database. Knows nothing about its schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import print_json, print_note, results
from .places import home_to_read, home_to_work_in

app = typer.Typer(
    no_args_is_help=True,
    help="Look after the database: $RANKWISE_DATABASE_URL, else a file below $RANKWISE_HOME.",
)


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def upgrade(context: typer.Context, as_json: AsJson = False) -> None:
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


@app.command()
def check(as_json: AsJson = False) -> None:
    """Look whether the database can be reached and is whole. Exit code 2 if it is not."""
    from ...errors import StoreError
    from ...store import check as check_database
    from ...store import described

    home = home_to_read()
    place = described(home.database)
    version, problems = check_database(home.database)
    if as_json:
        found = {"database": place, "version": version, "problems": problems}
        print_json({"schema_version": 1, **found})
    else:
        results.print(
            f"{place}: version {version or 'none'}, {len(problems) or 'no'} problems", soft_wrap=True
        )
    if problems:
        raise StoreError(
            f"{place} is not as it should be: {'; '.join(problems)}",
            next_step="upgrade it if that is all; else restore the last snapshot",
        )


@app.command(epilog="Example: rankwise db snapshot /backups/rankwise.db")
def snapshot(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; replaced if it is there.")],
    as_json: AsJson = False,
) -> None:
    """Write all that the database holds now into one file, while studies may go on.

    To restore it: stop rankwise, copy the file to where the database was, and remove what stands beside that
    with -wal and -shm behind its name. A database of PostgreSQL is saved by pg_dump.
    """
    from ...store import described
    from ...store import snapshot as save

    home = home_to_read()
    save(home.database, file.absolute())
    if as_json:
        written = {"file": str(file.absolute()), "size_bytes": file.stat().st_size}
        print_json({"schema_version": 1, "database": described(home.database), **written})
    else:
        results.print(f"{described(home.database)} is saved to {file}", soft_wrap=True)
        print_note("to restore it: stop rankwise, copy the file back, remove the database's -wal and -shm")
