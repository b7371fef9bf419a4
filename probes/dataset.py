"""A dataset profiled: its rows, its columns, the task that they suggest, the lengths of its texts.

Streams the rows; memory stays bounded whatever their number, and of large data only every nth row is looked
at. Imports no tokenizer: who has one feeds :class:`LengthSample` and hands token counts to
:func:`length_profile`. Knows nothing of models.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from .array_sources import array_files
from .asked import Asked
from .columns import LabelTally, TextTally
from .dataset_source import check_files, content_sha256, errors_about, hub_commit, resolve_dataset
from .profiles import DatasetProfile, LengthProfile, TaskKind, TaskProfile
from .rows import BLOCK_BYTES, MAX_COLUMNS, cell, conversation, data_files, read_rows, row_text
from .tasks import check_asked, choose_task, outline_task

__all__ = ["LengthSample", "check_dataset", "length_profile", "profile_dataset", "resolve_dataset"]

HEAD_ROWS = 1000
"""Rows that decide which columns there are to choose from and which ones hold texts …"""
HEAD_CHARACTERS = 32_000_000
"""… unless so much text comes earlier."""
LOOKED_AT_BYTES = 128 * 1024 * 1024
"""Of larger data, every nth row is looked at, so that about this much is parsed …"""
LOOKED_AT_ROWS = 500_000
"""… in about so many rows at most …"""
LOOKED_AT_CELLS = 4_000_000
"""… and in so many cells: each one is judged as a label."""
LEAST_EVERY_NTH = 5
MAX_DISTINCT_ROWS = 2_000_000
"""Beyond this many distinct rows duplicates are not counted: remembering them would take too much memory."""
SAMPLED_ROWS = 20_000
LONGEST_ROWS = 256
SAMPLED_CHARACTERS = 100_000_000
"""Of long rows fewer are sampled, and fewer of the longest are kept: so many characters of each."""


def check_dataset(path: Path, asked: Asked | None = None) -> str:
    """Check what the first rows can tell, in milliseconds, and return the name of the text column.

    It is "" where rows are no text. Raises what :func:`profile_dataset` does, which may find more in the
    rows that follow.
    """
    asked = asked or Asked()
    check_asked(asked)
    check_files(path)
    with errors_about(path):
        arrays = array_files(path)
        if arrays is None:
            return _outline(path, asked).text_column
        from .array_dataset import outline_arrays  # imports numpy, which most data do not need here

        return outline_arrays(arrays[0], path, asked).text_column


def profile_dataset(path: Path, asked: Asked | None = None, *, source: str) -> DatasetProfile:
    """Read all rows, or every nth of large data, and return the facts about them; ``lengths`` stays None.

    A row is usable if all that the task needs is there: text, target or class are more than white space, a
    number is finite, a conversation has known roles and an answer of the assistant.

    Where rows were skipped, ``rows`` is exact, ``usable_rows`` and ``label_counts`` are what was looked at
    times n, and duplicates are unknown.

    Args:
        path: a file or folder, as :func:`resolve_dataset` returns it.
        asked: the task and the columns that the user named, ``a.b`` for ``b`` in the objects of ``a``; where
            None, names and values decide.
        source: what the user wrote for the data.

    Raises:
        InputError: there is no such task, or it has no use for a column that was named.
        DatasetError: a row cannot be read, a column that was asked for is missing, or nothing can be learnt
            from the columns.
    """
    asked = asked or Asked()
    check_asked(asked)
    files = check_files(path)
    with errors_about(path):
        arrays = array_files(path)
        outline = _outline(path, asked) if arrays is None else None
        if outline is None or outline.kind is TaskKind.FORECASTING:
            return _profile_arrays(path, asked, outline, files, source=source)
        kind = data_files(path)[0]
        every = _every_nth(kind, files)
        # Hashing and counting take about as long, and the hash needs no interpreter.
        with ThreadPoolExecutor(1) as pool:
            hashed = pool.submit(content_sha256, path, files)
            counts = _count(path, outline, every)
        chosen = choose_task(outline, asked, counts.labels, rows=counts.inputs)
        tally = counts.labels[chosen.label_column] if chosen.label_column else None
        usable = counts.inputs if tally is None else tally.values
        if not usable:
            raise DatasetError(
                f"label column {chosen.label_column!r} is empty", next_step="pass --label-column with another"
            )
        rows, usable = counts.rows, min(counts.rows, usable * every)
        return DatasetProfile(
            source=source,
            path=str(path),
            sha256=hashed.result(),
            format=kind,
            size_bytes=sum(file.stat().st_size for file in files),
            rows=rows,
            usable_rows=usable,
            every_nth_row=every,
            revision=hub_commit(path),
            columns=tuple(counts.columns),
            task=chosen,
            label_counts={label: tally.counts[label] * every for label in chosen.labels} if tally else {},
            duplicate_rows=counts.duplicates,
            notes=(
                *_set_aside(chosen, rows, usable, min(counts.rows, counts.inputs * every), every),
                *_nothing_to_learn(chosen, tally),
            ),
        )


class LengthSample:
    """Selects, from texts that stream by, those to tokenise for a :class:`LengthProfile`.

    Anything whose length is its number of characters will do for a text.

    ``sampled`` is a uniform sample (all texts while there are at most ``capacity``), equal for equal seeds;
    ``longest`` holds the texts with the most characters, where the most tokens are to be expected.
    """

    def __init__(self, seed: int, *, capacity: int = SAMPLED_ROWS, longest: int = LONGEST_ROWS) -> None:
        self.sampled: list[Any] = []
        self.rows = 0
        self._random = random.Random(seed)  # noqa: S311 - a statistical sample, nothing secret
        self._capacity = capacity
        self._heap_size = longest
        self._heap: list[tuple[int, int, Any]] = []
        self._sampled_characters = self._longest_characters = 0

    def add(self, text: Sized) -> None:
        """Consider the next text."""
        self.rows += 1
        if len(self.sampled) < self._capacity:
            self.sampled.append(text)
            self._sampled_characters += len(text)
        elif (slot := self._random.randrange(self.rows)) < self._capacity:
            self._sampled_characters += len(text) - len(self.sampled[slot])
            self.sampled[slot] = text
        while self._sampled_characters > SAMPLED_CHARACTERS and len(self.sampled) > 1:
            # A random half of a uniform sample is one.
            self._random.shuffle(self.sampled)
            self._capacity = len(self.sampled) // 2
            del self.sampled[self._capacity :]
            self._sampled_characters = sum(map(len, self.sampled))
        heapq.heappush(self._heap, (len(text), -self.rows, text))
        self._longest_characters += len(text)
        while len(self._heap) > 1 and (
            len(self._heap) > self._heap_size or self._longest_characters > SAMPLED_CHARACTERS
        ):
            self._longest_characters -= heapq.heappop(self._heap)[0]

    @property
    def longest(self) -> list[Any]:
        """The longest texts, longest first."""
        return [text for _, _, text in sorted(self._heap, reverse=True)]

    @property
    def is_complete(self) -> bool:
        """``sampled`` holds every text: lengths need not be estimated."""
        return self.rows == len(self.sampled)


def length_profile(lengths: Sequence[int], *, estimated: bool, longest: Sequence[int] = ()) -> LengthProfile:
    """Summarise token counts.

    Args:
        lengths: of every row, or of a uniform sample; at least one.
        estimated: ``lengths`` come from a sample.
        longest: of the longest rows, counted for the maximum only.

    Percentiles are nearest ranks: the smallest length that at least that share of the rows does not exceed.
    """
    ranked = sorted(lengths)

    def percentile(share: float) -> int:
        return ranked[math.ceil(share * len(ranked)) - 1]

    return LengthProfile(
        p50=percentile(0.50),
        p90=percentile(0.90),
        p99=percentile(0.99),
        max=max([ranked[-1], *longest]),
        mean=sum(ranked) / len(ranked),
        rows_measured=len(ranked),
        estimated=estimated,
    )


def _profile_arrays(
    path: Path, asked: Asked, series: TaskProfile | None, files: Sequence[Path], *, source: str
) -> DatasetProfile:
    """Of rows that are no text: of a series with this outline, else of images or an ``.npz``."""
    from .array_dataset import count_arrays, count_series  # see check_dataset

    kind = (array_files(path) or data_files(path))[0]
    if series is None:
        counts = count_arrays(kind, path, asked)
    else:
        counts = count_series(path, series, tuple(next(read_rows(path))))
    return DatasetProfile(
        source=source,
        path=str(path),
        sha256=content_sha256(path, files),
        format=kind,
        size_bytes=sum(file.stat().st_size for file in files),
        rows=counts.rows,
        usable_rows=counts.usable_rows,
        revision=hub_commit(path),
        columns=counts.columns,
        task=counts.task,
        label_counts=counts.label_counts,
        notes=counts.notes,
    )


@dataclass(slots=True)
class _Counts:
    """What one pass over the rows has counted."""

    rows: int = 0
    """All, those that were skipped included."""
    inputs: int = 0
    """Rows, of those looked at, that have all but a label; the counts below are over these."""
    duplicates: int | None = None
    columns: dict[str, None] = field(default_factory=dict)
    """Of every row looked at, in the order of appearance."""
    labels: dict[str, LabelTally] = field(default_factory=dict)


def _outline(path: Path, asked: Asked) -> TaskProfile:
    texts: dict[str, TextTally] = {}
    labels: dict[str, LabelTally] = {}
    rows = characters = 0
    for row in islice(read_rows(path), HEAD_ROWS):
        rows += 1
        _check_width(texts.keys() | row.keys())
        # A column that was asked for may lie inside of another: see rows.cell.
        for column in (*row, *(name for name in asked.columns.values() if name not in row)):
            value = cell(row, column)
            if column in row or value is not None:
                texts.setdefault(column, TextTally()).add(row, column)
                labels.setdefault(column, LabelTally()).add(row, column)
                characters += len(value) if isinstance(value, str) else 0
        if characters > HEAD_CHARACTERS:
            break
    if not texts:
        raise DatasetError("it has no rows", next_step="add rows, for CSV below a header line")
    return outline_task(asked, texts, labels, rows)


def _count(path: Path, outline: TaskProfile, every: int) -> _Counts:
    counts = _Counts()
    seen: set[int] | None = set() if every == 1 else None
    stream = read_rows(path, every=every)
    for number, row in enumerate(stream):
        counts.columns.update(dict.fromkeys(row))
        _check_width(counts.columns)
        content = _input(row, outline, number * every + 1)
        if content is None:
            continue
        counts.inputs += 1
        for column in row:
            counts.labels.setdefault(column, LabelTally()).add(row, column)
        if seen is not None:
            seen.add(hash(content))
            seen = seen if len(seen) <= MAX_DISTINCT_ROWS else None
    counts.rows = stream.passed
    counts.duplicates = None if seen is None else counts.inputs - len(seen)
    if not counts.inputs:
        raise DatasetError(
            _emptiness(outline, counts.rows), next_step="pass --text-column with the column to learn from"
        )
    return counts


def _input(row: Mapping[str, Any], outline: TaskProfile, number: int) -> tuple[str, ...] | None:
    """The texts of a row, None if one of them is empty; only a context may be."""
    if outline.kind is TaskKind.CHAT:
        turns = conversation(row, outline.text_column)
        return None if turns is None else tuple(text for turn in turns for text in turn.values())
    needed = [outline.text_column, *([outline.target_column] if outline.target_column else [])]
    columns = [*needed, *([outline.context_column] if outline.context_column else [])]
    for column in columns:
        if isinstance(cell(row, column), (list, dict)):
            raise DatasetError(
                f"column {column!r} holds a list or an object in row {number}",
                next_step="write each row's text as one string",
            )
    texts = tuple(row_text(row, column) for column in columns)
    return texts if all(text.strip() for text in texts[: len(needed)]) else None


def _emptiness(outline: TaskProfile, rows: int) -> str:
    if outline.kind is TaskKind.CHAT:
        return f"column {outline.text_column!r} holds no conversation with an answer in {rows} rows"
    if outline.target_column is not None:
        pair = f"{outline.text_column!r} and {outline.target_column!r}"
        return f"columns {pair} are never both filled in {rows} rows"
    return f"column {outline.text_column!r} is empty in all {rows} rows"


def _set_aside(task: TaskProfile, rows: int, usable: int, inputs: int, every: int) -> tuple[str, ...]:
    """How many rows are left out, and why, in sentences."""
    about = "about " if every > 1 else ""
    parts = {TaskKind.CHAT: "a conversation with known roles and an answer"}
    needed = repr(task.text_column)
    if task.target_column is not None:
        needed += f" or {task.target_column!r}"
    without = parts.get(task.kind, f"text in {needed}")
    what = "finite number" if task.kind is TaskKind.REGRESSION else "label"
    found = (
        (rows - inputs, f"without {without}"),
        (inputs - usable, f"without a {what} in {task.label_column!r}"),
    )
    return tuple(
        f"{about}{number:,} of {rows:,} rows are set aside: {reason}" for number, reason in found if number
    )


def _nothing_to_learn(task: TaskProfile, tally: LabelTally | None) -> tuple[str, ...]:
    """That all rows have the same label, in a sentence."""
    if tally is None or not tally.is_constant:
        return ()
    (value,) = tally.counts
    note = f"every row has the value {value!r} in {task.label_column!r}: there is nothing to learn"
    added = f"; the class {task.labels[1]!r}, which no row has, is added" if task.labels else ""
    return (note + added,)


def _every_nth(kind: str, files: Sequence[Path]) -> int:
    """Which share of the rows to look at, by what it takes to parse them: 1 for all, n for one in n."""
    extent = {"parquet": _parquet_extent, "arrow": _arrow_extent}.get(kind, _text_extent)
    found = [extent(file) for file in files]
    size, rows, cells = (sum(extents) for extents in zip(*found, strict=True))
    least = max(1, size // LOOKED_AT_BYTES, rows // LOOKED_AT_ROWS, cells // LOOKED_AT_CELLS)
    if least == 1:
        return 1
    # Classes often take turns: a prime above the usual number of them meets them all.
    candidates = count(max(LEAST_EVERY_NTH, least))
    return next(n for n in candidates if all(n % divisor for divisor in range(2, math.isqrt(n) + 1)))


def _parquet_extent(file: Path) -> tuple[int, int, int]:
    """Bytes after decompression, rows, and cells."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        found = read_metadata(file)
    except (ArrowException, OSError):
        return 0, 0, 0  # reading the rows will say what is wrong with it
    size = sum(found.row_group(group).total_byte_size for group in range(found.num_row_groups))
    return size, found.num_rows, found.num_rows * found.num_columns


