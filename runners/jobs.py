"""The jobs that are no trials, from outside: specs, answers, running one by itself.

Imports no torch.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import RunnerError
from ..home import Home
from ..optimizer.codec import from_json, to_json
from ..optimizer.domain import Candidate, StudyFacts, StudyRequest
from ..optimizer.estimates.prediction import Prediction, Terms, TrialPrediction
from ..optimizer.estimates.settings import Settings
from ..optimizer.verdicts import Verdict
from ..probes.host import read_hardware
from ..probes.model_source import ResolvedModel, is_hub_id, resolve_model
from ..probes.profiles import ModelProfile, TaskKind, TaskProfile
from .fetching import Fetched, fetch
from .guard import Limits
from .warm_client import Job, WarmServer, answer_of

PREPARE_LIMIT_S = 3600.0
INSPECT_LIMITS = Limits(time_s=300.0, host_memory_bytes=8 * 2**30)
"""A factory may make any module."""
ESTIMATE_LIMITS = Limits(time_s=120.0, host_memory_bytes=4 * 2**30)
"""Many times what a model of 80 layers takes: beyond it, something is wrong with the model."""
EXTENSION_LIMITS = Limits(time_s=1800.0)
LONGEST_WAIT_S = 600.0
"""For the last word of a guard that is to end its job long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What there is to say of a model without any data."""

    task: TaskProfile | None
    """None of a module that a factory made: only data tell."""
    model: ModelProfile
    stored_bytes: Mapping[str, int]
    """By dtype, as weight files spell it; empty where there are no weights."""
    tried_with: str | None
    """Where the inputs that methods were tried with are from; None where none were found."""
    verdicts: tuple[Verdict, ...]


def start_prepare(
    server: WarmServer,
    home: Home,
    request: StudyRequest,
    folder: Path,
    *,
    allow_remote_code: bool,
    fetched: Fetched | None = None,
) -> Job:
    """Hand the job of reading model and data to a warm server.

    Args:
        fetched: where lies what is on the hub; None where nothing is.

    Raises:
        ModelError: the model cannot be had, or is not safe to load.
        RunnerError: the server is gone.
    """
    fetched = fetched or Fetched()
    model = fetched.model or resolve_model(
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
        "model_source": model.source,
        "revision": model.revision,
        "factory": None if model.factory is None else to_json(model.factory),
        "allow_remote_code": allow_remote_code,
        "dataset_path": str(fetched.dataset or request.dataset),
        "tokens_root": str(home.tokens),
    }
    return server.start("prepare", spec, folder, Limits(time_s=PREPARE_LIMIT_S))


def read_facts(job: Job) -> StudyFacts:
    """The facts that a finished prepare job reported.

    Raises:
        InputError: the model or the data were refused.
        RunnerError: the job ended without an answer.
    """
    return from_json(StudyFacts, answer_of(job, "reading model and data")["facts"])


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


def start_extensions(server: WarmServer, folder: Path, *, on_cpu: bool, offloads: bool) -> Job:
    """Have DeepSpeed's compiled parts built where that was not done before.

    Raises:
        RunnerError: the server is gone.
    """
    return server.start("extensions", {"on_cpu": on_cpu, "offloads": offloads}, folder, EXTENSION_LIMITS)


def read_extensions(job: Job) -> Mapping[str, float]:
    """The parts that a finished job has at hand, with the seconds that each took.

    Raises:
        InputError: one cannot be built.
        RunnerError: the job ended without an answer.
    """
    seconds: Mapping[str, float] = answer_of(job, "building DeepSpeed's extensions")["seconds"]
    return seconds


def read_predictions(job: Job) -> list[TrialPrediction]:
    """What a finished job said of candidates, in their order; the last ones may be missing.

    Raises:
        InputError: one of them cannot be built or run.
        RunnerError: the job ended without an answer.
    """
    answer = answer_of(job, "estimating trials")
    return [from_json(TrialPrediction, each) for each in answer["predictions"]]


def prepare_once(home: Home, request: StudyRequest, *, allow_remote_code: bool = False) -> StudyFacts:
    """What a study would find out before its first trial; the token files stay for the study to use.

    Raises:
        InputError: the model or the data are refused.
        RunnerError: the job could not be run.
    """
    home.create()
    server = WarmServer(home.logs / "warm.log", ["prepare"], home=home)
    try:
        folder = home.root / "cache" / "prepare"
        fetched = fetch(
            home,
            folder,
            model=request.model,
            dataset=request.dataset,
            allow_remote_code=allow_remote_code,
        )
        job = start_prepare(
            server, home, request, folder, allow_remote_code=allow_remote_code, fetched=fetched
        )
        job.wait(PREPARE_LIMIT_S)
    finally:
        server.stop()
    return read_facts(job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimation:
    """What a dry run said of a model's candidate."""

    task: TaskProfile
    model: ModelProfile
    predictions: tuple[Prediction, ...]
    """One for each of the terms, in their order; fewer where enough of them fit."""


