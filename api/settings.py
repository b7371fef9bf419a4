"""What an HTTP server of rankwise is started with. Knows nothing of routes or of how it is served."""

from __future__ import annotations

import ipaddress
import socket
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ..errors import InputError
from ..home import Home
from .uploads import DEFAULT_LIMIT_BYTES
from .webhooks import WebhookSettings

DEFAULT_RATE = 300.0
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def default_roots(home: Home) -> tuple[Path, ...]:
    """Where models and data may lie unless told otherwise: here, the home, and installed packages."""
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return (Path.cwd(), home.root, *sorted(installed))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Raises:
        InputError: ``port`` is none.
    """

    home: Home
    host: str = "127.0.0.1"
    port: int = 8321
    allowed_roots: tuple[Path, ...] = ()
    """Folders that models and data must lie in, beside uploads. Empty means :func:`default_roots`, or none
    where others than those on this machine may ask."""
    upload_limit_bytes: int = DEFAULT_LIMIT_BYTES
    """The largest dataset that may be sent."""
    allow_remote_code: bool = False
    allowed_factories: tuple[str, ...] = ()
    """``package.module:factory`` that requests may name, with ``*`` for any part: their code runs here."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests may address, without port, beside those of :func:`own_names`; ``*`` for any."""
    rate_limit: float = DEFAULT_RATE
    """Requests a second of one token, ten seconds' worth at once; a tenth of it of a stranger. 0: any."""
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    """Where other programs may be told of studies."""
    require_token: bool = False
    """Demand a token of everybody. Always so where others than this machine can reach the server."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port} does not exist", next_step="use 1 to 65535, or 0 for any")
        reachable = not _is_loopback(self.host) or not all(map(_is_loopback, self.allowed_hosts))
        object.__setattr__(self, "require_token", self.require_token or reachable)
        roots = self.allowed_roots or (() if self.require_token else default_roots(self.home))
        resolved = (root.expanduser().resolve() for root in (*roots, self.home.uploads))
        object.__setattr__(self, "allowed_roots", tuple(dict.fromkeys(resolved)))
        names = dict.fromkeys((*own_names(self.host), *self.allowed_hosts))
        object.__setattr__(self, "allowed_hosts", tuple(names))


def own_names(host: str) -> tuple[str, ...]:
    """Names and addresses that reach a server which listens on ``host``, as this machine knows them."""
    names = [*LOOPBACK_NAMES, host]
    if _is_every_address(host):
        names.append(socket.gethostname())
        names += [
            address.address.partition("%")[0]
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family in (socket.AF_INET, socket.AF_INET6)
        ]
    return tuple(dict.fromkeys(name.lower() for name in names))


def _is_every_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
