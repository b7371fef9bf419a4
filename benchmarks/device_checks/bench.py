"""The bench that the checks share: one home, one store, one warm server, and studies on models made here.

A trial goes the way of any study's: :class:`rankwise.runners.study.StudyRun` plans, claims, launches, watches
and records it. Knows nothing of what the figures should be.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from device_checks.inputs import SHAPES, SHORTEST_SHARE, write_model, write_texts
from rankwise.errors import RankwiseError
from rankwise.home import Home
from rankwise.optimizer.adapters import AdapterFactory
from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Estimate,
    Level,
    Method,
    Outcome,
    Rung,
    StudyFacts,
    StudyRequest,
    Trial,
    TrialPlan,
    TrialState,
)
from rankwise.optimizer.estimates.trials import Judge
from rankwise.optimizer.keys import derive_seed
from rankwise.optimizer.levels import PRECISIONS
from rankwise.optimizer.methods import learning_rate
from rankwise.optimizer.rules import preferred_attention, refusal
from rankwise.optimizer.sizes import BYTES_PER_ELEMENT
from rankwise.probes.gpu import read_again
from rankwise.probes.profiles import GpuProfile
from rankwise.runners.jobs import read_predictions, start_estimate_trials
from rankwise.runners.messages import last_line
from rankwise.runners.study import Interrupted, StudyRun
from rankwise.runners.warm_client import WarmServer
from rankwise.store import Store, Worker

RANK = 16
EFFECTIVE_BATCH = 8
MICRO_BATCH = 4
BUDGET_S = 240.0
"""Of one study: ends a trial that hangs after twice as long."""

CUDA_FACTS = Path(__file__).parent / "cuda_facts.py"
CUDA_FACTS_LIMIT_S = 180.0

GPU_TOKENS, CPU_TOKENS = 1024, 128
LEAST_GPU_ROWS, CPU_ROWS = 400, 100

TRAINED_SHARE = 0.8
"""At least so many of the rows are trained on; a tenth is held out."""

LEAN_FIRST = tuple(sorted(PRECISIONS, key=lambda level: BYTES_PER_ELEMENT[level.weight_dtype]))
"""The factory's precisions, 16-bit weights before 32-bit ones."""


class Failed(Exception):
    """What was checked is not as it should be."""


