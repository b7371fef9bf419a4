"""The jobs that are no trials, from outside: specs, answers, running one by itself.

Imports no torch.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .. import errors
from ..errors import InputError, RunnerError
from ..home import Home
from ..optimizer.codec import from_json, to_json
from ..optimizer.domain import Candidate, StudyFacts, StudyRequest
from ..optimizer.estimates.prediction import Prediction, Terms, TrialPrediction
from ..optimizer.estimates.settings import Settings
from ..probes.host import read_hardware
from ..probes.model_source import resolve_model
from ..probes.profiles import ModelProfile, TaskKind, TaskProfile
from .guard import Limits
from .messages import last_line
from .warm_client import Job, WarmServer, read_tail

PREPARE_LIMIT_S = 3600.0
INSPECT_LIMIT_S = 600.0
ESTIMATE_LIMITS = Limits(time_s=120.0, host_memory_bytes=4 * 2**30)
"""Many times what a model of 80 layers takes: beyond it, something is wrong with the model."""
LONGEST_WAIT_S = 600.0
"""For the last word of a guard that is to end its job long before."""

_ENDED_BY_GUARD = {
    "timeout": "it took longer than it may",
    "memory-limit": "it needed more memory than it may",
    "host-memory": "this machine has run out of memory",
}


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
    model = resolve_model(
        request.model,
        allowed_roots=None,
        allow_remote_code=allow_remote_code,
        arguments=request.model_arguments,
        folder=request.model_folder,
    )
    spec = {
        "request": to_json(request),
        "hardware": to_json(read_hardware(home.root)),
        "model_path": str(model.path),
        "revision": model.revision,
        "factory": None if model.factory is None else to_json(model.factory),
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


def start_estimate_trials(
    server: WarmServer,
    facts: StudyFacts,
    candidates: Sequence[Candidate],
    terms: Terms,
    folder: Path,
    *,
    enough_bytes: int,
    order_seed: int,
) -> Job:
    """Hand dry runs of a study's candidates to a warm server.

    Args:
        candidates: of one ladder, those that need most first.
        enough_bytes: those after the first that allocates no more are left out.
        order_seed: of the order in which trials take rows.

    Raises:
        RunnerError: the server is gone.
    """
    spec = {
        "model": to_json(facts.model),
        "task": to_json(facts.dataset.task),
        "tokens_path": facts.tokens_path,
        "candidates": [to_json(candidate) for candidate in candidates],
        "terms": to_json(terms),
        "on_cuda": bool(facts.hardware.gpus),
        "enough_bytes": enough_bytes,
        "order_seed": order_seed,
        "allow_remote_code": facts.model.runs_remote_code,
    }
    return server.start("estimate-trials", spec, folder, ESTIMATE_LIMITS)


def read_predictions(job: Job) -> list[TrialPrediction]:
    """What a finished job said of candidates, in their order; the last ones may be missing.

    Raises:
        InputError: one of them cannot be built or run.
        RunnerError: the job ended without an answer.
    """
    answer = _answer(job, "estimating trials")
    return [from_json(TrialPrediction, each) for each in answer["predictions"]]


def _answer(job: Job, doing: str) -> dict[str, Any]:
    """What a finished job reported as its result; else its refusal, or the end of its log, is raised."""
    if result := job.last("result"):
        return result
    if error := job.last("error"):
        kind = getattr(errors, error["kind"], InputError)
        raise kind(error["message"], next_step=error["next_step"])
    end = job.last("exit")
    cause = _ENDED_BY_GUARD.get(end["cause"] if end else "")
    cause = cause or last_line(read_tail(job.log_path)) or "the process was killed"
    raise RunnerError(f"{doing} failed: {cause}", next_step=f"read {job.log_path}")


def prepare_once(home: Home, request: StudyRequest, *, allow_remote_code: bool = False) -> StudyFacts:
    """What a study would find out before its first trial; the token files stay for the study to use.

    Raises:
        InputError: the model or the data are refused.
        RunnerError: the job could not be run.
    """
    home.create()
    server = WarmServer(home.logs / "warm.log", ["prepare"])
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
    server = WarmServer(home.logs / "warm.log", ["inspect"])
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimation:
    """What a dry run said of a model's candidate."""

    task: TaskProfile
    model: ModelProfile
    predictions: tuple[Prediction, ...]
    """One for each of the terms, in their order; fewer where enough of them fit."""


class Estimator:
    """Answers estimates from one warm server, which is started when the first is asked for and again when it
    has died. Any thread may ask."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._server: WarmServer | None = None
        # The server dies with the thread that started it: it gets one that stays. No other talks to it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="estimates")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def estimate(
        self,
        source: str,
        settings: Settings,
        terms: Sequence[Terms],
        *,
        task: TaskKind | None = None,
        enough: int | None = None,
        allowed_roots: Sequence[Path] | None = None,
        allow_remote_code: bool = False,
    ) -> Estimation:
        """Run a step of a candidate dry; of a hub model only the configuration is fetched, never a weight.

        Args:
            source: a folder, a ``config.json`` or a hub id.
            settings: the candidate, in a few words.
            terms: what its need is worked out for, one after the other.
            task: None for what the model was made for.
            enough: end after so many of the terms that the candidate fits; None answers them all.
            allowed_roots: folders that a local model must lie in; None allows every path.
            allow_remote_code: run the Python code that the model brings, if it brings any.

        Raises:
            InputError: the settings make no sense, or the candidate cannot be run.
            ModelError: the model cannot be had, is unsafe or unsupported, or has no such task.
            RunnerError: the job could not be run, or took too long.
        """
        found = resolve_model(
            source, allowed_roots=allowed_roots, allow_remote_code=allow_remote_code, fetch_weights=False
        )
        spec = {
            "source": source,
            "model_path": str(found.path),
            "revision": found.revision,
            "task": task,
            "allow_remote_code": allow_remote_code,
            "settings": to_json(settings),
            "terms": [to_json(each) for each in terms],
            "enough": enough,
        }
        self._home.create()
        folder = Path(tempfile.mkdtemp(prefix="estimate-", dir=self._home.tokens.parent))
        job = self._thread.submit(self._start, spec, folder).result()
        job.wait(LONGEST_WAIT_S)
        if job.last("result") or job.last("error"):  # if it answered neither, the error names its log
            shutil.rmtree(folder)
        result = _answer(job, f"estimating {source}")
        return Estimation(
            task=from_json(TaskProfile, result["task"]),
            model=from_json(ModelProfile, result["model"]),
            predictions=tuple(from_json(Prediction, each) for each in result["predictions"]),
        )

    def stop(self) -> None:
        """End the server and whatever it is doing."""
        self._thread.submit(self._end).result()
        self._thread.shutdown()

    def _start(self, spec: Mapping[str, Any], folder: Path) -> Job:
        if self._server is not None and not self._server.is_alive():
            self._end()
        if self._server is None:
            self._server = WarmServer(self._home.logs / "estimates.log", ["estimate"])
        try:
            return self._server.start("estimate", spec, folder, ESTIMATE_LIMITS)
        except RunnerError:
            self._end()
            raise

    def _end(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


def estimate_once(
    home: Home,
    source: str,
    settings: Settings,
    terms: Sequence[Terms],
    *,
    task: TaskKind | None = None,
    enough: int | None = None,
    allow_remote_code: bool = False,
) -> Estimation:
    """As :meth:`Estimator.estimate`, by a warm server of its own that ends with it."""
    with Estimator(home) as estimator:
        return estimator.estimate(
            source, settings, terms, task=task, enough=enough, allow_remote_code=allow_remote_code
        )
