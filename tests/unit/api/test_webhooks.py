from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rankwise.api import webhooks as module
from rankwise.api.app import create_app
from rankwise.api.settings import ServerSettings
from rankwise.api.webhooks import Undelivered, Webhooks, WebhookSettings, deliver, pause_after
from rankwise.errors import InputError
from rankwise.home import Home
from rankwise.optimizer.domain import StudyRequest
from rankwise.store import Store

SECRET = b"0123456789abcdef0123456789abcdef"
ENVIRONMENT = {module.SECRET_VARIABLE: "whsec_" + base64.b64encode(SECRET).decode()}
REQUEST = StudyRequest(model="m", dataset="d")


class Receiver:
    """A program on this machine that notes what it is told and answers what it is bidden."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        """Of the next answers; then 204."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.statuses.pop(0) if outer.statuses else 204
                if status < 300:
                    outer.told.append(outer.verified(self.headers, body))
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=hidden"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def verified(self, headers: Any, body: bytes) -> dict[str, Any]:
        """The message, its signature checked as the specification says."""
        content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(SECRET, content, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        told: dict[str, Any] = json.loads(body) | {"id": headers["webhook-id"]}
        return told

    @property
    def numbers(self) -> list[int]:
        return [each["data"]["seq"] for each in self.told]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "rankwise.db")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", module.timedelta(0))


def settings(*hosts: str, **options: Any) -> WebhookSettings:
    return WebhookSettings.read(
        hosts=hosts,
        networks=options.pop("networks", ()),
        urls=options.pop("urls", ()),
        environment=ENVIRONMENT,
    )


def test_states_are_told_in_order_signed_and_once(store: Store, receiver: Receiver) -> None:
    study = store.create_study(REQUEST, webhooks=[receiver.url])
    store.request_cancel(study.id)
    hooks = Webhooks(store, settings("127.0.0.1"))
    while hooks.send_due():
        pass
    assert [each["type"] for each in receiver.told] == ["study.created", "study.finished"]
    assert receiver.numbers == [1, 2]
    assert receiver.told[1]["data"]["payload"]["state"] == "cancelled"
    assert receiver.told[0]["id"] == f"msg_{study.id}_1"


def test_what_was_not_taken_is_sent_again_before_what_came_later(store: Store, receiver: Receiver) -> None:
    study = store.create_study(REQUEST, webhooks=[receiver.url])
    store.request_cancel(study.id)
    receiver.statuses = [500, 302, 503]
    hooks = Webhooks(store, settings("127.0.0.1"))
    for _ in range(5):
        hooks.send_due()
    assert receiver.numbers == [1, 2]


def test_a_restart_loses_nothing(tmp_path: Path, receiver: Receiver) -> None:
    first = Store.open(tmp_path / "rankwise.db")
    study = first.create_study(REQUEST, webhooks=[receiver.url])
    receiver.statuses = [500]
    Webhooks(first, settings("127.0.0.1")).send_due()
    first.request_cancel(study.id)
    first.close()
    assert receiver.told == []
    second = Store.open(tmp_path / "rankwise.db")
    hooks = Webhooks(second, settings("127.0.0.1"))
    while hooks.send_due():
        pass
    second.close()
    assert receiver.numbers == [1, 2]


def test_one_who_is_gone_is_told_no_more(store: Store, receiver: Receiver) -> None:
    store.create_study(REQUEST, webhooks=[receiver.url])
    receiver.statuses = [410]
    hooks = Webhooks(store, settings("127.0.0.1"))
    assert [hooks.send_due(), hooks.send_due()] == [1, 0]
    assert receiver.told == []


def test_pauses_grow_and_end() -> None:
    pauses = [pause_after(failures) for failures in range(module.MOST_FAILURES)]
    assert pauses[-1] is None
    assert None not in pauses[:-1]


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/hook",
        "http://receiver.example/hook",
        "ftp://receiver.example/hook",
        "https://user:password@receiver.example/hook",
        "https://receiver.example/hook#part",
        "https://receiver.example.evil.example/",
        "https://receiver.example:99999/",
        "https://[::1",
        "https:///hook",
        "receiver.example",
        "https://receiver.example/\r\nHost: x",
    ],
)
def test_addresses_that_may_not_be_told_are_refused(url: str) -> None:
    with pytest.raises(InputError):
        settings("receiver.example").check(url)


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "10.1.2.3", "127.0.0.1", "0.0.0.1", "::1", "fe80::1", "::ffff:10.0.0.1", "224.0.0.1"],
)
def test_a_name_that_leads_inside_is_not_followed(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (each, 443)) for each in ("8.8.8.8", address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    with pytest.raises(Undelivered, match="private"):
        settings("receiver.example").find_address("receiver.example", 443)


def test_a_network_that_the_operator_named_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.1.2.3", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    named = settings("receiver.example", networks=["10.0.0.0/8"])
    assert named.find_address("receiver.example", 443) == "10.1.2.3"
    with pytest.raises(Undelivered):
        settings("receiver.example", networks=["192.168.0.0/16"]).find_address("receiver.example", 443)


def test_a_host_that_was_allowed_once_is_asked_about_each_time(store: Store, receiver: Receiver) -> None:
    study = store.create_study(REQUEST)
    [event] = store.events_after(study.id, 0)
    with pytest.raises(Undelivered, match="may not go"):
        deliver(settings("receiver.example"), receiver.url, event)
    assert receiver.told == []


@pytest.mark.parametrize("text", ["", "short", "whsec_c2hvcnQ=", "whsec_???"])
def test_without_a_secret_nothing_is_sent(text: str) -> None:
    with pytest.raises(InputError, match="RANKWISE_WEBHOOK_SECRET"):
        WebhookSettings.read(
            hosts=["a.example"], networks=(), urls=(), environment={module.SECRET_VARIABLE: text}
        )
    assert WebhookSettings.read(hosts=(), networks=(), urls=(), environment={}).hosts == ()


def test_a_secret_may_stand_in_a_file_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(ENVIRONMENT[module.SECRET_VARIABLE] + "\n")
    read = WebhookSettings.read(
        hosts=["a.example"], networks=(), urls=(), environment={module.SECRET_FILE_VARIABLE: str(file)}
    )
    assert read.secret == SECRET
    assert "secret" not in repr(read)


def test_a_study_names_its_webhook_and_the_server_has_one_for_all(
    home: Home, tmp_path: Path, receiver: Receiver
) -> None:
    root = tmp_path / "root"
    (root / "model").mkdir(parents=True)
    (root / "model" / "config.json").write_text('{"model_type": "bert"}')
    (root / "model" / "model.safetensors").write_bytes(b"")
    (root / "reviews.csv").write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 8)
    body = {"model": str(root / "model"), "dataset": str(root / "reviews.csv"), "webhook_url": receiver.url}
    for_all = receiver.url.replace("/hook", "/all")
    app = create_app(
        ServerSettings(home=home, allowed_roots=(root,), webhooks=settings(urls=[for_all])), supervise=False
    )
    with TestClient(app, base_url="http://127.0.0.1:8321") as client:
        answer = client.post("/v1/studies", json=body)
        assert answer.status_code == 202, answer.text
        assert "hidden" not in answer.text
        refused = client.post("/v1/studies", json=body | {"webhook_url": "https://evil.example", "seed": 0})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/webhook_url")
        while len(receiver.told) < 2:
            threading.Event().wait(0.02)
    assert receiver.numbers == [1, 1]
