"""``rankwise tokens``: who may use the service. Knows nothing of how tokens are checked."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ...errors import InputError
from ...home import Home
from ...roles import AccessToken, Role
from ..units import parse_seconds
from .console import print_json, print_note, results
from .options import AsJson
from .places import home_to_read, home_to_work_in

if TYPE_CHECKING:
    from ...store import Store

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke the access tokens of `rankwise serve`.")

EXAMPLES = """\
[bold]Examples[/bold]

rankwise tokens create --role submitter --name ci --expires 90d

RANKWISE_TOKEN=$(rankwise tokens create --role reader)
"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_RESERVED = "local"
"""The caller of a server that demands no token."""


@app.command(epilog=EXAMPLES)
def create(
    context: typer.Context,
    role: Annotated[
        Role,
        typer.Option(
            help="reader reads; submitter also starts studies, and ends its own; admin may do everything."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="Whom it is for. Studies belong to this name: tokens of the same name share them. "
            "If left out, the role's name."
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Accepted for so long, such as 30d; if left out, until revoked."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a token and print it. It is shown this once: only its hash is kept."""
    from ..credentials import digest_of, new_token

    name = _checked_name(name or role.value)
    expires_at = None
    if expires is not None:
        expires_at = datetime.now(UTC) + timedelta(seconds=parse_seconds(expires))
    secret = new_token()
    with closing(_open_store(home_to_work_in(context))) as store:
        token = store.create_token(name=name, role=role, digest=digest_of(secret), expires_at=expires_at)
    if as_json:
        print_json({"schema_version": 1, "token": secret, **_document(token)})
        return
    until = f"until {expires_at:%Y-%m-%d %H:%M} UTC" if expires_at else "until it is revoked"
    print_note(f"a {role} token for {name}, accepted {until}; this is the only time that it is shown:")
    results.print(secret, soft_wrap=True)


@app.command("list")
def list_(
    ended: Annotated[
        bool, typer.Option("--all", help="Also those that were revoked or have expired.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List tokens, oldest first, without their secrets."""
    with closing(_open_store(home_to_read())) as store:
        tokens = store.list_tokens(with_ended=ended)
    if as_json:
        print_json({"schema_version": 1, "tokens": [_document(token) for token in tokens]})
        return
    if not tokens:
        print_note("no tokens; create one with rankwise tokens create --role submitter")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title in ("id", "name", "role", "created (UTC)", "expires", "last used"):
        table.add_column(title, no_wrap=title == "id")
    for token in tokens:
        table.add_row(
            token.id,
            token.name,
            token.role,
            _moment(token.created_at, ""),
            "revoked" if token.revoked_at else _moment(token.expires_at, "never"),
            _moment(token.last_used_at, "not yet"),
        )
    results.print(table)


@app.command()
def revoke(
    context: typer.Context,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, from the list.")],
    as_json: AsJson = False,
) -> None:
    """Accept a token no more, nor the browser sessions begun with it. Servers refuse it after a second."""
    with closing(_open_store(home_to_work_in(context))) as store:
        token = store.revoke_token(token_id)
    if as_json:
        print_json({"schema_version": 1, **_document(token)})
    else:
        results.print(f"Token {token.id} of {token.name} is revoked.", soft_wrap=True)


def _checked_name(name: str) -> str:
    if _NAME.fullmatch(name) is None or name == _RESERVED:
        why = (
            "is who needs no token"
            if name == _RESERVED
            else "is no name of 1 to 64 letters, digits and ._@+-"
        )
        raise InputError(f"the name {name!r:.80} {why}", next_step="write it like ci or ada@example.org")
    return name


def _document(token: AccessToken) -> dict[str, object]:
    from ..response_schemas.access import TokenDocument

    return TokenDocument.of(token).model_dump(mode="json")


def _moment(moment: datetime | None, otherwise: str) -> str:
    return otherwise if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _open_store(home: Home) -> Store:
    from ...store import Store

    return Store.open(home.database)
