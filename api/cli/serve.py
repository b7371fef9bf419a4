"""``rankwise serve``: the HTTP API on this machine. Knows nothing about its routes."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ...errors import InputError
from .console import EXIT_FAILED, print_note
from .places import home_to_work_in

EXAMPLES = """\
[bold]Examples[/bold]

rankwise serve

rankwise serve --port 9000 --allow-root ~/models --allow-root ~/data
"""


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback only.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8321,
    allow_root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder that models and data may lie in; may be repeated. "
            "If left out: this folder, $RANKWISE_HOME and installed packages.",
        ),
    ] = None,
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
) -> None:
    """Serve the HTTP API on this machine until interrupted."""
    from ...store import Store
    from ..app import create_app
    from ..server import Server
    from ..settings import ServerSettings

    settings = ServerSettings(
        home=home_to_work_in(context),
        host=host,
        port=port,
        allowed_roots=tuple(allow_root or ()),
        allow_remote_code=allow_remote_code,
        allowed_factories=tuple(allow_factory or ()),
    )
    Store.open(settings.home.database).close()  # an unusable database is said here, not in a traceback later
    server = Server(create_app(settings))
    with _listen(host, port) as listener, suppress(KeyboardInterrupt):
        url = _url(listener)
        print_note(f"rankwise serves {url}, described at {url}/openapi.json; stop it with Ctrl-C")
        server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(EXIT_FAILED)


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
