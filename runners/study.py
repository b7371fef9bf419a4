"""One study from its facts to its recommendation: ask the search, run what it asks for, record the evidence.

Holds no state that the store does not have: whoever runs :meth:`StudyRun.run` again, after whatever
ended the last one, goes on where the evidence ends. Knows nothing about how processes are kept alive.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from ..errors import RankwiseError, RunnerError, StaleFence, StoreError
from ..home import Home
from ..optimizer.baseline import place
from ..optimizer.beside import next_beside
from ..optimizer.domain import (
    Candidate,
    Estimate,
    Level,
    Outcome,
    Recommendation,
    Rung,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialPlan,
)
from ..optimizer.estimates.prediction import TrialPrediction
from ..optimizer.estimates.trials import Judge
from ..optimizer.evidence import by_adapter
from ..optimizer.experience import by_experience, learn
from ..optimizer.keys import derive_seed
from ..optimizer.levels import enumerate_candidates
from ..optimizer.probing import FIRST_ADAPTERS, level_like
from ..optimizer.recipe import steps_for
from ..optimizer.scorer import recommend
from ..optimizer.search import RunTrial, SearchLimits, Stop, next_step
from ..optimizer.spreading import alike_gpus
from ..probes.profiles import GpuProfile
from ..store import HEARTBEAT_S, Claim, Store, StudyClaim
from ..store.events import BASELINE_LEFT_OUT
from .attempt import Attempt, drop
from .classify import Ending
from .device_care import DeviceCare
from .disk_use import missing_bytes
from .disturbance import disturbed, is_spoilt, marked, may_repeat
from .fetching import Fetched, read_fetched, start_fetch
from .jobs import (
    read_extensions,
    read_facts,
    read_predictions,
    start_estimate_trials,
    start_extensions,
    start_prepare,
)
from .keeping import Keeping
from .trial_spec import key_of, limits_of, spec_of
from .warm_client import Job, Killed, WarmServer

SERVER_STARTS = 3
SERVER_TRIES = 20
"""A warm server that somebody kills while it starts is started again so often …"""
JOB_TRIES = 4
"""… and a job that is no trial asked for again: it may be the kernel that kills it, for its memory."""
POLL_S = 0.1
DEVICE_POLL_S = 1.0
CANCEL_CHECK_S = 0.5
WAIT_S = 2.0
"""Between looks at devices that cannot be used now."""
FETCH_EVENT_GROWTH = 1.25
"""An event for so much more of a download: a hundred for the largest ones."""

Answer = TypeVar("Answer")


class Interrupted(Exception):
    """The supervisor was asked to stop; the study is left as it stands."""


class Cancelled(Exception):
    """The user cancelled the study."""


@dataclass
class StudyRun:
    """Runs one claimed study: one trial at a time, or one for each of several GPUs alike."""

    store: Store
    home: Home
    claim: StudyClaim
    warm_server: Callable[[], WarmServer]
    """Gives a live warm server, starting one where the last has died."""
    should_stop: Callable[[], bool]
    worker: str
    allow_remote_code: bool = False
    keeping: Keeping = field(default_factory=Keeping)
    running: list[Attempt] = field(default_factory=list)
    """Trials under way."""
    _ended: list[tuple[float, float]] = field(default_factory=list)
    """When attempts of this run began and ended, on the monotonic clock."""
    _banked_s: float = field(default_factory=time.monotonic)
    """Wall time up to here is in the store."""
    _waits_for: str | None = None
    """Why no trial can start now, as it was told last."""
    _told_bytes: dict[str, int] = field(default_factory=dict)
    """Of what is fetched, by kind: so much must have come before the next event."""
    _extensions: set[str] = field(default_factory=set)
    """Offloads that DeepSpeed's compiled parts are at hand for."""
    _next_renewal_s: float = field(default_factory=lambda: time.monotonic() + HEARTBEAT_S)

    @property
    def study(self) -> Study:
        """The study, as it was when it was claimed."""
        return self.claim.study

    def run(self) -> None:
        """Bring the study to an end, whatever it is.

        Raises:
            Interrupted: the supervisor is to stop.
            StaleFence: the claim is over: somebody held this supervisor for dead.
            StoreError: the database cannot be used: what became of the study is not known.
        """
        try:
            facts = self.facts_from_before() or self.prepare()
            stopped = self.search(facts)
            chosen = self.choose(stopped)
        except Cancelled:
            self.store.finish_study(self.claim, StudyState.CANCELLED, "cancelled on request")
        except (StaleFence, StoreError):
            raise
        except RankwiseError as error:
            self.store.finish_study(self.claim, StudyState.FAILED, f"{type(error).__name__}: {error}")
        else:
            self.store.finish_study(self.claim, StudyState.SUCCEEDED, None, chosen)

    def facts_from_before(self) -> StudyFacts | None:
        """What an earlier run of the study found, where it ran here: elsewhere, paths and devices differ."""
        return None if self.claim.moved else self.study.facts

    def prepare(self) -> StudyFacts:
        """Probe machine, model and data, and store what was found."""
        fetched = self.insistently(self.fetch)
        facts = self.insistently(lambda: self.read(fetched))
        alike = self.store.list_alike(facts.model.structure_sha256, facts.dataset.task.kind)
        facts = replace(facts, known=learn(alike))
        self.store.save_facts(self.claim, facts)
        return facts

    def insistently(self, ask: Callable[[], Answer], tries: int = JOB_TRIES) -> Answer:
        """What a job answers, asked again where somebody has killed who was to answer."""
        while True:
            try:
                return ask()
            except Killed as killed:
                tries -= 1
                if not tries:
                    raise RunnerError(killed.message, next_step=killed.next_step) from killed
            self.check_signals()

    def read(self, fetched: Fetched) -> StudyFacts:
        """What there is to know of model and data."""
        job = start_prepare(
            self.ready_server(),
            self.home,
            self.study.request,
            self.home.trial_folder(self.study.id),
            allow_remote_code=self.allow_remote_code,
            fetched=fetched,
        )
        self.follow(job)
        return read_facts(job)

    def fetch(self) -> Fetched:
        """Have in the hub's cache what model and data name there; what is local stays where it is."""
        request = self.study.request
        job = start_fetch(
            self.home,
            self.home.trial_folder(self.study.id),
            model=request.model,
            dataset=request.dataset,
            allow_remote_code=self.allow_remote_code,
        )
        if job is None:
            return Fetched()
        self.follow(job, on_message=self.tell_of_fetching)
        fetched = read_fetched(job, model=request.model)
        for kind, found in (job.last("result") or {}).items():
            if kind in ("model", "dataset") and found is not None:
                told = {"kind": kind, "source": getattr(request, kind), "revision": found["revision"]}
                self.store.append_event(
                    self.claim, "source.fetched", told | {"arrived_bytes": found["arrived_bytes"]}
                )
        return fetched

    def tell_of_fetching(self, message: Mapping[str, Any]) -> None:
        """An event for whoever waits, each time that a good deal more has come."""
        if message["type"] != "progress":
            return
        arrived = {name: message[name] for name in ("kind", "source", "arrived_bytes")}
        if arrived["arrived_bytes"] >= self._told_bytes.get(arrived["kind"], 0):
            self._told_bytes[arrived["kind"]] = int(arrived["arrived_bytes"] * FETCH_EVENT_GROWTH)
            self.store.append_event(self.claim, "source.fetching", arrived)

    def ready_server(self) -> WarmServer:
        """The warm server, once it has imported its libraries.

        Raises:
            RunnerError: it died while it did so, every time.
        """
        for _ in range(SERVER_STARTS - 1):
            with suppress(RunnerError):
                return self.insistently(self.started_server, SERVER_TRIES)
        return self.insistently(self.started_server, SERVER_TRIES)

    def started_server(self) -> WarmServer:
        """As :meth:`ready_server`, tried once; a server that died is replaced at the next call."""
        server = self.warm_server()
        server.wait_ready(self.check_signals)
        return server

    def search(self, facts: StudyFacts) -> str:
        """Run trials until the search has seen enough; why it has, in a sentence."""
        request = self.study.request
        candidates = enumerate_candidates(facts, request)
        if not asks_for_an_order(request):
            candidates = by_experience(candidates, facts.known)
        self.store.append_event(self.claim, "search.started", {"candidates": len(candidates)})
        baseline = self.placed_baseline(facts)
        try:
            while True:
                self.bank_wall()
                self.check_signals()
                estimates = self.store.list_estimates(self.study.id)
                step = self.next_step(facts, candidates, estimates, baseline)
                if step is None:
                    self.attend()
                elif isinstance(step, Stop):
                    self.store.append_event(self.claim, "search.stopped", {"reason": step.reason})
                    return step.reason
                elif is_untold(step.plan, estimates):
                    cores = facts.hardware.host.usable_cores
                    self.estimate(
                        facts, ladders_ahead(step.plan.candidate, candidates, estimates, most=cores)
                    )
                else:
                    self.build_extensions(facts, step.plan.candidate.level)
                    self.begin_trial(facts, self.store.plan_trial(self.claim, step.plan))
        except Interrupted:
            self.give_up(lambda each: self.store.release_attempt(each.claim, "the supervisor was stopped"))
            raise
        except Cancelled:
            self.give_up(lambda each: self.record(each, Ending(Outcome.CANCELLED, "its study was cancelled")))
            raise
        finally:
            for attempt in self.running:
                attempt.stop()

    def next_step(
        self,
        facts: StudyFacts,
        candidates: Sequence[Candidate],
        estimates: Mapping[Candidate, Estimate],
        baseline: Candidate | None,
    ) -> RunTrial | Stop | None:
        """What the search wants now; None where it has to see first how a trial under way ends."""
        request = self.study.request
        if self.running and not self.has_room(facts):
            return None
        trials = self.store.list_trials(self.study.id, with_heldout=True)
        limits = SearchLimits(
            memory_limit_bytes=request.memory_limit_bytes,
            max_trials=request.max_trials,
            budget_s=request.budget_s,
            spent_s=self.spent_s() + sum(estimate.seconds for estimate in estimates.values()),
            full_steps=steps_for(facts.train_rows, facts.recipe),
            can_learn=facts.model.has_weights,
            finish_limit_s=request.finish_limit_s,
            quality_first=request.lets_pass is not None,
        )
        ask = (
            partial(next_beside, running=[attempt.trial.id for attempt in self.running])
            if self.running
            else next_step
        )
        return ask(
            candidates, trials, limits, request.effective_weights, estimates=estimates, baseline=baseline
        )

    def has_room(self, facts: StudyFacts) -> bool:
        """Whether a device is left for another trial."""
        taken = sum(len(attempt.devices) for attempt in self.running)
        return taken < len(alike_gpus(facts.hardware))

    def spent_s(self) -> float:
        """Time in trials, once where they ran beside each other.

        What ran beside each other before a restart counts one after the other: the study then ends early.
        """
        return self.store.attempts_wall_s(self.study.id) - overlap_s(self._ended)

    def placed_baseline(self, facts: StudyFacts) -> Candidate | None:
        """What is trained with now, if it can be run here; else an event says why it is left out."""
        asked = self.study.request.baseline
        if asked is None:
            return None
        placed = place(asked, facts)
        if placed.candidate is None:
            told = {"name": asked.name, "reason": placed.reason}
            self.store.append_event(self.claim, BASELINE_LEFT_OUT, told)
        return placed.candidate

    def estimate(self, facts: StudyFacts, ladders: Sequence[Sequence[Candidate]]) -> None:
        """Run candidates dry, of each ladder until one may fit, and keep what that told, if only a failure.

        All ladders at a time: a dry run takes one core.
        """
        request = self.study.request
        judge = Judge.of(facts, request, self.store.list_estimated)

        def ask() -> list[Sequence[TrialPrediction] | RankwiseError]:
            server, folder = self.ready_server(), self.home.trial_folder(self.study.id)
            with ExitStack() as dropped:
                jobs = []
                for number, ladder in enumerate(ladders):
                    job = start_estimate_trials(
                        server,
                        facts,
                        ladder,
                        judge.terms,
                        folder / f"ladder-{number}",
                        enough_bytes=judge.enough_bytes(ladder[0]),
                        order_seed=derive_seed(request.seed, "order"),
                    )
                    dropped.callback(drop, job)
                    jobs.append(job)
                for job in jobs:
                    self.follow(job)
            return [predictions_or_refusal(job) for job in jobs]

        try:
            answers = self.insistently(ask)
        except RankwiseError as error:
            answers = [error] * len(ladders)
        told: dict[Candidate, Estimate] = {}
        for ladder, answer in zip(ladders, answers, strict=True):
            if isinstance(answer, RankwiseError):
                told[ladder[0]] = Estimate(device=judge.device_name, reason=answer.message)
            else:
                told |= {c: judge.estimate(found, c) for c, found in zip(ladder, answer, strict=False)}
        self.store.save_estimates(self.claim, told)

    def build_extensions(self, facts: StudyFacts, level: Level) -> None:
        """Have at hand what DeepSpeed compiles for such a level, before a trial asks for it.

        Raises:
            RankwiseError: it cannot be built; no trial of this level could run.
        """
        if not level.uses_deepspeed or level.offload in self._extensions:
            return

        def build() -> None:
            job = start_extensions(
                self.ready_server(),
                self.home.trial_folder(self.study.id),
                on_cpu=not facts.hardware.gpus,
                offloads=level.offload != "none",
            )
            self.follow(job, on_message=self.tell_of_building)
            seconds = read_extensions(job)
            if any(message.get("phase") == "build" for message in job.messages):
                self.store.append_event(self.claim, "extensions.built", {"seconds": dict(seconds)})

        self.insistently(build)
        self._extensions.add(level.offload)

    def tell_of_building(self, message: Mapping[str, Any]) -> None:
        """An event for whoever waits: a build takes a minute or more."""
        if message["type"] == "progress":
            self.store.append_event(self.claim, "extensions.building", {"extension": message["extension"]})

    def begin_trial(self, facts: StudyFacts, trial: Trial) -> None:
        """Launch an attempt at a planned trial, or wait for what hinders it; nothing where it is known."""
        key = key_of(facts, self.study.request, trial)
        if key and (source := self.store.find_measurement(key)):
            self.store.reuse_measurement(self.claim, trial.id, source)
            return
        devices = self.free_devices(facts, trial)
        if devices is None:
            self.wait(WAIT_S)
            return
        try:
            server = self.ready_server()
        except RunnerError as error:
            raise RunnerError(
                f"no trial can be started: {error.message}", next_step=error.next_step
            ) from error
        claim = self.store.claim_trial(
            self.claim,
            trial.id,
            devices=[device.uuid for device in devices] or [cpu_of_this_host()],
            worker=self.worker,
            measurement_key=key,
        )
        if claim is None:
            self.check_signals()
            self.wait(DEVICE_POLL_S)  # the device is taken by somebody's trial: ask again
            return
        try:
            self.running.append(self.launch(server, facts, claim, devices))
        except RankwiseError as error:
            self.store.finish_attempt(claim, outcome=Outcome.LOST, reason=str(error), wall_s=0.0)

    def launch(
        self, server: WarmServer, facts: StudyFacts, claim: Claim, devices: Sequence[GpuProfile]
    ) -> Attempt:
        """Start a claimed trial.

        Raises:
            Killed: the server is gone.
        """
        request = self.study.request
        disk_bytes = self.keeping.trial_limit_bytes(facts.model.weight_bytes)
        return Attempt.launch(
            server,
            spec_of(facts, request, claim.trial, devices, self.home),
            store=self.store,
            care=self.care,
            claim=claim,
            devices=devices,
            folder=self.home.trial_folder(claim.trial.id),
            limits=limits_of(request, on_gpu=bool(devices), disk_bytes=disk_bytes),
            logical_cores=facts.hardware.host.logical_cores,
        )

    def wait(self, seconds: float) -> None:
        """For a trial under way to end; where there is none, for so long."""
        if self.running:
            self.attend()
        else:
            time.sleep(seconds)

    def attend(self) -> None:
        """Wait until one of the trials under way has ended, and record it."""
        next_check_s = time.monotonic()
        before = len(self.running)
        while len(self.running) == before:
            self.tend(POLL_S)
            self.record_ended()
            if time.monotonic() >= next_check_s:
                next_check_s = time.monotonic() + CANCEL_CHECK_S
                self.check_signals()

    def tend(self, timeout_s: float) -> None:
        """Hear what the trials under way say, for at most so long, and keep their leases."""
        for attempt in tuple(self.running):
            try:
                attempt.tend(timeout_s / len(self.running))
            except StaleFence:  # somebody has ended the attempt already
                attempt.stop()
                self.running.remove(attempt)

    def record_ended(self) -> None:
        """Take from the trials under way what has ended, and keep what it measured."""
        for attempt in [each for each in self.running if each.is_over]:
            if not self.should_stop():
                attempt.settle(lambda: self.tend(0.0))
            self.record(attempt, self.judged(attempt))

    def record(self, attempt: Attempt, ending: Ending) -> None:
        """Keep how an attempt ended that is over."""
        if attempt not in self.running:
            return  # its lease ended meanwhile
        self.running.remove(attempt)
        wall_s = attempt.wall_s
        self._ended.append((attempt.started_s, attempt.started_s + wall_s))
        with suppress(StaleFence):
            self.store.finish_attempt(
                attempt.claim,
                outcome=ending.outcome,
                reason=ending.reason,
                measurement=ending.measurement,
                heldout=ending.heldout,
                log_tail=attempt.log_tail,
                wall_s=wall_s,
            )

    def judged(self, attempt: Attempt) -> Ending:
        """How an attempt ended, less what is no evidence because others disturbed it."""
        ending, disturbances = attempt.ending, attempt.watch.disturbances
        if not disturbances or not is_spoilt(ending, attempt.trial.plan.rung):
            return ending
        again = may_repeat(
            self.store.list_trials(self.study.id),
            disturbed_before=attempt.claim.disturbed_before,
            spent_s=self.spent_s(),
            wall_s=attempt.wall_s,
            budget_s=self.study.request.budget_s,
        )
        return disturbed(disturbances) if again else marked(ending, disturbances)

    def give_up(self, say: Callable[[Attempt], object]) -> None:
        """End the trials under way, and say of each what became of it."""
        for attempt in tuple(self.running):
            attempt.stop()
            if not self.should_stop():
                attempt.settle(lambda: self.tend(0.0))
            with suppress(StaleFence):
                say(attempt)
        self.running.clear()

    def free_devices(self, facts: StudyFacts, trial: Trial) -> Sequence[GpuProfile] | None:
        """Devices that a trial can run on now, none for the CPU; None, with an event, if it has to wait."""
        count = trial.candidate.level.processes
        ours = {device.uuid for attempt in self.running for device in attempt.devices}
        alike = [gpu for gpu in alike_gpus(facts.hardware) if gpu.uuid not in ours]
        if ours and len(alike) < count:
            return None  # our own trials hold them
        hindrances = {gpu.uuid: self.care.hindrance([gpu]) for gpu in alike}
        free = [gpu for gpu in alike if hindrances[gpu.uuid] is None]
        hindrance = (
            next(filter(None, hindrances.values()), None) if len(free) < min(count, len(alike)) else None
        )
        if missing := missing_bytes(self.home.root):
            hindrance = f"{missing / 2**30:.1f} GiB must be freed on the disk of {self.home.root}"
        if hindrance is None:
            self._waits_for = None
            return free[:count]
        if hindrance != self._waits_for:
            self._waits_for = hindrance
            told = {"trial_id": trial.id, "number": trial.number, "reason": hindrance}
            self.store.append_event(self.claim, "trial.waiting", told)
        return None

    @property
    def care(self) -> DeviceCare:
        """Looks at this study's devices."""
        return DeviceCare(store=self.store, tell=partial(self.store.append_event, self.claim))

    def follow(self, job: Job, on_message: Callable[[Mapping[str, Any]], None] = lambda _: None) -> None:
        """Wait for the end of a job that is no trial, tending the trials under way.

        Whatever it raises, the job is gone by then.

        Raises:
            Interrupted, Cancelled: on request.
            StaleFence: the claim is no longer ours.
        """
        next_check_s = time.monotonic()
        try:
            while not job.closed:
                for message in job.poll(POLL_S):
                    on_message(message)  # kept by the job, too
                self.tend(0.0)
                now_s = time.monotonic()
                if now_s >= next_check_s:
                    next_check_s = now_s + CANCEL_CHECK_S
                    self.check_signals()
        finally:
            drop(job)

    def check_signals(self) -> None:
        """Raise if the supervisor is to stop or the user cancelled; else say that this run is alive.

        Raises:
            Interrupted, Cancelled: on request.
            StaleFence: the claim is no longer ours.
        """
        if self.should_stop():
            raise Interrupted
        if time.monotonic() >= self._next_renewal_s:
            self.store.renew_study(self.claim)
            self._next_renewal_s = time.monotonic() + HEARTBEAT_S
        if self.store.get_study(self.study.id).cancel_requested:
            raise Cancelled

    def bank_wall(self) -> float:
        """Add the time since the last call to the study's wall time, and return the sum.

        Done between trials, so that a killed supervisor loses only the time of the trial it was running.
        """
        now_s = time.monotonic()
        elapsed_s, self._banked_s = now_s - self._banked_s, now_s
        return self.store.add_wall(self.claim, elapsed_s)

    def choose(self, stopped: str) -> Recommendation:
        """Rank the evidence.

        Args:
            stopped: why no more is gathered, in a sentence.

        Raises:
            NothingFits: no trial ran to its end within the limits.
        """
        trials = self.store.list_trials(self.study.id, with_heldout=True)
        # The time of what was taken over was another study's.
        own = [trial.measurement for trial in trials if trial.measurement and trial.reused_from is None]
        study = self.store.get_study(self.study.id)
        estimates = self.store.list_estimates(self.study.id)
        return recommend(
            study,
            trials,
            estimates,
            wall_s=self.bank_wall(),
            measured_s=sum(each.measured_s for each in own),
            evaluation_s=sum(each.evaluation_s or 0.0 for each in own),
            stopped=stopped,
        )


