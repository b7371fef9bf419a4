from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api import board as board_module
from rankwise.api.app import create_app
from rankwise.api.board import Boards
from rankwise.api.response_schemas.board import BoardDocument
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.optimizer.domain import Outcome, Rung
from rankwise.optimizer.scorer import Aim, rank
from rankwise.store import Store

from .conftest import FULL, LORA, PROBED, TRAINED, StudyScript

SLOWER = replace(LORA, learning_rate=1e-4)


@pytest.fixture
def client(home: Home) -> Iterator[TestClient]:
    app: FastAPI = create_app(ServerSettings(home=home), supervise=False)
    with TestClient(app, base_url="http://127.0.0.1:8321") as opened:
        yield opened


@pytest.fixture
def script(store: Store) -> StudyScript:
    return StudyScript(store)


def board(store: Store, script: StudyScript, boards: Boards | None = None, after: int = 0) -> dict[str, Any]:
    """With a row for each trial."""
    found = json.loads((boards or Boards(store)).board(script.id, after=after).plain)
    BoardDocument.model_validate(found)
    names, values = found["columns"].keys(), found["columns"].values()
    return {**found, "rows": [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]}


def test_rows_hold_what_trials_measured(store: Store, script: StudyScript) -> None:
    script.begin()
    script.run(LORA, Rung.PROBE, PROBED)
    script.fail_trial(FULL, Outcome.OOM, "the limit of 500 MiB was exceeded")
    script.run(LORA, Rung.TRAIN, TRAINED)
    script.plan(SLOWER, Rung.TRAIN)
    probe, failed, trained, planned = board(store, script)["rows"]
    assert (probe["number"], probe["rung"], probe["tokens_per_s"]) == (1, "probe", 2345.6)
    assert (failed["outcome"], failed["reason"]) == ("oom", "the limit of 500 MiB was exceeded")
    assert trained["heldout_loss"] == 0.4123
    assert trained["adapter"] == LORA.adapter.describe()
    assert trained["candidate_key"] == LORA.id[:16]
    assert planned["state"] == "queued"
    assert planned["tokens_per_s"] is None  # unknown, and never 0
    assert trained["told_device_bytes"] is None


def test_only_what_changed_is_told_afterwards(store: Store, script: StudyScript) -> None:
    boards = Boards(store)
    script.begin()
    script.run(LORA, Rung.PROBE, PROBED)
    first = board(store, script, boards)
    assert board(store, script, boards, first["last_seq"])["rows"] == []
    claim = script.start(SLOWER, Rung.TRAIN)
    second = board(store, script, boards, first["last_seq"])
    assert [(row["number"], row["state"]) for row in second["rows"]] == [(2, "running")]
    store.finish_attempt(claim, outcome=Outcome.OK, measurement=TRAINED, wall_s=1.0)
    third = board(store, script, boards, second["last_seq"])
    assert [(row["number"], row["state"]) for row in third["rows"]] == [(2, "finished")]
    assert [row["state"] for row in board(store, script, boards)["rows"]] == ["finished", "finished"]


