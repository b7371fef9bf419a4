"""Whether a file that somebody sent is what its name says: one dataset that can be read without running code.

Reads its beginning. Knows nothing of who sent it.
"""

from __future__ import annotations

import zipfile
from itertools import islice
from pathlib import Path

from ..errors import DatasetError
from .dataset_source import check_files, errors_about
from .file_kinds import FORMAT_NAMES, file_kind
from .rows import FORMATS, read_rows

SUFFIXES = (*FORMATS, ".npz")
"""Extensions of what may be sent."""
FIRST_ROWS = 100


def check_received(path: Path, *, most_bytes: int) -> None:
    """Look at a file's beginning; at an archive's list of contents, of which nothing is unpacked.

    Args:
        path: with the extension of its format.
        most_bytes: what an archive may hold once it is unpacked.

    Raises:
        DatasetError: it is something else, damaged, or unpacks to more.
    """
    check_files(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        _check_archive(path, most_bytes)
        return
    if suffix not in FORMAT_NAMES and (kind := file_kind(path)):
        raise DatasetError(f"dataset {path.name} looks like {kind.looks_like}", next_step=kind.next_step)
    with errors_about(path):
        if not list(islice(read_rows(path), FIRST_ROWS)):
            raise DatasetError("it has no rows", next_step="send a file that has rows")


def _check_archive(path: Path, most_bytes: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DatasetError(
            f"dataset {path.name} is no .npz archive ({error})", next_step="write it with numpy.savez"
        ) from None
    if unpacked_bytes > most_bytes:
        raise DatasetError(
            f"dataset {path.name} unpacks to {unpacked_bytes:,} bytes, more than {most_bytes:,}",
            next_step="send fewer rows, or have the operator raise serve --upload-limit",
        )
    from .arrays import npz_arrays  # imports numpy

    with errors_about(path):
        npz_arrays(path)
