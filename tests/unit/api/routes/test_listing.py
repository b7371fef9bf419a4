from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api.response_schemas.leaderboard import PlaceDocument
from rankwise.api.response_schemas.studies import StudyList
from rankwise.api.routes.freshness import Answers
from rankwise.optimizer.domain import Rung, StudyRequest, StudyState
from rankwise.optimizer.overview import leaderboard
from rankwise.optimizer.scorer import recommend
from rankwise.store import Store, Worker

NO_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture
def stored(client: TestClient, app: FastAPI) -> Store:
    """The store of the server, which runs."""
    assert client.get("/healthz").status_code == 200
    store: Store = app.state.store
    return store


def read_all(client: TestClient, url: str, what: str) -> list[Any]:
    items: list[Any] = []
    while url:
        page = client.get(url).json()
        items += page[what]
        url = page["next"]
    return items


def test_studies_are_searched_sorted_and_read_page_by_page(client: TestClient, stored: Store) -> None:
    ids = [
        stored.create_study(StudyRequest(model=f"models/{name}", dataset="d.csv")).id
        for name in ("tiny", "Llama-8B", "llama-70B", "tiny")
    ]
    stored.request_cancel(ids[0])
    for query in (
        "q=llama&sort=created",
        "limit=1&q=LLAMA&sort=created",
        "q=llama&state=queued&sort=created",
    ):
        assert [
            each["id"] for each in read_all(client, f"/v1/studies?sort=created&{query}", "studies")
        ] == ids[1:3]
    newest_change = client.get("/v1/studies?sort=-updated&limit=1").json()["studies"]
    assert [each["id"] for each in newest_change] == [ids[0]]
    assert len(client.get("/v1/studies?state=queued&state=cancelled").json()["studies"]) == 4
    assert client.get("/v1/studies", params={"created_after": "2999-01-01"}).json()["studies"] == []
    for sort in ("created", "-created", "updated", "-updated", "state", "-state"):
        assert len(read_all(client, f"/v1/studies?limit=1&sort={sort}", "studies")) == 4


def test_a_cursor_goes_on_where_the_page_ended(client: TestClient, stored: Store) -> None:
    for _ in range(3):
        stored.create_study(StudyRequest(model="m", dataset="d"))
    page = client.get("/v1/studies?limit=2").json()
    rest = client.get("/v1/studies", params={"limit": 2, "cursor": page["next_cursor"]}).json()
    assert len(rest["studies"]) == 1
    assert (rest["next_cursor"], rest["next"]) == (None, None)


@pytest.mark.parametrize("cursor", ["x", "WyI", "bnVsbA", "W10", "é", "WyItY3JlYXRlZCIsMSwtMV0", "!" * 900])
@pytest.mark.parametrize("path", ["/v1/studies", "/v1/studies/{}/trials", "/v1/studies/{}/leaderboard"])
def test_a_cursor_that_is_none_is_a_problem(
    client: TestClient, stored: Store, cursor: str, path: str
) -> None:
    study = stored.create_study(StudyRequest(model="m", dataset="d"))
    answer = client.get(path.format(study.id), params={"cursor": cursor})
    assert answer.status_code == 422
    assert [(each["location"], each["pointer"]) for each in answer.json()["errors"]] == [("query", "/cursor")]


def test_a_cursor_of_another_order_is_refused(client: TestClient, stored: Store) -> None:
    for _ in range(2):
        stored.create_study(StudyRequest(model="m", dataset="d"))
    cursor = client.get("/v1/studies?limit=1").json()["next_cursor"]
    answer = client.get("/v1/studies", params={"cursor": cursor, "sort": "updated"})
    assert answer.status_code == 422
    assert "of the order -created" in answer.json()["detail"]


