"""A training is judged on a part of the held-out rows that is like the whole."""

from __future__ import annotations

from collections import Counter

import pytest

from rankwise.runners.recipe import Example
from rankwise.runners.trial.heldout_sample import evenly_chosen


def numbered(**targets: list[float]) -> list[Example]:
    [(field, values)] = targets.items()
    return [Example([number], **{field: value}) for number, value in enumerate(values)]


def test_classes_keep_their_shares() -> None:
    rows = numbered(label=[0, 0, 0, 1] * 100)
    chosen = evenly_chosen(rows, 40)
    assert Counter(row.label for row in chosen) == {0: 30, 1: 10}
    assert [row.input_ids[0] for row in chosen] == sorted({row.input_ids[0] for row in chosen})


def test_numbers_are_chosen_over_their_whole_range() -> None:
    chosen = evenly_chosen(numbered(value=[float(each * 37 % 100) for each in range(100)]), 4)
    assert sorted(row.value or 0.0 for row in chosen) == [12.0, 37.0, 62.0, 87.0]


def test_other_rows_are_chosen_evenly_in_their_order() -> None:
    rows = [Example([number]) for number in range(10)]
    assert [row.input_ids[0] for row in evenly_chosen(rows, 5)] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("count", [None, 3, 7])
def test_few_rows_are_all_taken(count: int | None) -> None:
    rows = [Example([number]) for number in range(3)]
    assert list(evenly_chosen(rows, count)) == rows
