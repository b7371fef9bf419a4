"""The two streams of the command line: results on standard output, all else on standard error.

Knows nothing about studies.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from ...errors import NothingFits, RankwiseError, RemoteError, RunnerError, StaleFence

# Text is shown as it is: file names and log lines may contain brackets or :words: that rich would interpret.
results = Console(highlight=False, markup=False, emoji=False)
notes = Console(stderr=True, highlight=False, markup=False, emoji=False)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOTHING_FITS = 3
EXIT_TOO_CLOSE = 4
"""Of an estimate only: it may fit or not."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
EXIT_TERMINATED = 143
"""128 + SIGTERM."""


def print_json(data: Any) -> None:
    """Write one JSON document, and nothing else, to standard output."""
    json.dump(data, sys.stdout, ensure_ascii=False, allow_nan=False, indent=2)
    sys.stdout.write("\n")


def print_note(sentence: str) -> None:
    """Tell the person at the terminal something that is no result."""
    notes.print(sentence, style="dim", soft_wrap=True)


def print_error(error: RankwiseError) -> None:
    """Show what is wrong and, on a line of its own, what to do about it; each of several things by itself."""
    from ..submission import InvalidRequest

    parts = [problem.error for problem in error.problems] if isinstance(error, InvalidRequest) else [error]
    for part in parts:
        notes.print(Text.assemble(("error: ", "bold red"), part.message), soft_wrap=True)
        if part.next_step:
            notes.print(Text.assemble(("  → ", "bold"), part.next_step), soft_wrap=True)


def exit_code(error: RankwiseError) -> int:
    """What the process exits with after this error."""
    if isinstance(error, NothingFits):
        return EXIT_NOTHING_FITS
    return EXIT_FAILED if isinstance(error, RunnerError | StaleFence | RemoteError) else EXIT_USAGE
