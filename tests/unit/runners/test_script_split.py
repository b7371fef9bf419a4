"""The exported script splits rows as the trial did, and other data by chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Recipe, StudyRequest
from rankwise.probes.asked import Asked
from rankwise.probes.dataset import profile_dataset
from rankwise.runners.prepare import write_tokens
from rankwise.runners.random_tokens import RandomTokens
from rankwise.runners.scripts import shared, training
from rankwise.runners.text_splits import split_texts
from rankwise.runners.tokens import TokenFile

RECIPE = Recipe(max_length=64)
TOKENIZER = RandomTokens(500, seed=0)


def write_rows(path: Path, first: int) -> Path:
    rows = (
        {"text": f"film number {at} was long", "label": "ab"[at % 3 == 0], "team": at % 30, "day": at}
        for at in range(first, first + 120)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(params=[{}, {"group_column": "team"}, {"time_column": "day"}], ids=["class", "group", "time"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trial's token files; the script knows how its rows were split."""
    path = write_rows(tmp_path / "rows.jsonl", 0)
    dataset = profile_dataset(path, Asked(**request.param), source="rows.jsonl")
    dataset, split = split_texts(dataset, StudyRequest(model="m", dataset="d", **request.param))
    write_tokens(tmp_path / "tokens", dataset, TOKENIZER, RECIPE, split=split)
    values = {
        "every_nth_row": 1,
        "candidate": {"recipe": to_json(RECIPE)},
        "task": to_json(dataset.task),
        "split": json.loads(json.dumps(split)),
    }
    for module in (shared, training):
        monkeypatch.setattr(module, "VALUES", values)
    return tmp_path / "tokens"


def ids(rows: Any) -> list[list[int]]:
    return [list(map(int, row.input_ids)) for row in rows]


@pytest.mark.parametrize("as_in_trial", [True, False])
def test_rows_are_on_the_side_that_they_were_on(tokens: Path, tmp_path: Path, *, as_in_trial: bool) -> None:
    read = shared.text_reader(str(tmp_path / "rows.jsonl"), TOKENIZER)
    found = training.read_examples(read, as_in_trial=as_in_trial)
    for side, name in zip(found, ("train", "heldout"), strict=True):
        assert ids(side) == ids(TokenFile(tokens / f"{name}.arrow"))


@pytest.mark.usefixtures("tokens")
def test_other_data_are_split_by_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_rows(tmp_path / "other.jsonl", 30_000)
    read = shared.text_reader(str(other), TOKENIZER)
    train, heldout = training.read_examples(read, as_in_trial=False)
    assert len(train) + len(heldout) == 120
    assert 5 < len(heldout) < 60
    knows_groups = "group_column" in shared.VALUES["split"]  # the teams are those that were measured
    assert ("other data than those that were measured" in capsys.readouterr().out) is not knows_groups
