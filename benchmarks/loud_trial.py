"""What a trial that prints a gigabyte does to the server beside it, and to the disk.

    python benchmarks/loud_trial.py

Asks a server for its studies again and again: first alone, then while a job under the same guard as any trial
prints as fast as it can, and again beside a job that computes as hard without printing a byte. Prints the
latencies, how long the printing took and what is left of it as JSON; the exit code is 1 when the log is
larger than it may be. Takes a minute. Only the ratio to the computing job tells of printing: on few cores any
job makes a server wait.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from rankwise.home import Home
from rankwise.runners.capped_log import HEAD_BYTES, TAIL_BYTES
from rankwise.runners.guard import Limits, guard
from rankwise.runners.warm_client import Job

START_LIMIT_S = 120.0
LINE = b"x" * 99 + b"\n"
NOTICE_BYTES = 100


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of asking alone, and beside computing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name)).create()
        port = free_port()
        command = [str(Path(sys.executable).with_name("rankwise")), "serve", "--port", str(port)]
        environment = {**os.environ, "RANKWISE_HOME": name}
        with (home.logs / "server.log").open("wb") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                wait_until_it_answers(client)
                alone = latencies(client, until_s(arguments.seconds))
                computing = start(compute, home, "computing", Limits(time_s=arguments.seconds))
                beside = latencies(client, lambda: over(computing))
                printing = start(lambda: talk(arguments.megabytes), home, "printing", Limits())
                began_s = time.monotonic()
                loud = latencies(client, lambda: over(printing))
                took_s = time.monotonic() - began_s
        finally:
            server.terminate()
            server.wait()
        size = printing.log_path.stat().st_size
    found = {
        "alone": alone,
        "beside_computing": beside,
        "beside_printing": loud,
        "ratio_p99": loud["p99_ms"] / beside["p99_ms"],
        "printed_bytes": arguments.megabytes * 10**6,
        "printing_s": round(took_s, 1),
        "log_bytes": size,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(found, indent=2))
    return 0 if size <= HEAD_BYTES + TAIL_BYTES + NOTICE_BYTES else 1


def talk(megabytes: int) -> None:
    """Print so much, as fast as it goes."""
    block = LINE * 10_000
    for _ in range(megabytes):
        os.write(1, block)


def compute() -> None:
    """Use a core until somebody ends it."""
    while True:
        sum(range(10_000))


def start(job: Callable[[], None], home: Home, name: str, limits: Limits) -> Job:
    """Run a job under a guard of its own."""
    folder = home.trial_folder(name)
    folder.mkdir(parents=True)
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        guard(job, theirs, folder / "trial.log", limits)
    theirs.close()
    return Job(connection=ours, log_path=folder / "trial.log")


def over(job: Job) -> bool:
    """The job has ended, and its guard has said so."""
    for _ in job.poll(0):
        continue
    return job.closed


def until_s(seconds: float) -> Callable[[], bool]:
    """True when so long has passed."""
    end_s = time.monotonic() + seconds
    return lambda: time.monotonic() > end_s


def latencies(client: httpx2.Client, is_over: Callable[[], bool]) -> dict[str, Any]:
    """Ask a hundred times a second until it is over."""
    found = []
    while not is_over():
        began_s = time.perf_counter()
        client.get("/v1/studies").raise_for_status()
        found.append(1000 * (time.perf_counter() - began_s))
        time.sleep(0.01)
    cuts = statistics.quantiles(found, n=100)
    return {"requests": len(found), "p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2)}


def wait_until_it_answers(client: httpx2.Client) -> None:
    """Wait for the server's first answer.

    Raises:
        TimeoutError: there was none.
    """
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s:
        try:
            client.get("/healthz")
        except httpx2.TransportError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("the server did not answer")


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
