"""Who may do what: roles and access tokens. Knows nothing of HTTP or of secrets' text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do; each role may do all that the ones before it may."""

    READER = "reader"
    """Reads everything, changes nothing."""
    SUBMITTER = "submitter"
    """Also starts studies, asks for estimates and uploads data; ends what is its own."""
    ADMIN = "admin"
    """Also ends what is others', and looks after tokens and devices."""

    def includes(self, other: Role) -> bool:
        """Whether this role may do what ``other`` may."""
        ranks = tuple(Role)
        return ranks.index(self) >= ranks.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A token, without its secret, which nobody keeps."""

    id: str
    name: str
    """Whom it was given to. Tokens of the same name are the same caller: one can follow another."""
    role: Role
    created_at: datetime
    expires_at: datetime | None = None
    """None: never."""
    last_used_at: datetime | None = None
    """To the minute; None: not yet."""
    revoked_at: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        """Whether it is accepted at this moment."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A secret that is accepted, by its digest: a token's own, or that of a session begun with it."""

    digest: str
    token: AccessToken
    expires_at: datetime | None
    is_session: bool

    def is_live(self, now: datetime) -> bool:
        """Whether it is accepted at this moment."""
        return self.token.is_live(now) and (self.expires_at is None or now < self.expires_at)
