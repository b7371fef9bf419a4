"""Routes about access tokens, for admins. They are made on the command line, where they are shown once."""

from __future__ import annotations

from fastapi import APIRouter

from ..access import AdminDep
from ..problems import problem_docs
from ..response_schemas.access import TokenDocument, TokenList
from .dependencies import CredentialsDep, StoreDep

router = APIRouter(prefix="/v1/tokens", tags=["access"])


@router.get("", summary="List access tokens", responses=problem_docs(401, 403))
def list_tokens(_caller: AdminDep, store: StoreDep, ended: bool = False) -> TokenList:
    """Without their secrets, which nobody keeps. ``ended`` adds those that were revoked or have expired."""
    return TokenList(tokens=tuple(map(TokenDocument.of, store.list_tokens(with_ended=ended))))


@router.delete("/{token_id}", summary="Revoke an access token", responses=problem_docs(401, 403, 404))
def revoke_token(
    token_id: str, _caller: AdminDep, store: StoreDep, credentials: CredentialsDep
) -> TokenDocument:
    """It is refused from now on, and so are the sessions begun with it; by other servers after a second."""
    revoked = store.revoke_token(token_id)
    credentials.forget()
    return TokenDocument.of(revoked)
