"""Access tokens and the browser sessions begun with them, by the digests of their secrets.

Knows neither secrets nor HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import delete, or_, select, update
from sqlmodel import col

from ..errors import NotFound
from ..roles import AccessToken, Credential, Role
from .database import Database
from .reading import Found, all_of
from .tables import AccessSessionRow, AccessTokenRow
from .transaction import new_id

MOST_SESSIONS = 20
"""Of one token: browsers that were forgotten make room for new ones."""


class Tokens(Database):
    """What the store does with tokens and sessions."""

    def create_token(
        self, *, name: str, role: Role, digest: str, expires_at: datetime | None = None
    ) -> AccessToken:
        """Accept from now on the secret with this digest."""
        with self._write() as transaction:
            row = AccessTokenRow(
                ulid=new_id(),
                name=name,
                role=role,
                digest=digest,
                created_at=transaction.now,
                expires_at=expires_at,
            )
            transaction.session.add(row)
            transaction.session.flush()
            return _token_of(row)

    def list_tokens(self, *, with_ended: bool = False) -> list[AccessToken]:
        """Tokens, oldest first; those that were revoked or have expired only if asked for."""
        oldest_first = all_of(AccessTokenRow).order_by(col(AccessTokenRow.id))
        with self._read() as connection:
            tokens = map(_token_of, connection.execute(oldest_first))
            now = self._clock.now(connection).utc
            return [token for token in tokens if with_ended or token.is_live(now)]

    def revoke_token(self, token_id: str) -> AccessToken:
        """Accept a token no more, nor the sessions begun with it. What was revoked before stays as it is.

        Raises:
            NotFound: no token has this id.
        """
        with self._write() as transaction:
            query = select(AccessTokenRow).where(col(AccessTokenRow.ulid) == token_id).with_for_update()
            row = transaction.session.scalars(query).one_or_none()
            if row is None:
                raise NotFound(f"there is no token {token_id}", next_step="see `rankwise tokens list`")
            row.revoked_at = row.revoked_at or transaction.now
            transaction.session.execute(
                delete(AccessSessionRow).where(col(AccessSessionRow.token_id) == row.id)
            )
            return _token_of(row)

    def list_credentials(self) -> list[Credential]:
        """Every secret that is accepted now."""
        tokens = all_of(AccessTokenRow)
        sessions = tokens.join(
            AccessSessionRow, col(AccessSessionRow.token_id) == AccessTokenRow.id
        ).add_columns(
            col(AccessSessionRow.digest).label("begun_digest"),
            col(AccessSessionRow.expires_at).label("begun_until"),
        )
        found = []
        with self._read() as connection:
            now = self._clock.now(connection).utc
            for row in connection.execute(tokens.where(col(AccessTokenRow.revoked_at).is_(None))):
                token = _token_of(row)
                found.append(
                    Credential(digest=row.digest, token=token, expires_at=row.expires_at, is_session=False)
                )
            for row in connection.execute(sessions):
                token, until = _token_of(row), row.begun_until
                found.append(
                    Credential(digest=row.begun_digest, token=token, expires_at=until, is_session=True)
                )
        return [credential for credential in found if credential.is_live(now)]

    def note_tokens_used(self, moments: Mapping[str, datetime]) -> None:
        """Keep when each token, by its id, was used last."""
        with self._write() as transaction:
            for token_id, moment in sorted(moments.items()):
                transaction.session.execute(
                    update(AccessTokenRow)
                    .where(
                        col(AccessTokenRow.ulid) == token_id,
                        or_(
                            col(AccessTokenRow.last_used_at).is_(None),
                            col(AccessTokenRow.last_used_at) < moment,
                        ),
                    )
                    .values(last_used_at=moment)
                )

    def begin_session(self, token_id: str, *, digest: str, expires_at: datetime) -> None:
        """Accept the secret with this digest as the token itself, for as long as that is accepted.

        Raises:
            NotFound: no such token is accepted.
        """
        with self._write() as transaction:
            query = select(AccessTokenRow).where(col(AccessTokenRow.ulid) == token_id).with_for_update()
            row = transaction.session.scalars(query).one_or_none()
            if row is None or not _token_of(row).is_live(transaction.now):
                raise NotFound(f"token {token_id} is not accepted any more")
            of_token = col(AccessSessionRow.token_id) == row.id
            newest = (
                select(col(AccessSessionRow.id))
                .where(of_token)
                .order_by(col(AccessSessionRow.id).desc())
                .limit(MOST_SESSIONS - 1)
            )
            kept = list(transaction.session.scalars(newest))
            over = or_(
                col(AccessSessionRow.expires_at) <= transaction.now,
                of_token & col(AccessSessionRow.id).not_in(kept),
            )
            transaction.session.execute(delete(AccessSessionRow).where(over))
            transaction.session.add(
                AccessSessionRow(
                    digest=digest, token_id=row.id, created_at=transaction.now, expires_at=expires_at
                )
            )

    def end_session(self, digest: str) -> None:
        """Accept a session's secret no more; nothing happens where there is none."""
        with self._write() as transaction:
            transaction.session.execute(
                delete(AccessSessionRow).where(col(AccessSessionRow.digest) == digest)
            )


def _token_of(row: AccessTokenRow | Found) -> AccessToken:
    return AccessToken(
        id=row.ulid,
        name=row.name,
        role=row.role,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
