"""The jobs ``prepare`` and ``inspect`` from outside: their specs, their answers, and running one by itself.

Imports no torch.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import InputError, RunnerError
from ..home import Home
from ..optimizer.codec import from_json, to_json
from ..optimizer.domain import StudyFacts, StudyRequest
from ..probes.host import read_hardware
from ..probes.model_source import resolve_model
from ..probes.profiles import ModelProfile, TaskKind, TaskProfile
from .guard import Limits
from .messages import last_line
from .warm_client import Job, WarmServer, read_tail

PREPARE_LIMIT_S = 3600.0
INSPECT_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What there is to say of a model without any data."""

    task: TaskProfile
    model: ModelProfile
    stored_bytes: Mapping[str, int]
    """By dtype, as weight files spell it; empty where there are no weights."""


def start_prepare(
    server: WarmServer, home: Home, request: StudyRequest, folder: Path, *, allow_remote_code: bool
) -> Job:
    """Hand the job of reading model and data to a warm server.

    Raises:
        ModelError: the model cannot be had, or is not safe to load.
        RunnerError: the server is gone.
    """
    model = resolve_model(request.model, allowed_roots=None, allow_remote_code=allow_remote_code)
    spec = {
        "request": to_json(request),
        "hardware": to_json(read_hardware(home.root)),
        "model_path": str(model.path),
        "revision": model.revision,
        "allow_remote_code": allow_remote_code,
        "dataset_path": request.dataset,
        "tokens_root": str(home.tokens),
    }
    return server.start("prepare", spec, folder, Limits(time_s=PREPARE_LIMIT_S))


def read_facts(job: Job) -> StudyFacts:
    """The facts that a finished prepare job reported.

    Raises:
        InputError: the model or the data were refused.
        RunnerError: the job ended without an answer.
    """
    return from_json(StudyFacts, _answer(job, "reading model and data")["facts"])


def _answer(job: Job, doing: str) -> dict[str, Any]:
    """What a finished job reported as its result; else its refusal, or the end of its log, is raised."""
    if result := job.last("result"):
        return result
    if error := job.last("error"):
        kind = getattr(errors, error["kind"], InputError)
        raise kind(error["message"], next_step=error["next_step"])
    cause = last_line(read_tail(job.log_path)) or "the process was killed"
    raise RunnerError(f"{doing} failed: {cause}", next_step=f"read {job.log_path}")


def prepare_once(home: Home, request: StudyRequest, *, allow_remote_code: bool = False) -> StudyFacts:
    """What a study would find out before its first trial; the token files stay for the study to use.

    Raises:
        InputError: the model or the data are refused.
        RunnerError: the job could not be run.
    """
    home.create()
    server = WarmServer(home.logs / "warm.log")
    try:
        folder = home.root / "cache" / "prepare"
        job = start_prepare(server, home, request, folder, allow_remote_code=allow_remote_code)
        job.wait(PREPARE_LIMIT_S)
    finally:
        server.stop()
    return read_facts(job)


def inspect_once(
    home: Home, source: str, *, task: TaskKind | None = None, allow_remote_code: bool = False
) -> Inspection:
    """A model's structure; of a hub model only the configuration is fetched, never a weight.

    Args:
        home: where the job's log goes.
        source: a folder, a ``config.json`` or a hub id.
        task: None for what the model was made for.
        allow_remote_code: run the Python code that the model brings, if it brings any.

    Raises:
        ModelError: the model cannot be had, is unsafe or unsupported, or has no such task.
        RunnerError: the job could not be run.
    """
    found = resolve_model(
        source, allowed_roots=None, allow_remote_code=allow_remote_code, fetch_weights=False
    )
    home.create()
    spec = {
        "source": source,
        "model_path": str(found.path),
        "revision": found.revision,
        "task": task,
        "allow_remote_code": allow_remote_code,
    }
    folder = Path(tempfile.mkdtemp(prefix="inspect-", dir=home.tokens.parent))
    server = WarmServer(home.logs / "warm.log")
    try:
        job = server.start("inspect", spec, folder, Limits(time_s=INSPECT_LIMIT_S))
        job.wait(INSPECT_LIMIT_S)
    finally:
        server.stop()
    if job.last("result") or job.last("error"):  # if it answered neither, the error names its log
        shutil.rmtree(folder)
    result = _answer(job, f"inspecting {source}")
    return Inspection(
        task=from_json(TaskProfile, result["task"]),
        model=from_json(ModelProfile, result["model"]),
        stored_bytes=result["stored_bytes"],
    )
