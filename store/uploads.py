"""Datasets that were sent to the service: whose they are, and whether a study needs them. Not their files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, exists, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from ..errors import Conflict, NotFound
from ..optimizer.domain import StudyState
from .database import Database
from .reading import Columns, Found, all_of
from .tables import StudyRow, UploadRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A dataset that somebody sent."""

    id: str
    """SHA-256 of its content, with the extension that says its format."""
    owner: str
    filename: str
    """As the owner called it."""
    size_bytes: int
    created_at: datetime


class Uploads(Database):
    """What the store does with uploads."""

    def add_upload(self, upload_id: str, *, owner: str, filename: str, size_bytes: int) -> Upload:
        """Note that somebody sent a dataset; one that they sent before stays as it was noted."""
        try:
            with self._write() as transaction:
                if known := transaction.session.execute(_of(upload_id, owner)).one_or_none():
                    return _upload_of(known)
                row = UploadRow(
                    upload=upload_id,
                    owner=owner,
                    filename=filename,
                    size_bytes=size_bytes,
                    created_at=transaction.now,
                )
                transaction.session.add(row)
                transaction.session.flush()
                return _upload_of(row)
        except IntegrityError:  # the same owner sent it twice at the same moment
            with self._read() as connection:
                return _upload_of(connection.execute(_of(upload_id, owner)).one())

    def list_uploads(self) -> list[Upload]:
        """Uploads, newest first; what several sent is there once for each."""
        newest_first = all_of(UploadRow).order_by(col(UploadRow.id).desc())
        with self._read() as connection:
            return list(map(_upload_of, connection.execute(newest_first)))

    def find_upload(self, upload_id: str) -> list[Upload]:
        """What is noted of a dataset: an entry for each who sent it, the first one first.

        Raises:
            NotFound: nobody sent it, or all took it back.
        """
        query = all_of(UploadRow).where(col(UploadRow.upload) == upload_id).order_by(col(UploadRow.id))
        with self._read() as connection:
            found = list(map(_upload_of, connection.execute(query)))
        if not found:
            raise NotFound(f"there is no uploaded dataset {upload_id:.80}", next_step="see GET /v1/datasets")
        return found

    def remove_upload(self, upload_id: str, *, owner: str | None, path: str) -> bool:
        """Forget that somebody sent a dataset. Returns whether its file may go, since nobody has it any more.

        Args:
            upload_id: the dataset.
            owner: who takes it back; None for all who sent it.
            path: as studies name it.

        Raises:
            NotFound: they have not sent it.
            Conflict: a study that has not ended reads it.
        """
        needed = select(col(StudyRow.ulid)).where(
            col(StudyRow.state).in_((StudyState.QUEUED, StudyState.RUNNING)),
            col(StudyRow.request)["dataset"].as_string() == path,
        )
        mine = delete(UploadRow).where(col(UploadRow.upload) == upload_id)
        if owner is not None:
            mine = mine.where(col(UploadRow.owner) == owner)
        with self._write() as transaction:
            session = transaction.session
            if (study_id := session.scalars(needed).first()) is not None:
                raise Conflict(f"study {study_id} reads this dataset", next_step="wait for it, or cancel it")
            if not session.scalars(mine.returning(col(UploadRow.id))).all():
                raise NotFound(f"{owner} has not sent {upload_id:.80}", next_step="see GET /v1/datasets")
            return not session.scalar(select(exists().where(col(UploadRow.upload) == upload_id)))


def _of(upload_id: str, owner: str) -> Columns:
    return all_of(UploadRow).where(col(UploadRow.upload) == upload_id, col(UploadRow.owner) == owner)


def _upload_of(row: UploadRow | Found) -> Upload:
    return Upload(
        id=row.upload,
        owner=row.owner,
        filename=row.filename,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )
