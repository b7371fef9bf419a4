"""Which rows of small tables are held out: by class, by group, by time; and tables with little to split."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import DatasetError
from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Recipe, StudyRequest
from rankwise.probes.asked import Asked
from rankwise.probes.dataset import profile_dataset
from rankwise.probes.profiles import DatasetProfile
from rankwise.runners.prepare import write_tokens
from rankwise.runners.random_tokens import RandomTokens
from rankwise.runners.samples import encode_rows, read_samples
from rankwise.runners.text_splits import notes_on_classes, split_texts
from rankwise.runners.tokens import TokenFile

Row = dict[str, Any]


def profile(folder: Path, rows: list[Row], **asked: Any) -> DatasetProfile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return profile_dataset(path, Asked(**asked), source="rows.jsonl")


def split(folder: Path, rows: list[Row], **asked: Any) -> tuple[DatasetProfile, list[Row], list[Row]]:
    """The profile with its notes; rows to train on, and those held out."""
    dataset, found = split_texts(
        profile(folder, rows, **asked), StudyRequest(model="m", dataset="d", seed=3, **asked)
    )
    sides: tuple[list[Row], list[Row]] = ([], [])
    task = to_json(dataset.task)
    samples = read_samples(Path(dataset.path), every=1, task=task, split=found)
    encoded = encode_rows(
        Path(dataset.path),
        every=1,
        tokenizer=RandomTokens(500, seed=0),
        task=task,
        recipe=to_json(Recipe(max_length=64)),
        split=found,
    )
    for sample, (_, heldout) in zip(samples, encoded, strict=True):
        sides[heldout].append(rows[sample.row - 1])
    return dataset, *sides


def reviews(count: int, **more: Any) -> list[Row]:
    return [
        {"text": f"the film number {number}", "label": "ab"[number % 4 == 0], **more}
        for number in range(count)
    ]


def notes(dataset: DatasetProfile) -> str:
    return "; ".join(dataset.notes)


def test_each_class_gives_its_share(tmp_path: Path) -> None:
    _, train, heldout = split(tmp_path, reviews(400))
    assert (len(train), len(heldout)) == (360, 40)
    assert sum(row["label"] == "b" for row in heldout) == 10


def test_a_group_is_on_one_side(tmp_path: Path) -> None:
    rows = [{**row, "team": number % 15} for number, row in enumerate(reviews(300))]
    dataset, train, heldout = split(tmp_path, rows, group_column="team")
    assert {row["team"] for row in train}.isdisjoint(row["team"] for row in heldout)
    assert 0 < len(heldout) <= 30
    assert "15 groups of rows by 'team'" in notes(dataset)


def test_so_are_groups_with_the_same_input(tmp_path: Path) -> None:
    rows = [{**row, "team": number} for number, row in enumerate(reviews(100) * 2)]
    _, train, heldout = split(tmp_path, rows, group_column="team")
    assert {row["text"] for row in train}.isdisjoint(row["text"] for row in heldout)
    assert len(heldout) == 18, "of each class a tenth, in pairs"


def test_a_row_without_a_group_is_one_of_its_own(tmp_path: Path) -> None:
    rows = [{**row, "team": None if number < 200 else number % 10} for number, row in enumerate(reviews(300))]
    _, train, heldout = split(tmp_path, rows, group_column="team")
    alone = [sum(row["team"] is None for row in side) for side in (train, heldout)]
    assert alone[0] > 100
    assert alone[1] > 5


@pytest.mark.parametrize(
    ("column", "groups", "found"),
    [
        ("user_id", 20, True),
        ("Patient_ID", 20, True),
        ("group", 20, True),
        ("user_id", 300, False),
        ("user_id", 4, False),
        ("colour", 20, False),
    ],
)
def test_a_column_that_is_obviously_a_group_is_one_unasked(
    tmp_path: Path, column: str, groups: int, found: bool
) -> None:
    rows = [{**row, column: f"u{number % groups}"} for number, row in enumerate(reviews(300))]
    dataset, train, heldout = split(tmp_path, rows)
    apart = {row[column] for row in train}.isdisjoint(row[column] for row in heldout)
    assert (f"{groups} groups of rows by {column!r}, as its name suggests" in notes(dataset)) is found
    if groups < 300:
        assert apart is found


def test_few_groups_of_many_rows_are_chosen_one_by_one(tmp_path: Path) -> None:
    """By a hash that holds out a twentieth, none of them would be."""
    rows = [{**row, "team": number % 12} for number, row in enumerate(reviews(2400))]
    for seed in range(4):
        dataset = profile(tmp_path, rows)
        request = StudyRequest(model="m", dataset="d", seed=seed, group_column="team")
        assert len(split_texts(dataset, request)[1]["hashes"].split()) in (1, 2)


@pytest.mark.parametrize(
    ("teams", "message"),
    [(["x"] * 12, "'team' of rows.jsonl has the same value in every row"), ([None] * 12, "is empty")],
)
def test_a_group_that_splits_nothing(tmp_path: Path, teams: list[Any], message: str) -> None:
    rows = [{**row, "team": team} for row, team in zip(reviews(12), teams, strict=True)]
    with pytest.raises(DatasetError, match=message):
        split(tmp_path, rows, group_column="team")


def test_a_group_is_no_label(tmp_path: Path) -> None:
    """Else whole classes would be held out."""
    dataset, _, _ = split(tmp_path, reviews(12), group_column="label")
    assert dataset.task.label_column is None


def test_the_last_rows_in_time_are_held_out(tmp_path: Path) -> None:
    rows = [{**row, "day": f"2024-{1 + at % 12:02}-{1 + at % 28:02}"} for at, row in enumerate(reviews(300))]
    dataset, train, heldout = split(tmp_path, rows, time_column="day")
    assert len(train) + len(heldout) == 300
    assert max(row["day"] for row in train) < min(row["day"] for row in heldout)
    assert len(heldout) == pytest.approx(30, abs=6)
    assert f"held out are the last {len(heldout)} of 300 rows in time, by column 'day'" in notes(dataset)


def test_of_many_rows_at_the_last_time_some_are_judged(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({**row, "year": 2020 + at % 2}) + "\n" for at, row in enumerate(reviews(2000)))
    )
    dataset = profile_dataset(path, Asked(time_column="year"), source="rows.jsonl")
    request = StudyRequest(model="m", dataset="d", time_column="year")
    dataset, found = split_texts(dataset, request)
    recipe, tokenizer = Recipe(max_length=64), RandomTokens(500, seed=0)
    write_tokens(tmp_path / "t", dataset, tokenizer, recipe, split=found)
    train, heldout = (len(TokenFile(tmp_path / "t" / f"{side}.arrow")) for side in ("train", "heldout"))
    assert train == 1000
    assert heldout == pytest.approx(200, abs=45)
    assert "20.0% of these are judged" in notes(dataset)


def test_rows_without_a_time_are_set_aside(tmp_path: Path) -> None:
    rows = [{**row, "day": at if at % 5 else "soon"} for at, row in enumerate(reviews(100))]
    dataset, train, heldout = split(tmp_path, rows, time_column="day")
    assert len(train) + len(heldout) == dataset.usable_rows == 80
    assert "20 rows are set aside: no time in 'day' ('soon' in row 1)" in notes(dataset)


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (["soon"] * 7 + ["2024-05-01"] * 5, r"no time in column 'day' in 7 of 12 rows \('soon' in row 1\)"),
        (["2024-05-01"] * 12, "have the same time"),
    ],
)
def test_times_that_split_nothing(tmp_path: Path, days: list[str], message: str) -> None:
    rows = [{**row, "day": day} for row, day in zip(reviews(12), days, strict=True)]
    with pytest.raises(DatasetError, match=message):
        split(tmp_path, rows, time_column="day")


DEGENERATE: dict[str, list[Row]] = {
    "twelve rows": reviews(12),
    "constant label": [{**row, "label": "a"} for row in reviews(12)],
    "constant number": [{**row, "label": 0.5} for row in reviews(12)],
    "a class in one row": [{**row, "label": "c"} if at == 5 else row for at, row in enumerate(reviews(24))],
    "no numbers": [
        {**row, "label": float("nan") if at % 3 else at % 2} for at, row in enumerate(reviews(60))
    ],
    "two labels of the same text": [{"text": "ab cd"[at % 5 :], "label": "xy"[at % 2]} for at in range(40)],
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_tables_with_little_to_learn_are_split_all_the_same(tmp_path: Path, name: str) -> None:
    dataset, train, heldout = split(tmp_path, DEGENERATE[name])
    assert len(train) >= len(heldout) >= 1
    assert {row["text"] for row in train}.isdisjoint(row["text"] for row in heldout)
    of_class = defaultdict(set)
    for row in (*train, *heldout):
        of_class[row["label"]].add(row["text"])
    if name != "two labels of the same text":
        for label in dataset.task.labels[:2]:
            assert len(of_class[label]) < 2 or any(row["label"] == label for row in heldout)


def test_texts_that_are_all_equal(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"all rows of rows.jsonl have the same input"):
        split(tmp_path, [{"text": "the same film"} for _ in range(12)])


def test_a_class_on_one_side_is_told(tmp_path: Path) -> None:
    dataset, found = split_texts(
        profile(tmp_path, DEGENERATE["a class in one row"]), StudyRequest(model="m", dataset="d")
    )
    write_tokens(tmp_path / "t", dataset, RandomTokens(500, seed=0), Recipe(max_length=64), split=found)
    assert notes_on_classes(tmp_path / "t", dataset.task.labels) == (
        "no row is held out of 1 of 3 classes ('c'): too few different ones",
    )
    by_chance = {"seed": 0, "share": 1.0}
    write_tokens_anyhow(tmp_path / "u", dataset, by_chance)
    (note,) = notes_on_classes(tmp_path / "u", dataset.task.labels)
    assert note == "all rows are held out of 3 of 3 classes ('a', 'b', 'c'): never learnt"


def write_tokens_anyhow(folder: Path, dataset: DatasetProfile, found: dict[str, Any]) -> None:
    """Though nothing is left to train on."""
    with pytest.raises(DatasetError, match="leaves 0 rows to train on"):
        write_tokens(folder, dataset, RandomTokens(500, seed=0), Recipe(max_length=64), split=found)