def test_trials_are_read_page_by_page_in_any_order(client: TestClient, script: Any) -> None:
    script.play()
    base = f"/v1/studies/{script.id}/trials"
    numbers = [each["number"] for each in read_all(client, f"{base}?limit=1&sort=-speed", "trials")]
    assert numbers == [1, 3, 2]
    assert [each["number"] for each in client.get(f"{base}?outcome=oom").json()["trials"]] == [2]
    assert [each["number"] for each in client.get(f"{base}?rung=train&sort=loss").json()["trials"]] == [3]
    one = client.get(base).json()["trials"][1]
    assert client.get(f"{base}/{one['id']}").json() == one
    assert client.get(f"/v1/studies/{NO_ID}/trials/{one['id']}").status_code == 404


def test_the_leaderboard_shows_what_is_recommended_first(client: TestClient, script: Any) -> None:
    path = f"/v1/studies/{script.id}/leaderboard"
    assert client.get(path).json()["places"] == []
    script.play()
    board = client.get(path).json()
    best = client.get(f"/v1/studies/{script.id}/recommendation").json()
    assert [(each["rank"], each["trial_id"]) for each in board["places"]] == [
        (each["rank"], each["trial_id"]) for each in best["ranking"]
    ]
    first = board["places"][0]
    assert (first["trial_id"], first["is_recommended"]) == (best["trial_id"], True)
    assert (first["speed"], first["heldout_loss"]) == (
        best["evidence"]["tokens_per_s"],
        best["evidence"]["heldout_loss"],
    )


def test_a_page_of_what_a_study_recommends_is_a_part_of_the_whole(
    client: TestClient, stored: Store, script: Any, candidates: Any, probed: Any, trained: Any
) -> None:
    script.begin()
    shapes = [replace(candidates[0], micro_batch=rows) for rows in (1, 2, 4)]
    for number, shape in enumerate(shapes):
        script.run(shape, Rung.PROBE, replace(probed, tokens_per_s=100.0 + number))
    for shape in shapes:
        script.run(shape, Rung.TRAIN, trained)
    study = stored.get_study(script.id)
    found = recommend(study, stored.list_trials(script.id), {}, wall_s=60.0, measured_s=40.0, stopped=None)
    stored.finish_study(script.claim, StudyState.SUCCEEDED, None, found)
    whole = leaderboard(stored.list_trials(script.id), found, memory_limit_bytes=None)
    pages = [client.get(f"/v1/studies/{script.id}/leaderboard?limit=1").json()]
    while cursor := pages[-1]["next_cursor"]:
        pages.append(client.get(f"/v1/studies/{script.id}/leaderboard?limit=1&cursor={cursor}").json())
    assert [page["compared"] for page in pages] == [3, 3, 3]
    assert [page["places"] for page in pages] == [
        [PlaceDocument.of(place).model_dump(mode="json")] for place in whole
    ]


def test_the_leaderboard_of_a_study_that_runs_is_ranked_by_what_there_is(
    client: TestClient, script: Any, candidates: Any, probed: Any
) -> None:
    script.begin()
    slow, fast = (replace(candidates[0], micro_batch=rows) for rows in (1, 2))
    for candidate, speed in ((slow, 100.0), (fast, 200.0)):
        script.run(candidate, Rung.PROBE, replace(probed, tokens_per_s=speed))
    path = f"/v1/studies/{script.id}/leaderboard"
    board = client.get(path).json()
    assert [(each["number"], each["speed"], each["is_recommended"]) for each in board["places"]] == [
        (2, 200.0, False),
        (1, 100.0, False),
    ]
    pages = [client.get(path, params={"limit": 1}).json()]
    pages.append(client.get(path, params={"limit": 1, "cursor": pages[0]["next_cursor"]}).json())
    assert [page["places"][0] for page in pages] == board["places"]
    assert (pages[1]["next_cursor"], board["compared"]) == (None, 2)


