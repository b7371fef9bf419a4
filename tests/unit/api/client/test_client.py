"""The client against the real application, and against servers that are scripted to be broken."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import rankwise
from rankwise import errors
from rankwise.api.client import Client
from rankwise.api.client.problems import error_of
from rankwise.api.problems import problem_of, problem_response
from rankwise.api.submission import InvalidRequest
from rankwise.errors import Conflict, InputError, NotFound, NothingFits, RankwiseError, RemoteError
from rankwise.optimizer.domain import StudyState

URL = "http://127.0.0.1:8321"
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def client(app: FastAPI) -> Iterator[Client]:
    """A client of the real application."""
    with TestClient(app, base_url=URL) as opened, Client(URL, transport=opened._transport) as client:
        yield client


@pytest.fixture
def pauses() -> list[float]:
    """What a scripted client slept."""
    return []


@pytest.fixture
def scripted(pauses: list[float]) -> Callable[..., Client]:
    """A client of a server that is a function."""

    def make(handler: Handler, **options: Any) -> Client:
        return Client(URL, transport=httpx2.MockTransport(handler), sleep=pauses.append, **options)

    return make


def answers(*given: httpx2.Response | Exception) -> tuple[Handler, list[httpx2.Request]]:
    """A handler that gives these one after the other, and what it was asked."""
    left, asked = list(given), []

    def handle(request: httpx2.Request) -> httpx2.Response:
        request.read()
        asked.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle, asked


def busy(retry_after: str | None = None, status: int = 503) -> httpx2.Response:
    problem = {"status": status, "title": "Busy", "detail": "too many at once", "next_step": "wait"}
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx2.Response(status, json=problem, headers=headers)


# Against the application


def test_a_study_is_asked_for_read_listed_and_cancelled(client: Client, body: dict[str, str]) -> None:
    study = client.submit(body["model"], body["dataset"], budget="1h", methods=["lora"], epochs=2)
    assert study.state is StudyState.QUEUED
    assert (study.request.budget.seconds, study.request.methods, study.request.epochs) == (3600, ("lora",), 2)
    assert client.study(study.id) == study
    assert [each.id for each in client.studies()] == [study.id]
    assert client.cancel(study.id).state is StudyState.CANCELLED
    assert [each.id for each in client.studies(state="queued")] == []


def test_a_key_stands_for_one_study_to_its_end(
    client: Client, body: dict[str, str], script: Any, store: Any
) -> None:
    study = client.submit(**body, key="nightly", budget="1h")
    assert client.submit(**body, key="nightly", budget="1h").id == study.id
    with pytest.raises(InputError, match="nightly"):
        client.submit(**body, key="nightly", budget="2h")
    store.request_cancel(script.id)
    script.id = study.id
    script.play()
    again = client.submit(**body, key="nightly", budget="1h")
    assert (again.id, again.state) == (study.id, StudyState.SUCCEEDED)
    failed = client.submit(**body, key="hopeless")
    script.id = failed.id
    script.begin()
    script.fail("NothingFits: nothing fits — raise the limit")
    with pytest.raises(NothingFits, match="nothing fits"):
        client.submit(**body, key="hopeless")


def test_pages_of_studies_are_read_on(client: Client, body: dict[str, str]) -> None:
    ids = [client.submit(**body, seed=seed).id for seed in range(5)]
    assert [study.id for study in client.studies(limit=2)] == ids[:2:-1]
    assert [study.id for study in client.studies()] == ids[::-1]


def test_a_finished_study_is_read_in_all_its_parts(client: Client, script: Any) -> None:
    script.play()
    assert client.wait(script.id).state is StudyState.SUCCEEDED
    found = client.recommendation(script.id)
    assert (found.candidate.adapter.rank, found.candidate.micro_batch, found.score) == (16, 4, 87.5)
    assert [trial.number for trial in client.trials(script.id).trials] == [1, 2, 3]
    assert "adapter_config.json" in client.export(script.id, "peft").files
    assert client.report(script.id).startswith("<!doctype html>")
    seqs = [event.seq for event in client.events(script.id)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert [event.seq for event in client.events(script.id, after=3)] == seqs[3:]


def test_what_a_study_of_the_command_line_asked_for_can_be_read(client: Client, store: Any) -> None:
    request = rankwise.api.asking.read_request("m", "d.csv", eval_command="python judge.py")
    study = client.study(store.create_study(request).id)
    assert study.request.eval_command == ("python", "judge.py")


def test_errors_are_those_that_the_server_raised(client: Client, body: dict[str, str]) -> None:
    with pytest.raises(NotFound):
        client.study("01K5ZJ9V0M3Q8R7T6Y2X4W1N0B")
    with pytest.raises(NotFound):
        client.study("../hardware")
    with pytest.raises(InvalidRequest) as refusal:
        client.submit(body["model"] + "-elsewhere", body["dataset"] + "-elsewhere")
    assert [problem.field for problem in refusal.value.problems] == ["/model", "/dataset"]
    with pytest.raises(InputError, match="evaluation command"):
        client.submit(**body, eval_command="python judge.py")


def test_a_failed_study_is_its_error(client: Client, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script.begin()
    script.fail("NothingFits: nothing fits 1 GiB — raise the memory limit")
    monkeypatch.setattr(client, "submit", lambda *_args, **_options: client.study(script.id))
    with pytest.raises(NothingFits) as failure:
        client.recommend("m", "d")
    assert failure.value.next_step == "raise the memory limit"


@pytest.mark.parametrize("kind", [each for each in vars(errors).values() if isinstance(each, type)])
def test_every_error_comes_out_as_it_went_in(kind: type[RankwiseError]) -> None:
    if not issubclass(kind, RankwiseError):
        return
    answer = problem_response(problem_of(kind("what", next_step="the step")))
    back = error_of(answer.status_code, bytes(answer.body), url=URL)
    assert (type(back), back.message, back.next_step) == (kind, "what", "the step")


# Against servers that break


STUDY = "01K5ZJ9V0M3Q8R7T6Y2X4W1N0B"


def study_answer(state: str = "queued") -> httpx2.Response:
    path = f"/v1/studies/{STUDY}"
    links = dict.fromkeys(("self", "trials", "recommendation", "events", "report", "exports"), path)
    document = {
        "id": STUDY,
        "state": state,
        "reason": None,
        "cancel_requested": False,
        "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:04:05Z",
        "request": {"model": "m", "dataset": "d", "a_key_of_tomorrow": {"deep": [1]}},
        "progress": {"planned": 0, "running": 0, "finished": 0},
        "facts": None,
        "links": links,
        "a_field_of_tomorrow": 1,
    }
    return httpx2.Response(202, json=document)


def test_a_post_that_broke_is_sent_again_under_the_same_key(
    scripted: Callable[..., Client], pauses: list[float]
) -> None:
    handler, asked = answers(httpx2.ReadError("reset"), busy(), study_answer())
    assert scripted(handler).submit("m", "d").id == STUDY
    keys = {request.headers["Idempotency-Key"] for request in asked}
    assert (len(asked), len(keys)) == (3, 1)
    assert {request.content for request in asked} == {b'{"model":"m","dataset":"d"}'}
    assert len(pauses) == 2
    handler, asked_anew = answers(study_answer())
    scripted(handler).submit("m", "d")
    assert {request.headers["Idempotency-Key"] for request in asked_anew}.isdisjoint(keys)
    handler, named = answers(study_answer())
    scripted(handler).submit("m", "d", key="job-7")
    assert named[0].headers["Idempotency-Key"] == "job-7"


def test_a_server_says_how_long_it_wants_to_be_left_alone(
    scripted: Callable[..., Client], pauses: list[float]
) -> None:
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    handler, _ = answers(busy("7", 429), busy(soon), study_answer())
    scripted(handler).study(STUDY)
    assert pauses[0] == 7
    assert 25 <= pauses[1] <= 30


def test_patience_ends(scripted: Callable[..., Client], pauses: list[float]) -> None:
    handler, asked = answers(*[httpx2.ConnectError("refused")] * 3)
    with pytest.raises(RemoteError, match="cannot be reached: refused"):
        scripted(handler, retries=2).study(STUDY)
    assert len(asked) == 3
    handler, asked = answers(busy("3600"))
    with pytest.raises(RemoteError, match="too many at once"):
        scripted(handler).study(STUDY)
    assert len(asked) == 1


def test_what_cannot_get_better_is_not_sent_again(scripted: Callable[..., Client]) -> None:
    refused = {
        "status": 422,
        "title": "Input error",
        "detail": "no",
        "type": "urn:rankwise:problem:input-error",
    }
    handler, asked = answers(httpx2.Response(422, json=refused))
    with pytest.raises(InputError):
        scripted(handler).submit("m", "d")
    assert len(asked) == 1


@pytest.mark.parametrize("content", [b"<html>Bad Gateway</html>", b"[1]", b'"x"', b"\xff"])
def test_what_is_not_rankwise_is_said_to_be(scripted: Callable[..., Client], content: bytes) -> None:
    handler, _ = answers(httpx2.Response(404, content=content))
    with pytest.raises(RemoteError, match=f"/v1/studies/{STUDY} answered 404 Not Found"):
        scripted(handler).study(STUDY)
    handler, _ = answers(httpx2.Response(200, content=content))
    with pytest.raises(RemoteError, match="not understood"):
        scripted(handler).study(STUDY)


def test_a_lost_answer_to_a_cancellation_is_no_conflict(scripted: Callable[..., Client]) -> None:
    conflict = httpx2.Response(
        409, json={"detail": "it has ended", "type": "urn:rankwise:problem:conflict", "status": 409}
    )
    handler, _ = answers(httpx2.ReadTimeout("late"), conflict, study_answer("cancelled"))
    assert scripted(handler).cancel(STUDY).state is StudyState.CANCELLED
    handler, _ = answers(conflict, study_answer("succeeded"))
    with pytest.raises(Conflict):
        scripted(handler).cancel(STUDY)


class Breaking(httpx2.SyncByteStream):
    """A stream that breaks off in the middle of what it was sending."""

    def __init__(self, text: str, error: Exception | None = None) -> None:
        self._text, self._error = text, error

    def __iter__(self) -> Iterator[bytes]:
        yield self._text.encode()
        if self._error:
            raise self._error


def sent(seq: int, kind: str = "trial.planned") -> str:
    data = {"seq": seq, "kind": kind, "created_at": "2026-01-02T03:04:05Z", "payload": {}}
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"


def stream(text: str, error: Exception | None = None) -> httpx2.Response:
    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Breaking(text, error))


def test_events_go_on_where_a_stream_broke_off(scripted: Callable[..., Client]) -> None:
    handler, asked = answers(
        stream(": heartbeat\n\n" + sent(1) + sent(2) + 'id: 3\ndata: {"se', httpx2.ReadError("reset")),
        httpx2.ConnectError("refused"),
        stream(sent(2) + sent(3)),  # one that was seen already
        stream(sent(4, "study.finished")),
        stream(""),
        study_answer("succeeded"),
    )
    assert [event.seq for event in scripted(handler).events(STUDY)] == [1, 2, 3, 4]
    assert [request.headers.get("Last-Event-ID") for request in asked] == ["0", "2", "2", "3", "4", None]


def test_a_server_without_streams_is_asked_again_and_again(
    scripted: Callable[..., Client], pauses: list[float]
) -> None:
    def page(*seqs: int) -> httpx2.Response:
        links = dict.fromkeys(("self", "trials", "recommendation", "events", "report", "exports"), "/")
        events = [json.loads(sent(seq).split("data: ")[1]) for seq in seqs]
        last = seqs[-1] if seqs else 2
        return httpx2.Response(
            200, json={"study_id": STUDY, "events": events, "last_seq": last, "links": links}
        )

    handler, asked = answers(
        page(1, 2), page(), study_answer("running"), page(3), page(), study_answer("failed")
    )
    assert [event.seq for event in scripted(handler).events(STUDY)] == [1, 2, 3]
    assert [dict(request.url.params).get("after") for request in asked] == ["0", "2", None, "2", "3", None]
    assert len(pauses) == 1


def test_waiting_ends_with_its_time(scripted: Callable[..., Client]) -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("events"):
            return stream(": heartbeat\n\n", httpx2.ReadTimeout("nothing came"))
        return study_answer("running")

    with pytest.raises(RemoteError, match=r"is running after 0 s"):
        scripted(handle).wait(STUDY, timeout_s=0.2)


def test_streams_that_only_break_off_are_given_up(scripted: Callable[..., Client]) -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("events"):
            return stream("", httpx2.RemoteProtocolError("closed"))
        return study_answer("running")

    with pytest.raises(RemoteError, match="broke off 20 times in a row"):
        list(scripted(handle).events(STUDY))


# Tokens


def test_tokens_come_from_the_environment_or_a_file_of_ones_own(
    scripted: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def sent_token(**options: Any) -> str | None:
        handler, asked = answers(study_answer())
        scripted(handler, **options).study(STUDY)
        found: str | None = asked[0].headers.get("Authorization")
        return found

    assert sent_token() is None
    file = tmp_path / "token"
    file.write_text("rw_of-a-file\n")
    file.chmod(0o600)
    monkeypatch.setenv("RANKWISE_TOKEN_FILE", str(file))
    assert sent_token() == "Bearer rw_of-a-file"
    monkeypatch.setenv("RANKWISE_TOKEN", "rw_of-the-environment")
    assert sent_token() == "Bearer rw_of-the-environment"
    assert sent_token(token="rw_given") == "Bearer rw_given"
    monkeypatch.delenv("RANKWISE_TOKEN")
    file.chmod(0o640)
    with pytest.raises(InputError, match="may be used by others"):
        sent_token()
    file.chmod(0o600)
    file.write_text("two words\n")
    with pytest.raises(InputError) as refusal:
        sent_token()
    assert "two words" not in str(refusal.value)


def test_a_token_is_never_shown(scripted: Callable[..., Client]) -> None:
    handler, _ = answers(*[httpx2.ConnectError("refused")] * 6)
    client = scripted(handler, token="rw_secret")
    assert "secret" not in repr(client) + repr(client._connection.server)
    with pytest.raises(RemoteError) as failure:
        client.study(STUDY)
    assert "secret" not in str(failure.value)


def test_a_token_does_not_follow_a_redirection(scripted: Callable[..., Client]) -> None:
    handler, asked = answers(httpx2.Response(307, headers={"Location": "http://elsewhere.example/"}))
    with pytest.raises(RemoteError):
        scripted(handler, token="rw_secret").study(STUDY)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "url", ["", "server", "ftp://server", "http://", "http://host:port", "http://u:p@host", "http://host?x=1"]
)
def test_urls_that_are_none_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not url:
        monkeypatch.setenv("RANKWISE_URL", "nonsense")
    with pytest.raises(InputError):
        Client(url or None)


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWISE_URL", "https://rankwise.example/base/")
    assert Client().url == "https://rankwise.example/base"
    assert rankwise.Client is Client
