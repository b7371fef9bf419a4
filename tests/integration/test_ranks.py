"""Trials of two real processes: DDP and DeepSpeed over gloo on the CPU, and what happens when one is lost."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rankwise.home import Home
from rankwise.optimizer.codec import from_json, to_json
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Level,
    Measurement,
    Method,
    Outcome,
    Recipe,
    StudyFacts,
    StudyRequest,
)
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.trainers.writing import deepspeed_config
from rankwise.runners.classify import Ending, classify
from rankwise.runners.guard import Limits
from rankwise.runners.jobs import read_extensions, read_facts, start_extensions, start_prepare
from rankwise.runners.messages import TrialSpec
from rankwise.runners.trial.ranks import STOPPED_S
from rankwise.runners.warm_client import Job, WarmServer, read_tail

PATIENCE_S = 300.0
STEPS = 20
RECIPE = Recipe(max_length=64, effective_batch=8)
LORA = Adapter(method=Method.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj"))
LEVELS = {
    "ddp": Level(processes=2),
    "zero-1": Level(processes=2, zero_stage=1),
    "zero-2": Level(processes=2, zero_stage=2),
    "zero-3": Level(processes=2, zero_stage=3),
    "zero-3, all offloaded": Level(processes=2, zero_stage=3, offload="all"),
    "zero-2, optimizer offloaded, one process": Level(zero_stage=2, offload="optimizer"),
}


@pytest.fixture(scope="module")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    server = WarmServer(tmp_path_factory.mktemp("warm") / "warm.log", ["prepare", "trial"])
    try:
        job = start_extensions(server, tmp_path_factory.mktemp("extensions"), on_cpu=True, offloads=True)
        job.wait(600)
        assert set(read_extensions(job)) == {"deepspeed_shm_comm", "cpu_adam"}
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def facts(
    warm_server: WarmServer, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, texts_jsonl: Path
) -> StudyFacts:
    home = Home(tmp_path_factory.mktemp("home")).create()
    request = StudyRequest(model=str(tiny_llama), dataset=str(texts_jsonl), max_length=RECIPE.max_length)
    job = start_prepare(warm_server, home, request, home.root / "prepare", allow_remote_code=False)
    job.wait(PATIENCE_S)
    return read_facts(job)


def make_spec(facts: StudyFacts, level: Level, **changes: Any) -> TrialSpec:
    candidate = Candidate(adapter=LORA, level=level, recipe=RECIPE, micro_batch=2, learning_rate=1e-3)
    spec = TrialSpec(
        model_path=facts.model.path,
        tokens_path=facts.tokens_path,
        task=to_json(facts.dataset.task),
        candidate=to_json(candidate),
        adapter_config=adapter_config(
            candidate, task_kind=facts.dataset.task.kind, base_model=facts.model.source, total_steps=100
        ),
        rung="train",
        total_steps=STEPS,
        pad_id=facts.pad_id,
        seed=11,
        order_seed=12,
        threads=2,
        deepspeed=deepspeed_config(candidate),
    )
    return dataclasses.replace(spec, **changes)


Launch = Callable[[TrialSpec], Job]


@pytest.fixture(scope="module")
def launch(warm_server: WarmServer, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    def start(spec: TrialSpec) -> Job:
        folder = tmp_path_factory.mktemp("trial")
        return warm_server.start("trial", spec.to_mapping(), folder, Limits(time_s=PATIENCE_S, grace_s=1))

    return start


def ending_of(job: Job) -> Ending:
    return classify(
        result=job.last("result"),
        failure=job.last("failure"),
        error=job.last("error"),
        end=job.last("exit"),
        kernel_oom_kills=0,
        log_tail=read_tail(job.log_path),
    )


def measure(launch: Launch, spec: TrialSpec) -> Measurement:
    job = launch(spec)
    job.wait(PATIENCE_S)
    result = job.last("result")
    assert result, (job.last("failure"), job.last("exit"), job.log_path.read_text()[-4000:])
    return from_json(Measurement, result["measurement"])


@pytest.fixture(scope="module")
def alone(launch: Launch, facts: StudyFacts) -> Measurement:
    """The same training in one process."""
    return measure(launch, make_spec(facts, Level()))


@pytest.mark.parametrize("name", LEVELS)
def test_losses_are_those_of_one_process(
    launch: Launch, facts: StudyFacts, alone: Measurement, name: str
) -> None:
    found = measure(launch, make_spec(facts, LEVELS[name]))
    assert len(found.train_losses) == STEPS
    assert found.train_losses == pytest.approx(alone.train_losses, abs=1e-3)
    assert alone.train_losses[0] != pytest.approx(alone.train_losses[-1], abs=1e-2), "something is learnt"
    assert found.heldout_loss == pytest.approx(alone.heldout_loss, abs=1e-3)
    assert found.heldout_rows == alone.heldout_rows
    assert found.trained_tokens == alone.trained_tokens
    assert found.trainable_params == alone.trainable_params
    assert found.total_params == alone.total_params
    assert found.trainable_sha256 == alone.trainable_sha256


@pytest.mark.parametrize("name", ["ddp", "zero-3"])
def test_each_process_tells_what_it_held(launch: Launch, facts: StudyFacts, name: str) -> None:
    found = measure(launch, make_spec(facts, LEVELS[name], rung="probe"))
    assert [rank.rank for rank in found.ranks] == [0, 1]
    peaks = [rank.peak_tensor_bytes for rank in found.ranks]
    assert found.peak_tensor_bytes == max(peak for peak in peaks if peak is not None)
    assert found.peak_process_bytes == sum(rank.peak_process_bytes or 0 for rank in found.ranks)
    assert all(rank.communication_share is not None for rank in found.ranks)
    assert all(0 < (rank.communication_share or 0) <= 1 for rank in found.ranks)
    assert found.tokens_per_s is not None


def ranks_of(job: Job) -> list[psutil.Process]:
    """The processes of a trial, by their ranks, once it trains."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (job.last("progress") or {}).get("phase") != "train" and time.monotonic() < deadline_s:
        assert not job.closed, read_tail(job.log_path)
        for _ in job.poll(0.1):
            pass
    started = job.last("started")
    assert started is not None
    return sorted(psutil.Process(started["pid"]).children(), key=lambda process: process.pid)


