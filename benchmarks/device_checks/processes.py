"""Checks of what trials stand on: the probes, the warm server, the end of a killed trial.

Each fills in its figures, returns where all is as it should be, and raises Failed or Skipped.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_checks.bench import Bench, Failed, Prepared, Wish, ask_cuda
from device_checks.memory import BASELINE_TOLERANCE_BYTES, FREE_LIMIT_S, gib, returned_to
from rankwise.optimizer.domain import Candidate, Outcome, Rung, TrialPlan
from rankwise.probes.gpu import read_again
from rankwise.probes.profiles import GpuProfile
from rankwise.runners.attempt import trial_pids
from rankwise.runners.classify import classify
from rankwise.runners.messages import last_line
from rankwise.runners.trial_spec import limits_of, spec_of
from rankwise.runners.warm_client import Job, read_tail

Figures = dict[str, Any]

TOTAL_SHARE = 0.9
"""CUDA keeps a little of a device's memory for itself: it names at least this share of what NVML does."""

UUID_SHOWN = 12
"""Characters of a UUID that are enough for CUDA to know the device by."""

CHILDREN = 3
JOB_LIMIT_S = 180.0
ENDLESS_STEPS = 1_000_000
CUDA_DEVICE_FILE = "/dev/nvidia-uvm"
"""Opened when CUDA is initialised, and not by NVML."""


def check_probes(bench: Bench, figures: Figures) -> None:
    """NVML and CUDA tell the same of each device, and hide the same ones under every environment."""
    environments = environments_of(bench.gpus)
    answers, figures["versions"] = ask_cuda(environments)
    problems = []
    for environment, answer in zip(environments, answers, strict=True):
        problems += differences(answer, where=" ".join(f"{k}={v}" for k, v in environment.items()) or "unset")
    figures["environments"] = len(environments)
    figures["devices"] = len(answers[0]["nvml"])
    if problems:
        raise Failed("; ".join(problems))


