from __future__ import annotations

import copy
import math
import threading
import time
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from starlette.testclient import TestClient

from rankwise.optimizer.domain import Candidate, Measurement, OwnLora, Preset, Quantization, Rung
from rankwise.store import Store

UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def pointers(problem: dict[str, Any]) -> set[str]:
    return {error["pointer"] for error in problem["errors"]}


def test_a_study_is_stored_and_found_again(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v1/studies", json=body)
    assert answer.status_code == 202
    study = answer.json()
    assert answer.headers["Location"] == study["links"]["self"] == f"/v1/studies/{study['id']}"
    assert study["schema_version"] == 1
    assert study["state"] == "queued"
    assert study["created_at"].endswith("Z")
    assert study["progress"] == {"planned": 0, "running": 0, "finished": 0}
    assert study["facts"] is None
    assert client.get(answer.headers["Location"]).json() == study
    for link in (study["links"]["trials"], study["links"]["events"]):
        assert client.get(link).status_code == 200


def test_everything_that_may_be_asked_for_arrives_and_is_shown(
    client: TestClient, body: dict[str, Any], store: Store
) -> None:
    wanted = body | {
        "objective": "quality",
        "weights": {"speed": 1, "memory": 0, "quality": 3},
        "scoring": "classic",
        "constraints": {
            "memory_limit": "10GiB",
            "finish_limit": "6h",
            "quality_within": "2%",
            "max_length": 64,
        },
        "price_per_hour": 2.5,
        "processes": 1,
        "budget": {"seconds": "10m", "max_trials": 4},
        "seed": 7,
        "task": "text-classification",
        "text_column": "text",
        "label_column": "label",
        "effective_batch": 8,
        "epochs": 1.5,
        "methods": ["lora", "ia3"],
        "quantizations": ["none", "nf4"],
        "presets": [],
        "lora": None,
        "baseline": {"name": "a", "trainer": "trl", "settings": {"method": "lora"}, "said": ["method"]},
        "only_presets": False,
        "use_tiers": True,
        "complexity": "very complex",
        "context_column": None,
        "target_column": None,
        "packing": False,
        "loss_mask": "all",
        "chat_template": None,
        "model_arguments": {},
        "time_column": None,
        "channels": [],
        "group_column": None,
        "eval_command": [],
        "eval_lower_is_better": False,
        "context_length": None,
        "prediction_length": None,
        "webhook_url": None,
    }
    study = client.post("/v1/studies", json=wanted).json()
    shown = wanted | {
        "constraints": {
            "memory_limit": 10 * 2**30,
            "finish_limit": 21_600.0,
            "quality_within": 0.02,
            "max_length": 64,
        },
        "budget": {"seconds": 600.0, "max_trials": 4},
    }
    assert study["request"] == shown
    assert client.post("/v1/studies", json=shown).json()["request"] == shown
    request = store.get_study(study["id"]).request
    assert (request.memory_limit_bytes, request.budget_s, request.seed) == (10 * 2**30, 600.0, 7)
    limits = (request.finish_limit_s, request.quality_within, request.price_per_hour)
    assert limits == (21_600.0, 0.02, 2.5)


def test_a_lora_of_ones_own_arrives_and_is_checked(
    client: TestClient, body: dict[str, Any], store: Store
) -> None:
    own = {"rank": 4, "targets": ["query"], "rank_pattern": {"query": 2}, "quantization": "nf4"}
    study = client.post("/v1/studies", json=body | {"lora": own, "presets": ["auto"], "only_presets": True})
    request = store.get_study(study.json()["id"]).request
    assert request.lora == OwnLora(
        rank=4, targets=("query",), rank_pattern=(("query", 2),), quantization=Quantization.NF4
    )
    assert (request.presets, request.only_presets) == ((Preset.AUTO,), True)
    assert study.json()["request"]["lora"].items() >= own.items()

    wrong = own | {"rank": 0, "dropout": 2, "rank_pattern": {"(q+)+": 2}}
    answer = client.post("/v1/studies", json=body | {"lora": wrong})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/lora"] * 3
    assert "repeats a group" in answer.json()["detail"]


def test_every_mistake_in_the_form_is_reported_at_once(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post(
        "/v1/studies",
        json=body
        | {
            "objective": "fame",
            "constraints": {"memory_limit": "10", "max_len": 64},
            "budget": {"seconds": "soon", "max_trials": 0},
            "seed": "7",
            "epochs": True,
            "methods": ["lora", "magic"],
            "quantizations": ["nf4", "nf8"],
            "packing": "yes",
            "loss_mask": "some",
            "complexity": "hard",
            "shoe/size": 43,
        },
    )
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert pointers(problem) == {
        "/objective",
        "/constraints/memory_limit",
        "/constraints/max_len",
        "/budget/seconds",
        "/budget/max_trials",
        "/seed",
        "/epochs",
        "/methods/1",
        "/quantizations/1",
        "/packing",
        "/loss_mask",
        "/complexity",
        "/shoe~1size",
    }
    steps = {error["pointer"]: error["next_step"] for error in problem["errors"]}
    assert steps["/constraints/memory_limit"] == "write 10GiB or 10MiB"


def test_a_flood_of_mistakes_is_summed_up(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v1/studies", json=body | {f"x{number}": 1 for number in range(50_000)})
    assert answer.status_code == 422
    assert len(answer.content) < 50_000
    assert answer.json()["detail"].endswith("and 49900 more")


def test_every_mistake_in_the_meaning_is_reported_at_once(client: TestClient, root: Path) -> None:
    answer = client.post(
        "/v1/studies",
        json={
            "model": str(root / "gone"),
            "dataset": str(root / "gone.csv"),
            "weights": {"speed": 0, "memory": 0, "quality": 0},
            "budget": {"seconds": 0.5},
            "complexity": "simple",
            "chat_template": str(root / "gone.jinja"),
        },
    )
    assert answer.status_code == 422
    assert pointers(answer.json()) == {
        "/model",
        "/dataset",
        "/weights",
        "/budget/seconds",
        "/complexity",
        "/chat_template",
    }


def test_a_missing_file_is_answered_with_the_nearest_name(
    client: TestClient, body: dict[str, Any], root: Path
) -> None:
    answer = client.post("/v1/studies", json=body | {"dataset": str(root / "review.csv")})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "urn:rankwise:problem:dataset-error"
    assert problem["instance"] == "/v1/studies"
    assert pointers(problem) == {"/dataset"}
    assert "reviews.csv" in problem["next_step"]


@pytest.mark.parametrize("field", ["model", "dataset", "chat_template"])
@pytest.mark.parametrize(
    "way_out", ["/etc/hostname", "{root}/../outside.csv", "{root}/link.csv", "../../../etc"]
)
def test_no_way_leads_out_of_the_roots(
    client: TestClient, body: dict[str, Any], root: Path, field: str, way_out: str
) -> None:
    outside = root.parent / "outside.csv"
    outside.write_text("text,label\na,b\n")
    (root / "link.csv").symlink_to(outside)
    answer = client.post("/v1/studies", json=body | {field: way_out.format(root=root)})
    assert answer.status_code == 403
    assert answer.json()["type"] == "urn:rankwise:problem:path-not-allowed"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"model":' * 50_000,
        b'{"model": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"model": "m", "dataset": "d", "epochs": NaN}',
        b'{"model": "m", "dataset": "d", "epochs": 1e999}',
        b'{"model": "m", "dataset": "d", "budget": {"seconds": -Infinity}}',
        b'{"model": "m", "dataset": "d", "constraints": {"memory_limit": NaN}}',
        b'{"model": "m", "dataset": "d", "weights": {"speed": Infinity, "memory": 1, "quality": 1}}',
        b'{"model": "m", "dataset": "d", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "m", "dataset": "d", "\\ud800": 1}',
        b'{"model": "\\ud800", "dataset": "d"}',
        b'{"model": "m\\u0000", "dataset": "\\u0000"}',
        b'{"model": "", "dataset": ""}',
        b'{"model": "m", "dataset": "' + b"x" * 5000 + b'"}',
        b'{"model": "m", "dataset": "' + b"x" * 3000 + b'"}',
    ],
)
def test_no_body_breaks_the_server(client: TestClient, content: bytes) -> None:
    answer = client.post("/v1/studies", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["detail"]


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_must_say_that_it_is_json(client: TestClient, body: dict[str, Any], media_type: str) -> None:
    answer = client.post("/v1/studies", content=b"{}", headers={"Content-Type": media_type})
    assert answer.status_code == 415
    assert answer.json()["next_step"] == "send Content-Type: application/json"


def test_a_body_of_two_mebibytes_is_refused(client: TestClient) -> None:
    content = b" " * 2**21
    assert client.post("/v1/studies", content=content).status_code == 413
    assert client.post("/v1/studies", content=iter([content[: 2**20], content[2**20 :]])).status_code == 413


def test_studies_are_listed_newest_first_page_by_page(client: TestClient, body: dict[str, Any]) -> None:
    ids = [client.post("/v1/studies", json=body).json()["id"] for _ in range(5)]
    client.delete(f"/v1/studies/{ids[0]}")
    url, pages = "/v1/studies?limit=2&state=queued", []
    while url:
        page = client.get(url).json()
        pages.append([study["id"] for study in page["studies"]])
        url = page["next"]
    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]]]
    assert [study["id"] for study in client.get("/v1/studies").json()["studies"]] == ids[::-1]


