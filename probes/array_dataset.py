"""Data that are no text, profiled: how many rows, which classes, what is set aside.

Memory stays bounded, but for a series, which is read whole. Knows nothing of models: how long the windows
of a series are, and how large images become, is decided by who knows the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from .array_sources import image_files
from .array_tasks import class_names, image_task, npz_task
from .arrays import NpzArray, is_finite, npz_arrays, read_npz, read_series
from .asked import Asked
from .profiles import ArrayForm, TaskKind, TaskProfile

MAX_CLASSES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayCounts:
    """What a pass over the data has found."""

    task: TaskProfile
    rows: int
    usable_rows: int
    columns: tuple[str, ...]
    label_counts: dict[str, int]
    notes: tuple[str, ...]


def outline_arrays(kind: str, path: Path, asked: Asked) -> TaskProfile:
    """The task of images or of an ``.npz``, by names and headers; an ``.npz``'s classes are not counted."""
    if kind == "images":
        return image_task(asked, sorted({image.label for image in image_files(path)}))
    return npz_task(asked, npz_arrays(path))


def count_arrays(kind: str, path: Path, asked: Asked) -> ArrayCounts:
    """Images or an ``.npz``, all rows of it.

    Raises:
        DatasetError: nothing can be learnt from them.
        RowError: a file cannot be read.
    """
    task = outline_arrays(kind, path, asked)
    if kind == "npz":
        return _count_npz(path, task, npz_arrays(path))
    counts = Counter(image.label for image in image_files(path))
    if len(counts) > MAX_CLASSES:
        raise DatasetError(
            f"it has {len(counts):,} folders of images, more than {MAX_CLASSES:,} classes",
            next_step="name the folder whose folders are the classes",
        )
    return ArrayCounts(
        task=task,
        rows=counts.total(),
        usable_rows=counts.total(),
        columns=(),
        label_counts={label: counts[label] for label in task.labels},
        notes=(),
    )


def count_series(path: Path, task: TaskProfile, columns: Sequence[str]) -> ArrayCounts:
    """A series, all of it: how many rows it has, and how many of them lack a value."""
    form = form_of(task)
    series = read_series(path, time_column=form.time_column, channels=form.channels)
    rows = len(series.values)
    gaps = int(np.isnan(series.values).any(axis=1).sum())
    note = f"{gaps:,} of {rows:,} rows lack a value: windows with such a row are set aside"
    span = f", from {series.times[0]} to {series.times[1]}" if series.times else ""
    return ArrayCounts(
        task=replace(task, reason=task.reason + span),
        rows=rows,
        usable_rows=rows - gaps,
        columns=tuple(columns),
        label_counts={},
        notes=(note,) if gaps else (),
    )


def form_of(task: TaskProfile) -> ArrayForm:
    """What the rows of a task on arrays are."""
    if task.arrays is None:
        raise DatasetError(f"rows of the task {task.kind} are text", next_step="name another task")
    return task.arrays


def class_of(value: object) -> str | None:
    """The name of a class in an array: a whole number or a text; None for a fraction."""
    if isinstance(value, str):
        return value
    number = float(np.asarray(value).reshape(()))
    return str(int(number)) if number.is_integer() else None


def _count_npz(path: Path, task: TaskProfile, headers: Sequence[NpzArray]) -> ArrayCounts:
    names = [header.name for header in headers]
    rows = headers[0].shape[0]
    counts: Counter[str] = Counter()
    usable = 0
    for number, row in enumerate(read_npz(path, names, every=1), start=1):
        if not is_finite(row):
            continue
        usable += 1
        if task.kind is not TaskKind.ARRAY_CLASSIFICATION or task.label_column is None:
            continue
        label = class_of(row[task.label_column])
        if label is None:
            raise DatasetError(
                f"array {task.label_column!r} holds a fraction in row {number}, which is no class",
                next_step="pass --task array-regression to predict the numbers",
            )
        counts[label] += 1
        if len(counts) > MAX_CLASSES:
            raise DatasetError(
                f"array {task.label_column!r} has more than {MAX_CLASSES} distinct values",
                next_step="pass --task array-regression to predict the numbers",
            )
    if not usable:
        raise DatasetError(
            f"all {rows:,} rows hold NaN or infinity", next_step="write numbers in their place"
        )
    if task.kind is TaskKind.ARRAY_CLASSIFICATION:
        if len(counts) < 2:
            raise DatasetError(
                f"array {task.label_column!r} has the same class in every row",
                next_step="pass --label-column with another array",
            )
        task = replace(
            task, labels=class_names(counts), reason=f"{task.reason}, of {len(counts)} distinct values"
        )
    note = f"{rows - usable:,} of {rows:,} rows are set aside: they hold NaN or infinity"
    return ArrayCounts(
        task=task,
        rows=rows,
        usable_rows=usable,
        columns=tuple(names),
        label_counts={label: counts[label] for label in task.labels},
        notes=(note,) if usable < rows else (),
    )
