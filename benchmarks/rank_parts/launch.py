"""Two processes forked from this one, and what they answer.

Knows nothing of what they do.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rank_parts.schemes import RANKS

LIMIT_S = 90.0
POLL_S = 0.05


def launched(folder: Path, work: Callable[[int, int, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """What each rank answers; its log is in the folder.

    Args:
        work: called in each rank with its number, the port to meet at, and rank 0's socket there.

    Raises:
        RuntimeError: a rank failed or took too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        children = [_forked(rank, folder, lambda n: work(n, port, server.fileno())) for rank in range(RANKS)]
    _wait(children, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


def _forked(rank: int, folder: Path, work: Callable[[int], dict[str, Any]]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(LIMIT_S - 5)  # where it hangs, if it does
        (folder / f"rank{rank}.json").write_text(json.dumps(work(rank)))
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the log has it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[int], folder: Path) -> None:
    """Until all have ended; the first that fails ends the others."""
    waiting, deadline, failed = dict(enumerate(children)), time.monotonic() + LIMIT_S, None
    while waiting:
        for rank, child in list(waiting.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del waiting[rank]
                if status and failed is None:
                    failed = rank
        if failed is not None or time.monotonic() > deadline:
            for child in waiting.values():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            number = 0 if failed is None else failed
            end = (folder / f"rank{number}.log").read_text(errors="replace")[-4000:]
            raise RuntimeError(f"rank {number} {'took too long' if failed is None else 'failed'}:\n{end}")
        time.sleep(POLL_S)