class Skipped(Exception):
    """What was to be checked cannot be, or need not be, here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A candidate in terms of what sets it apart."""

    shape: str
    method: Method = Method.LORA
    level: Mapping[str, Any]
    """Settings of :class:`Level` that are asked for."""
    micro_batch: int = MICRO_BATCH
    effective_batch: int = EFFECTIVE_BATCH


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study whose facts are known."""

    run: StudyRun
    facts: StudyFacts


class Bench:
    """Runs trials until a deadline; :meth:`close` ends all processes."""

    def __init__(
        self, folder: Path, gpus: Sequence[GpuProfile], device: GpuProfile | None, *, deadline_s: float
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: where everything is kept; the caller removes it.
            gpus: all that NVML lists.
            device: the one of them that trials run on; None means the CPU.
            deadline_s: by ``time.monotonic``; a trial that is running then is ended.
        """
        self.folder = folder
        self.gpus = tuple(gpus)
        self.device = device
        self.deadline_s = deadline_s
        self.home = Home(folder / "home").create()
        self.store = Store.open(self.home.database)
        self._server: WarmServer | None = None
        self._studies: dict[tuple[str, int | None], Prepared] = {}
        self.trials: dict[str, dict[str, Any]] = {}
        """Records of the trials so far that ran to their end, by check."""

    @property
    def is_on_gpu(self) -> bool:
        """Trials run on a GPU."""
        return self.device is not None

    @property
    def is_over(self) -> bool:
        """The deadline has passed."""
        return time.monotonic() >= self.deadline_s

    @property
    def small_shape(self) -> str:
        """The model that settings are tried on."""
        return "0.1b" if self.is_on_gpu else "tiny"

    def close(self) -> None:
        """End the warm server with all its jobs, and the store."""
        if self._server:
            self._server.stop()
        self.store.close()

    def server(self) -> WarmServer:
        """The warm server, started where there is none that lives. Not yet ready."""
        if self._server and not self._server.is_alive():
            self._server.stop()
            self._server = None
        if self._server is None:
            self._server = WarmServer(self.home.logs / "warm.log", ["prepare", "estimate-trials", "trial"])
        return self._server

    def study(self, shape: str, *, memory_limit_bytes: int | None = None) -> Prepared:
        """A running study on a model of this shape, with its facts; prepared once.

        Raises:
            Failed: model or data were refused, or the job could not be run.
            Skipped: the deadline came.
        """
        key = shape, memory_limit_bytes
        if key not in self._studies:
            if self._cuda_problem:
                raise Failed(self._cuda_problem)
            tokens = GPU_TOKENS if self.is_on_gpu else CPU_TOKENS
            data = self.folder / "texts.jsonl"
            if not data.exists():
                write_texts(data, rows=self._rows(), tokens=tokens)
            request = StudyRequest(
                model=str(write_model(self.folder / "models" / shape, shape)),
                dataset=str(data),
                max_length=tokens,
                effective_batch=EFFECTIVE_BATCH,
                budget_s=BUDGET_S,
                memory_limit_bytes=memory_limit_bytes,
                methods=tuple(Method),
            )
            study_id = self.store.create_study(request).id
            claim = self.store.claim_study(Worker(name="device_check", place="here"), only=study_id)
            if claim is None:
                raise Failed(f"the study on {shape} could not be claimed")
            run = StudyRun(
                store=self.store,
                home=self.home,
                claim=claim,
                warm_server=self.server,
                should_stop=lambda: self.is_over,
                worker="device_check",
            )
            with self._our_errors():
                self._studies[key] = Prepared(run, run.prepare())
        return self._studies[key]

    def measure(self, prepared: Prepared, candidate: Candidate) -> Trial:
        """Probe a candidate as a study does: a disturbed or lost attempt is repeated as often as there.

        Raises:
            Failed: the trial could not be run.
            Skipped: the deadline came.
        """
        run = prepared.run
        plan = TrialPlan(candidate=candidate, rung=Rung.PROBE, reason="device check")
        trial = self.store.plan_trial(run.claim, plan)
        with self._our_errors():
            while trial.state is not TrialState.FINISHED:
                run.begin_trial(prepared.facts, trial)
                while run.running:
                    run.attend()
                trial = self.store.get_trial(trial.id)
        return trial

    def estimate(self, prepared: Prepared, candidate: Candidate) -> dict[str, Any] | None:
        """What a study without earlier trials is told of a candidate before it runs, as JSON data: the fields
        of :class:`Estimate`, and ``by_phase``, bytes allocated in each part of a step.

        Where nothing could be told, ``reason`` says why, and bytes are None. None for a level that no dry run
        can be made of.

        Raises:
            Skipped: the deadline came.
        """
        if not can_be_told(candidate.level):
            return None
        run, facts = prepared.run, prepared.facts
        judge = Judge(facts=facts, request=run.study.request)
        with self._our_errors():
            job = start_estimate_trials(
                run.ready_server(),
                facts,
                [candidate],
                judge.terms,
                self.home.trial_folder(run.study.id),
                enough_bytes=0,
                order_seed=derive_seed(run.study.request.seed, "order"),
            )
            run.follow(job)
        try:
            (prediction,) = read_predictions(job)
        except RankwiseError as error:
            return dict(to_json(Estimate(device=judge.device_name, reason=error.message)))
        told = judge.estimate(prediction, candidate)
        return {**to_json(told), "by_phase": to_json(prediction.need)["by_phase"]}

    def candidate(self, prepared: Prepared, wish: Wish) -> Candidate:
        """The candidate that the factory's parts make of a wish, at the leanest precision that rules allow.

        Raises:
            Skipped: the rules forbid it at every precision; with the most frequent reason.
        """
        facts = prepared.facts
        adapter = adapter_of(facts, wish.method)
        attention = preferred_attention(facts.model)
        refused: Counter[str] = Counter()
        for precision in LEAN_FIRST:
            level = replace(precision, **{"attention": attention, **wish.level})
            rule = refusal(adapter, level, facts.model, facts.dataset.task.kind, facts.hardware)
            if rule is None:
                return self._candidate_at(facts, adapter, level, wish)
            refused[rule.reason] += 1
        raise Skipped(refused.most_common(1)[0][0])

    def used_bytes(self) -> int | None:
        """Memory in use on the device by anybody; None on the CPU and where NVML does not say."""
        return read_again(self.device).used_bytes if self.device else None

    def _candidate_at(self, facts: StudyFacts, adapter: Adapter, level: Level, wish: Wish) -> Candidate:
        recipe = replace(facts.recipe, effective_batch=wish.effective_batch)
        return Candidate(
            adapter=adapter,
            level=level,
            recipe=recipe,
            micro_batch=wish.micro_batch,
            learning_rate=learning_rate(adapter.method, facts.model.hidden_size),
        )

    @cached_property
    def _cuda_problem(self) -> str | None:
        """Why CUDA does not find the device: trials would run on the CPU, and take its memory."""
        if self.device is None:
            return None
        (answer,), versions = ask_cuda([{"CUDA_VISIBLE_DEVICES": self.device.uuid}])
        if len(answer["cuda"]) == 1:
            return None
        build = versions["cuda_runtime"]
        cause = answer["problem"] or (
            f"it is built for CUDA {build}" if build else "it is built without CUDA"
        )
        return f"torch {versions['torch']} finds no CUDA device where NVML lists {self.device.name}: {cause}"

    def _rows(self) -> int:
        """So many that a batch of all of them cannot fit, whatever the device."""
        if self.device is None:
            return CPU_ROWS
        enough = rows_that_overflow(self.device.total_bytes, self.small_shape) / TRAINED_SHARE
        return max(LEAST_GPU_ROWS, math.ceil(enough))

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        """Turn what a study run raises into the words of a check."""
        try:
            yield
        except Interrupted:
            raise Skipped("the time limit came while it ran") from None
        except RankwiseError as error:
            raise Failed(f"{type(error).__name__}: {error}") from error


