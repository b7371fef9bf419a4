"""Requests that may arrive twice: what one made is kept with its key, in the same transaction.

Keys are a caller's own, and are forgotten after a day. Knows nothing of how keys are sent.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import Connection, delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import col

from ..errors import KeyReused
from ..optimizer.domain import Study, StudyRequest
from .mapping import study_of
from .reading import STUDIES
from .studies import Studies
from .tables import IdempotencyRow, StudyRow

KEPT_FOR = timedelta(days=1)


class Idempotency(Studies):
    """Studies that are created once, however often they are asked for."""

    def find_study_by_key(self, caller: str, key: str, fingerprint: str) -> Study | None:
        """The study that this request has made before.

        Args:
            caller: whose key it is.
            key: as the caller chose it.
            fingerprint: of what was asked for.

        Raises:
            KeyReused: the key came with another request.
        """
        with self._read() as connection:
            return _known(connection, caller, key, fingerprint)

    def create_study_once(
        self,
        request: StudyRequest,
        *,
        owner: str,
        key: str,
        fingerprint: str,
        webhooks: Collection[str] = (),
    ) -> tuple[Study, bool]:
        """The study of this key, and whether it is new: of requests that race, one makes it.

        Raises:
            KeyReused: the key came with another request.
        """
        while True:
            try:
                with self._write() as transaction:
                    session, expired = transaction.session, transaction.now - KEPT_FOR
                    session.execute(delete(IdempotencyRow).where(col(IdempotencyRow.created_at) < expired))
                    if known := _known(session, owner, key, fingerprint):
                        return known, False
                    row = self._add_study(transaction, request, owner, webhooks=webhooks)
                    session.add(
                        IdempotencyRow(
                            caller=owner,
                            key=key,
                            fingerprint=fingerprint,
                            study_id=row.id,
                            created_at=transaction.now,
                        )
                    )
                    session.flush()
                    return study_of(row), True
            except IntegrityError:
                continue  # another request with this key came first, on a database that lets several write


def _known(session: Session | Connection, caller: str, key: str, fingerprint: str) -> Study | None:
    query = (
        STUDIES.add_columns(col(IdempotencyRow.fingerprint))
        .join(IdempotencyRow, col(IdempotencyRow.study_id) == StudyRow.id)
        .where(col(IdempotencyRow.caller) == caller, col(IdempotencyRow.key) == key)
    )
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    if found.fingerprint != fingerprint:
        raise KeyReused(
            f"the key {key!r:.80} came before with another request, which made study {found.ulid}",
            next_step="choose another key for another request",
        )
    return study_of(found)
