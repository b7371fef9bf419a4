"""What all documents share: how they are made from frozen types, and where a study's parts are.

Times are ISO 8601 in UTC, sizes bytes, durations seconds; unknown is null, never 0 or NaN. Knows nothing of
routes, the store or files.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...optimizer.domain import (
    SCHEMA_VERSION,
)


def fields_of(value: Any) -> dict[str, Any]:
    """A dataclass as a mapping, one level deep; a document takes the fields that it has a place for."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Document(Part):
    schema_version: int = SCHEMA_VERSION


def study_path(study_id: str) -> str:
    """Where one study is."""
    return f"/v1/studies/{study_id}"


class StudyLinks(Part):
    """Where a study's parts are."""

    self: str
    trials: str
    leaderboard: str = ""
    """Empty where a server has none."""
    recommendation: str
    events: str
    report: str
    exports: str
    """With the name of a format after it: ``…/exports/axolotl``."""

    @classmethod
    def of(cls, study_id: str) -> StudyLinks:
        """The links of one study."""
        base = study_path(study_id)
        return cls(
            self=base,
            trials=f"{base}/trials",
            leaderboard=f"{base}/leaderboard",
            recommendation=f"{base}/recommendation",
            events=f"{base}/events",
            report=f"{base}/report",
            exports=f"{base}/exports",
        )
