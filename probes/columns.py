"""Which column holds the text, which one the label, and hence what is to be learnt.

Judges what a pass over the rows has counted; reads no file. Knows nothing of tokens and models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..errors import DatasetError
from .rows import row_text

TEXT_NAMES = ("text", "sentence", "review", "content", "prompt")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "sentiment")

NEAR_TIE = 0.5
"""A column with a telling name gives way only to texts that are more than 1/NEAR_TIE times as long."""

MAX_LABELS = 1000
MAX_LABEL_CHARACTERS = 200

MAX_GUESSED_LABELS = 50
"""A column that no name speaks for is a label only with at most this many distinct values …"""

MIN_ROWS_PER_GUESSED_LABEL = 5
"""… and at least this many rows for each of them on average."""


@dataclass(slots=True)
class TextTally:
    """How much text the cells of one column hold."""

    texts: int = 0
    characters: int = 0
    numbers: int = 0
    nested: bool = False

    def add(self, value: Any) -> None:
        """Count one cell."""
        if isinstance(value, (list, dict)):
            self.nested = True
        elif isinstance(value, str) and value.strip():
            self.texts += 1
            self.characters += len(value)
            self.numbers += is_number(value)

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
    """How often each value of one column occurs. Counting stops once the column can be no label."""

    counts: Counter[str] = field(default_factory=Counter)
    flaw: str | None = None
    """Why it can be no label: the end of a sentence about the column."""

    def add(self, row: Mapping[str, Any], column: str) -> None:
        """Count one cell of a row."""
        if self.flaw:
            return
        if isinstance(row[column], (list, dict)):
            self.flaw = "holds lists or objects"
            return
        text = row_text(row, column)
        if not text.strip():
            return
        self.counts[text] += 1
        if len(text) > MAX_LABEL_CHARACTERS:
            self.flaw = f"has values of more than {MAX_LABEL_CHARACTERS} characters"
        elif len(self.counts) > MAX_LABELS:
            self.flaw = f"has more than {MAX_LABELS} distinct values"

    @property
    def rows(self) -> int:
        """Rows that have a value."""
        return self.counts.total()

    @property
    def objection(self) -> str | None:
        """Why classes cannot be learnt from this column (the end of a sentence about it), or None."""
        distinct = len(self.counts)
        if self.flaw:
            return self.flaw
        if distinct < 2:
            return (
                f"has the same value {next(iter(self.counts))!r} in every row" if self.counts else "is empty"
            )
        if distinct > 2 and 2 * distinct > self.rows:
            numbers = all(map(is_number, self.counts))
            return "is a different number in most rows" if numbers else "is different in most rows"
        return None

    def looks_like_label(self, rows: int) -> bool:
        """The values alone suggest a label: few, each repeated, none missing in ``rows`` rows."""
        distinct = len(self.counts)
        return (
            self.objection is None
            and self.rows == rows
            and distinct <= min(MAX_GUESSED_LABELS, rows / MIN_ROWS_PER_GUESSED_LABEL)
            and min(self.counts.values()) >= 2
        )


def choose_text_column(tallies: Mapping[str, TextTally], *, label_column: str | None) -> str:
    """Return the column with the longest texts on average; on a near tie, one with a telling name.

    Raises:
        DatasetError: no column holds text.
    """
    texts = {name: t.mean_characters for name, t in tallies.items() if t.is_text and name != label_column}
    # A column named like a label is the text only where nothing else can be.
    texts = {name: mean for name, mean in texts.items() if name.lower() not in LABEL_NAMES} or texts
    if not texts:
        raise DatasetError(
            f"no column holds text (it has: {', '.join(tallies)})",
            next_step="pass --text-column with the column to learn from, or add one",
        )
    longest = max(texts, key=texts.__getitem__)
    for name in TEXT_NAMES:
        for column, mean in texts.items():
            if column.lower() == name and mean >= NEAR_TIE * texts[longest]:
                return column
    return longest


def choose_label_column(
    tallies: Mapping[str, LabelTally], *, text_column: str, rows: int
) -> tuple[str, str] | None:
    """Return (column, why it is taken for the label), or None where nothing looks like one.

    A telling name comes first, then the first column whose values look like labels in the ``rows`` rows
    that have a text.
    """
    others = {column: tally for column, tally in tallies.items() if column != text_column}
    for name in LABEL_NAMES:
        for column in others:
            if column.lower() == name:
                return column, f"column {column!r} is named like a label"
    alike = [column for column, tally in others.items() if tally.looks_like_label(rows)]
    if not alike:
        return None
    rivals = f", as do those of {', '.join(map(repr, alike[1:]))}" if alike[1:] else ""
    return alike[0], f"the values of column {alike[0]!r} repeat like labels{rivals}"


def require_column(column: str, columns: Iterable[str], *, option: str) -> None:
    """Check that a column which the user named through ``option`` exists.

    Raises:
        DatasetError: listing the columns, with the nearest name.
    """
    names = list(columns)
    if column in names:
        return
    near = get_close_matches(column, names, n=1)
    raise DatasetError(
        f"there is no column {column!r} (it has: {', '.join(names)})",
        next_step=f"pass {option} {near[0]}" if near else f"pass {option} with one of them",
    )


def is_number(text: str) -> bool:
    """``float`` takes the text."""
    try:
        float(text)
    except ValueError:
        return False
    return True
