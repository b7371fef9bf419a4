from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from rankwise.api.security import SECURITY_HEADERS, BodyLimit, SameSite, SecurityHeaders

LIMIT_BYTES = 100


async def count_body(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with the number of bytes that it was sent."""
    body = await Request(scope, receive).body()
    await JSONResponse({"bytes": len(body)})(scope, receive, send)


@pytest.fixture
def client() -> TestClient:
    app = BodyLimit(count_body, max_bytes=LIMIT_BYTES)
    guarded = SecurityHeaders(SameSite(app, allowed_hosts=["localhost", "127.0.0.1", "::1"]))
    return TestClient(guarded, base_url="http://127.0.0.1:8321")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8321", "127.0.0.1:9000", "[::1]:8321", "[::1]"])
def test_loopback_names_may_be_addressed(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8321", "", "[::2]", "evil@localhost"],
)
def test_other_names_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "localhost" in answer.json()["next_step"]


def test_pages_of_this_server_may_write(client: TestClient) -> None:
    assert client.post("/", headers={"Origin": "http://127.0.0.1:8321"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:3000", "http://localhost:8321", "null", "file://", ""]
)
def test_pages_of_other_sites_may_not(client: TestClient, origin: str) -> None:
    assert client.post("/", headers={"Origin": origin}).status_code == 403


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/", headers={"Host": "evil.example"})):
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def chunks(size_bytes: int) -> Iterator[bytes]:
    for _ in range(size_bytes):
        yield b"x"


@pytest.mark.parametrize("size_bytes", [0, 1, LIMIT_BYTES])
def test_bodies_up_to_the_limit_arrive_whole(client: TestClient, size_bytes: int) -> None:
    assert client.post("/", content=b"x" * size_bytes).json() == {"bytes": size_bytes}
    assert client.post("/", content=chunks(size_bytes)).json() == {"bytes": size_bytes}


def test_bodies_beyond_it_are_refused_whether_their_size_is_told_or_not(client: TestClient) -> None:
    assert client.post("/", content=b"x" * (LIMIT_BYTES + 1)).status_code == 413
    assert client.post("/", content=chunks(LIMIT_BYTES + 1)).status_code == 413


def run_raw(
    headers: list[tuple[bytes, bytes]], messages: list[Message]
) -> tuple[list[Message], list[Message]]:
    """What BodyLimit sends for these incoming messages, and which of them it left unread."""
    sent: list[Message] = []

    async def incoming() -> AsyncIterator[Message]:
        while messages:
            yield messages.pop(0)

    async def main() -> None:
        stream = incoming()

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        await BodyLimit(count_body, max_bytes=LIMIT_BYTES)(scope, stream.__anext__, send)

    anyio.run(main)
    return sent, messages


def test_a_body_that_lies_about_its_size_is_counted() -> None:
    body = [{"type": "http.request", "body": b"x" * 60, "more_body": True} for _ in range(50)]
    sent, unread = run_raw([(b"content-length", b"10")], body)
    assert sent[0]["status"] == 413
    assert len(unread) == 48


def test_a_body_that_is_announced_too_large_is_not_read_at_all() -> None:
    sent, unread = run_raw([(b"content-length", b"101")], [{"type": "http.request", "body": b""}])
    assert sent[0]["status"] == 413
    assert len(unread) == 1


def test_a_client_that_leaves_in_the_middle_gets_no_answer() -> None:
    body = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
    sent, _ = run_raw([], body)
    assert sent == []


def test_encrypted_connections_are_to_stay_so_and_others_are_told_nothing() -> None:
    guarded = SecurityHeaders(count_body)
    encrypted = TestClient(guarded, base_url="https://localhost").get("/")
    assert "max-age" in encrypted.headers["Strict-Transport-Security"]
    assert (
        "Strict-Transport-Security" not in TestClient(guarded, base_url="http://localhost").get("/").headers
    )


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_do_not_make_a_browser_read(client: TestClient, site: str) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    assert client.get("/", headers=headers).status_code == 403
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_any_name_may_be_addressed_where_the_operator_says_so() -> None:
    client = TestClient(SameSite(count_body, allowed_hosts=["*"]), base_url="http://anything.example")
    assert client.get("/").status_code == 200
    assert client.post("/", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": ""}).status_code == 403


def test_a_body_that_takes_too_long_is_given_up() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await anyio.sleep(60)
        raise AssertionError("it waited on")

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        await BodyLimit(count_body, seconds=0.05)(scope, receive, send)

    anyio.run(main)
    assert sent[0]["status"] == 408
