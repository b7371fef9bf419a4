"""Two supervisors of two homes on one database of PostgreSQL: each study is run by one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from rankwise.api.following import follow
from rankwise.home import Home
from rankwise.optimizer.domain import Method, Study, StudyRequest, StudyState
from rankwise.runners.place import place_of, reservation
from rankwise.runners.supervisor_process import SupervisorProcess
from rankwise.store import Store

LIMIT_S = 240.0


@pytest.fixture
def homes(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[list[Home]]:
    """Two homes that share a database, each with a supervisor that runs."""
    found = [Home(tmp_path_factory.mktemp("home"), postgres_url).create() for _ in range(2)]
    with ExitStack() as stack:
        for home in found:
            stack.callback(SupervisorProcess.start(home, study_id=None).stop)
        yield found


def wait_for_end(store: Store, study: Study) -> Study:
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        if (now := store.get_study(study.id)).state.is_final:
            return now
        time.sleep(0.2)
    raise AssertionError(f"study {study.id} has not ended: {store.events_after(study.id, 0)}")


def test_the_work_is_shared(homes: list[Home], tiny_llama: Path, texts_jsonl: Path) -> None:
    first, second = homes
    assert place_of(first) != place_of(second) == place_of(Home(second.root, second.database_url))
    request = StudyRequest(
        model=str(tiny_llama),
        dataset=str(texts_jsonl),
        methods=(Method.LORA,),
        max_length=32,
        budget_s=300.0,
        max_trials=2,
    )
    with closing(Store.open(first.database)) as store:
        studies = [store.create_study(replace(request, seed=seed)) for seed in range(2)]
        reserved = store.create_study(replace(request, seed=2), reserved_for=reservation(second))
        for study in [wait_for_end(store, study) for study in (*studies, reserved)]:
            assert study.state is StudyState.SUCCEEDED, study.reason
            kinds = [event.kind for event in store.events_after(study.id, 0)]
            assert kinds.count("study.running") == kinds.count("study.finished") == 1
            assert kinds.count("trial.finished") == len(store.list_trials(study.id)) == 2
        workers = [
            event.payload["worker"]
            for study in studies
            for event in store.events_after(study.id, 0)
            if event.kind == "study.running"
        ]
        assert len(set(workers)) == 2  # one had the first in hand, so the other one took the second
        assert (second.root / "trials" / reserved.id).exists()
        # Whoever asks for what another home runs, or ran, needs no supervisor of their own.
        assert follow(store, reserved.id, first).state is StudyState.SUCCEEDED
