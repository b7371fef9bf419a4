"""The process that fetches from the hub, the only one that has its token.

``python -m rankwise.runners.fetch FD SPEC`` finds or downloads what the file SPEC names (JSON: ``model``
and ``dataset``, each null where there is nothing to fetch; ``weights``; ``allow_remote_code``), checks it as
``probes`` does, and reports on the socket FD like any job: ``progress`` with the bytes so far, then a
``result`` or an ``error``. Ends when the other side closes the socket, as dying does. Imports no torch.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RankwiseError
from ..probes.dataset_source import hub_commit, resolve_dataset
from ..probes.hub import HubName, cache_folder
from ..probes.model_source import resolve_model
from .disk_use import folder_bytes
from .messages import Report

PROGRESS_S = 2.0
"""Between looks at how much has come."""


def fetch(spec: dict[str, Any], report: Report) -> None:
    """Have all that is named in the hub's cache, and report where it lies.

    Raises:
        InputError: something cannot be had, or is refused.
    """
    model = dataset = None
    if (source := spec["model"]) is not None:
        with progress(source, "model", report) as arrived_bytes:
            found = resolve_model(
                source,
                allowed_roots=None,
                allow_remote_code=spec["allow_remote_code"],
                fetch_weights=spec["weights"],
            )
        model = {"path": str(found.path), "revision": found.revision, "arrived_bytes": arrived_bytes()}
    if (source := spec["dataset"]) is not None:
        with progress(source, "dataset", report) as arrived_bytes:
            path = resolve_dataset(source, allowed_roots=None)
        dataset = {"path": str(path), "revision": hub_commit(path), "arrived_bytes": arrived_bytes()}
    report("result", model=model, dataset=dataset)


@contextmanager
def progress(source: str, repo_type: str, report: Report) -> Iterator[Callable[[], int]]:
    """Tell from time to time how much of a repository has arrived; gives the bytes so far."""
    hub_name = HubName.parse(source)
    folder = cache_folder(hub_name, repo_type) / "blobs" if hub_name else Path(os.devnull)
    before_bytes = folder_bytes(folder)
    over = threading.Event()

    def arrived_bytes() -> int:
        return max(0, folder_bytes(folder) - before_bytes)

    def tell() -> None:
        told = 0
        while not over.wait(PROGRESS_S):
            if (arrived := arrived_bytes()) > told:
                told = arrived
                report("progress", phase="fetch", kind=repo_type, source=source, arrived_bytes=arrived)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield arrived_bytes
    finally:
        over.set()
        teller.join()


def end_with(connection: socket.socket) -> None:
    """Leave at once when the other side is gone. What has arrived stays, and is gone on with."""
    while connection.recv(4096):
        continue
    os._exit(1)


def main() -> None:
    """Entry point of the process."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    report = Report(connection.fileno())
    started_s = time.monotonic()
    report("started", pid=os.getpid())
    try:
        fetch(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), report)
    except RankwiseError as error:
        report("error", kind=type(error).__name__, message=error.message, next_step=error.next_step)
    report("exit", cause="finished", exit_code=0, signal=None, wall_s=time.monotonic() - started_s)


if __name__ == "__main__":
    main()
