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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..build import InvalidTrial
from ..capped_log import LogPipe, Tail

TAIL_BYTES = 65_536
TAIL_LINES = 3
"""Of what it wrote to standard error, in the reason of a failure …"""
TAIL_CHARACTERS = 500
"""… and so much of these at most."""


def own_metric(command: Sequence[str], folder: Path, *, limit_s: float) -> float:
    """Run the command with the folder as its last argument; the last line that it prints is the number.

    No shell reads it. It runs in the folder's parent, in a process group of its own, of which nothing is left
    afterwards. Of what it prints only the end is kept.

    Raises:
        InvalidTrial: it cannot be started, fails, takes too long, or prints no finite number.
    """
    name = f"the evaluation command `{shlex.join(command)}`"
    printed, complaints = Tail(TAIL_BYTES), Tail(TAIL_BYTES)
    pipes = LogPipe(printed), LogPipe(complaints)
    try:
        process = subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=pipes[0].writer,
            stderr=pipes[1].writer,
            cwd=folder.parent,
            start_new_session=True,
        )
    except OSError as error:
        for pipe in pipes:
            pipe.drop()
        raise InvalidTrial(f"{name} cannot be started: {error.strerror}") from None
    for pipe in pipes:
        pipe.start()
    code = None
    try:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(limit_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in pipes:
            pipe.finish()
    said = last_lines(complaints.text)
    if code is None:
        raise InvalidTrial(f"{name} took longer than {limit_s:.0f} s, and was ended{said}")
    if code != 0:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
        raise InvalidTrial(f"{name} {how}{said}")
    line = next((it for it in reversed(printed.text.splitlines()) if it.strip()), "").strip()
    try:
        number = float(line)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = f"{line[:100]!r}, which is no finite number" if line else "nothing"
        raise InvalidTrial(f"{name} ended with exit code 0, and its last line is {what}{said}")
    return number


def last_lines(text: str) -> str:
    """The end of what was written, as the end of a sentence; empty where nothing was."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    end = " / ".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:]
    return f": {end}" if end else ""
