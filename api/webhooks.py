"""Messages to other programs, as Standard Webhooks has them: signed, in order, sent until they are taken.

Only to hosts that the operator named, over https unless on this machine; names that lead into private
networks are refused unless the operator named the network, and what was looked up is what is connected to.
No redirect is followed. Knows nothing of requests, nor of how messages are kept.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from ..errors import InputError, StoreError
from ..optimizer.domain import Event
from ..store import Store
from ..store.outbox import Due
from .response_schemas.parts import StudyLinks

log = logging.getLogger(__name__)

SECRET_VARIABLE = "RANKWISE_WEBHOOK_SECRET"  # noqa: S105 - the variable's name
SECRET_FILE_VARIABLE = "RANKWISE_WEBHOOK_SECRET_FILE"  # noqa: S105 - the variable's name
SECRET_PREFIX = "whsec_"  # noqa: S105 - says what follows
LEAST_SECRET_BYTES = 24
KINDS = "study."
"""Events that are told begin with this: a study's states. Who wants more follows its stream."""
TIMEOUT_S = 10.0
POLL_S = 1.0
AT_ONCE = 4
PAGE = 200
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(hours=6)
MOST_FAILURES = 18
"""In a row: some two days. Then the address is told no more of this study."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Undelivered(Exception):
    """A message was not taken."""

    def __init__(self, why: str, *, is_final: bool = False) -> None:
        super().__init__(why)
        self.is_final = is_final
        """The address wants no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """Where messages may go, and the secret that signs them."""

    hosts: tuple[str, ...] = ()
    """Names, or addresses; an address that is named here may be private."""
    networks: tuple[Network, ...] = ()
    """Private networks that names may lead into."""
    urls: tuple[str, ...] = ()
    """Told of every study."""
    secret: bytes = field(default=b"", repr=False)

    @classmethod
    def read(
        cls,
        *,
        hosts: Sequence[str],
        networks: Sequence[str],
        urls: Sequence[str],
        environment: Mapping[str, str] = os.environ,
    ) -> WebhookSettings:
        """From what the operator wrote.

        Raises:
            InputError: a network is none, an address may not be told, or the secret is missing or short.
        """
        try:
            parsed = tuple(ipaddress.ip_network(each) for each in networks)
        except ValueError as error:
            raise InputError(f"--webhook-network: {error}", next_step="write it like 10.0.0.0/8") from None
        named = {urlsplit(url).hostname or "" for url in urls}
        allowed = tuple(dict.fromkeys(name.lower().strip("[]") for name in (*hosts, *sorted(named)) if name))
        secret = _read_secret(environment) if allowed else b""
        settings = cls(hosts=allowed, networks=parsed, urls=tuple(urls), secret=secret)
        for url in urls:
            settings.check(url)
        return settings

    def check(self, url: str) -> SplitResult:
        """The parts of an address that may be told.

        Raises:
            InputError: it may not.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if not host or parts.scheme not in ("http", "https") or not url.isascii() or not url.isprintable():
            raise InputError(
                f"the webhook {parts.scheme or 'without a scheme'}://{host or ''} is no address to post to",
                next_step="write it like https://host/path",
            )
        if parts.username is not None or parts.fragment:
            raise InputError(
                "a webhook's address holds no user, password or fragment",
                next_step="messages are signed: check the signature instead",
            )
        if host.lower() not in self.hosts:
            raise InputError(
                f"webhooks may not go to {host!r:.80}",
                next_step="the operator allows hosts with `rankwise serve --webhook-host NAME`",
            )
        if parts.scheme == "http" and not _is_loopback(host):
            raise InputError(
                f"a webhook to {host} would be sent without encryption",
                next_step="use https; http is for this machine only",
            )
        return parts

    def find_address(self, host: str, port: int) -> str:
        """An address of a host, all of whose addresses may be told.

        Raises:
            Undelivered: it has none, or one that may not.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Undelivered(f"{host} is not known: {error}") from None
        addresses = [str(each[4][0]) for each in found]
        for address in addresses:
            if not self._may_be_told(host, address):
                raise Undelivered(f"{host} leads to {address}, which is private")
        return addresses[0]

    def _may_be_told(self, host: str, address: str) -> bool:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        if parsed.is_loopback:
            return _is_loopback(host)
        if parsed.is_global and not parsed.is_multicast:
            return True
        is_named = host.lower() == address
        return is_named or any(parsed.version == each.version and parsed in each for each in self.networks)


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a message, as its receiver computes it."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()


