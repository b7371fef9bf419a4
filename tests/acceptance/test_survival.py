"""Whatever is killed in mid-study, the study ends well and no finished trial is run again.

A real server, a real study, and SIGKILL.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rankwise.home import Home
from rankwise.optimizer.domain import Method, StudyRequest
from rankwise.runners.lock import lock_holder
from rankwise.runners.strays import start_ticks
from rankwise.store import Store

STUDY = {"budget": {"seconds": 300, "max_trials": 4}, "constraints": {"max_length": 32}, "methods": ["lora"]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    home: Home, data: Path, model: Path, port: int
) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    command = [str(Path(sys.executable).with_name("rankwise")), "serve", "--port", str(port)]
    environment = {**os.environ, "RANKWISE_HOME": str(home.root)}
    with (home.logs / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--allow-root", str(data.parent), "--allow-root", str(model)],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=data.parent,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(lambda: answers(client), "the server to answer")
            yield client, process
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Any, what: str, timeout_s: float = 240) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def trials_of(client: httpx.Client, study_id: str) -> list[dict[str, Any]]:
    return client.get(f"/v1/studies/{study_id}/trials").json()["trials"]


def descendants(pid: int, part: str) -> list[psutil.Process]:
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if part in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def victim(who: str, home: Home, server: subprocess.Popen[bytes]) -> int | None:
    """The process to kill, if it lives already. Guards and trials are forks of the warm server."""
    holder = lock_holder(home)
    if who == "server":
        return server.pid
    if holder is None:
        return None
    if who == "supervisor":
        return holder.pid
    forks = descendants(holder.pid, "rankwise.runners.warm")
    warm = [process for process in forks if process.ppid() == holder.pid]
    if who == "warm server":
        return warm[0].pid if warm else None
    guards = [process for process in forks if warm and process.ppid() == warm[0].pid]
    trials = [process for process in forks if guards and process.ppid() == guards[0].pid]
    return trials[0].pid if trials else None


@pytest.mark.parametrize("who", ["server", "supervisor", "warm server", "trial"])
def test_study_survives_sigkill(who: str, home: Home, tiny_llama: Path, texts_jsonl: Path) -> None:
    with ExitStack() as stack:
        client, server = stack.enter_context(serving(home, texts_jsonl, tiny_llama, free_port()))
        request = {"model": str(tiny_llama), "dataset": str(texts_jsonl), **STUDY}
        study_id = client.post("/v1/studies", json=request).json()["id"]
        done = wait_for(lambda: in_state(client, study_id, "finished"), "a finished trial")
        wait_for(lambda: in_state(client, study_id, "running"), "the next trial")
        pid = wait_for(lambda: victim(who, home, server), f"the {who}")
        dependents = psutil.Process(pid).children(recursive=True)
        os.kill(pid, signal.SIGKILL)
        assert not psutil.wait_procs(dependents, timeout=10)[1], "processes outlived the killed one"
        if who == "server":
            client, _ = stack.enter_context(serving(home, texts_jsonl, tiny_llama, free_port()))
        final = wait_for(lambda: ended(client, study_id), "the study to end")
        assert final["state"] == "succeeded", final
        trials = {trial["id"]: trial for trial in trials_of(client, study_id)}
        for trial in done:
            assert trials[trial["id"]] == trial
        same = ("candidate_id", "rung", "train_steps", "replicate")
        assert len({tuple(trial[name] for name in same) for trial in trials.values()}) == len(trials)
        assert {trial["outcome"] for trial in trials.values()} == {"ok"}
        assert client.get(f"/v1/studies/{study_id}/recommendation").status_code == 200


def in_state(client: httpx.Client, study_id: str, state: str) -> list[dict[str, Any]]:
    return [trial for trial in trials_of(client, study_id) if trial["state"] == state]


def ended(client: httpx.Client, study_id: str) -> dict[str, Any] | None:
    study: dict[str, Any] = client.get(f"/v1/studies/{study_id}").json()
    return study if study["state"] in ("succeeded", "failed", "cancelled") else None


STRAY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""
"""As an evaluation command: leaves a daemon in a session of its own that ignores SIGTERM, and stays, too."""


def test_what_a_trial_leaves_is_found_whoever_dies_and_whoever_cancels(
    home: Home, tiny_llama: Path, texts_jsonl: Path, tmp_path: Path
) -> None:
    script, pids = tmp_path / "judge.py", tmp_path / "pids"
    script.write_text(STRAY)
    pids.touch()
    request = StudyRequest(
        model=str(tiny_llama),
        dataset=str(texts_jsonl),
        methods=(Method.LORA,),
        max_trials=2,
        max_length=32,
        eval_command=(sys.executable, str(script), str(pids)),
    )

    def strays(count: int) -> list[int] | None:
        found = [int(line) for line in pids.read_text().splitlines()]
        return found if len(found) == count else None

    with serving(home, texts_jsonl, tiny_llama, free_port()) as (client, _):
        with closing(Store.open(home.database)) as store:
            study_id = store.create_study(request).id
        (first,) = wait_for(lambda: strays(1), "the first stray")
        # Warm server and guard at once: whose child the stray is then, knows nothing of it.
        holder = lock_holder(home)
        assert holder is not None
        (warm,) = psutil.Process(holder.pid).children()
        watching = [warm, *warm.children()]
        for process in watching:
            process.suspend()
        for process in watching:
            process.kill()
        _, second = wait_for(lambda: strays(2), "the stray of the next attempt")
        assert start_ticks(first) is None
        assert client.delete(f"/v1/studies/{study_id}").status_code == 202
        final = wait_for(lambda: ended(client, study_id), "the study to end", timeout_s=40)
        assert final["state"] == "cancelled"
        assert start_ticks(second) is None