def test_a_page_that_is_known_is_not_sent_again(client: TestClient, script: Any) -> None:
    script.play()
    base = f"/v1/studies/{script.id}"
    for path in (
        "/v1/studies",
        base,
        f"{base}/trials",
        f"{base}/leaderboard",
        f"{base}/events",
        f"{base}/recommendation",
        f"{base}/report",
    ):
        answer = client.get(path)
        tag = answer.headers["ETag"]
        assert answer.headers["Cache-Control"] == "private, no-cache"
        for value in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
            again = client.get(path, headers={"If-None-Match": value})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag), path
        assert client.get(path, headers={"If-None-Match": 'W/"other"'}).status_code == 200
    tags = {client.get(f"{base}/trials?limit={limit}").headers["ETag"] for limit in (1, 2, 3)}
    assert len(tags) == 3


def test_a_tag_changes_with_the_study(client: TestClient, stored: Store) -> None:
    study = stored.create_study(StudyRequest(model="m", dataset="d"))
    paths = ["/v1/studies", f"/v1/studies/{study.id}", f"/v1/studies/{study.id}/events"]
    tags = [client.get(path).headers["ETag"] for path in paths]
    claim = stored.claim_study(Worker(name="w", place="here"), only=study.id)
    assert claim is not None
    stored.append_event(claim, "note", {})
    for path, tag in zip(paths, tags, strict=True):
        assert client.get(path, headers={"If-None-Match": tag}).status_code == 200


def test_an_answer_that_was_made_is_given_to_others(
    client: TestClient, stored: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = stored.create_study(StudyRequest(model="m", dataset="d"))
    path = f"/v1/studies/{study.id}"
    first = client.get(path)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "get_studies", None)  # nobody needs it
        again = client.get(path)
    assert (again.content, again.headers["ETag"]) == (first.content, first.headers["ETag"])
    assert again.headers["Content-Type"] == "application/json"
    stored.request_cancel(study.id)
    assert client.get(path).json()["state"] == "cancelled"


def test_a_list_holds_studies_as_they_stand_alone_and_writes_each_once(
    client: TestClient, stored: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    read = Store.get_studies
    monkeypatch.setattr(Store, "get_studies", lambda store, ids: written.extend(ids) or read(store, ids))
    ids = [stored.create_study(StudyRequest(model=name, dataset='"studies":[]')).id for name in "abc"]
    alone = client.get(f"/v1/studies/{ids[1]}").json()
    page = client.get("/v1/studies?limit=2").json()
    assert (page["studies"][1], written) == (alone, [ids[1], ids[2]])
    assert list(page) == list(StudyList.model_fields)
    stored.request_cancel(ids[1])
    page = client.get("/v1/studies?limit=3").json()
    assert [each["id"] for each in page["studies"]] == ids[::-1]
    assert [each["state"] for each in page["studies"]] == ["queued", "cancelled", "queued"]
    assert page["studies"][1] == client.get(f"/v1/studies/{ids[1]}").json()
    assert sorted(written[2:]) == sorted(ids[:2])


def test_answers_asked_for_last_are_kept_longest() -> None:
    answers = Answers(most_bytes=10)
    for tag in ("a", "b"):
        answers.keep(tag, tag.encode() * 4)
    answers.keep("a", b"aaaaa")
    answers.find("b")
    answers.keep("c", b"c")
    assert [answers.find(tag) for tag in "abc"] == [b"aaaaa", b"bbbb", b"c"]
    answers.keep("d", b"dd")
    assert [answers.find(tag) for tag in "abcd"] == [None, b"bbbb", b"c", b"dd"]
    answers.keep("too large", b"0" * 11)
    assert answers.find("too large") is None


def test_a_read_waits_for_the_end_if_it_is_asked_to(client: TestClient, stored: Store) -> None:
    study = stored.create_study(StudyRequest(model="m", dataset="d"))
    answer = client.get(f"/v1/studies/{study.id}", headers={"Prefer": "wait=0"})
    assert (answer.headers["Preference-Applied"], answer.json()["state"]) == ("wait=0", "queued")
    stored.request_cancel(study.id)
    answer = client.get(f"/v1/studies/{study.id}", headers={"Prefer": "wait=600"})
    assert answer.json()["state"] == "cancelled"