def environments_of(gpus: Sequence[GpuProfile]) -> list[dict[str, str]]:
    """All devices, then each by UUID, by the beginning of one and by number, in reverse order, and none."""
    numbers = [] if any(gpu.is_mig for gpu in gpus) else [str(gpu.index) for gpu in gpus]
    lists = [gpu.uuid for gpu in gpus]
    lists += [gpu.uuid[:UUID_SHOWN] for gpu in gpus if not gpu.is_mig]
    lists += [*numbers, ",".join(reversed(numbers)), f"{numbers[0]},99"] if numbers else []
    lists += ["-1", "GPU-00000000-none"]
    known = dict.fromkeys(lists)
    ordered = [{"CUDA_VISIBLE_DEVICES": value, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} for value in known]
    return [{"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, *ordered]


def differences(answer: Mapping[str, Any], *, where: str) -> list[str]:
    """Sentences on what CUDA and the probes tell differently under one environment."""
    nvml, cuda = answer["nvml"], answer["cuda"]
    if answer["problem"]:
        return [f"{where}: CUDA says: {answer['problem']}"]
    ours, theirs = (
        [device["uuid"].split("-", 1)[-1] for device in nvml],
        [device["uuid"] for device in cuda],
    )
    if ours != [uuid.removeprefix("GPU-").removeprefix("MIG-") for uuid in theirs]:
        return [f"{where}: the probes list {len(ours)} devices, CUDA {len(theirs)}, or others"]
    found = []
    for mine, its in zip(nvml, cuda, strict=True):
        found += [
            f"{where}: {name} is {mine[name]} to NVML and {its[name]} to CUDA"
            for name in ("name", "compute_capability")
            if mine[name] != its[name]
        ]
        if not TOTAL_SHARE * mine["total_bytes"] <= its["total_bytes"] <= mine["total_bytes"]:
            found.append(f"{where}: {mine['total_bytes']} bytes to NVML, {its['total_bytes']} to CUDA")
    return found


def check_warm_start(bench: Bench, figures: Figures) -> None:
    """The warm server leaves CUDA alone, and the children that it forks can use it; how soon they start."""
    started_s = time.monotonic()
    server = bench.server()
    server.wait_ready()
    figures["server_ready_s"] = time.monotonic() - started_s
    figures["preloaded"] = list(server.modules)
    prepared = bench.study(bench.small_shape)
    candidate = bench.candidate(prepared, Wish(shape=bench.small_shape, level={}))
    before, starts, builds = bench.used_bytes(), [], []
    for number in range(CHILDREN):
        with running_job(bench, prepared, candidate, f"start-{number}") as job:
            starts.append(seconds_until(job, lambda message: message["type"] == "started"))
            builds.append(seconds_until(job, lambda message: message.get("phase") == "built"))
            used = bench.used_bytes()
        weight_bytes = next(item["weight_bytes"] for item in job.messages if item.get("phase") == "built")
        if used is not None and before is not None and used - before < weight_bytes:
            raise Failed("a child built its model, and the device's memory did not grow by the weights")
        if not returned_to(bench, before, figures, key="memory_back_s"):
            raise Failed(f"the memory of a cancelled child was not free again after {FREE_LIMIT_S:.0f} s")
    figures |= {
        "child_started_s": statistics.median(starts),
        "child_built_model_s": statistics.median(builds),
        "children": CHILDREN,
    }
    if CUDA_DEVICE_FILE in open_files(server.pid):
        raise Failed(f"the warm server has {CUDA_DEVICE_FILE} open: it initialised CUDA")
    if bench.device and server.pid in gpu_pids(bench.device):
        raise Failed("NVML lists the warm server among the processes on the device")


def open_files(pid: int) -> set[str]:
    """What a process has open, by path."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(link.readlink()))
    return found


def gpu_pids(device: GpuProfile) -> set[int]:
    """Processes that NVML lists on the device now; their ids may be those outside of a container."""
    return {process.pid for process in read_again(device).processes or ()}


def check_killed(bench: Bench, figures: Figures) -> None:
    """A trial killed in the middle of its training leaves nothing on the device, and counts as lost."""
    prepared = bench.study(bench.small_shape)
    candidate = bench.candidate(prepared, Wish(shape=bench.small_shape, level={}))
    bench.server().wait_ready()
    before = bench.used_bytes()
    with running_job(bench, prepared, candidate, "killed", train_steps=ENDLESS_STEPS) as job:
        figures["training_after_s"] = seconds_until(job, lambda message: message.get("phase") == "train")
        pids, during = trial_pids(job), bench.used_bytes()
        if before is not None and during is not None:
            figures |= {"used_before_bytes": before, "used_during_bytes": during}
            if during - before < BASELINE_TOLERANCE_BYTES:
                raise Failed("the trial trains, and the device's memory has not grown")
        os.kill(pids[0], signal.SIGKILL)
        if not returned_to(bench, before, figures, key="memory_back_s"):
            now = gib(bench.used_bytes() or 0)
            raise Failed(f"memory was not back after {FREE_LIMIT_S:.0f} s: {now} are used")
        job.wait(JOB_LIMIT_S)
    if left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        raise Failed(f"{len(left)} of the trial's {len(pids)} processes are still there")
    ending = classify(
        result=job.last("result"),
        failure=job.last("failure"),
        error=job.last("error"),
        end=job.last("exit"),
        kernel_oom_kills=0,
        log_tail=read_tail(job.log_path),
    )
    figures |= {"outcome": ending.outcome, "reason": ending.reason}
    if ending.outcome is not Outcome.LOST:
        raise Failed(f"it was taken for {ending.outcome}: {ending.reason}")


@contextmanager
def running_job(
    bench: Bench, prepared: Prepared, candidate: Candidate, name: str, *, train_steps: int | None = None
) -> Iterator[Job]:
    """Launch a trial with a study's own spec, a probe unless steps are given, and end it in the end."""
    run = prepared.run
    rung = Rung.PROBE if train_steps is None else Rung.TRAIN
    plan = TrialPlan(candidate=candidate, rung=rung, train_steps=train_steps or 0, reason=name)
    trial = bench.store.plan_trial(run.claim, plan)
    devices = (bench.device,) if bench.device else ()
    request, disk_bytes = run.study.request, run.keeping.trial_limit_bytes(prepared.facts.model.weight_bytes)
    spec = spec_of(prepared.facts, request, trial, devices, bench.home)
    limits = replace(limits_of(request, on_gpu=bool(devices), disk_bytes=disk_bytes), grace_s=1.0)
    job = bench.server().start("trial", spec.to_mapping(), bench.home.trial_folder(name), limits)
    try:
        yield job
    finally:
        if not job.closed:
            job.cancel()
            job.wait(JOB_LIMIT_S)


def seconds_until(job: Job, wanted: Callable[[Mapping[str, Any]], bool]) -> float:
    """Seconds from the launch to the first message of a kind.

    Raises:
        Failed: the job ended before, or took too long.
    """
    while not job.closed and job.elapsed_s() < JOB_LIMIT_S:
        for message in job.poll(0.05):
            if wanted(message):
                return job.elapsed_s()
    failure = job.last("failure") or job.last("error") or {}
    cause = failure.get("reason") or failure.get("message") or last_line(read_tail(job.log_path))
    raise Failed(f"a trial ended, or hung, before it was ready: {cause or 'no output'}")
