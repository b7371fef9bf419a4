"""Secrets and whose they are: made, told from other text, and looked up by their digest.

A token is 256 random bits, so its SHA-256 is kept: slow hashes such as bcrypt defend what people think up
and others can guess; here there is nothing to guess, and each request pays for the hash. Knows nothing of
requests or cookies.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
import anyio.to_thread

from ..errors import StoreError
from ..roles import Credential, Role
from ..store import Store

log = logging.getLogger(__name__)

TOKEN_PREFIX = "rw_"  # noqa: S105 - what tokens begin with, so that scanners of repositories and logs find them
SESSION_PREFIX = "rws_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 43
"""Letters and digits that 256 bits take."""
SECRET = re.compile(rf"\brws?_[0-9A-Za-z]{{{_LENGTH}}}(?![0-9A-Za-z])")
"""A token or a session's secret within other text."""

FRESH_S = 1.0
"""How long it may take until a token that another process revoked is refused."""
LOOK_AGAIN_S = 0.1
"""How soon after one look another is taken for a secret that is not known: wrong ones cost no more."""
NOTE_USE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who a request is from."""

    name: str
    role: Role
    token_id: str | None = None
    """None: nobody had to say who they are."""
    is_session: bool = False


LOCAL = Caller(name="local", role=Role.ADMIN)
"""Whoever asks a server that only this machine reaches, and that demands no token."""


def new_token() -> str:
    """A token that nobody had before."""
    return _new_secret(TOKEN_PREFIX)


def new_session() -> str:
    """A secret for a browser's cookie."""
    return _new_secret(SESSION_PREFIX)


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def without_secrets(text: str) -> str:
    """The text with the beginning alone of each token and session in it."""
    return SECRET.sub(lambda found: f"{found[0].partition('_')[0]}_…", text)


class Credentials:
    """The secrets that are accepted, read from the store once a second at most while they are asked for."""

    def __init__(self, store: Store, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._now = now
        self._accepted: tuple[Credential, ...] = ()
        self._read_at = float("-inf")
        self._used: dict[str, datetime] = {}
        self._noted_at = time.monotonic()
        self._lock = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)

    async def caller_of(self, secret: str) -> Caller | None:
        """Whose this secret is; None where it is nobody's.

        Raises:
            StoreError: the database cannot be used.
        """
        if SECRET.fullmatch(secret) is None:
            return None
        digest = digest_of(secret)
        asked_at = time.monotonic()
        await self._read(older_than=asked_at - FRESH_S)
        found = self._find(digest)
        if found is None and self._read_at < asked_at:
            await anyio.sleep(max(0.0, self._read_at + LOOK_AGAIN_S - time.monotonic()))
            await self._read(older_than=asked_at)
            found = self._find(digest)
        if found is None:
            return None
        self._used[found.token.id] = self._now()
        return Caller(
            name=found.token.name,
            role=found.token.role,
            token_id=found.token.id,
            is_session=found.is_session,
        )

    def forget(self) -> None:
        """Read anew at the next question: this process has changed something."""
        self._read_at = float("-inf")

    def note_uses(self) -> None:
        """Write down what has not been written of when tokens were used."""
        used, self._used = self._used, {}
        self._noted_at = time.monotonic()
        if used:
            self._store.note_tokens_used(used)

    async def _read(self, *, older_than: float) -> None:
        async with self._lock:
            if self._read_at > older_than:
                return
            began = time.monotonic()
            self._accepted = await anyio.to_thread.run_sync(self._look, limiter=self._thread)
            self._read_at = began

    def _look(self) -> tuple[Credential, ...]:
        if time.monotonic() - self._noted_at > NOTE_USE_S:
            try:
                self.note_uses()
            except StoreError as error:
                log.warning("when tokens were used could not be written down: %s", error)
        return tuple(self._store.list_credentials())

    def _find(self, digest: str) -> Credential | None:
        """The credential, after the same time whichever it is and whether there is one."""
        found = None
        for credential in self._accepted:
            if hmac.compare_digest(credential.digest, digest):
                found = credential
        return found if found is not None and found.is_live(self._now()) else None


def _new_secret(prefix: str) -> str:
    number = secrets.randbits(256)
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return prefix + "".join(digits)
