"""A dataset file profiled: its rows, its columns, the task that they suggest, the lengths of its texts.

Streams the file; memory stays bounded whatever its size. Imports no tokenizer: who has one feeds
:class:`LengthSample` and hands token counts to :func:`length_profile`. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ..errors import DatasetError, InputError
from .columns import LabelTally, TextTally, choose_label_column, choose_text_column, require_column
from .paths import nearest_names, resolve_path
from .profiles import DatasetProfile, LengthProfile, TaskKind, TaskProfile
from .rows import CSV_SUFFIXES, JSON_SUFFIXES, RowError, read_rows, row_text

HEAD_ROWS = 1000
"""Rows that decide which columns there are to choose from and which one holds the text."""
MAX_COLUMNS = 1000
MAX_DISTINCT_TEXTS = 2_000_000
"""Beyond this many distinct texts duplicates are not counted: remembering them would take too much memory."""
SAMPLED_ROWS = 20_000
LONGEST_ROWS = 256


def resolve_dataset(source: str, *, allowed_roots: Sequence[Path] | None) -> Path:
    """Return the absolute path of a dataset file that exists and has a format that we read.

    Raises:
        PathNotAllowed: it lies outside ``allowed_roots`` (None allows every path).
        InputError: no file system can have this path.
        DatasetError: there is no such file, or it is of another kind.
    """
    path = resolve_path(source, allowed_roots)
    check_file(path)
    return path


def check_file(path: Path) -> None:
    """Check that the path is a file of a supported format that is not empty.

    Raises:
        DatasetError: it is not.
    """
    supported = ", ".join((*CSV_SUFFIXES, *JSON_SUFFIXES))
    if path.is_dir():
        raise DatasetError(f"dataset {path} is a folder", next_step=f"name one file in it ({supported})")
    if not path.exists():
        raise DatasetError(
            f"dataset {path} does not exist", next_step=nearest_names(path) or "check the path"
        )
    if not path.is_file():
        raise DatasetError(f"dataset {path} is not a regular file", next_step="copy its rows into a file")
    if path.suffix.lower() not in CSV_SUFFIXES + JSON_SUFFIXES:
        raise DatasetError(
            f"dataset {path} has the unsupported extension {path.suffix!r}",
            next_step=f"convert it to one of {supported} (CSV with a header, or one JSON object a line)",
        )
    if path.stat().st_size == 0:
        raise DatasetError(f"dataset {path} is empty", next_step="name a file that has rows")


def check_dataset(
    path: Path, *, text_column: str | None = None, label_column: str | None = None, task: str | None = None
) -> str:
    """Check what the first rows can tell, in milliseconds, and return the name of the text column.

    Takes and raises what :func:`profile_dataset` does, which may find more in the rows that follow.
    """
    _check_task(task, label_column)
    check_file(path)
    with _errors_about(path):
        tallies: dict[str, TextTally] = {}
        for row in islice(read_rows(path), HEAD_ROWS):
            for column, value in row.items():
                tallies.setdefault(column, TextTally()).add(value)
            _check_width(tallies)
        if not tallies:
            raise DatasetError("it has no rows", next_step="add rows, for CSV below a header line")
        if label_column is not None:
            require_column(label_column, tallies, option="--label-column")
        if text_column is None:
            return choose_text_column(tallies, label_column=label_column)
        require_column(text_column, tallies, option="--text-column")
        if text_column == label_column:
            raise DatasetError(
                f"column {text_column!r} cannot be text and label at once",
                next_step="pass another --text-column or --label-column",
            )
        return text_column


def profile_dataset(
    path: Path,
    *,
    source: str,
    text_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
) -> DatasetProfile:
    """Read the whole file and return the facts about it; ``lengths`` stays None.

    A row is usable if its text and, for classification, its label are more than white space.

    Args:
        path: a file, as :func:`resolve_dataset` returns it.
        source: what the user wrote for it.
        text_column, label_column: the columns to use; where None, names and values decide.
        task: a :class:`TaskKind`; None means text classification if there is a label column, else causal LM.

    Raises:
        InputError: there is no such task.
        DatasetError: a row cannot be read, a column that was asked for is missing, or nothing can be learnt
            from the columns.
    """
    text_column = check_dataset(path, text_column=text_column, label_column=label_column, task=task)
    with _errors_about(path):
        counts = _count(path, text_column)
        chosen = _choose_task(counts, text_column, label_column, task)
        labels = counts.labels[chosen.label_column].counts if chosen.label_column else {}
        return DatasetProfile(
            source=source,
            path=str(path),
            sha256=_sha256(path),
            format="csv" if path.suffix.lower() in CSV_SUFFIXES else "jsonl",
            size_bytes=path.stat().st_size,
            rows=counts.rows,
            usable_rows=sum(labels.values()) if labels else counts.texts,
            columns=tuple(counts.labels),
            task=chosen,
            label_counts={label: labels[label] for label in chosen.labels},
            duplicate_rows=counts.duplicates,
        )


class LengthSample:
    """Selects, from texts that stream by, those to tokenise for a :class:`LengthProfile`.

    ``sampled`` is a uniform sample (all texts while there are at most ``capacity``), equal for equal seeds;
    ``longest`` holds the texts with the most characters, where the most tokens are to be expected.
    """

    def __init__(self, seed: int, *, capacity: int = SAMPLED_ROWS, longest: int = LONGEST_ROWS) -> None:
        self.sampled: list[str] = []
        self.rows = 0
        self._random = random.Random(seed)  # noqa: S311 - a statistical sample, nothing secret
        self._capacity = capacity
        self._heap_size = longest
        self._heap: list[tuple[int, int, str]] = []

    def add(self, text: str) -> None:
        """Consider the next text."""
        self.rows += 1
        if len(self.sampled) < self._capacity:
            self.sampled.append(text)
        elif (slot := self._random.randrange(self.rows)) < self._capacity:
            self.sampled[slot] = text
        entry = (len(text), -self.rows, text)
        if len(self._heap) < self._heap_size:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    @property
    def longest(self) -> list[str]:
        """The longest texts, longest first."""
        return [text for _, _, text in sorted(self._heap, reverse=True)]

    @property
    def is_complete(self) -> bool:
        """``sampled`` holds every text: lengths need not be estimated."""
        return self.rows <= self._capacity


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


@dataclass(slots=True)
class _Counts:
    """What one pass over the rows has counted."""

    rows: int = 0
    texts: int = 0
    """Rows whose text is not empty; the counts below are over these."""
    duplicates: int | None = 0
    labels: dict[str, LabelTally] = field(default_factory=dict)
    """For every column, in the order of appearance."""


def _count(path: Path, text_column: str) -> _Counts:
    counts = _Counts()
    seen: set[int] = set()
    for row in read_rows(path):
        counts.rows += 1
        for column in row:
            counts.labels.setdefault(column, LabelTally())
        _check_width(counts.labels)
        if isinstance(row.get(text_column), (list, dict)):
            raise DatasetError(
                f"column {text_column!r} holds a list or an object in row {counts.rows}",
                next_step="write each row's text as one string",
            )
        text = row_text(row, text_column)
        if not text.strip():
            continue
        counts.texts += 1
        for column in row:
            counts.labels[column].add(row, column)
        if len(seen) <= MAX_DISTINCT_TEXTS:
            seen.add(hash(text))
            counts.duplicates = counts.texts - len(seen)
        else:
            counts.duplicates = None
    if not counts.texts:
        raise DatasetError(
            f"column {text_column!r} is empty in all {counts.rows} rows",
            next_step="pass --text-column with the column to learn from",
        )
    return counts


def _choose_task(
    counts: _Counts, text_column: str, label_column: str | None, task: str | None
) -> TaskProfile:
    if task == TaskKind.CAUSAL_LM:
        return TaskProfile(kind=TaskKind.CAUSAL_LM, text_column=text_column, reason="the task was given")
    if label_column is not None:
        reason = f"column {label_column!r} was given as the label"
    elif found := choose_label_column(counts.labels, text_column=text_column, rows=counts.texts):
        label_column, reason = found
    elif task is None:
        reason = "no column looks like a label, so the texts themselves are learnt"
        return TaskProfile(kind=TaskKind.CAUSAL_LM, text_column=text_column, reason=reason)
    else:
        raise DatasetError(
            f"no column looks like a label (it has: {', '.join(counts.labels)})",
            next_step="pass --label-column with the one to predict",
        )
    tally = counts.labels[label_column]
    if tally.objection:
        raise DatasetError(
            f"label column {label_column!r} {tally.objection}",
            next_step="pass --label-column with another column, or --task causal-lm to learn the texts alone",
        )
    return TaskProfile(
        kind=TaskKind.TEXT_CLASSIFICATION,
        text_column=text_column,
        label_column=label_column,
        labels=tuple(sorted(tally.counts)),
        reason=f"{reason} and has {len(tally.counts)} distinct values",
    )


def _check_task(task: str | None, label_column: str | None) -> None:
    kinds = [kind.value for kind in TaskKind]
    if task is not None and task not in kinds:
        raise InputError(
            f"there is no task {task!r}", next_step=f"pass --task with one of {', '.join(kinds)}"
        )
    if task == TaskKind.CAUSAL_LM and label_column is not None:
        raise InputError(
            f"the task {task} learns no label, but --label-column {label_column} was given",
            next_step="leave one of the two out",
        )


def _check_width(columns: Sized) -> None:
    if len(columns) > MAX_COLUMNS:
        raise DatasetError(
            f"it has more than {MAX_COLUMNS} columns", next_step="keep the text, the label and little else"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _errors_about(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the file into a DatasetError that names it."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"dataset {path.name}: {error.message}", next_step=error.next_step) from None
    except RowError as error:
        raise DatasetError(
            f"dataset {path.name}, line {error.line}: {error.cause}", next_step="correct or remove that line"
        ) from None
    except OSError as error:
        raise DatasetError(
            f"dataset {path.name} cannot be read ({error.strerror})", next_step="check its permissions"
        ) from None
