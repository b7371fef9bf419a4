"""The home that a command reads or works in. Knows nothing of commands."""

from __future__ import annotations

import signal
import sys

import typer

from ...home import Home
from .console import EXIT_TERMINATED, print_note


def home_to_read() -> Home:
    """As it was saved last, or as this node works on it, if the home is shared with other machines."""
    from ..homes import readable_home

    return readable_home(Home.from_environment(), print_note).create()


def home_to_work_in(context: typer.Context) -> Home:
    """Ours until the command ends; what was written is saved then, if the home is shared with others."""
    from ..homes import working_home

    asked = Home.from_environment()
    home = context.with_resource(working_home(asked, print_note)).create()
    if home != asked:  # the signal's own effect would leave nothing time to be saved
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(EXIT_TERMINATED))
    return home
