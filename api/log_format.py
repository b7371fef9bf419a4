"""The forms of what a server says on standard error."""

from __future__ import annotations

from enum import StrEnum


class LogFormat(StrEnum):
    """Who reads it."""

    TEXT = "text"
    """People: warnings, and requests that failed."""
    JSON = "json"
    """Machines: every request too, an object a line."""
