"""What an HTTP server of rankwise is started with. Knows nothing of routes or of how it is served."""

from __future__ import annotations

import ipaddress
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..home import Home

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def default_roots(home: Home) -> tuple[Path, ...]:
    """Where models and data may lie unless told otherwise: here, the home, and installed packages."""
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return (Path.cwd(), home.root, *sorted(installed))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of one server; refuses what would expose it beyond this machine.

    Raises:
        InputError: ``host`` is not a loopback address, or ``port`` is none.
    """

    home: Home
    host: str = "127.0.0.1"
    port: int = 8321
    allowed_roots: tuple[Path, ...] = ()
    """Folders that models and data must lie in; empty means :func:`default_roots`."""
    allow_remote_code: bool = False
    allowed_factories: tuple[str, ...] = ()
    """``package.module:factory`` that requests may name, with ``*`` for any part: their code runs here."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may address, without port; empty means the loopback names and ``host``."""

    def __post_init__(self) -> None:
        if not _is_loopback(self.host):
            raise InputError(
                f"cannot listen on {self.host!r}: access tokens are not there yet, so anyone who reaches "
                "the address could start studies",
                next_step="listen on 127.0.0.1 and reach it from elsewhere through an SSH tunnel",
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port} does not exist", next_step="use 1 to 65535, or 0 for any")
        roots = self.allowed_roots or default_roots(self.home)
        object.__setattr__(self, "allowed_roots", tuple(root.expanduser().resolve() for root in roots))
        if not self.allowed_hosts:
            object.__setattr__(self, "allowed_hosts", tuple(dict.fromkeys((*LOOPBACK_NAMES, self.host))))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