class Inquiries:
    """Questions about models, answered from one warm server, which is started when the first is asked, and
    again when it has died. Any thread may ask."""

    def __init__(self, home: Home, jobs: Sequence[str] = ("estimate", "inspect")) -> None:
        """Start nothing yet.

        Args:
            jobs: the kinds of questions that are expected.
        """
        self._home, self._jobs = home, jobs
        self._server: WarmServer | None = None
        # The server dies with the thread that started it: it gets one that stays. No other talks to it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inquiries")
        self._getting_ready: Future[WarmServer] | None = None
        self._is_over = threading.Event()

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
        found = self._found(source, allowed_roots=allowed_roots, allow_remote_code=allow_remote_code)
        spec = {
            **_spec_of(found, task, allow_remote_code=allow_remote_code),
            "settings": to_json(settings),
            "terms": [to_json(each) for each in terms],
            "enough": enough,
        }
        result = self._ask("estimate", spec, ESTIMATE_LIMITS, doing=f"estimating {source}")
        return Estimation(
            task=from_json(TaskProfile, result["task"]),
            model=from_json(ModelProfile, result["model"]),
            predictions=tuple(from_json(Prediction, each) for each in result["predictions"]),
        )

    def inspect(
        self,
        source: str,
        *,
        task: TaskKind | None = None,
        arguments: Mapping[str, Any] | None = None,
        allowed_roots: Sequence[Path] | None = None,
        allow_remote_code: bool = False,
        allowed_factories: Collection[str] | None = None,
    ) -> Inspection:
        """A model's structure, and which methods it takes; of a hub model only the configuration is fetched.

        Args:
            source: a folder, a ``config.json``, a hub id or a factory.
            task: None for what the model was made for; of no account for a factory.
            arguments: of a factory.
            allowed_roots: folders that a local model must lie in; None allows every path.
            allow_remote_code: run the Python code that the model brings, if it brings any.
            allowed_factories: those whose code may run; None allows all.

        Raises:
            PathNotAllowed: the path or the factory is not allowed.
            ModelError: the model cannot be had, is unsafe or unsupported, or has no such task.
            RunnerError: the job could not be run, or took too long.
        """
        found = self._found(
            source,
            allowed_roots=allowed_roots,
            allow_remote_code=allow_remote_code,
            arguments=arguments,
            allowed_factories=allowed_factories,
        )
        spec = {
            **_spec_of(found, task, allow_remote_code=allow_remote_code),
            "factory": None if found.factory is None else to_json(found.factory),
            "libraries": sorted(read_hardware(self._home.create().root).host.libraries),
        }
        result = self._ask("inspect", spec, INSPECT_LIMITS, doing=f"inspecting {source}")
        return Inspection(
            task=None if result["task"] is None else from_json(TaskProfile, result["task"]),
            model=from_json(ModelProfile, result["model"]),
            stored_bytes=result["stored_bytes"],
            tried_with=result["tried_with"],
            verdicts=tuple(from_json(Verdict, each) for each in result["verdicts"]),
        )

    def get_ready(self) -> bool:
        """Begin to import what questions need, where that has not begun; whether it is done.

        What goes wrong is told to the next who asks a question.
        """
        server = self._server
        if server is not None and server.modules and server.is_alive():
            return True
        if self._getting_ready is None or self._getting_ready.done():
            self._getting_ready = self._thread.submit(self._live_server)
        return False

    def _found(self, source: str, *, allow_remote_code: bool, **options: Any) -> ResolvedModel:
        """A model without its weights, where it lies; the configuration of a hub model is fetched."""
        if not is_hub_id(source):
            return resolve_model(source, allow_remote_code=allow_remote_code, fetch_weights=False, **options)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=self._home.create().tokens.parent) as folder:
            fetched = fetch(
                self._home,
                Path(folder),
                model=source,
                weights=False,
                allow_remote_code=allow_remote_code,
            )
        if fetched.model is None:
            raise RunnerError(f"fetching {source} brought nothing")
        return fetched.model

    def _ask(self, kind: str, spec: Mapping[str, Any], limits: Limits, *, doing: str) -> dict[str, Any]:
        """Run a job in a folder of its own, and read its answer."""
        self._home.create()
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self._home.tokens.parent))
        job = self._thread.submit(self._start, kind, {**spec, "folder": str(folder)}, folder, limits).result()
        job.wait(LONGEST_WAIT_S)
        if job.last("result") or job.last("error"):  # if it answered neither, the error names its log
            shutil.rmtree(folder)
        return answer_of(job, doing)

    def stop(self) -> None:
        """End the server and whatever it is doing."""
        self._is_over.set()
        self._thread.submit(self._end).result()
        self._thread.shutdown()

    def _start(self, kind: str, spec: Mapping[str, Any], folder: Path, limits: Limits) -> Job:
        server = self._live_server()
        try:
            return server.start(kind, spec, folder, limits)
        except RunnerError:
            self._end()
            raise

    def _live_server(self) -> WarmServer:
        """A server that has imported what it needs.

        Raises:
            RunnerError: it did not start, or is not to any more.
        """
        if self._server is not None and not self._server.is_alive():
            self._end()
        if self._server is None:
            self._home.create()
            self._server = WarmServer(self._home.logs / "inquiries.log", self._jobs, home=self._home)
        try:
            self._server.wait_ready(self._check)
        except RunnerError:
            self._end()
            raise
        return self._server

    def _check(self) -> None:
        if self._is_over.is_set():
            raise RunnerError("the server is shutting down")

    def _end(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


def inspect_once(home: Home, source: str, **options: Any) -> Inspection:
    """As :meth:`Inquiries.inspect`, by a warm server of its own that ends with it."""
    with Inquiries(home, ["inspect"]) as inquiries:
        return inquiries.inspect(source, **options)


def _spec_of(found: ResolvedModel, task: TaskKind | None, *, allow_remote_code: bool) -> dict[str, Any]:
    """What every question about a model tells of it."""
    return {
        "source": found.source,
        "model_path": str(found.path),
        "revision": found.revision,
        "task": task,
        "allow_remote_code": allow_remote_code,
    }


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
    """As :meth:`Inquiries.estimate`, by a warm server of its own that ends with it."""
    with Inquiries(home, ["estimate"]) as inquiries:
        return inquiries.estimate(
            source, settings, terms, task=task, enough=enough, allow_remote_code=allow_remote_code
        )
