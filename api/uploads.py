"""Datasets that are sent: streamed into the home, checked, and kept under the hash of what is in them.

What is not whole, too large or no dataset leaves nothing behind. Knows nothing of routes or of who sends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import anyio
import anyio.to_thread
from ulid import ULID

from ..errors import InputError, NotFound, RankwiseError
from ..probes.received import SUFFIXES, check_received

T = TypeVar("T")

PREFIX = "upload:"
"""How a study names an uploaded dataset: this and its id."""
DEFAULT_LIMIT_BYTES = 2 * 2**30
RESERVE_BYTES = 2**30
"""Free space that uploads leave on the disk, for databases, tokens and trials."""
PATIENCE_S = 30.0
"""How long a sender may be silent."""
BLOCK_BYTES = 2**20
FORGOTTEN_S = 24 * 3600.0
"""Parts that old were left by a server that was killed."""

_ID = re.compile(rf"[0-9a-f]{{64}}(?:{'|'.join(map(re.escape, SUFFIXES))})")
_PARTS = ".parts"


class UploadTooLarge(InputError):
    """What is sent has no place here."""


class UploadTooSlow(RankwiseError):
    """The sender fell silent."""


class DiskFull(RankwiseError):
    """There is no room for it."""


@dataclass(frozen=True, slots=True)
class Received:
    """A dataset that lies in its place."""

    id: str
    filename: str
    size_bytes: int


class UploadFolder:
    """The uploads of one home. Several servers may share it.

    Args:
        folder: where they lie.
        limit_bytes: the largest that is taken.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._folder = folder
        self.limit_bytes = limit_bytes

    def path_of(self, upload_id: str) -> Path:
        """Where a dataset lies, or would.

        Raises:
            NotFound: no dataset can have this id.
        """
        if _ID.fullmatch(upload_id) is None:
            raise NotFound(
                f"there is no uploaded dataset {upload_id!r:.80}", next_step="see GET /v1/datasets"
            )
        return self._folder / upload_id

    def resolve(self, source: str) -> str:
        """What a study names, with the path in place of an ``upload:…``.

        Raises:
            InputError: nobody sent that dataset.
        """
        if not source.startswith(PREFIX):
            return source
        try:
            path = self.path_of(source.removeprefix(PREFIX))
            is_there = path.is_file()
        except NotFound:
            is_there = False
        if not is_there:
            raise InputError(
                f"there is no uploaded dataset {source!r:.100}", next_step="send it to POST /v1/datasets"
            )
        return str(path)

    async def receive(
        self,
        chunks: AsyncIterator[bytes],
        filename: str,
        *,
        announced: int | None,
        note: Callable[[Received], T],
    ) -> T:
        """Take a dataset in. Returns what ``note`` does.

        Args:
            chunks: its content.
            filename: as its sender calls it; the extension says the format.
            announced: how large it is said to be; what arrives is counted in any case.
            note: writes down that it is there, in a thread; nobody deletes it meanwhile.

        Raises:
            InputError: it is larger than the limit, or no dataset.
            UploadTooSlow: nothing came for half a minute.
            DiskFull: there is no room for it.
        """
        name = checked_name(filename)
        self._check_size(announced or 0)
        part = self._folder / _PARTS / str(ULID())
        try:
            await anyio.to_thread.run_sync(self._make_room_for, part, announced or 0)
            digest, size_bytes = await self._write(chunks, part / name)
            await anyio.to_thread.run_sync(lambda: check_received(part / name, most_bytes=self.limit_bytes))
            received = Received(digest + Path(name).suffix.lower(), name, size_bytes)

            def keep() -> T:
                with self._alone():
                    self._move(part / name, self.path_of(received.id))
                    return note(received)

            return await anyio.to_thread.run_sync(keep)
        except OSError as error:
            raise DiskFull(
                f"the dataset cannot be kept: {error.strerror or error}",
                next_step="have the operator look at the disk of RANKWISE_HOME",
            ) from error
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(part, ignore_errors=True))

    def remove(self, upload_id: str, *, forget: Callable[[], bool]) -> None:
        """Delete a dataset's file where ``forget`` says that nobody has it; nobody sends it meanwhile."""
        with self._alone():
            if forget():
                self.path_of(upload_id).unlink(missing_ok=True)

    def clear_forgotten(self) -> None:
        """Delete what was not received to its end by servers that were killed."""
        for part in (self._folder / _PARTS).glob("*"):
            if time.time() - part.stat().st_mtime > FORGOTTEN_S:
                shutil.rmtree(part, ignore_errors=True)

    async def _write(self, chunks: AsyncIterator[bytes], path: Path) -> tuple[str, int]:
        digest, size_bytes = hashlib.sha256(), 0
        buffered = bytearray()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:

            def flush(block: bytes) -> None:
                digest.update(block)
                self._make_room_for(path.parent, len(block))
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]

            while True:
                with anyio.move_on_after(PATIENCE_S) as patience:
                    chunk = await anext(chunks, None)
                if patience.cancelled_caught:
                    raise UploadTooSlow(
                        f"nothing came for {PATIENCE_S:g} s", next_step="send the file again, without a pause"
                    )
                if chunk is None:
                    break
                size_bytes += len(chunk)
                self._check_size(size_bytes)
                buffered += chunk
                if len(buffered) >= BLOCK_BYTES:
                    block, buffered = bytes(buffered), bytearray()
                    await anyio.to_thread.run_sync(flush, block)
            await anyio.to_thread.run_sync(flush, bytes(buffered))
            await anyio.to_thread.run_sync(os.fsync, file.fileno())
        return digest.hexdigest(), size_bytes

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self.limit_bytes:
            raise UploadTooLarge(
                f"the dataset is larger than {self.limit_bytes:,} bytes",
                next_step="send fewer rows, or have the operator raise serve --upload-limit",
            )

    def _make_room_for(self, part: Path, size_bytes: int) -> None:
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(part).free
        if free_bytes - size_bytes < RESERVE_BYTES:
            raise DiskFull(
                f"{size_bytes:,} bytes more would leave the server's disk less than {RESERVE_BYTES:,}",
                next_step="delete datasets that are not needed: DELETE /v1/datasets/{id}",
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Among all servers that share the folder: what is noted and what is there stay the same."""
        with (self._folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _move(self, part: Path, path: Path) -> None:
        """Move a dataset to its place, where it may lie already: it is then the same."""
        part.chmod(0o400)
        part.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checked_name(filename: str) -> str:
    """A file's own name, as it can stand in a folder and in a message.

    Raises:
        InputError: its extension is none of a dataset.
    """
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(filename.replace("\\", "/")).name)[-100:].lstrip(".-")
    if Path(name).suffix.lower() not in SUFFIXES or not Path(name).stem:
        raise InputError(
            f"the file name {filename!r:.100} has no extension of a dataset",
            next_step=f"name it with one of {', '.join(SUFFIXES)}: ?filename=reviews.csv",
        )
    return name