def cpu_of_this_host() -> str:
    """The name of the device that CPU trials of all supervisors on this host share."""
    return f"cpu of {socket.gethostname()}"


def asks_for_an_order(request: StudyRequest) -> bool:
    """What comes first is what was asked for."""
    return bool(request.presets or request.lora or request.use_tiers)


def is_untold(plan: TrialPlan, estimates: Mapping[Candidate, Estimate]) -> bool:
    """A probe whose shape no dry run was made of. Of a compiled model, eager steps would tell wrong sizes."""
    if plan.rung is not Rung.PROBE or plan.candidate.level.compile:
        return False
    shape = plan.candidate.shape_key
    return not any(candidate.shape_key == shape for candidate in estimates)


def ladder_of(candidate: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidate, and those that differ in a smaller micro-batch only; of a baseline it alone."""
    found = [
        each
        for each in candidates
        if each.micro_batch <= candidate.micro_batch
        and each == replace(candidate, micro_batch=each.micro_batch)
    ]
    return found or [candidate]


def ladders_ahead(
    candidate: Candidate, candidates: Sequence[Candidate], told: Mapping[Candidate, Estimate], *, most: int
) -> list[list[Candidate]]:
    """The candidate's ladder, and those of the adapters that are probed next, at its settings.

    Args:
        candidate: one of the candidates, or a baseline, which comes alone.
        told: of what nothing need be told again.
        most: ladders.
    """
    if candidate not in candidates:
        return [[candidate]]
    groups = list(by_adapter(candidates).values())[:FIRST_ADAPTERS]
    shapes = {each.shape_key for each in told}
    alike = (level_like(candidate, own) for own in groups if own[0].adapter != candidate.adapter)
    others = [each for each in alike if each.shape_key not in shapes and not each.level.compile]
    return [ladder_of(each, candidates) for each in (candidate, *others[: most - 1])]


def predictions_or_refusal(job: Job) -> Sequence[TrialPrediction] | RankwiseError:
    """What a finished job told, or why it told nothing.

    Raises:
        Killed: somebody ended it.
    """
    try:
        return read_predictions(job)
    except Killed:
        raise
    except RankwiseError as error:
        return error


def overlap_s(spans: Iterable[tuple[float, float]]) -> float:
    """By how much the lengths of spans of time, in seconds, add up to more than the time that they cover."""
    covered_s = total_s = 0.0
    end_s = -math.inf
    for start_s, stop_s in sorted(spans):
        total_s += stop_s - start_s
        covered_s += max(0.0, stop_s - max(start_s, end_s))
        end_s = max(end_s, stop_s)
    return total_s - covered_s
