"""``rankwise serve``: the HTTP API. Knows nothing about its routes."""

from __future__ import annotations

import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from ..log_format import LogFormat
from ..units import parse_bytes
from .console import EXIT_FAILED, print_note
from .places import home_to_work_in

if TYPE_CHECKING:
    from ...store import Store

EXAMPLES = """\
[bold]Examples[/bold]

rankwise serve

rankwise serve --port 9000 --allow-root ~/models --allow-root ~/data

rankwise serve --host 0.0.0.0 --allow-host rankwise.example.org
"""


def serve(
    context: typer.Context,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. One that others reach needs a token: rankwise tokens create."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8321,
    require_token: Annotated[
        bool, typer.Option("--require-token", help="Demand a token of those on this machine, too.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host name that requests may address, as behind a proxy, without port; may be repeated. "
            "Tokens are then demanded.",
        ),
    ] = None,
    allow_root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder that models and data may lie in; may be repeated. "
            "If left out: this folder, $RANKWISE_HOME and installed packages; uploads alone where tokens are "
            "demanded.",
        ),
    ] = None,
    rate_limit: Annotated[
        float,
        typer.Option(
            min=0, metavar="N", help="Requests a second of one token; 0 for any number. Bursts may be longer."
        ),
    ] = 300.0,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address or network of a proxy that says who asks and whether encrypted; may be repeated. "
            "One on this machine is trusted.",
        ),
    ] = None,
    log_format: Annotated[
        LogFormat, typer.Option(help="text: failures, for people; json: every request, for machines.")
    ] = LogFormat.TEXT,
    upload_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest dataset that may be sent.")
    ] = "2GiB",
    allow_remote_code: Annotated[
        bool, typer.Option("--allow-remote-code", help="Run code that comes with a model. Trust its author.")
    ] = False,
    allow_factory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Code that requests may have a model made by, as package.module:factory, with * for any "
            "part; may be repeated. If left out: none.",
        ),
    ] = None,
    webhook: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Address that is told of every study, signed with the secret in $RANKWISE_WEBHOOK_SECRET; "
            "may be repeated.",
        ),
    ] = None,
    webhook_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host that a study may have its webhook on; may be repeated. If left out: none.",
        ),
    ] = None,
    webhook_network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR", help="Private network that hosts of webhooks may be in; may be repeated."
        ),
    ] = None,
) -> None:
    """Serve the HTTP API until interrupted."""
    from ...store import Store
    from ..app import create_app
    from ..request_log import configure_logging
    from ..request_log import log as request_log
    from ..server import Server
    from ..settings import ServerSettings
    from ..webhooks import WebhookSettings

    settings = ServerSettings(
        home=home_to_work_in(context),
        host=host,
        port=port,
        allowed_roots=tuple(allow_root or ()),
        allow_remote_code=allow_remote_code,
        allowed_factories=tuple(allow_factory or ()),
        allowed_hosts=tuple(allow_host or ()),
        require_token=require_token,
        rate_limit=rate_limit,
        upload_limit_bytes=parse_bytes(upload_limit),
        webhooks=WebhookSettings.read(
            hosts=webhook_host or (), networks=webhook_network or (), urls=webhook or ()
        ),
    )
    with closing(Store.open(settings.home.database)) as store:  # said here, not in a traceback later
        if settings.require_token:
            _require_one_who_may_write(store)
    server = Server(create_app(settings), trusted_proxies=trust_proxy or ())
    with _listen(host, port) as listener, suppress(KeyboardInterrupt):
        configure_logging(log_format)
        url = _url(listener)
        sentence = f"rankwise serves {url}, described at {url}/openapi.json; stop it with Ctrl-C"
        if log_format is LogFormat.JSON:
            request_log.info(sentence)
        else:
            print_note(sentence)
        server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(EXIT_FAILED)


def _require_one_who_may_write(store: Store) -> None:
    """Refuse to start a server that nobody could use.

    Raises:
        InputError: there is no token of a submitter or admin.
    """
    from ...roles import Role

    if not any(token.role.includes(Role.SUBMITTER) for token in store.list_tokens()):
        raise InputError(
            "this server would demand a token, and there is none of a submitter or admin",
            next_step="create one with `rankwise tokens create --role admin`, or listen on 127.0.0.1 only",
        )


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket; done here because uvicorn would end the process with a log line of its own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            next_step="choose another with --port, or --port 0 for any that is free",
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
