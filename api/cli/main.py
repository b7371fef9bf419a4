"""The ``rankwise`` command: assembles the subcommands and turns errors into exit codes.

Nothing here or at the top of a command's module imports torch, a web framework or a database: what a
command needs is imported when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ... import __version__
from ...errors import RankwiseError
from . import (
    check,
    client,
    compare,
    db,
    devices,
    estimate,
    export,
    init,
    inspect,
    merge,
    page,
    probe,
    recommend,
    serve,
    studies,
    tokens,
)
from .console import exit_code, print_error

app = typer.Typer(
    name="rankwise",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 recommended, 1 failed, 2 usage or bad input, 3 nothing fits, "
    "4 too close to call (estimate, check), 130 interrupted, 143 terminated.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rankwise {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Find the fine-tuning configuration to run for a model, a dataset and the hardware at hand.

    Answers come from trials that are measured on this machine. State is kept below $RANKWISE_HOME.
    """


app.command(epilog=recommend.EXAMPLES)(recommend.recommend)
app.command(epilog=init.EXAMPLES)(init.init)
app.command(epilog=probe.EXAMPLES)(probe.probe)
app.command(epilog=inspect.EXAMPLES)(inspect.inspect)
app.command(epilog=estimate.EXAMPLES)(estimate.estimate)
app.command(epilog=check.EXAMPLES)(check.check)
app.command(epilog=merge.EXAMPLES)(merge.merge)
app.add_typer(studies.app, name="studies")
app.command(epilog=page.EXAMPLES)(page.report)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.add_typer(client.app, name="client")
app.add_typer(tokens.app, name="tokens")
app.add_typer(devices.app, name="devices")
app.add_typer(db.app, name="db")


def main() -> None:
    """Entry of the console script."""
    try:
        app(prog_name="rankwise")
    except RankwiseError as error:
        print_error(error)
        sys.exit(exit_code(error))