def test_a_list_counts_trials_without_reading_them(
    client: TestClient, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.play()
    monkeypatch.delattr("rankwise.store.trials.Trials.list_trials")
    [study] = client.get("/v1/studies").json()["studies"]
    assert study["progress"] == {"planned": 3, "running": 0, "finished": 3}


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "state=asleep"])
def test_a_list_that_cannot_be_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/v1/studies?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["location"] == "query"


@pytest.mark.parametrize("path", ["", "/trials", "/recommendation", "/events"])
@pytest.mark.parametrize("study_id", [UNKNOWN, "x", "%00", "'%20OR%201=1", "%F0%9F%90%8D"])
def test_an_unknown_study_is_not_found(client: TestClient, study_id: str, path: str) -> None:
    answer = client.get(f"/v1/studies/{study_id}{path}")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert client.get(f"/v1/studies?before={study_id}").status_code == 404


def test_a_study_is_cancelled_once(client: TestClient, body: dict[str, Any]) -> None:
    url = client.post("/v1/studies", json=body).headers["Location"]
    answer = client.delete(url)
    assert answer.status_code == 202
    assert answer.json()["state"] == "cancelled"
    again = client.delete(url)
    assert again.status_code == 409
    assert again.json()["type"] == "urn:rankwise:problem:conflict"


