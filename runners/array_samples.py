"""From data that are no text to rows of arrays, and which of them are held out.

Imports nothing of rankwise but :mod:`..probes.array_sources`, :mod:`..probes.arrays` and :mod:`.recipe`,
which are free of it too: trials and the exported script share this source. A *task* is a plain mapping with
the fields of ``TaskProfile``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..probes.array_sources import image_files
from ..probes.arrays import is_finite, read_image, read_npz, read_series
from .recipe import Example, heldout_rule

LEAST_HELDOUT_WINDOWS = 20
"""Of a series, if it is long enough for them."""


def array_examples(
    path: Path, *, every: int, task: Mapping[str, Any], split: Mapping[str, Any]
) -> Iterator[tuple[Example, bool]]:
    """Every nth row of the data that can be used, and whether it is held out.

    Rows are independent of each other, and held out by a hash of their content; but windows of a series are
    held out if they lie in its last part, and left out if they reach into it: no row of the series is on
    both sides.

    Raises:
        RowError: a file or a row cannot be read.
    """
    if task["kind"] == "forecasting":
        yield from windows(path, every=every, form=task["arrays"], share=split["share"])
        return
    is_heldout = heldout_rule(split)
    for key, example in keyed_examples(path, every=every, task=task):
        yield example, is_heldout(key)


def array_keys(path: Path, *, every: int, task: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """What :func:`array_examples` hashes of each row, and its class if it has one; images are not decoded."""
    if task["kind"] == "image-classification":
        yield from ((image.sha256(), image.label) for image in image_files(path)[::every])
        return
    for key, example in keyed_examples(path, every=every, task=task):
        yield key, None if example.label is None else task["labels"][example.label]


def keyed_examples(path: Path, *, every: int, task: Mapping[str, Any]) -> Iterator[tuple[str, Example]]:
    """Rows that are independent of each other, with a text that is equal for equal inputs."""
    form = task["arrays"]
    if task["kind"] == "image-classification":
        shape = form["inputs"][0]
        for image in image_files(path)[::every]:
            pixels = read_image(image.path, shape["shape"], form["mean"], form["std"])
            label = task["labels"].index(image.label) if image.label in task["labels"] else None
            if label is not None:
                yield image.sha256(), Example(label=label, arrays={shape["name"]: pixels})
        return
    names = [shape["name"] for shape in form["inputs"]]
    target = task["label_column"]
    for row in read_npz(path, [*names, *([target] if target else [])], every=every):
        if is_finite(row) and (example := npz_example(row, names, task)) is not None:
            yield content_key(row, names), example


def npz_example(row: Mapping[str, Any], names: list[str], task: Mapping[str, Any]) -> Example | None:
    """A row of an archive; None where its class is none of the task's."""
    arrays = {name: row[name] for name in names}
    target = task["label_column"]
    if target is None:
        return Example(arrays=arrays)
    if task["kind"] == "array-regression":
        return Example(arrays=arrays, numbers=np.asarray(row[target], np.float32))
    value = row[target]
    label = value if isinstance(value, str) else str(int(np.asarray(value).reshape(())))
    return Example(label=task["labels"].index(label), arrays=arrays) if label in task["labels"] else None


def content_key(row: Mapping[str, Any], names: list[str]) -> str:
    """A hash of a row's inputs."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(np.ascontiguousarray(row[name]).tobytes())
    return digest.hexdigest()


def windows(
    path: Path, *, every: int, form: Mapping[str, Any], share: float
) -> Iterator[tuple[Example, bool]]:
    """Stretches of a series, each with the rows that follow it, one beginning at every nth row.

    Values are standardised by the form's means and spreads, those of the part that is trained on. Windows
    with a missing value are left out. Held-out windows lie apart, so that the rows that they predict are
    different ones, unless there were too few of them: a loss's error counts windows as independent.
    """
    shape, target = form["inputs"][0], form["target"]
    context, length = shape["shape"][0], shape["shape"][0] + target["shape"][0]
    series = read_series(path, time_column=form["time_column"], channels=form["channels"])
    values = ((series.values - np.asarray(form["mean"])) / np.asarray(form["std"])).astype(np.float32)
    border = len(values) - heldout_rows(len(values), share)
    room = (len(values) - border - length) // (LEAST_HELDOUT_WINDOWS - 1)
    apart = max(1, min(length - context, room))
    for first, last, step in ((0, border, every), (border, len(values), max(every, apart))):
        for start in range(first, last - length + 1, step):
            window = values[start : start + length]
            if not np.isnan(window).any():
                before = {shape["name"]: window[:context]}
                yield Example(arrays=before, numbers=window[context:]), first == border


def heldout_rows(rows: int, share: float) -> int:
    """Rows of a series that are held out: its last ones."""
    return round(rows * share)
