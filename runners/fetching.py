"""Fetching from the hub, seen from outside: starting the process that does it, and reading its answer.

Imports no torch, and not the hub's library either.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..home import Home
from ..probes.dataset_source import is_hub_dataset
from ..probes.model_source import ResolvedModel, is_hub_id
from .strays import VARIABLE, Marker
from .warm_client import Job, answer_of

POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What lies in the hub's cache now; None for what is not on the hub."""

    model: ResolvedModel | None = None
    dataset: Path | None = None


@dataclass(kw_only=True)
class FetchJob(Job):
    """A fetch in flight: a job like those of the warm server, which is a program of its own."""

    process: subprocess.Popen[bytes]

    def finish(self) -> None:
        """Wait for the process, once it has said its last word or was cancelled."""
        self.connection.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_fetch(
    home: Home,
    folder: Path,
    *,
    model: str | None = None,
    dataset: str | None = None,
    weights: bool = True,
    allow_remote_code: bool = False,
) -> FetchJob | None:
    """Start to fetch what of these is on the hub; None where nothing is.

    Args:
        home: whose job it is.
        folder: for its spec and its log.
        model, dataset: as people name them.
        weights: the model's, too.
        allow_remote_code: accept a model that brings code of its own.
    """
    spec = {
        "model": model if model is not None and is_hub_id(model) else None,
        "dataset": dataset if dataset is not None and is_hub_dataset(dataset) else None,
        "weights": weights,
        "allow_remote_code": allow_remote_code,
    }
    if spec["model"] is None and spec["dataset"] is None:
        return None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    spec_path, log_path = folder / "fetch.json", folder / "fetch.log"
    spec_path.write_text(json.dumps(spec), encoding="utf-8")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rankwise.runners.fetch", str(theirs.fileno()), str(spec_path)],
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                VARIABLE: str(Marker.of_mine(home, "fetch")),
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return FetchJob(connection=ours, log_path=log_path, process=process)


def fetch(home: Home, folder: Path, *, model: str | None = None, **what: Any) -> Fetched:
    """As :func:`start_fetch`, to the end.

    Raises:
        InputError, RunnerError: as :func:`read_fetched`.
    """
    job = start_fetch(home, folder, model=model, **what)
    if job is None:
        return Fetched()
    try:
        while not job.closed:
            for _ in job.poll(POLL_S):
                continue
    finally:
        job.cancel()
    return read_fetched(job, model=model)


def read_fetched(job: FetchJob, *, model: str | None = None) -> Fetched:
    """What a finished fetch has brought.

    Raises:
        InputError: something cannot be had, or is refused.
        RunnerError: the process ended without an answer.
    """
    job.finish()
    answer: dict[str, Any] = answer_of(job, "fetching from the hub")
    found, dataset = answer["model"], answer["dataset"]
    resolved = found and ResolvedModel(
        source=(model or "").partition("@")[0], path=Path(found["path"]), revision=found["revision"]
    )
    return Fetched(model=resolved, dataset=Path(dataset["path"]) if dataset else None)
