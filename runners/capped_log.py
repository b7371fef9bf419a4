"""What a job prints, kept small: its beginning, its end, and a line in between that says how much is missing.

The output comes through a pipe that a thread empties all the time, so a job that prints without end neither
waits nor fills the disk. Knows nothing of what is printed.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from contextlib import suppress
from pathlib import Path

HEAD_BYTES = 2**20
TAIL_BYTES = 2**20
PIPE_BYTES = 2**20
"""Of the pipe's buffer, where the kernel grants so much: the fuller it gets, the fewer wake-ups."""
SETTLE_S = 1.0
"""At most so often is the tail of a log that is full written anew."""
LAST_WORDS_S = 2.0
"""For what is in the pipe when all is over; a stray may go on writing to it."""


class CappedLog:
    """A file that never holds more than a head, a line and a tail. What cannot be written is let go."""

    def __init__(self, path: Path, *, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._fd, 0)
        self._head_bytes, self._tail_bytes = head_bytes, tail_bytes
        self._seen_bytes = 0
        self._tail = bytearray()
        self._settled_s = 0.0

    def write(self, data: bytes) -> None:
        """Add output."""
        room = max(0, self._head_bytes + self._tail_bytes - self._seen_bytes)
        with suppress(OSError):  # a full disk: the job goes on without its log
            os.pwrite(self._fd, data[:room], self._seen_bytes)
        # What is after the head may turn out to be in the middle.
        self._tail += data[max(0, self._head_bytes - self._seen_bytes) :]
        if len(self._tail) > 2 * self._tail_bytes:
            del self._tail[: -self._tail_bytes]
        self._seen_bytes += len(data)
        if self.dropped_bytes and time.monotonic() - self._settled_s >= SETTLE_S:
            self.settle()

    @property
    def dropped_bytes(self) -> int:
        """So much is neither in the head nor in the tail."""
        return max(0, self._seen_bytes - self._head_bytes - self._tail_bytes)

    def settle(self) -> None:
        """Bring the file's tail up to date."""
        self._settled_s = time.monotonic()
        if not self.dropped_bytes:
            return
        notice = f"\n[… {self.dropped_bytes:,} bytes of output are left out here …]\n".encode()
        rest = notice + self._tail[-self._tail_bytes :]
        with suppress(OSError):
            os.pwrite(self._fd, rest, self._head_bytes)
            os.ftruncate(self._fd, self._head_bytes + len(rest))

    def abandon(self) -> None:
        """Close the file as it is: another process has it, too."""
        os.close(self._fd)

    def close(self) -> None:
        """Write what is left and close the file."""
        self.settle()
        os.close(self._fd)


class Tail:
    """The end of some output, in memory."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._kept = bytearray()

    def write(self, data: bytes) -> None:
        """Add output."""
        self._kept += data
        if len(self._kept) > 2 * self._size_bytes:
            del self._kept[: -self._size_bytes]

    @property
    def text(self) -> str:
        """What was written last."""
        return self._kept[-self._size_bytes :].decode(errors="replace")

    def abandon(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


class LogPipe:
    """A pipe into a log: what is written to ``writer`` ends there."""

    def __init__(self, log: CappedLog | Tail) -> None:
        self._log = log
        self._reader, self.writer = os.pipe()
        with suppress(OSError):
            fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._reader, False)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._empty, name="log", daemon=True)

    def drop(self) -> None:
        """Give the pipe up: there is nobody to write to it."""
        os.close(self.writer)
        os.close(self._reader)
        self._log.abandon()

    def leave(self) -> int:
        """In the process that writes: give up all but the writer, which is returned."""
        os.close(self._reader)
        self._log.abandon()
        return self.writer

    def start(self) -> None:
        """Begin to read, in the process that does not write. Not before the writer is forked."""
        os.close(self.writer)
        self._thread.start()

    def finish(self) -> None:
        """Read what is left, and close the log. The writers are gone, or of no more interest."""
        self._over.set()
        self._thread.join()
        os.close(self._reader)
        self._log.close()

    def _empty(self) -> None:
        """Until the last writer is gone."""
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        deadline_s: float | None = None
        while True:
            if self._over.is_set() and deadline_s is None:
                deadline_s = time.monotonic() + LAST_WORDS_S
            if deadline_s is not None and time.monotonic() > deadline_s:
                return
            if not poller.poll(0 if deadline_s is not None else 100):
                if deadline_s is not None:
                    return
                continue
            data = os.read(self._reader, PIPE_BYTES)
            if not data:
                return
            self._log.write(data)
