"""A worker that is stopped past its lease, and goes on when its study and its trial are another one's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Level,
    Method,
    Outcome,
    Recipe,
    Rung,
    StudyRequest,
    StudyState,
    TrialPlan,
)
from rankwise.store import Store, StudyClaim, Worker

LEASE_S = 2.0

WORKER = """
import json, sys, time
from rankwise.errors import StaleFence
from rankwise.optimizer.domain import Measurement, Outcome, StudyState
from rankwise.store import Store, StudyClaim, Worker

url, study_id, trial_id, lease_s = *sys.argv[1:4], float(sys.argv[4])
store = Store.open(url)
study = store.claim_study(Worker(name="stopped", place="a"), only=study_id, lease_s=lease_s)
attempt = store.claim_trial(study, trial_id, devices=["GPU-1"], worker="stopped", lease_s=lease_s)
print("claimed", flush=True)
alive = True
while alive:  # until it finds out that it was held for dead
    time.sleep(lease_s / 10)
    try:
        store.renew_study(study, lease_s=lease_s)
        store.heartbeat(attempt, lease_s=lease_s)
    except StaleFence:
        alive = False
writes = {
    "heartbeat": lambda: store.heartbeat(attempt),
    "finish_attempt": lambda: store.finish_attempt(
        attempt, outcome=Outcome.OK, measurement=Measurement(tokens_per_s=1.0)
    ),
    "renew_study": lambda: store.renew_study(study),
    "append_event": lambda: store.append_event(study, "late", {}),
    "finish_study": lambda: store.finish_study(study, StudyState.FAILED, "late"),
}
refused = []
for name, write in writes.items():
    try:
        write()
    except StaleFence:
        refused.append(name)
print(json.dumps(refused), flush=True)
store.close()
"""


def plan() -> TrialPlan:
    candidate = Candidate(
        adapter=Adapter(method=Method.LORA, rank=8, alpha=16, targets=("q_proj",)),
        level=Level(),
        recipe=Recipe(max_length=128),
        micro_batch=4,
        learning_rate=1e-4,
    )
    return TrialPlan(candidate=candidate, rung=Rung.PROBE)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_its_late_writes_are_refused(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path / 'rankwise.db'}"
    if backend == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with closing(Store.open(url)) as store:
        study = store.create_study(StudyRequest(model="m", dataset="d"))
        begun = store.claim_study(Worker(name="first", place="a"), only=study.id)
        assert begun is not None
        trial = store.plan_trial(begun, plan())
        store.release_study(begun)

        command = [sys.executable, "-c", WORKER, url, study.id, trial.id, str(LEASE_S)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker,
            killed_in_the_end(worker),
        ):
            assert worker.stdout is not None
            assert worker.stdout.readline() == "claimed\n"
            os.kill(worker.pid, signal.SIGSTOP)
            taken = taken_over(store)
            attempt = store.claim_trial(taken, trial.id, devices=["GPU-1"], worker="second")
            assert attempt is not None
            history = store.events_after(study.id, 0)
            os.kill(worker.pid, signal.SIGCONT)
            refused = json.loads(worker.stdout.readline())
            assert worker.wait(timeout=60) == 0
        assert refused == ["heartbeat", "finish_attempt", "renew_study", "append_event", "finish_study"]
        assert store.events_after(study.id, 0) == history
        done = store.finish_attempt(attempt, outcome=Outcome.OK)
        assert (done.outcome, done.attempts) == (Outcome.OK, 2)
        assert store.finish_study(taken, StudyState.FAILED, "the end").reason == "the end"


@contextmanager
def killed_in_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """A process that is stopped would be waited for for ever."""
    try:
        yield
    finally:
        process.kill()


def taken_over(store: Store) -> StudyClaim:
    """The study, once its lease is over: the reaper finds it, and another worker claims it."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        store.reap()
        if claim := store.claim_study(Worker(name="second", place="b")):
            return claim
        time.sleep(0.1)
    raise AssertionError("the lease never ended")
