from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rankwise.runners.build import InvalidTrial
from rankwise.runners.trial.evaluation import RowScore, score_arrays

NUMBERS = {"x": torch.ones(2, 1), "labels": torch.tensor([[1.0, 2.0], [3.0, 5.0]])}
CLASSES = {"x": torch.ones(2, 1), "labels": torch.tensor([0, 1])}
PREDICTED = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
"""Squared errors of 2 and 0.5 a row, absolute ones of 1 and 0.5."""
SCORES = torch.tensor([[2.0, 0.0], [2.0, 0.0]])


def test_numbers_are_judged_row_by_row() -> None:
    assert score_arrays(PREDICTED, NUMBERS) == [RowScore(2.0, 1, 1.0), RowScore(0.5, 1, 0.5)]


def test_classes_are_judged_row_by_row() -> None:
    found = score_arrays({"logits": SCORES}, CLASSES)
    assert [row.metric for row in found] == [1.0, 0.0]
    assert found[0].loss == pytest.approx(math.log(1 + math.exp(-2)))


def test_a_modules_loss_that_is_the_tasks_leaves_rows_their_own() -> None:
    output = {"loss": torch.tensor(1.25), "prediction_outputs": PREDICTED}
    assert score_arrays(output, NUMBERS) == score_arrays(PREDICTED, NUMBERS)


@pytest.mark.parametrize(
    ("output", "batch", "metric"),
    [
        ({"loss": torch.tensor(7.0), "prediction_outputs": PREDICTED}, NUMBERS, 0.75),
        ({"loss": torch.tensor(7.0), "logits": SCORES}, CLASSES, 0.5),
        ({"loss": torch.tensor(7.0), "logits": PREDICTED}, NUMBERS, math.nan),
        ({"loss": torch.tensor(7.0), "embedding": torch.ones(2, 9)}, NUMBERS, math.nan),
        ({"loss": torch.tensor(7.0), "embedding": PREDICTED}, {"x": torch.ones(2, 1)}, math.nan),
        (torch.tensor(7.0), {"x": torch.ones(2, 1)}, math.nan),
    ],
)
def test_another_loss_of_the_modules_own_counts_for_all_rows(
    output: Any, batch: dict[str, torch.Tensor], metric: float
) -> None:
    (found,) = score_arrays(output, batch)
    assert (found.loss, found.items) == (14.0, 2)
    assert found.metric == pytest.approx(metric, nan_ok=True)


@pytest.mark.parametrize(
    ("output", "batch", "message"),
    [
        (torch.ones(2, 3), NUMBERS, "numbers of shape"),
        (PREDICTED, {"x": torch.ones(2, 1)}, "neither a loss nor predictions"),
        (None, NUMBERS, "neither a loss nor predictions"),
    ],
)
def test_what_cannot_be_judged_says_why(output: Any, batch: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InvalidTrial, match=message):
        score_arrays(output, batch)
