"""Which held-out rows a training is judged on where all of them would take too long.

Knows nothing of how many those are, nor of models.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..recipe import Example


def evenly_chosen(rows: Sequence[Example], count: int | None) -> Sequence[Example]:
    """So many of the rows, the same for all that ask; all of them for None.

    Every nth in the order of their classes or numbers, and of the file among equal ones: each class keeps its
    share, and of a series no part is left out.
    """
    if count is None or count >= len(rows):
        return rows
    targets = [row.value if row.label is None else row.label for row in rows]
    order = sorted(range(len(rows)), key=lambda number: targets[number] or 0)
    chosen = [order[int((place + 0.5) * len(rows) / count)] for place in range(count)]
    return [rows[number] for number in sorted(chosen)]
