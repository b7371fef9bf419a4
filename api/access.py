"""Who may ask for what: the routes that are open, and what a route says of the role that it needs.

Knows nothing of secrets (``credentials.py``) or of how a request is refused (``authentication.py``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from ..roles import Role
from .credentials import LOCAL, Caller

__all__ = [
    "LOCAL",
    "AdminDep",
    "Caller",
    "CallerDep",
    "ReaderDep",
    "Role",
    "SubmitterDep",
    "is_open",
    "least_role",
]

SESSION_PATH = "/v1/session"
DATASETS_PATH = "/v1/datasets"
LOGIN_PATH = "/login"
OPEN_PATHS = frozenset(("/healthz", "/readyz", LOGIN_PATH))
"""Answered whoever asks: whether the server lives, and where to say who one is."""
OPEN_FOLDERS = ("/login/",)
"""What the login page loads lies below one of these."""
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


def is_open(path: str) -> bool:
    """Whether a path is answered without a token."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def least_role(method: str, path: str) -> Role:
    """What a caller must be in any case, known before a route is looked for; routes may ask for more.

    Whoever may read may begin and end a session of their own.
    """
    return Role.READER if method in SAFE_METHODS or path == SESSION_PATH else Role.SUBMITTER


async def caller_of(request: Request) -> Caller:
    """Who asks. On open paths too, if they said so."""
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise HTTPException(401, "this needs a token", {"WWW-Authenticate": "Bearer"})
    return caller


def refusal(caller: Caller, needed: Role, what: str) -> str:
    """Why a caller may not do something, in a sentence."""
    return f"{caller.name} is {_with_article(caller.role)}, and {what} needs {_with_article(needed)}"


def require_owner(caller: Caller, owner: str | None, what: str) -> None:
    """Let only its owner, or an admin, change something.

    Raises:
        HTTPException: 403.
    """
    if caller.name != owner and not caller.role.includes(Role.ADMIN):
        whose = "nobody that has a token" if owner is None else owner
        raise HTTPException(403, f"{what} belongs to {whose}, and {refusal(caller, Role.ADMIN, 'this')}")


def _at_least(role: Role) -> Callable[[Request], Awaitable[Caller]]:
    async def check(request: Request) -> Caller:
        caller = await caller_of(request)
        if not caller.role.includes(role):
            raise HTTPException(403, refusal(caller, role, f"{request.method} {request.url.path}"))
        return caller

    return check


def _with_article(role: Role) -> str:
    return f"an {role}" if role is Role.ADMIN else f"a {role}"


CallerDep = Annotated[Caller, Depends(caller_of)]
ReaderDep = Annotated[Caller, Depends(_at_least(Role.READER))]
SubmitterDep = Annotated[Caller, Depends(_at_least(Role.SUBMITTER))]
AdminDep = Annotated[Caller, Depends(_at_least(Role.ADMIN))]
