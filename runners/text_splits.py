"""Which rows of a table of texts are held out, and what is to be said about it.

A *split* is a plain mapping, see :func:`.recipe.heldout_rule`: the exported script reads it too.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..optimizer.codec import to_json
from ..optimizer.domain import StudyRequest
from ..probes.array_sources import read_time
from ..probes.profiles import DatasetProfile
from ..probes.rows import cell, read_rows, row_text
from .recipe import heldout_share, row_hash
from .samples import read_sample, read_samples
from .splits import EXACT_SPLIT_ROWS, choose_border, choose_keys
from .tokens import read_classes

GROUP_WORDS = (
    "group",
    "user",
    "patient",
    "subject",
    "session",
    "conversation",
    "dialog",
    "dialogue",
    "thread",
    "question",
    "document",
    "doc",
    "article",
    "author",
    "speaker",
    "customer",
)
GROUP_NAMES = frozenset(
    f"{word}{ending}" for word in GROUP_WORDS for ending in ("_id", "id", "-id", " id")
) | {"group", "groups"}
"""Columns, in lower case, whose values say which rows belong together."""

LEAST_GROUPS = 10
"""Of fewer groups, holding out some leaves too much of the data out: unasked, they are not looked at."""

LARGEST_GROUP_SHARE = 0.2
"""Likewise where one of them holds more of the rows."""

MOST_LATE = 2.0
"""Up to this multiple of the rows that should be held out are, where they have the same time."""

NAMES_SHOWN = 5


def split_texts(dataset: DatasetProfile, request: StudyRequest) -> tuple[DatasetProfile, dict[str, Any]]:
    """Decide which rows are held out; the profile says in its notes what is not as usual.

    Of few rows a list decides, which gives each class its share; of many, a hash. Rows of a group, or with
    the same input, stay together. By time, the last ones are held out.

    Raises:
        DatasetError: none can be held out.
    """
    if request.time_column is not None:
        return split_by_time(dataset, request.time_column, seed=request.seed)
    group, groups, notes = group_of(dataset, request.group_column)
    rows = dataset.usable_rows // dataset.every_nth_row
    split: dict[str, Any] = {"seed": request.seed, "share": heldout_share(rows)}
    if group is not None:
        split["group_column"] = group
    if min(rows, groups or rows) <= EXACT_SPLIT_ROWS:
        split["hashes"] = listed(dataset, split)
    return dataclasses.replace(dataset, notes=(*dataset.notes, *notes)), split


def listed(dataset: DatasetProfile, split: Mapping[str, Any]) -> str:
    """Hashes of what is held out of few rows, or of few groups."""
    task = to_json(dataset.task)
    rows: list[tuple[str, str | None]] = []
    together: list[tuple[str, str]] = []
    first_of_input: dict[str, str] = {}
    for sample in read_samples(Path(dataset.path), every=dataset.every_nth_row, task=task, split=split):
        key = sample.split_key
        rows.append((key, None if sample.label is None else task["labels"][sample.label]))
        if sample.group:
            first = first_of_input.setdefault(row_hash(sample.input_key, seed=0), key)
            if first != key:
                together.append((first, key))
    return choose_keys(rows, split["share"], seed=split["seed"], source=dataset.source, together=together)


def split_by_time(
    dataset: DatasetProfile, column: str, *, seed: int
) -> tuple[DatasetProfile, dict[str, Any]]:
    """Hold out the last rows in time; those without a time are set aside.

    Raises:
        DatasetError: most rows have no time that can be read, or all have the same.
    """
    task, every, lost, example = to_json(dataset.task), dataset.every_nth_row, 0, ""
    times: list[float] = []
    for number, row in enumerate(read_rows(Path(dataset.path), every=every)):
        if read_sample(row, task) is None:
            continue
        time = read_time(cell(row, column))
        if time is not None:
            times.append(time)
        else:
            lost, example = lost + 1, example or f"{row_text(row, column)[:50]!r} in row {1 + every * number}"
    if lost > len(times):
        raise DatasetError(
            f"{dataset.source} has no time in column {column!r} in {lost:,} of {lost + len(times):,} rows "
            f"({example})",
            next_step="write times like 2024-05-01 or 2024-05-01T12:00, or pass another --time-column",
        )
    share = heldout_share(len(times))
    border = choose_border(times, share, source=dataset.source)
    late = sum(time >= border for time in times)
    # Where many rows have the last time, every training would be judged by all of them.
    late_share = 1.0 if late <= MOST_LATE * share * len(times) else share * len(times) / late
    split = {"seed": seed, "share": share, "time_column": column, "border": border, "late_share": late_share}
    notes = [f"held out are the last {late:,} of {len(times):,} rows in time, by column {column!r}"]
    if late_share < 1:
        notes.append(f"{late_share:.1%} of these are judged, since so many have the same time")
    if lost:
        notes.append(f"{lost * every:,} rows are set aside: no time in {column!r} ({example})")
    usable = max(1, dataset.usable_rows - lost * every)
    return dataclasses.replace(dataset, usable_rows=usable, notes=(*dataset.notes, *notes)), split


def group_of(dataset: DatasetProfile, asked: str | None) -> tuple[str | None, int, tuple[str, ...]]:
    """The column whose values say which rows stay together, how many it has, and what to say about it.

    Raises:
        DatasetError: the one that was asked for has the same value in all rows.
    """
    if asked is not None:
        sizes, _ = group_sizes(dataset, asked)
        if len(sizes) < 2:
            raise DatasetError(
                f"group column {asked!r} of {dataset.source} "
                f"{'has the same value in every row' if sizes else 'is empty'}: no group can be held out",
                next_step="pass another --group-column, or leave it out",
            )
        return asked, len(sizes), (f"{len(sizes):,} groups of rows by {asked!r}: each on one side",)
    task = dataset.task
    used = {task.text_column, task.context_column, task.target_column, task.label_column}
    for column in dataset.columns:
        if column.lower() not in GROUP_NAMES or column in used:
            continue
        sizes, without = group_sizes(dataset, column)
        rows = sizes.total()
        repeated = rows >= 2 * len(sizes) >= 2 * LEAST_GROUPS and without == 0
        if repeated and max(sizes.values()) <= LARGEST_GROUP_SHARE * rows:
            note = f"{len(sizes):,} groups of rows by {column!r}, as its name suggests: each on one side"
            return column, len(sizes), (note,)
    return None, 0, ()


def group_sizes(dataset: DatasetProfile, column: str) -> tuple[Counter[str], int]:
    """How many rows have each value of the column, by a hash of it, and how many have none."""
    sizes: Counter[str] = Counter()
    without = 0
    for row in read_rows(Path(dataset.path), every=dataset.every_nth_row):
        if value := row_text(row, column).strip():
            sizes[row_hash(value, seed=0)] += 1
        else:
            without += 1
    return sizes, without


def notes_on_classes(folder: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """Which classes have rows on one side only, of files that were written, in sentences."""
    found = read_classes(folder)
    unjudged = [labels[label] for label, (_, heldout) in found.items() if not heldout]
    unlearnt = [labels[label] for label, (trained, _) in found.items() if not trained]
    notes = []
    if unjudged:
        notes.append(f"no row is held out of {shown(unjudged, found)}: too few different ones")
    if unlearnt:
        notes.append(f"all rows are held out of {shown(unlearnt, found)}: never learnt")
    return tuple(notes)


def shown(classes: Sequence[str], found: Mapping[int, Any]) -> str:
    """Some of the classes that there are, in words."""
    more = len(classes) - NAMES_SHOWN
    names = ", ".join(map(repr, classes[:NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")
    return f"{len(classes)} of {len(found)} classes ({names})"
