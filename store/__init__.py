"""Memory: tables, every SQL statement, legal transitions."""

from __future__ import annotations

from .backends import described
from .claims import HEARTBEAT_S, LEASE_S, Claim, Reaped, StudyClaim, Worker
from .copying import snapshot
from .devices import Quarantine, QuarantineCause
from .schema import check, upgrade
from .store import Store

__all__ = [
    "HEARTBEAT_S",
    "LEASE_S",
    "Claim",
    "Quarantine",
    "QuarantineCause",
    "Reaped",
    "Store",
    "StudyClaim",
    "Worker",
    "check",
    "described",
    "snapshot",
    "upgrade",
]