def message(event: Event) -> bytes:
    """What is told of an event."""
    return json.dumps(
        {
            "type": event.kind,
            "timestamp": event.created_at.isoformat(),
            "data": {
                "study_id": event.study_id,
                "seq": event.seq,
                "payload": event.payload,
                "links": StudyLinks.of(event.study_id).model_dump(),
            },
        },
        allow_nan=False,
    ).encode()


def deliver(settings: WebhookSettings, url: str, event: Event) -> None:
    """Send one message and return when it was taken.

    Raises:
        Undelivered: it was not.
    """
    try:
        parts = settings.check(url)
    except InputError as error:
        raise Undelivered(error.message) from None
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    body, timestamp = message(event), int(time.time())
    message_id = f"msg_{event.study_id}_{event.seq}"
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "rankwise",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(settings.secret, message_id, timestamp, body),
    }
    connection = _connection(parts.scheme, host, port, settings.find_address(host, port))
    try:
        connection.request(
            "POST", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}", body, headers
        )
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise Undelivered(f"{host} did not answer: {type(error).__name__}: {error}") from None
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise Undelivered(f"{host} answered {status}", is_final=status == http.client.GONE)


class Webhooks:
    """A thread that tells what is due, until it is stopped; what it could not, the next one does."""

    def __init__(
        self,
        store: Store,
        settings: WebhookSettings,
        *,
        send: Callable[[WebhookSettings, str, Event], None] = deliver,
    ) -> None:
        self._store = store
        self._settings = settings
        self._send = send
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin; nothing is sent where no host is allowed."""
        if self._settings.hosts:
            self._thread.start()

    def stop(self) -> None:
        """End, with the messages that are under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def send_due(self) -> int:
        """Tell all that is due now; how many addresses there were."""
        self._store.add_webhooks(self._settings.urls)
        due = self._store.take_due(limit=AT_ONCE)
        with ThreadPoolExecutor(AT_ONCE, "webhook") as pool:
            list(pool.map(self._tell, due))
        return len(due)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                is_idle = not self.send_due()
            except StoreError as error:
                log.warning("webhooks wait: %s", error)
                is_idle = True
            if is_idle:
                self._stopping.wait(POLL_S)

    def _tell(self, due: Due) -> None:
        """The events that an address has not been told, one after the other, until one is not taken."""
        began_s = time.monotonic()
        host = urlsplit(due.url).hostname
        for event in self._store.events_after(due.study_id, due.told, limit=PAGE):
            if event.kind.startswith(KINDS):
                try:
                    self._send(self._settings, due.url, event)
                except Undelivered as why:
                    again_in = None if why.is_final else pause_after(due.failures)
                    log.warning("event %d of study %s was not taken: %s", event.seq, due.study_id, why)
                    if again_in is None:
                        log.error("%s is told no more of study %s", host, due.study_id)
                    self._store.note_failed(due, again_in=again_in)
                    return
            self._store.note_told(due, event.seq)
            if self._stopping.is_set() or time.monotonic() - began_s > TIMEOUT_S:
                return


def pause_after(failures: int) -> timedelta | None:
    """How long to wait after so many failures in a row before; None: for ever."""
    if failures + 1 >= MOST_FAILURES:
        return None
    pause: timedelta = min(FIRST_PAUSE * 2**failures, LONGEST_PAUSE)
    return pause * random.uniform(0.8, 1.2)  # noqa: S311 - so that not all come back at once


class _PinnedConnection(http.client.HTTPConnection):
    """Connects to the address that was looked at, under the name that was asked for."""

    def __init__(self, host: str, port: int, address: str, context: ssl.SSLContext | None) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self._address = address
        self._context = context

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), TIMEOUT_S)
        try:
            self.sock = (
                self._context.wrap_socket(plain, server_hostname=self.host) if self._context else plain
            )
        except BaseException:
            plain.close()
            raise


def _connection(scheme: str, host: str, port: int, address: str) -> http.client.HTTPConnection:
    return _PinnedConnection(host, port, address, ssl.create_default_context() if scheme == "https" else None)


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def _read_secret(environment: Mapping[str, str]) -> bytes:
    """The secret, from a variable or the file that one names.

    Raises:
        InputError: there is none, or it is short.
    """
    text = environment.get(SECRET_VARIABLE, "")
    if not text and (path := environment.get(SECRET_FILE_VARIABLE)):
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the webhook secret cannot be read: {error}", next_step="") from None
    text = text.strip()
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) < LEAST_SECRET_BYTES:
        raise InputError(
            f"webhooks are signed, and {SECRET_VARIABLE} holds no secret of {LEAST_SECRET_BYTES} bytes or "
            "more in base64",
            next_step=f"set it, or {SECRET_FILE_VARIABLE}: `openssl rand -base64 32` makes one",
        )
    return secret
