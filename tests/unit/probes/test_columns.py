from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rankwise.errors import DatasetError
from rankwise.probes.columns import (
    LabelTally,
    TextTally,
    choose_label_column,
    choose_text_column,
    require_column,
)


def text_column(columns: dict[str, Sequence[Any]], label_column: str | None = None) -> str:
    tallies = {name: TextTally() for name in columns}
    for name, values in columns.items():
        for value in values:
            tallies[name].add({name: value}, name)
    return choose_text_column(tallies, but=(label_column,))


def label_tally(*values: Any) -> LabelTally:
    tally = LabelTally()
    for value in values:
        tally.add({"x": value}, "x")
    return tally


def label_column(columns: dict[str, Sequence[Any]]) -> str | None:
    tallies = {name: label_tally(*values) for name, values in columns.items()}
    found = choose_label_column(tallies, but=("text",), rows=max(map(len, columns.values())))
    return found and found[0]


def test_the_longest_strings_are_the_text() -> None:
    assert text_column({"id": ["a1", "a2"], "body": ["a long sentence", "another one"]}) == "body"


def test_a_telling_name_wins_near_ties_only() -> None:
    assert text_column({"url": ["x" * 15], "Review": ["x" * 10]}) == "Review"
    assert text_column({"article": ["x" * 100], "prompt": ["x" * 10]}) == "article"


@pytest.mark.parametrize("other", [["12345678.25"], [None], [["nested"]], [{"a": "b"}], [3], [""]])
def test_numbers_nested_and_empty_cells_are_no_text(other: list[Any]) -> None:
    assert text_column({"other": other, "say": ["hi"]}) == "say"
    with pytest.raises(DatasetError, match="no column holds text"):
        text_column({"other": other})


def test_a_label_is_the_text_only_where_nothing_else_can_be() -> None:
    assert text_column({"category": ["very long category"], "say": ["hi"]}) == "say"
    assert text_column({"category": ["very long category"], "n": ["1"]}) == "category"
    assert text_column({"": ["nameless"], "other": ["x"]}) == ""
    assert text_column({"": ["nameless"], "other": ["x"]}, label_column="") == "other"


def test_a_telling_name_makes_a_label_column() -> None:
    assert label_column({"text": ["a", "b"], "source": ["x", "x"], "Sentiment": ["1", "2"]}) == "Sentiment"


def test_few_repeated_values_make_a_label_column() -> None:
    texts = [f"text {n}" for n in range(20)]
    assert label_column({"text": texts, "stars": [1, 2, 3, 4] * 5}) == "stars"
    assert label_column({"text": texts, "id": list(range(20))}) is None
    assert label_column({"text": texts, "constant": ["x"] * 20}) is None
    assert label_column({"text": texts, "one_of_a_kind": ["x"] * 19 + ["y"]}) is None
    assert label_column({"text": texts, "gaps": ["x", "y"] * 9 + ["", ""]}) is None
    assert label_column({"text": texts, "too_many": [1, 2, 3, 4, 5] * 4}) is None


def test_the_reason_names_columns_that_would_have_done_as_well() -> None:
    tallies = {"a": label_tally(*[1, 2] * 10), "b": label_tally(*[1, 2] * 10)}
    found = choose_label_column(tallies, but=("text",), rows=20)
    assert found is not None
    assert found[0] == "a"
    assert "'b'" in found[1]


@pytest.mark.parametrize(
    ("values", "objection"),
    [
        ([], "is empty"),
        (["", None, " "], "is empty"),
        (["a", "a"], "has the same value 'a' in every row"),
        (range(1001), "has more than 1000 distinct values"),
        ([0.5, 0.25, 0.125], "is a different number in most rows"),
        (["a", "b", "c"], "is different in most rows"),
        (["a", "x" * 201], "has values of more than 200 characters"),
        (["a", ["b"]], "holds lists or objects"),
        (["a", "b"], None),
        ([True, False], None),
        (list(range(1000)) * 2, None),
    ],
)
def test_what_cannot_be_a_label_says_why(values: Sequence[Any], objection: str | None) -> None:
    assert label_tally(*values).objection == objection


def test_counting_stops_where_a_column_can_be_no_label() -> None:
    assert len(label_tally(*range(5000)).counts) == 1001


def test_an_unknown_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(DatasetError, match=r"no column 'lable' \(it has: text, label\)") as caught:
        require_column("lable", ["text", "label"], option="--label-column")
    assert caught.value.next_step == "pass --label-column label"
    with pytest.raises(DatasetError) as caught:
        require_column("zzz", ["text", "label"], option="--label-column")
    assert caught.value.next_step == "pass --label-column with one of them"
