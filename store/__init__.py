"""Memory: tables, every SQL statement, legal transitions."""

from __future__ import annotations

from .schema import upgrade
from .store import LEASE_S, Claim, Store

__all__ = ["LEASE_S", "Claim", "Store", "upgrade"]
