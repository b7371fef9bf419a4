"""Files to arrays: images, numeric columns in the order of time, ``.npz`` archives.

Names the file or row that cannot be read, as :mod:`.rows` does. Needs numpy, for images Pillow too. Knows
nothing of models and of what is held out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .array_sources import read_time
from .rows import RowError, cell, read_rows, row_number

IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for images of so many channels."""
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
"""Whatever a file is called: for some formats Pillow starts other programs."""
GREY_MODES = ("1", "L", "I", "F", "I;16")
MAX_SERIES_ROWS = 2_000_000
MAX_ARRAYS = 100
MAX_ROW_BYTES = 256 * 1024 * 1024
WHOLE_NUMBERS = ("int32", "int64", "uint32", "uint64")
"""Stay whole numbers, as indices are; smaller ones are measured values that take less room."""


@dataclass(frozen=True, slots=True)
class Series:
    """Numeric columns in the order of time: (rows, channels), NaN where a value is missing."""

    values: np.ndarray[Any, np.dtype[np.float32]]
    times: tuple[str, ...]
    """Of the first and the last row, as written; empty without a time column."""


@dataclass(frozen=True, slots=True)
class NpzArray:
    """The header of an array in an ``.npz``."""

    name: str
    shape: tuple[int, ...]
    """With the axis of the rows."""
    dtype: np.dtype[Any]

    @property
    def kind(self) -> str:
        """What its numbers become: ``float32``, ``int64``, ``bool``, ``text``, or ``other``."""
        if self.dtype.kind == "b":
            return "bool"
        if self.dtype.kind in "iu":
            return "int64" if self.dtype.name in WHOLE_NUMBERS else "float32"
        return {"f": "float32", "U": "text"}.get(self.dtype.kind, "other")


def read_image(
    path: Path, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One image as (channels, height, width): resized, brought to 0 … 1, then (value - mean) / std."""
    # Imported here: an optional part of what is installed, and slow.
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as opened:
            image = opened.convert(IMAGE_MODES[channels])
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        cause = str(error).partition("\n")[0]
        raise RowError(path, None, f"not readable as an image ({cause})", next_step="remove it") from None
    scaled = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def image_shape(path: Path) -> tuple[int, int, int]:
    """Channels, height and width in pixels; only the file's header is read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=IMAGE_FORMATS) as opened:
            return 1 if opened.mode in GREY_MODES else 3, opened.height, opened.width
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        cause = str(error).partition("\n")[0]
        raise RowError(path, None, f"not readable as an image ({cause})", next_step="remove it") from None


def read_series(path: Path, *, time_column: str | None, channels: Sequence[str]) -> Series:
    """All rows of these columns, sorted by time; without a time column, as they stand.

    Raises:
        RowError: a time cannot be read or occurs twice, or there are too many rows.
    """
    times: list[float] = []
    written: list[str] = []
    values: list[list[float]] = []
    for number, row in enumerate(read_rows(path), start=1):
        if number > MAX_SERIES_ROWS:
            raise RowError(
                path,
                None,
                f"more than {MAX_SERIES_ROWS:,} rows of a series",
                next_step="keep the most recent ones",
            )
        if time_column is not None:
            time = read_time(cell(row, time_column))
            if time is None:
                cause = f"no time in column {time_column!r} ({str(cell(row, time_column))[:50]!r})"
                raise RowError(path, number, cause, unit="row")
            times.append(time)
            written.append(str(cell(row, time_column)))
        numbers = (row_number(row, channel) for channel in channels)
        values.append([np.nan if number is None else number for number in numbers])
    table = np.asarray(values, dtype=np.float32).reshape(len(values), len(channels))
    if time_column is None:
        return Series(table, ())
    order = np.argsort(np.asarray(times), kind="stable")
    in_order = np.asarray(times)[order]
    if len(repeated := np.flatnonzero(np.diff(in_order) == 0)):
        raise RowError(
            path,
            int(order[repeated[0] + 1]) + 1,
            f"the time {written[order[repeated[0]]]!r} in column {time_column!r} occurs twice",
            unit="row",
            next_step="keep one series: one row for each time",
        )
    return Series(table[order], (written[order[0]], written[order[-1]]))


def npz_arrays(path: Path) -> list[NpzArray]:
    """The headers of an archive's arrays, in its order; no numbers are read.

    Raises:
        RowError: it is no such archive, or an array cannot be read row by row.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [_npz_header(path, archive, name)[0] for name in _npz_names(path, archive)]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise _unreadable(path, error) from None


def read_npz(path: Path, names: Sequence[str], *, every: int) -> Iterator[dict[str, Any]]:
    """Every nth row of these arrays; memory stays bounded whatever their size.

    Raises:
        RowError: the archive ends before its rows do.
    """
    try:
        with zipfile.ZipFile(path) as archive, ExitStack() as stack:
            readers = {}
            for name in names:
                header, opened = _npz_header(path, archive, f"{name}.npy")
                readers[name] = (header, stack.enter_context(opened))
            rows = min((header.shape[0] for header, _ in readers.values()), default=0)
            for number in range(rows):
                row = {name: _npz_row(*reader) for name, reader in readers.items()}
                if number % every == 0:
                    yield row
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise _unreadable(path, error) from None


def _npz_names(path: Path, archive: zipfile.ZipFile) -> list[str]:
    names = archive.namelist()
    if not names or len(names) > MAX_ARRAYS or not all(name.endswith(".npy") for name in names):
        raise RowError(
            path,
            None,
            "it holds no arrays, too many, or other files",
            next_step="write it with numpy.savez(file, name=array, …)",
        )
    return names


def _npz_header(path: Path, archive: zipfile.ZipFile, member: str) -> tuple[NpzArray, Any]:
    """An array's header, and its file, which stands behind it."""
    name = member.removesuffix(".npy")
    opened = archive.open(member)
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(opened)
    if dtype.hasobject or not shape or 0 in shape:
        raise RowError(
            path,
            None,
            f"array {name!r} has {'Python objects' if dtype.hasobject else f'the shape {shape}'}",
            next_step="write arrays of numbers whose first axis are the rows",
        )
    if is_fortran and len(shape) > 1:
        raise RowError(
            path,
            None,
            f"array {name!r} is stored column by column",
            next_step="write numpy.ascontiguousarray of it",
        )
    if dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)) > MAX_ROW_BYTES:
        raise RowError(
            path,
            None,
            f"a row of array {name!r} is larger than {MAX_ROW_BYTES} bytes",
            next_step="cut its rows into smaller ones",
        )
    return NpzArray(name, tuple(shape), dtype), opened


def _npz_row(header: NpzArray, opened: Any) -> Any:
    shape = header.shape[1:]
    size = header.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    raw = opened.read(size)
    if len(raw) < size:
        raise EOFError(f"array {header.name!r} is cut short")
    found = np.frombuffer(raw, header.dtype).reshape(shape)
    return str(found[()]) if header.kind == "text" else found.astype(header.kind)


def _unreadable(path: Path, error: BaseException) -> RowError:
    if isinstance(error, RowError):
        return error
    return RowError(
        path,
        None,
        f"not readable as an archive of arrays ({str(error).partition(chr(10))[0]})",
        next_step="write it with numpy.savez(file, name=array, …)",
    )


def is_finite(row: Mapping[str, Any]) -> bool:
    """No array of the row holds NaN or infinity."""
    return all(isinstance(value, str) or bool(np.isfinite(value).all()) for value in row.values())
