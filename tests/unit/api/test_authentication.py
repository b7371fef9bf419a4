"""Who may ask, on the whole application with tokens in a real store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import Message

from rankwise.api.access import SESSION_PATH, is_open
from rankwise.api.app import create_app
from rankwise.api.authentication import SESSION_COOKIE
from rankwise.api.credentials import digest_of, new_session, new_token
from rankwise.api.problems import MEDIA_TYPE
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.optimizer.domain import StudyRequest, StudyState
from rankwise.roles import Role
from rankwise.store import Store

BASE_URL = "http://127.0.0.1:8321"
ENDLESS = {"/v1/events/stream"}
ONLY_ADMINS = {("GET", "/v1/tokens"), ("DELETE", "/v1/tokens/{token_id}")}


@pytest.fixture
def app(home: Home) -> FastAPI:
    return create_app(ServerSettings(home=home, require_token=True), supervise=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as opened:
        yield opened


def create(store: Store, role: Role, *, expires_at: datetime | None = None) -> str:
    secret = new_token()
    store.create_token(name=f"a-{role}", role=role, digest=digest_of(secret), expires_at=expires_at)
    return secret


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def served(router: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each method and path template that the application serves, documented or not."""
    for route in router.routes:
        if hasattr(route, "original_router"):
            yield from served(route.original_router, prefix + route.include_context.prefix)
        elif isinstance(route, Mount):
            yield "GET", f"{prefix}{route.path}/a-file"
        else:
            assert isinstance(route, Route), f"this test does not know how to ask a {type(route).__name__}"
            for method in sorted(route.methods or ()):
                yield method, prefix + route.path


def concrete(path: str) -> str:
    return path.replace("{", "").replace("}", "")


def test_every_route_without_a_token_is_401(app: FastAPI, client: TestClient) -> None:
    asked = [each for each in served(app) if not is_open(each[1])]
    assert len(asked) > 20
    for method, path in [
        *asked,
        ("GET", "/no/such/path"),
        ("OPTIONS", "/v1/studies"),
        ("POST", SESSION_PATH),
    ]:
        answer = client.request(method, concrete(path))
        assert answer.status_code == 401, (method, path)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        if method != "HEAD":
            assert answer.headers["Content-Type"] == MEDIA_TYPE
            assert answer.json()["next_step"]


def test_only_health_and_the_login_page_are_open_and_stay_so_whatever_is_sent(
    app: FastAPI, client: TestClient
) -> None:
    opened = {path for _, path in served(app) if is_open(path)}
    assert opened == {"/healthz", "/readyz", "/login", "/login/files/{version}/{name:path}"}
    for headers in (
        {},
        bearer(new_token()),
        {"Authorization": "nonsense"},
        {"Cookie": f"{SESSION_COOKIE}=x"},
    ):
        assert client.get("/healthz", headers=headers).status_code == 200


def test_every_route_refuses_a_role_that_is_too_small(app: FastAPI, client: TestClient, store: Store) -> None:
    reader, submitter = bearer(create(store, Role.READER)), bearer(create(store, Role.SUBMITTER))
    for method, path in served(app):
        if method not in {"GET", "HEAD"} and path != SESSION_PATH and not is_open(path):
            assert client.request(method, concrete(path), headers=reader).status_code == 403, (method, path)
        if (method, path) in ONLY_ADMINS:
            answer = client.request(method, concrete(path), headers=submitter)
            assert answer.status_code == 403, (method, path)
            assert "a-submitter is a submitter" in answer.json()["detail"]
        elif not is_open(path) and path not in ENDLESS:
            headers = reader if method in {"GET", "HEAD"} or path == SESSION_PATH else submitter
            assert client.request(method, concrete(path), headers=headers).status_code not in {401, 403}


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer rw_short",
        pytest.param(f"Bearer {new_token()}", id="unknown"),
        pytest.param(f"Bearer {new_token()}é", id="not of its letters"),
        "Basic YWRtaW46YWRtaW4=",
        "Bearer null",
        pytest.param(f"bearer\t{new_token()}", id="behind a tab"),
    ],
)
def test_what_is_no_known_token_is_401_and_not_echoed(client: TestClient, header: str) -> None:
    answer = client.get("/v1/studies", headers={"Authorization": header.encode()})
    assert answer.status_code == 401
    assert header.split()[-1] not in answer.text or header == "Bearer"


def test_a_token_beside_another_header_of_its_kind_is_refused(client: TestClient, store: Store) -> None:
    token = create(store, Role.READER)
    headers = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {new_token()}")]
    assert client.get("/v1/studies", headers=headers).status_code == 401