def ask_cuda(
    environments: Sequence[Mapping[str, str]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What CUDA and the probes list under each environment, and torch's versions: see ``cuda_facts.py``.

    Raises:
        Failed: a process died over it.
    """
    command = [sys.executable, str(CUDA_FACTS), json.dumps(environments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=CUDA_FACTS_LIMIT_S, check=False)
    if result.returncode:
        raise Failed(f"asking CUDA failed: {last_line(result.stderr)}")
    *answers, versions = map(json.loads, result.stdout.splitlines())
    if len(answers) != len(environments):
        raise Failed(f"{len(environments) - len(answers)} of {len(environments)} processes died asking CUDA")
    return answers, versions


def can_be_told(level: Level) -> bool:
    """Dry runs are eager ones, on fake tensors that no kernel in Triton, as Liger's are, can take."""
    return not level.compile and level.loss != "liger"


def adapter_of(facts: StudyFacts, method: Method) -> Adapter:
    """The method's adapter of middling size.

    Raises:
        Failed: the factory finds nothing to adapt.
    """
    factory = AdapterFactory.of(facts)
    if method is Method.FULL:
        return Adapter(method=method)
    made = {
        Method.LORA: factory.lora(RANK, "full"),
        Method.ADALORA: factory.adalora(RANK // 2, "balanced"),
        Method.IA3: factory.ia3("own"),
        Method.LAST_BLOCKS: factory.last_blocks(1),
        Method.NORMS: factory.partial(Method.NORMS),
    }
    adapter = made[method]
    if adapter is None:
        raise Failed(f"the factory finds nothing that {method} could adapt in {facts.model.source}")
    return adapter


def rows_that_overflow(total_bytes: int, shape: str) -> int:
    """Rows of a batch whose logits alone, in float32, are larger than the memory."""
    row_bytes: float = SHORTEST_SHARE * GPU_TOKENS * SHAPES[shape]["vocab_size"] * 4
    return math.ceil(total_bytes / row_bytes)


def record_of(trial: Trial) -> dict[str, Any]:
    """What is kept of a trial, as JSON data. Bytes, seconds; None is unknown."""
    found = trial.measurement
    record: dict[str, Any] = {
        "outcome": trial.outcome,
        "reason": trial.reason,
        "description": trial.candidate.describe(),
        "candidate": to_json(trial.candidate),
        "attempts": trial.attempts,
        "trial_s": trial.wall_s,
    }
    if found is None:
        return record
    speed, halfwidth = found.tokens_per_s, found.tokens_per_s_rel_halfwidth
    interval = None
    if speed is not None and halfwidth is not None:
        interval = [speed * (1 - halfwidth), speed * (1 + halfwidth)]
    return record | {
        "tokens_per_s": speed,
        "tokens_per_s_interval_95": interval,
        "step_s_mean": found.step_s_mean,
        "steps_measured": found.steps_measured,
        "measured_s": found.measured_s,
        "peak_tensor_bytes": found.peak_tensor_bytes,
        "peak_allocated_bytes": found.peak_allocated_bytes,
        "peak_reserved_bytes": found.peak_reserved_bytes,
        "peak_device_bytes": found.peak_device_bytes,
        "peak_process_bytes": found.peak_process_bytes,
        "trainable_params": found.trainable_params,
        "total_params": found.total_params,
        "disturbances": list(found.disturbances),
    }


def ran(trial: Trial) -> bool:
    """It ended well, with figures."""
    return trial.outcome is Outcome.OK and trial.measurement is not None
