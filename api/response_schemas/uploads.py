"""Uploaded datasets on the wire."""

from __future__ import annotations

from datetime import datetime

from ...store.uploads import Upload
from ..uploads import PREFIX
from .parts import Document, Part


class UploadEntry(Part):
    """A dataset that somebody sent."""

    id: str
    """SHA-256 of its content, with the extension that says its format."""
    dataset: str
    """What a study names as its ``dataset``."""
    owner: str
    filename: str
    """As its owner called it."""
    size_bytes: int
    created_at: datetime

    @classmethod
    def of(cls, upload: Upload) -> UploadEntry:
        """Of what is noted."""
        return cls(
            id=upload.id,
            dataset=f"{PREFIX}{upload.id}",
            owner=upload.owner,
            filename=upload.filename,
            size_bytes=upload.size_bytes,
            created_at=upload.created_at,
        )


class UploadDocument(UploadEntry, Document):
    """A dataset that was just sent."""


class UploadList(Document):
    """Uploaded datasets, newest first; what several sent is there once for each."""

    datasets: tuple[UploadEntry, ...]
