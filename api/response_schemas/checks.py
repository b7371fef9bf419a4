"""What is wrong with a trainer's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .estimates import EstimateDocument
from .parts import Document


class CheckFinding(Document):
    """One thing that was found in a trainer's file."""

    id: str
    severity: Literal["error", "warning", "hint"]
    message: str
    """A sentence, without its full stop."""
    next_step: str
    key: str | None
    """That it is about; null is the whole file."""
    line: int | None
    """Where the key stands, from 1 on."""
    versions: str | None
    """What it was seen with; null where it follows from the file itself."""


class CheckDocument(Document):
    """What is wrong with a trainer's file, whether it fits, and what would do better."""

    file: str
    format: str
    quick: bool
    """Only the file was looked at: nothing is known of its memory."""
    fits: Literal["yes", "no", "too-close", "unknown"]
    why_unknown: str | None
    findings: tuple[CheckFinding, ...]
    """The worst first."""
    counts: Mapping[str, int]
    """Severity → findings."""
    settings: Mapping[str, Any]
    """What the file says, in trainer-neutral words, with the trainer's own defaults."""
    defaults: tuple[str, ...]
    """Of these, the settings that the file does not name."""
    not_looked_at: tuple[str, ...]
    """Keys that the trainer knows and rankwise has nothing to say of."""
    estimate: EstimateDocument | None
