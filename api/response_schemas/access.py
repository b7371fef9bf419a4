"""The wire, outwards: callers and access tokens. Holds no secrets."""

from __future__ import annotations

from datetime import datetime

from ...roles import AccessToken, Role
from ..credentials import Caller
from .parts import Document, Part


class CallerDocument(Document):
    """Who asks."""

    name: str
    """``local`` where nobody has to say who they are."""
    role: Role
    is_session: bool
    """By a browser's cookie."""
    token_required: bool
    """False: whoever is on this machine may ask."""

    @classmethod
    def of(cls, caller: Caller, *, token_required: bool) -> CallerDocument:
        """Of one caller."""
        return cls(
            name=caller.name,
            role=caller.role,
            is_session=caller.is_session,
            token_required=token_required,
        )


class TokenDocument(Part):
    """An access token, without its secret."""

    id: str
    name: str
    """Whom it was given to."""
    role: Role
    created_at: datetime
    expires_at: datetime | None
    """Null: never."""
    last_used_at: datetime | None
    """To the minute; null: not yet."""
    revoked_at: datetime | None

    @classmethod
    def of(cls, token: AccessToken) -> TokenDocument:
        """Of one token."""
        return cls.model_validate(token, from_attributes=True)


class TokenList(Document):
    """Access tokens, oldest first."""

    tokens: tuple[TokenDocument, ...]
