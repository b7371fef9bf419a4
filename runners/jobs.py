"""The ``prepare`` job from outside: its spec, its answer, and running it once without a supervisor.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from .. import errors
from ..errors import InputError, RunnerError
from ..home import Home
from ..optimizer.codec import from_json, to_json
from ..optimizer.domain import StudyFacts, StudyRequest
from ..probes.host import read_hardware
from ..probes.model_source import resolve_model
from .guard import Limits
from .messages import last_line
from .warm_client import Job, WarmServer, read_tail

PREPARE_LIMIT_S = 3600.0


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
    if result := job.last("result"):
        return from_json(StudyFacts, result["facts"])
    if error := job.last("error"):
        kind = getattr(errors, error["kind"], InputError)
        raise kind(error["message"], next_step=error["next_step"])
    cause = last_line(read_tail(job.log_path)) or "the process was killed"
    raise RunnerError(
        f"reading model and data failed: {cause}",
        next_step=f"read {job.log_path}",
    )


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
