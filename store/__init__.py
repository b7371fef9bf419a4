"""Memory: tables, every SQL statement, legal transitions."""

from __future__ import annotations

from .attempts import LEASE_S, Claim
from .backends import described
from .devices import Quarantine, QuarantineCause
from .schema import upgrade
from .store import Store

__all__ = ["LEASE_S", "Claim", "Quarantine", "QuarantineCause", "Store", "described", "upgrade"]
