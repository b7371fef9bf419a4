"""Which data are no text: images in folders and ``.npz`` archives by their names, times by their form.

Needs the standard library only. Knows nothing of what is in them.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .rows import OTHER_SPLIT_WORDS, TRAIN_WORDS, RowError, row_number

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))
MAX_IMAGES = 1_000_000
MONTH = "2024-05"
"""How a month is written."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image and the folder of its class."""

    path: Path
    label: str

    def sha256(self) -> str:
        """Of the file as it is."""
        with self.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()


def array_files(path: Path) -> tuple[str, list[Path]] | None:
    """``images`` or ``npz`` with the files, in their order; None where the data are neither.

    Raises:
        RowError: images lie there that are no dataset.
    """
    if path.is_dir():
        found = image_files(path)
        return ("images", [image.path for image in found]) if found else None
    return ("npz", [path]) if path.suffix.lower() == ".npz" else None


def image_files(folder: Path) -> list[ImageFile]:
    """The images below a folder, sorted, each with its class: the first folder on the way to it.

    Where all first folders are named like splits, those with ``train`` in their name hold the classes.
    Empty where there are no images.

    Raises:
        RowError: they lie in no folders of classes, or in one only.
    """
    found = list(_images_below(folder))
    if not found:
        return []
    tops = {path.relative_to(folder).parts[0] for path in found}
    if all(top.lower() in TRAIN_WORDS | OTHER_SPLIT_WORDS for top in tops):
        trains = sorted(top for top in tops if top.lower() in TRAIN_WORDS)
        if len(trains) != 1:
            raise RowError(
                folder,
                None,
                f"{len(trains)} folders of images to train on",
                next_step=f"name one of {', '.join(sorted(tops))}",
            )
        folder /= trains[0]
        found = [path for path in found if path.is_relative_to(folder)]
    if loose := next((path for path in found if path.parent == folder), None):
        raise RowError(
            loose, None, "an image outside of a class's folder", next_step="put each into a folder per class"
        )
    images = [ImageFile(path, path.relative_to(folder).parts[0]) for path in sorted(found)]
    if len({image.label for image in images}) < 2:
        raise RowError(
            folder, None, "images of one class only", next_step="put those of each class into a folder of it"
        )
    return images


def read_time(value: Any) -> float | None:
    """A moment as seconds since 1970, or a number as it is; None if it is neither.

    Texts are ISO 8601 (``2024-05-01``, ``2024-05-01T12:00+02:00``, ``2024-05``), slashes for dashes too.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    text = str(value).strip().replace("/", "-")
    if len(text) == len(MONTH) and text[4:5] == "-":
        text += "-01"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return row_number({"": text}, "")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def is_moment(value: Any) -> bool:
    """A text that is a date or a time, and not merely a number."""
    return isinstance(value, str) and row_number({"": value}, "") is None and read_time(value) is not None


def _images_below(folder: Path) -> Iterator[Path]:
    count = 0
    for parent, folders, names in os.walk(folder, onerror=raise_error):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                count += 1
                if count > MAX_IMAGES:
                    raise RowError(
                        folder, None, f"more than {MAX_IMAGES:,} images", next_step="name a part of them"
                    )
                yield Path(parent, name)


def raise_error(error: OSError) -> None:
    """A folder that may not be read would be left out without a word."""
    raise error
