"""A training in the files of another trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...optimizer.trainers.cells import Effect
from ...optimizer.trainers.formats import Format
from ...runners.exporting import Export
from .parts import Document, Part, fields_of


class GapDocument(Part):
    """A setting that a format cannot say."""

    setting: str
    value: Any
    reason: str
    """What its trainer does instead."""
    effect: Effect


class ExportDocument(Document):
    """A training in the files of one format."""

    study_id: str
    trial_id: str
    """That measured it."""
    format: Format
    candidate: str
    """In words."""
    files: Mapping[str, str]
    """Name → text."""
    commands: tuple[tuple[str, ...], ...]
    """What to run beside the files, in this order: arguments, no shell text."""
    not_expressible: tuple[GapDocument, ...]
    warnings: tuple[str, ...]
    """What speaks against training with them: that the trial failed."""

    @classmethod
    def of(cls, exported: Export) -> ExportDocument:
        """What the files and commands are."""
        return cls(
            study_id=exported.study_id,
            trial_id=exported.trial_id,
            format=exported.form,
            candidate=exported.candidate.describe(),
            files=exported.files,
            commands=exported.commands,
            not_expressible=tuple(GapDocument(**fields_of(gap)) for gap in exported.gaps),
            warnings=exported.warnings,
        )


class FilesDocument(Document):
    """What a finished study is handed over as."""

    study_id: str
    files: Mapping[str, str]
    """Name → text."""


class TakerDocument(Part):
    """What becomes of a recommendation in one format."""

    format: Format
    refused: str | None
    """Why there are no files, in a sentence; null where there are."""
    remarks: tuple[str, ...]
    """What the files do not say."""


class TakerList(Document):
    """Which trainers take a study's recommendation."""

    study_id: str
    takers: tuple[TakerDocument, ...]
