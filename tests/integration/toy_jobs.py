"""Jobs that misbehave, and the two processes that run them: a guard alone, and a warm server.

    python toy_jobs.py guard FD JOB LOG LIMITS MARKER    becomes the guard of one job
    python toy_jobs.py warm FD MARKER                    the real warm server, with these jobs only

The marker is there to be found in ``/proc/PID/cmdline``, which forked processes inherit.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankwise.runners.guard import Limits, guard
from rankwise.runners.messages import Report

MIB = 1024 * 1024
INHERITED: list[bytearray] = []
"""Memory that the job has before it does anything."""


def leave_stray(report: Report) -> None:
    """Leave a daemon in a session of its own that ignores SIGTERM, and a child of it."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() != 0:
            os._exit(0)
        if os.fork() != 0:
            report("progress", pid=os.getpid())
            os.write(writer, b".")
        time.sleep(600)
    os.read(reader, 1)


def leave_hare(report: Report) -> None:
    """Leave a daemon that never has the same pid for long."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        report("progress", pid=os.getpid())
        os.write(writer, b".")
        while True:
            if os.fork() != 0:
                os._exit(0)
            time.sleep(0.003)
    os.read(reader, 1)


def stray_and_stay(report: Report) -> None:
    leave_stray(report)
    time.sleep(600)


def stay_in_spite_of_sigterm(report: Report) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leave_stray(report)
    time.sleep(600)


def say_goodbye(report: Report) -> None:
    """Use the time between SIGTERM and SIGKILL."""

    def leave(*_: object) -> None:
        report("progress", goodbye=True)
        os._exit(7)

    signal.signal(signal.SIGTERM, leave)
    report("progress")
    time.sleep(600)


def grow(report: Report) -> None:
    block = occupy(150 * MIB)
    report("progress", size=len(block))
    time.sleep(600)


def occupy(size_bytes: int) -> bytearray:
    """Memory whose every page is resident."""
    block = bytearray(size_bytes)
    block[::4096] = b"x" * len(block[::4096])
    return block


def die_in_mid_line(report: Report) -> None:
    os.write(report._fd, b'{"type": "result", "measurement": {"tokens_per_s": 1')
    os.kill(os.getpid(), signal.SIGKILL)


def complain(report: Report) -> None:
    sys.stdout.write("to standard output\n")
    sys.stderr.write("x" * 10_000 + "\n")
    raise OSError("no config.json in this folder")


def chatter(report: Report) -> None:
    """Print 200 MB in numbered lines, as fast as it goes."""
    for number in range(200):
        sys.stdout.write(f"{number:09}\n" * 100_000)
    sys.stdout.write("the last word\n")
    report("progress")


def write_without_end(report: Report) -> None:
    """Fill the disk below the folder of the log, a megabyte at a time."""
    folder = Path(sys.argv[4]).parent / "written"
    folder.mkdir()
    report("progress")
    for number in range(1000):
        (folder / str(number)).write_bytes(bytes(MIB))
        time.sleep(0.01)
    time.sleep(600)


def speak_at_once(report: Report) -> None:
    report("result", answer=42)


def leave_with_3(report: Report) -> None:
    os._exit(3)


JOBS: dict[str, Callable[[Report], None]] = {
    job.__name__: job
    for job in (
        leave_stray,
        leave_hare,
        stray_and_stay,
        stay_in_spite_of_sigterm,
        say_goodbye,
        grow,
        die_in_mid_line,
        chatter,
        write_without_end,
        complain,
        speak_at_once,
        leave_with_3,
    )
}


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of the warm server's only job."""
    JOBS[spec["toy"]](report)


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[2]))
    if sys.argv[1] == "guard":
        name, log_path, limits = sys.argv[3:6]
        report = Report(connection.fileno())
        if name == "grow":
            INHERITED.append(occupy(300 * MIB))
        guard(lambda: JOBS[name](report), connection, Path(log_path), Limits(**json.loads(limits)))
    from rankwise.runners import warm

    sys.modules["toy_jobs"] = sys.modules["__main__"]
    warm.JOBS = {"toy": "toy_jobs"}
    warm.PRELOADED = ()
    warm.die_with_parent(os.getppid())
    warm.serve(connection, ())


if __name__ == "__main__":
    main()