def gone_after(job: Job, limit_s: float) -> bool:
    """The job has said its last word within this time."""
    job.wait(limit_s)
    return job.closed


LONG = {"total_steps": 100_000}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_rank_ends_the_trial(launch: Launch, facts: StudyFacts, number: int) -> None:
    job = launch(make_spec(facts, LEVELS["ddp"], **LONG))
    ranks = ranks_of(job)
    os.kill(ranks[1].pid, number)
    assert gone_after(job, 40)
    ending = ending_of(job)
    assert ending.outcome is (Outcome.LOST if number == signal.SIGKILL else Outcome.CRASHED)
    assert "rank 1" in (ending.reason or "")
    assert not any(rank.is_running() for rank in ranks)


def test_a_stopped_rank_ends_the_trial(launch: Launch, facts: StudyFacts) -> None:
    job = launch(make_spec(facts, LEVELS["zero-2"], **LONG))
    ranks = ranks_of(job)
    os.kill(ranks[0].pid, signal.SIGSTOP)
    assert gone_after(job, STOPPED_S + 30)
    ending = ending_of(job)
    assert ending.outcome is Outcome.LOST
    assert "rank 0 was stopped" in (ending.reason or "")
    assert not any(rank.is_running() for rank in ranks)


def test_cancelling_ends_all_ranks(launch: Launch, facts: StudyFacts) -> None:
    job = launch(make_spec(facts, LEVELS["ddp"], **LONG))
    ranks = ranks_of(job)
    job.cancel()
    assert gone_after(job, 40)
    assert not any(rank.is_running() for rank in ranks)


def test_memory_that_one_rank_lacks_ends_the_trial(launch: Launch, facts: StudyFacts) -> None:
    job = launch(make_spec(facts, LEVELS["ddp"], **LONG))
    ranks = ranks_of(job)
    size = ranks[1].memory_info().vms
    resource.prlimit(ranks[1].pid, resource.RLIMIT_AS, (size, size))
    assert gone_after(job, 60)
    ending = ending_of(job)
    assert ending.outcome is Outcome.HOST_OOM, (ending, read_tail(job.log_path))
    assert "rank 1" in (ending.reason or "")
    assert not any(rank.is_running() for rank in ranks)
