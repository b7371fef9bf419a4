"""What the cells of a column have in common: counted as rows pass by, judged as text, label or number.

Chooses a text and a label column among such tallies. Reads no file. Knows nothing of tokens and models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..errors import DatasetError
from .array_sources import is_moment
from .rows import cell, conversation, row_label, row_number

TEXT_NAMES = ("text", "sentence", "review", "content", "prompt")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "sentiment")
SCORE_NAMES = ("score", "scores", "similarity", "similarity_score", "rating")
"""Names of a number to predict."""

NEAR_TIE = 0.5
"""A column with a telling name gives way only to texts that are more than 1/NEAR_TIE times as long."""

MAX_LABELS = 1000
MAX_LABEL_CHARACTERS = 200

MAX_GUESSED_LABELS = 50
"""A column that no name speaks for is a label only with at most this many distinct values …"""

MIN_ROWS_PER_GUESSED_LABEL = 5
"""… and at least this many rows for each of them on average."""

MAX_MOMENT_CHARACTERS = 40

MAX_LISTED = 30
"""Columns that a message lists."""


@dataclass(slots=True)
class TextTally:
    """What the cells of one column hold, as far as the first rows tell."""

    texts: int = 0
    characters: int = 0
    numbers: int = 0
    moments: int = 0
    """Dates and times."""
    conversations: int = 0
    nested: bool = False
    pairs: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Keys of the objects that are made of two strings, like the languages of a translation."""

    def add(self, row: Mapping[str, Any], column: str) -> None:
        """Count one cell."""
        value = cell(row, column)
        if isinstance(value, (list, dict)):
            self.nested = True
        elif isinstance(value, str) and value.strip():
            self.texts += 1
            self.characters += len(value)
            self.numbers += row_number(row, column) is not None
            self.moments += len(value) <= MAX_MOMENT_CHARACTERS and is_moment(value)
        if isinstance(value, (list, str)):
            self.conversations += conversation(row, column) is not None
        elif (
            isinstance(value, dict)
            and len(value) == 2
            and all(isinstance(text, str) for text in value.values())
        ):
            self.pairs[tuple(value)] += 1

    @property
    def is_text(self) -> bool:
        """It holds strings, and not all of them are numbers."""
        return self.texts > self.numbers and not self.nested

    @property
    def mean_characters(self) -> float:
        """Mean length of the cells that are not empty."""
        return self.characters / self.texts if self.texts else 0.0


@dataclass(slots=True)
class LabelTally:
    """The values of one column. Counting stops once they can be neither classes nor numbers."""

    counts: Counter[str] = field(default_factory=Counter)
    """How often each value occurs, while it can be a class."""
    flaw: str | None = None
    """Why the values can be no classes: the end of a sentence about the column."""
    values: int = 0
    """Rows whose value is not missing, while counting goes on."""
    numbers: int = 0
    has_fractions: bool = False
    no_number: str | None = None
    """The first value that is no number."""

    def add(self, row: Mapping[str, Any], column: str) -> None:
        """Count one cell of a row."""
        if self.flaw and self.no_number is not None:
            return
        if isinstance(cell(row, column), (list, dict)):
            self.flaw = "holds lists or objects"
            self.no_number = "a list or an object"
            return
        label = row_label(row, column)
        if label is None:
            return
        self.values += 1
        number = row_number(row, column) if len(label) <= MAX_LABEL_CHARACTERS else None
        if number is None:
            self.no_number = self.no_number or repr(label[:50])
        else:
            self.numbers += 1
            self.has_fractions |= not number.is_integer()
        if self.flaw:
            return
        if len(label) > MAX_LABEL_CHARACTERS:
            self.flaw = f"has values of more than {MAX_LABEL_CHARACTERS} characters"
            return
        self.counts[label] += 1
        if len(self.counts) > MAX_LABELS:
            self.flaw = f"has more than {MAX_LABELS} distinct values"

    @property
    def is_number(self) -> bool:
        """Every value is a finite number, and there are at least two different ones."""
        return self.number_objection is None

    @property
    def is_constant(self) -> bool:
        """Every row has the same value: it can be trained for, and there is nothing to learn."""
        return not self.flaw and len(self.counts) == 1

    @property
    def number_objection(self) -> str | None:
        """Why a number cannot be learnt from this column (the end of a sentence about it), or None."""
        if self.no_number is not None:
            return f"holds {self.no_number}, which is no number"
        return self._too_few

    @property
    def objection(self) -> str | None:
        """Why classes cannot be learnt from this column (the end of a sentence about it), or None."""
        distinct = len(self.counts)
        if self.flaw or self._too_few:
            return self.flaw or self._too_few
        if distinct > 2 and 2 * distinct > self.values:
            return "is a different number in most rows" if self.is_number else "is different in most rows"
        return None

    @property
    def is_measured(self) -> bool:
        """The values are numbers as on a scale: with fractions, or too many different ones for classes."""
        if not self.is_number:
            return False
        many = len(self.counts) > MAX_GUESSED_LABELS and not self._counts_classes
        return self.has_fractions or many or self.objection is not None

    def looks_like_label(self, rows: int) -> bool:
        """The values alone suggest a label: few, each repeated, none missing in ``rows`` rows."""
        distinct = len(self.counts)
        return (
            self.objection is None
            and not self.has_fractions
            and self.values == rows
            and distinct <= min(MAX_GUESSED_LABELS, rows / MIN_ROWS_PER_GUESSED_LABEL)
            and min(self.counts.values()) >= 2
        )

    @property
    def _too_few(self) -> str | None:
        if not self.values:
            return "is empty"
        only = None if self.flaw or len(self.counts) > 1 else next(iter(self.counts))
        return f"has the same value {only!r} in every row" if only is not None else None

    @property
    def _counts_classes(self) -> bool:
        """The values are 0, 1, 2, … (or start at 1) without a gap, as class numbers do."""
        if self.flaw or self.has_fractions:
            return False
        found = sorted(float(value) for value in self.counts)
        return found[0] in (0, 1) and found[-1] - found[0] == len(found) - 1


