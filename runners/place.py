"""Where a supervisor runs, as other machines that share the database know it."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path

from ..home import Home
from ..optimizer.keys import environment_key
from ..probes.host import read_hardware
from ..store import Worker


def place_of(home: Home) -> str:
    """The home, told apart from every other one that shares its database.

    A home with a database of its own is the only one there is, whatever the machine is called. One that
    shares is known by its host, its folder, and a number drawn once: containers may have equal names and
    folders.
    """
    if home.database_url is None:
        return str(home.root)
    return f"{socket.gethostname()}:{home.root}#{_number_of(home)}"


def reservation(home: Home) -> str | None:
    """What reserves a study for a home: what is asked for here is measured here. None where that is sure."""
    return None if home.database_url is None else place_of(home)


def worker_of(home: Home) -> Worker:
    """This process, as a supervisor of the home."""
    return Worker(
        name=f"{socket.gethostname()}:{os.getpid()}",
        place=place_of(home),
        environment=None if home.database_url is None else environment_key(read_hardware(home.root)),
    )


def _number_of(home: Home) -> str:
    path = home.root / "place"
    if not path.exists():
        draft = Path(f"{path}.{os.getpid()}")
        draft.write_text(uuid.uuid4().hex[:12], encoding="ascii")
        with suppress(FileExistsError):
            os.link(draft, path)  # whole or not at all, and the first one stays
        draft.unlink()
    return path.read_text(encoding="ascii")