def test_a_finished_study_shows_facts_trials_and_recommendation(client: TestClient, script: Any) -> None:
    script.play()
    study = client.get(f"/v1/studies/{script.id}").json()
    assert study["state"] == "succeeded"
    assert study["progress"] == {"planned": 3, "running": 0, "finished": 3}
    assert study["facts"]["model"]["parameters"] == 22_700_000
    assert "modules" not in study["facts"]["model"]
    assert study["facts"]["model"]["has_weights"] is True
    assert study["facts"]["model"]["attention_kernels"] == ["sdpa", "eager"]
    assert study["facts"]["dataset"]["every_nth_row"] == 1
    assert study["facts"]["dataset"]["task"]["kind"] == "text-classification"
    assert study["facts"]["tokens_estimated"] is False
    assert study["facts"]["devices"] == ["a CPU"]

    trials = client.get(study["links"]["trials"]).json()["trials"]
    assert [trial["number"] for trial in trials] == [1, 2, 3]
    assert [trial["outcome"] for trial in trials] == ["ok", "oom", "ok"]
    assert trials[0]["measurement"]["peak_process_bytes"] == 430 * 2**20
    assert trials[0]["measurement"]["peak_reserved_bytes"] is None
    assert trials[1]["measurement"] is None
    assert trials[0]["reused_from"] is None
    assert "full fine-tuning" in trials[1]["description"]

    found = client.get(study["links"]["recommendation"]).json()
    assert found["trial_id"] == trials[2]["id"]
    assert found["candidate_id"] == trials[2]["candidate_id"]
    assert found["candidate"] == trials[2]["candidate"]
    assert found["evidence"] == trials[2]["measurement"]
    assert found["ranking"][0]["parts"] == {"speed": 1.0, "memory": 0.6, "quality": 0.9}
    assert found["quality_measured"] is True
    assert found["overhead_share"] == pytest.approx(0.35)
    assert found["adapter_config"]["peft_type"] == "LORA"
    assert found["adapter_config"]["r"] == 16
    assert len(found["reasons"]) == 2


def test_full_fine_tuning_has_no_adapter_config(
    client: TestClient, script: Any, candidates: tuple[Candidate, Candidate], trained: Measurement
) -> None:
    script.begin()
    script.recommend(script.run(candidates[1], Rung.TRAIN, trained))
    assert client.get(f"/v1/studies/{script.id}/recommendation").json()["adapter_config"] is None


def test_what_is_no_number_is_null_on_the_wire(
    client: TestClient, script: Any, candidates: tuple[Candidate, Candidate]
) -> None:
    script.begin()
    script.run(candidates[0], Rung.TRAIN, Measurement(heldout_loss=math.nan, tokens_per_s=math.inf))
    answer = client.get(f"/v1/studies/{script.id}/trials")
    assert answer.json()["trials"][0]["measurement"]["heldout_loss"] is None
    assert answer.json()["trials"][0]["measurement"]["tokens_per_s"] is None


def test_a_study_without_a_recommendation_says_why(client: TestClient, script: Any) -> None:
    answer = client.get(f"/v1/studies/{script.id}/recommendation")
    assert answer.status_code == 404
    assert "queued" in answer.json()["detail"]


def test_a_finished_study_is_a_page_that_runs_nothing(client: TestClient, script: Any) -> None:
    script.play()
    study = client.get(f"/v1/studies/{script.id}").json()
    answer = client.get(study["links"]["report"])

    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "LORA r=16 α=32 minimal" in answer.text