def _arrow_extent(file: Path) -> tuple[int, int, int]:
    """Bytes and, as far as the first rows tell, rows and cells."""
    head = list(islice(read_rows(file), 100))
    size, columns = file.stat().st_size, max(map(len, head), default=0)
    head_bytes = sum(len(value) if isinstance(value, str) else 8 for row in head for value in row.values())
    rows = size * len(head) // max(1, head_bytes)
    return size, rows, rows * columns


def _text_extent(file: Path) -> tuple[int, int, int]:
    """Bytes and, as far as the beginning tells, rows and cells."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(BLOCK_BYTES)
    rows = size * head.count(b"\n") // max(1, len(head))
    # Of JSON every key is followed by a colon, of CSV every cell but the last by its delimiter.
    first = head.partition(b"\n")[0]
    signs = b":" if file.suffix.lower() in (".json", ".jsonl", ".ndjson") else b",;\t|"
    columns = min(MAX_COLUMNS, 1 + max(first.count(sign) for sign in signs))
    return size, rows, 0 if file.suffix.lower() == ".txt" else rows * columns


def _check_width(columns: Sized) -> None:
    if len(columns) > MAX_COLUMNS:
        raise DatasetError(
            f"it has more than {MAX_COLUMNS} columns", next_step="keep the text, the label and little else"
        )
