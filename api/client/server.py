"""Which server is meant, and with which token: from arguments, the environment or a file of one's own.

Knows nothing of requests. A token is never shown: not in a representation, not in a message.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from ...errors import InputError

DEFAULT_URL = "http://127.0.0.1:8321"
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go, and what they are let in with."""

    url: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def find(cls, url: str | None = None, token: str | None = None) -> Server:
        """What is named, else ``RANKWISE_URL`` and ``RANKWISE_TOKEN`` or ``RANKWISE_TOKEN_FILE``.

        Raises:
            InputError: the URL is none, or the token's file is missing or readable by others.
        """
        named = url or os.environ.get("RANKWISE_URL") or DEFAULT_URL
        return cls(_checked_url(named), token or _token_from_environment())

    @property
    def is_on_this_machine(self) -> bool:
        """A loopback address: no proxy of the environment leads there."""
        host = urlsplit(self.url).hostname or ""
        if host == "localhost":
            return True
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return False


def _checked_url(text: str) -> str:
    hint = "write it like https://rankwise.example:8321"
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        is_url = False
    if not is_url:
        raise InputError(f"{text!r:.200} is no URL of a server", next_step=hint)
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "the server's URL holds a user name or password",
            next_step="leave it out, and set RANKWISE_TOKEN or RANKWISE_TOKEN_FILE",
        )
    if parts.query or parts.fragment:
        raise InputError(f"the server's URL {text!r:.200} has more than host and path", next_step=hint)
    return text.rstrip("/")


def _token_from_environment() -> str | None:
    if token := os.environ.get("RANKWISE_TOKEN"):
        return _checked_token(token, "RANKWISE_TOKEN")
    if path := os.environ.get("RANKWISE_TOKEN_FILE"):
        return _read_token(Path(path).expanduser())
    return None


def _read_token(path: Path) -> str:
    """The first line of a file that nobody else may read.

    Raises:
        InputError: others may, or it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & OTHERS:
                raise InputError(
                    f"the token's file {path} may be used by others (mode {mode:04o})",
                    next_step=f"chmod 600 {path}; if others could read it, revoke the token",
                )
            return _checked_token(file.readline(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(
            f"the token's file {path} cannot be read: {cause}",
            next_step="write the token into it, with mode 600, or unset RANKWISE_TOKEN_FILE",
        ) from error


def _checked_token(text: str, where: str) -> str:
    """Without the blanks around it; what no header can carry is refused without being shown."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"what {where} holds is no token", next_step="take the line that rankwise tokens create printed"
        )
    return token