def test_a_page_of_a_study_under_way_is_not_found(client: TestClient, script: Any) -> None:
    script.begin()
    answer = client.get(f"/v1/studies/{script.id}/report")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_two_studies_are_compared(client: TestClient, script: Any) -> None:
    script.play()
    older = script.id
    script.id = script.store.create_study(script.request).id
    script.play()
    document = client.get(f"/v1/studies/{script.id}/compare/{older}").json()

    assert (document["then_id"], document["now_id"]) == (older, script.id)
    assert document["same_environment"] is True
    assert [shape["speed"] for shape in document["shapes"]] == ["no difference"]
    assert document["recommendation_changed"] is False
    refused = client.get(f"/v1/studies/{script.id}/compare/{script.id}")
    assert refused.status_code == 422
    assert "compared with itself" in refused.json()["detail"]


def test_events_are_read_on_from_where_one_left_off(client: TestClient, script: Any) -> None:
    script.play()
    url = f"/v1/studies/{script.id}/events"
    everything = client.get(url).json()
    assert [event["seq"] for event in everything["events"]] == list(range(1, everything["last_seq"] + 1))
    assert everything["events"][0]["kind"] == "study.created"
    first = client.get(f"{url}?limit=3").json()
    rest = client.get(f"{url}?after={first['last_seq']}").json()
    assert first["events"] + rest["events"] == everything["events"]
    end = client.get(f"{url}?after={everything['last_seq']}").json()
    assert (end["events"], end["last_seq"]) == ([], everything["last_seq"])
    assert client.get(f"{url}?after={10**30}").status_code == 422


def end_next_study(script: Any, ending: str) -> threading.Thread:
    """Play the supervisor, from another thread, for the next study that is posted."""

    def work() -> None:
        store: Store = script.store
        while (newest := store.list_studies(limit=1)[0]).id == script.id:
            time.sleep(0.01)
        played = copy.copy(script)
        played.id = newest.id
        if ending == "succeeded":
            played.play()
        elif ending == "cancelled":
            store.request_cancel(played.id)
        else:
            played.begin()
            played.fail(ending)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_waiting_ends_with_the_recommendation(client: TestClient, body: dict[str, Any], script: Any) -> None:
    thread = end_next_study(script, "succeeded")
    answer = client.post("/v1/studies", json=body, headers={"Prefer": "wait=20"})
    thread.join()
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=20"
    found = answer.json()
    assert answer.headers["Location"] == found["links"]["self"]
    assert found == client.get(found["links"]["recommendation"]).json()


@pytest.mark.parametrize(
    ("ending", "status", "kind", "next_step"),
    [
        (
            "NothingFits: nothing runs in 1 GiB — raise the memory limit",
            409,
            "nothing-fits",
            "raise the memory limit",
        ),
        ("ModelError: the tokenizer is missing — save it", 422, "model-error", "save it"),
        ("RunnerError: the disk is full", 500, "runner-error", ""),
        ("cancelled", 409, "conflict", "post it again to run it"),
    ],
)
def test_waiting_ends_with_why_there_is_none(
    client: TestClient,
    body: dict[str, Any],
    script: Any,
    ending: str,
    status: int,
    kind: str,
    next_step: str,
) -> None:
    thread = end_next_study(script, ending)
    answer = client.post("/v1/studies", json=body, headers={"Prefer": "wait=20"})
    thread.join()
    assert answer.status_code == status
    problem = answer.json()
    assert problem["type"] == f"urn:rankwise:problem:{kind}"
    assert problem["instance"] == answer.headers["Location"]
    assert problem["next_step"] == next_step


def test_waiting_that_is_over_leaves_the_study_going(client: TestClient, body: dict[str, Any]) -> None:
    started_s = time.monotonic()
    answer = client.post("/v1/studies", json=body, headers={"Prefer": "respond-async, wait=1"})
    assert 0.9 < time.monotonic() - started_s < 5
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert answer.json()["state"] == "queued"


def test_waiting_occupies_no_thread(client: TestClient, body: dict[str, Any]) -> None:
    def leave_two_threads() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 2

    assert client.portal is not None
    client.portal.call(leave_two_threads)
    waiters = [
        threading.Thread(
            target=client.post, args=("/v1/studies",), kwargs={"json": body, "headers": {"Prefer": "wait=2"}}
        )
        for _ in range(4)
    ]
    for waiter in waiters:
        waiter.start()
    while len(client.get("/v1/studies").json()["studies"]) < len(waiters):
        time.sleep(0.01)
    assert all(waiter.is_alive() for waiter in waiters)
    for waiter in waiters:
        waiter.join()
