"""A whole study of trainings over two processes, on the CPU: what it finds, survives, and hands over."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rankwise.home import Home
from rankwise.optimizer.domain import Candidate, Method, Outcome, Study, StudyFacts, StudyRequest, StudyState
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.runners import study as study_module
from rankwise.runners.ready_files import write_ready_files
from rankwise.runners.study import StudyRun
from rankwise.runners.warm_client import WarmServer
from rankwise.store import Store, Worker


def only_spread(facts: StudyFacts, request: StudyRequest) -> tuple[Candidate, ...]:
    """A small study would not come to them: here two processes are slower than one with two threads.

    They may share a core: beside other tests there is only one, on which nobody would spread a training.
    """
    host = replace(facts.hardware.host, logical_cores=2)
    found = enumerate_candidates(replace(facts, hardware=replace(facts.hardware, host=host)), request)
    return tuple(each for each in found if each.level.processes == 2 and each.level.zero_stage in (0, 3))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    server = WarmServer(tmp_path_factory.mktemp("warm") / "warm.log", ["prepare", "estimate-trials", "trial"])
    yield server
    server.stop()


def kill_a_rank(server: WarmServer, killed: list[int]) -> None:
    """Kill the second of two ranks, once there are any."""
    deadline_s = time.monotonic() + 200
    while not killed and time.monotonic() < deadline_s:
        with suppress(psutil.NoSuchProcess):  # guards of other jobs come and go
            for guard in psutil.Process(server.pid).children():
                for trial in guard.children():
                    ranks = sorted(trial.children(), key=lambda process: process.pid)
                    if len(ranks) == 2:
                        ranks[1].kill()
                        killed.append(ranks[1].pid)
                        return
        time.sleep(0.05)


def test_a_study_of_two_processes(
    home: Home,
    server: WarmServer,
    tiny_llama: Path,
    texts_jsonl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study_module, "enumerate_candidates", only_spread)
    request = StudyRequest(
        model=str(tiny_llama),
        dataset=str(texts_jsonl),
        processes=2,
        methods=(Method.LORA,),
        max_length=64,
        effective_batch=8,
        epochs=1.0,
        budget_s=600.0,
        max_trials=5,
    )
    with closing(Store.open(home.database)) as store:
        store.create_study(request)
        claimed = store.claim_study(Worker(name="test", place="here"))
        assert claimed is not None
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_rank, args=(server, killed))
        killer.start()
        run = StudyRun(
            store=store,
            home=home,
            claim=claimed,
            warm_server=lambda: server,
            should_stop=lambda: False,
            worker="test",
        )
        run.run()
        killer.join()
        study = store.get_study(claimed.id)
        assert study.state is StudyState.SUCCEEDED, study.reason
        assert killed
        expect_evidence(store, study)
        write_ready_files(store, study.id, tmp_path)
    verify_as_handed_over(tmp_path)


def expect_evidence(store: Store, study: Study) -> None:
    trials = store.list_trials(study.id)
    lost = [event for event in store.events_after(study.id, 0) if event.kind == "trial.lost"]
    assert any("rank 1" in event.payload["reason"] for event in lost), (
        "the killed rank's trial was tried again"
    )
    measured = [trial for trial in trials if trial.outcome is Outcome.OK]
    assert measured
    for trial in measured:
        assert trial.measurement is not None
        assert [rank.rank for rank in trial.measurement.ranks] == [0, 1]
    chosen = store.get_recommendation(study.id)
    assert chosen.candidate.level.processes == 2


def verify_as_handed_over(folder: Path) -> None:
    """The program repeats the trial's losses when it is started as its own message says."""
    script = (folder / "train.py").read_text()
    uses_deepspeed = (folder / "ds_config.json").exists()
    assert ("'deepspeed': None" in script) is not uses_deepspeed
    binaries = Path(sys.executable).parent
    launch = (
        [binaries / "accelerate", "launch", "--config_file", "accelerate.yaml"]
        if uses_deepspeed
        else [binaries / "torchrun", "--standalone", "--nproc_per_node", "2"]
    )
    result = subprocess.run(
        [*launch, "train.py", "--verify"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "losses the same as measured" in result.stdout
