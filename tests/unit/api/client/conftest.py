"""The application that clients ask is that of the routes' tests."""

from __future__ import annotations

from ..routes.conftest import app, body, root

__all__ = ["app", "body", "root"]