def test_a_token_that_was_just_made_is_accepted_and_one_that_was_revoked_soon_is_not(
    client: TestClient, store: Store
) -> None:
    assert client.get("/v1/studies", headers=bearer(new_token())).status_code == 401
    secret = create(store, Role.READER)
    assert client.get("/v1/studies", headers=bearer(secret)).status_code == 200
    [token] = store.list_tokens()
    store.revoke_token(token.id)
    while client.get("/v1/studies", headers=bearer(secret)).status_code == 200:
        time.sleep(0.1)  # a second at most; the test's time limit ends it otherwise
    assert client.get("/v1/studies", headers=bearer(secret)).status_code == 401


def test_an_expired_token_is_refused(client: TestClient, store: Store) -> None:
    past = create(store, Role.ADMIN, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    future = create(store, Role.ADMIN, expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert client.get("/v1/studies", headers=bearer(past)).status_code == 401
    assert client.get("/v1/studies", headers=bearer(future)).status_code == 200


def test_nothing_of_a_strangers_body_is_read(app: FastAPI, home: Home) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/v1/studies",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-length", str(2**26).encode())],
        }
        await app(scope, receive, send)

    anyio.run(main)
    assert sent[0]["status"] == 401


def test_a_browser_is_led_to_the_login_page_and_back(client: TestClient) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml"}
    answer = client.get("/studies/x?a=1%3C&b=%22", headers=browser)
    assert answer.status_code == 401
    assert "url=/login?next=%2Fstudies%2Fx%3Fa%3D1%253C%26b%3D%2522" in answer.text
    assert client.get("/v1/studies", headers=browser).headers["Content-Type"] == MEDIA_TYPE
    assert client.get("/login", headers=browser).status_code == 200


class TestOpen:
    """A server on this machine's own address that demands no token."""

    @pytest.fixture
    def app(self, home: Home) -> FastAPI:
        return create_app(ServerSettings(home=home), supervise=False)

    def test_whoever_asks_may_do_everything(self, client: TestClient) -> None:
        found = client.get(SESSION_PATH).json()
        assert (found["name"], found["role"], found["token_required"]) == ("local", "admin", False)
        assert client.get("/v1/tokens").status_code == 200

    def test_who_says_who_they_are_is_that(self, client: TestClient, store: Store) -> None:
        reader = bearer(create(store, Role.READER))
        assert client.get(SESSION_PATH, headers=reader).json()["name"] == "a-reader"
        assert client.post("/v1/studies", json={}, headers=reader).status_code == 403
        assert client.get(SESSION_PATH, headers=bearer(new_token())).status_code == 401

    @pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
    def test_what_a_proxy_passes_on_comes_from_elsewhere(self, client: TestClient, header: str) -> None:
        assert client.get("/v1/studies", headers={header: "203.0.113.9"}).status_code == 401


class TestSession:
    """A browser's cookie in place of a token."""

    @pytest.fixture
    def token(self, store: Store) -> str:
        return create(store, Role.SUBMITTER)

    @pytest.fixture
    def browser(self, client: TestClient, token: str) -> TestClient:
        begun = client.post(SESSION_PATH, headers=bearer(token))
        assert begun.status_code == 200, begun.text
        assert token not in begun.text
        return client

    def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
        self, client: TestClient, token: str
    ) -> None:
        cookie = client.post(SESSION_PATH, headers=bearer(token)).headers["Set-Cookie"]
        assert cookie.startswith(f"{SESSION_COOKIE}=rws_")
        for attribute in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"):
            assert attribute in cookie
        assert "Secure" not in cookie
        assert token not in cookie

    def test_it_stays_on_encrypted_connections_where_it_came_by_one(
        self, app: FastAPI, store: Store, token: str
    ) -> None:
        with TestClient(app, base_url="https://localhost:8321") as client:
            assert "Secure" in client.post(SESSION_PATH, headers=bearer(token)).headers["Set-Cookie"]

    def test_it_stands_for_the_token(self, browser: TestClient) -> None:
        found = browser.get(SESSION_PATH).json()
        assert (found["name"], found["role"], found["is_session"]) == ("a-submitter", "submitter", True)

    def test_it_changes_things_from_this_servers_pages_only(self, browser: TestClient) -> None:
        for headers, status in (
            ({}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "none"}, 403),
            ({"Origin": BASE_URL}, 422),
            ({"Sec-Fetch-Site": "same-origin"}, 422),
        ):
            answer = browser.post("/v1/studies", json={}, headers=headers)
            assert answer.status_code == status, headers

    def test_it_ends_on_request(self, browser: TestClient) -> None:
        secret = browser.cookies[SESSION_COOKIE]
        assert browser.delete(SESSION_PATH, headers={"Origin": BASE_URL}).status_code == 204
        assert SESSION_COOKIE not in browser.cookies
        stolen = {"Cookie": f"{SESSION_COOKIE}={secret}"}
        assert browser.get("/v1/studies", headers=stolen).status_code == 401

    def test_it_ends_with_its_token(self, browser: TestClient, store: Store) -> None:
        store.revoke_token(store.list_tokens()[0].id)
        app: Any = browser.app
        app.state.credentials.forget()
        assert browser.get("/v1/studies").status_code == 401

    def test_neither_passes_for_the_other(self, browser: TestClient, token: str) -> None:
        secret = browser.cookies[SESSION_COOKIE]
        browser.cookies.clear()
        assert browser.get("/v1/studies", headers=bearer(secret)).status_code == 401
        for cookie in (token, new_session()):
            headers = {"Cookie": f"{SESSION_COOKIE}={cookie}"}
            assert browser.get("/v1/studies", headers=headers).status_code == 401

    def test_a_session_begins_no_other(self, browser: TestClient) -> None:
        assert browser.post(SESSION_PATH, headers={"Origin": BASE_URL}).status_code == 422