def choose_text_column(tallies: Mapping[str, TextTally], *, but: Iterable[str | None] = ()) -> str:
    """Return the column with the longest texts on average; on a near tie, one with a telling name.

    Args:
        tallies: of all columns.
        but: columns that are used otherwise.

    Raises:
        DatasetError: no other column holds text.
    """
    taken = set(but)
    texts = {name: tally.mean_characters for name, tally in tallies.items() if tally.is_text}
    texts = {name: mean for name, mean in texts.items() if name not in taken}
    # A column named like a label is the text only where nothing else can be.
    texts = {name: mean for name, mean in texts.items() if name.lower() not in LABEL_NAMES} or texts
    if not texts:
        raise DatasetError(
            f"no column holds text (it has: {listed(tallies)})",
            next_step="pass --text-column with the column to learn from, or add one",
        )
    longest = max(texts, key=texts.__getitem__)
    for name in TEXT_NAMES:
        for column, mean in texts.items():
            if column.lower() == name and mean >= NEAR_TIE * texts[longest]:
                return column
    return longest


def choose_label_column(
    tallies: Mapping[str, LabelTally], *, but: Iterable[str | None], rows: int
) -> tuple[str, str] | None:
    """Return (column, why it is taken for the label), or None where nothing looks like one.

    A telling name comes first, then a name like ``score`` whose values are numbers, then the first column
    whose values look like labels in the ``rows`` rows that have a text. Columns in ``but`` are taken.
    """
    taken = set(but)
    others = {column: tally for column, tally in tallies.items() if column not in taken}
    for name in LABEL_NAMES:
        for column in others:
            if column.lower() == name:
                return column, f"column {column!r} is named like a label"
    for column, tally in others.items():
        if column.lower() in SCORE_NAMES and tally.is_number:
            return column, f"column {column!r} is named like a score"
    alike = [column for column, tally in others.items() if tally.looks_like_label(rows)]
    if not alike:
        return None
    rivals = f", as do those of {', '.join(map(repr, alike[1:4]))}" if alike[1:] else ""
    return alike[0], f"the values of column {alike[0]!r} repeat like labels{rivals}"


def require_column(column: str, columns: Iterable[str], *, option: str) -> None:
    """Check that a column which the user named through ``option`` exists; ``a.b`` asks for ``a`` only.

    Raises:
        DatasetError: listing the columns, with the nearest name.
    """
    names = list(columns)
    if column in names or column.partition(".")[0] in names:
        return
    near = get_close_matches(column, names, n=1)
    raise DatasetError(
        f"there is no column {column!r} (it has: {listed(names)})",
        next_step=f"pass {option} {near[0]}" if near else f"pass {option} with one of them",
    )


def listed(columns: Iterable[str]) -> str:
    """Column names for a message: the first few, none at full length if it is very long."""
    names = [name if len(name) <= 100 else f"{name[:100]}…" for name in columns]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
