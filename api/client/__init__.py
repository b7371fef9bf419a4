"""A rankwise server, used from Python: :class:`Client`."""

from __future__ import annotations

from .client import Client

__all__ = ["Client"]
