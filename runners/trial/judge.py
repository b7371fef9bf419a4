"""What the user's own command says of a trained model: run with a folder, it prints a number.

The command is a child of the trial, so it has the trial's environment and ends with it. Knows nothing of what
is in the folder.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..build import InvalidTrial

TAIL_BYTES = 65_536
TAIL_LINES = 3
"""Of what it wrote to standard error, in the reason of a failure …"""
TAIL_CHARACTERS = 500
"""… and so much of these at most."""


def own_metric(command: Sequence[str], folder: Path, *, limit_s: float) -> float:
    """Run the command with the folder as its last argument; the last line that it prints is the number.

    No shell reads it. It runs in the folder's parent, in a process group of its own, of which nothing is left
    afterwards.

    Raises:
        InvalidTrial: it cannot be started, fails, takes too long, or prints no finite number.
    """
    name = f"the evaluation command `{shlex.join(command)}`"
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                [*command, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=complaints,
                cwd=folder.parent,
                start_new_session=True,
            )
        except OSError as error:
            raise InvalidTrial(f"{name} cannot be started: {error.strerror}") from None
        code = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(limit_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said = last_lines(complaints)
        if code is None:
            raise InvalidTrial(f"{name} took longer than {limit_s:.0f} s, and was ended{said}")
        if code != 0:
            how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            raise InvalidTrial(f"{name} {how}{said}")
        line = next((it for it in reversed(tail(printed).splitlines()) if it.strip()), "").strip()
    try:
        number = float(line)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = f"{line[:100]!r}, which is no finite number" if line else "nothing"
        raise InvalidTrial(f"{name} ended with exit code 0, and its last line is {what}{said}")
    return number


def last_lines(file: IO[bytes]) -> str:
    """The end of what a file holds, as the end of a sentence; empty where it holds nothing."""
    lines = [line.strip() for line in tail(file).splitlines() if line.strip()]
    text = " / ".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:]
    return f": {text}" if text else ""


def tail(file: IO[bytes]) -> str:
    """The last :data:`TAIL_BYTES` of a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
    return file.read().decode(errors="replace")