def test_admins_list_and_revoke_tokens_without_seeing_secrets(client: TestClient, store: Store) -> None:
    admin, reader = create(store, Role.ADMIN), create(store, Role.READER)
    listed = client.get("/v1/tokens", headers=bearer(admin))
    assert [token["role"] for token in listed.json()["tokens"]] == ["admin", "reader"]
    for secret in (admin, reader):
        assert secret not in listed.text
        assert digest_of(secret) not in listed.text
    found = listed.json()["tokens"][1]["id"]
    assert client.delete(f"/v1/tokens/{found}", headers=bearer(admin)).json()["revoked_at"] is not None
    assert client.get("/v1/studies", headers=bearer(reader)).status_code == 401
    assert len(client.get("/v1/tokens", headers=bearer(admin)).json()["tokens"]) == 1
    assert len(client.get("/v1/tokens?ended=true", headers=bearer(admin)).json()["tokens"]) == 2
    assert client.delete("/v1/tokens/none", headers=bearer(admin)).status_code == 404


def test_a_study_is_its_owners_or_an_admins_to_cancel(client: TestClient, store: Store, home: Home) -> None:
    secrets = {}
    for name, role in (("ada", Role.SUBMITTER), ("bob", Role.SUBMITTER), ("root", Role.ADMIN)):
        secrets[name] = new_token()
        store.create_token(name=name, role=role, digest=digest_of(secrets[name]))
    request = StudyRequest(model="models/tiny", dataset="reviews.csv")
    first, second, nobodys = (store.create_study(request, owner=who).id for who in ("ada", "ada", None))

    def cancel(study_id: str, who: str) -> int:
        return client.delete(f"/v1/studies/{study_id}", headers=bearer(secrets[who])).status_code

    refused = client.delete(f"/v1/studies/{first}", headers=bearer(secrets["bob"]))
    assert refused.status_code == 403
    assert "belongs to ada" in refused.json()["detail"]
    assert cancel(nobodys, "ada") == 403
    assert [store.get_study(each).state for each in (first, nobodys)] == [StudyState.QUEUED] * 2
    assert (cancel(first, "ada"), cancel(second, "root"), cancel(nobodys, "root")) == (202, 202, 202)
    assert client.get(f"/v1/studies/{first}", headers=bearer(secrets["bob"])).json()["owner"] == "ada"


class TestRates:
    """One that asks too often waits, others do not."""

    @pytest.fixture
    def app(self, home: Home) -> FastAPI:
        settings = ServerSettings(home=home, require_token=True, rate_limit=0.5)
        return create_app(settings, supervise=False)

    def test_a_token_has_its_own_count(self, client: TestClient, store: Store) -> None:
        busy, other = bearer(create(store, Role.READER)), bearer(create(store, Role.READER))
        answers = [client.get("/v1/session", headers=busy) for _ in range(12)]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert answers[0].status_code == 200
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["Content-Type"] == MEDIA_TYPE
        assert client.get("/v1/session", headers=other).status_code == 200

    def test_strangers_are_counted_by_address_and_cannot_shut_out_others(
        self, client: TestClient, store: Store
    ) -> None:
        assert [client.get("/v1/session").status_code for _ in range(3)] == [401, 429, 429]
        assert client.get("/v1/session", headers=bearer(new_token())).status_code == 429
        assert client.get("/v1/session", headers=bearer(create(store, Role.READER))).status_code == 200


def test_a_stream_ends_with_its_token(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.api.lookout.HEARTBEAT_S", 0.1)
    study = store.create_study(StudyRequest(model="m", dataset="d"))
    secret = create(store, Role.READER, expires_at=datetime.now(UTC) + timedelta(seconds=2))
    path = f"/v1/studies/{study.id}/events/stream"
    answer = client.get(path, headers=bearer(secret))  # returns when the stream has ended
    assert (answer.status_code, client.get(path, headers=bearer(secret)).status_code) == (200, 401)
    assert "study.created" in answer.text