def test_finished_trials_are_read_once(
    store: Store, script: StudyScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards, read = Boards(store), []
    listing = store.list_figures
    monkeypatch.setattr(store, "list_figures", lambda study, ids: read.append(ids) or listing(study, ids))
    script.begin()
    done = script.run(LORA, Rung.PROBE, PROBED)
    first = boards.board(script.id, after=0)
    assert boards.board(script.id, after=0) is first  # nothing has happened
    later = script.run(SLOWER, Rung.TRAIN, TRAINED)
    board(store, script, boards)
    assert read == [[done.id], [later.id]]
    monkeypatch.setattr("rankwise.api.board.PAGE", 2)
    assert len(board(store, script)["rows"]) == 2  # of so many all are read at once
    assert read[-1] is None


def test_standings_are_the_scorers(store: Store, script: StudyScript) -> None:
    script.begin()
    script.run(LORA, Rung.TRAIN, TRAINED)
    script.run(SLOWER, Rung.TRAIN, replace(TRAINED, heldout_loss=0.5))
    found = json.loads(Boards(store).standings(script.id).plain)
    study = store.get_study(script.id)
    ranking = rank(store.list_trials(script.id, with_heldout=True), Aim.of(study))
    assert [place["trial_id"] for place in found["places"]] == [scored.trial_id for scored in ranking.scored]
    assert [place["score"] for place in found["places"]] == [scored.score for scored in ranking.scored]
    assert found["lets_pass"][found["asked"]] == study.request.lets_pass
    assert found["lets_pass"][0] is None  # weights of one's own let any quality pass
    assert [place["as_good"][found["asked"]] for place in found["places"]] == [True, False]
    assert found["recommended"] is None


def test_a_finished_study_says_what_it_recommends(
    store: Store, script: StudyScript, client: TestClient
) -> None:
    script.play()
    found = client.get(f"/v1/studies/{script.id}/standings").json()
    assert found["recommended"] == store.get_recommendation(script.id).trial_id
    assert [stage["name"] for stage in found["stages"]][-1] == "compared"


def test_standings_that_took_long_are_shown_for_a_while_but_not_past_the_end(
    store: Store, script: StudyScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards, clock = Boards(store), iter(range(1000))
    monkeypatch.setattr("rankwise.api.board.time.monotonic", lambda: float(next(clock)))
    script.begin()
    first = boards.standings(script.id)
    trained = script.run(LORA, Rung.TRAIN, TRAINED)
    assert boards.standings(script.id) == first
    script.recommend(trained)
    last = json.loads(boards.standings(script.id).plain)
    assert last["recommended"] == store.get_recommendation(script.id).trial_id


def test_one_trial_is_read_by_its_study_and_id(store: Store, script: StudyScript, client: TestClient) -> None:
    script.play()
    trial = store.list_trials(script.id)[0]
    found = client.get(f"/v1/studies/{script.id}/trials/{trial.id}").json()
    assert (found["number"], found["measurement"]["tokens_per_s"]) == (1, PROBED.tokens_per_s)
    other = StudyScript(store)
    assert client.get(f"/v1/studies/{other.id}/trials/{trial.id}").status_code == 404
    assert client.get(f"/v1/studies/{script.id}/trials/none").status_code == 404


def test_trainers_that_take_it_are_listed(store: Store, script: StudyScript, client: TestClient) -> None:
    script.play()
    takers = client.get(f"/v1/studies/{script.id}/exports").json()["takers"]
    refused = {taker["format"]: taker["refused"] for taker in takers}
    assert refused["transformers"] is None
    assert refused["axolotl"]


@pytest.mark.parametrize("part", ["board", "standings", "exports"])
def test_an_unknown_study_is_a_problem(client: TestClient, part: str) -> None:
    answer = client.get(f"/v1/studies/01ARZ3NDEKTSV4RRFFQ69G5FAV/{part}")
    assert answer.status_code == 404
    assert answer.json()["next_step"] is not None


def test_long_answers_are_compressed(store: Store, script: StudyScript, client: TestClient) -> None:
    script.begin()
    for rate in range(1, 12):
        script.run(script.candidate(learning_rate=rate * 1e-5), Rung.TRAIN, TRAINED)
    answer = client.get(f"/v1/studies/{script.id}/board", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(answer.json()["columns"]["id"]) == 11


def test_whoever_waits_for_a_row_waits_for_no_standings(
    store: Store, script: StudyScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards, begun, seen = Boards(store), threading.Event(), threading.Event()
    made = board_module.standings_of

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert seen.wait(30)
        return made(*arguments)

    monkeypatch.setattr(board_module, "standings_of", slow)
    script.begin()
    with ThreadPoolExecutor(1) as other:
        told = other.submit(boards.standings, script.id)
        assert begun.wait(30)
        script.run(LORA, Rung.PROBE, PROBED)
        assert len(board(store, script, boards)["rows"]) == 1
        seen.set()
        assert told.result().plain
