from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rankwise.runners.build import InvalidTrial
from rankwise.runners.trial.evaluation import RowScore, macro_f1, scaled_errors, score_arrays

NUMBERS = {"x": torch.ones(2, 1), "labels": torch.tensor([[1.0, 2.0], [3.0, 5.0]])}
CLASSES = {"x": torch.ones(2, 1), "labels": torch.tensor([0, 1])}
PREDICTED = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
"""Squared errors of 2 and 0.5 a row, absolute ones of 1 and 0.5."""
SCORES = torch.tensor([[2.0, 0.0], [2.0, 0.0]])


def test_numbers_are_judged_row_by_row() -> None:
    assert score_arrays(PREDICTED, NUMBERS) == [
        RowScore(2.0, 1, 1.0, square=2.0),
        RowScore(0.5, 1, 0.5, square=0.5),
    ]


def test_classes_are_judged_row_by_row() -> None:
    found = score_arrays({"logits": SCORES}, CLASSES)
    assert [row.metric for row in found] == [1.0, 0.0]
    assert [(row.label, row.guess) for row in found] == [(0, 0), (1, 0)]
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


def test_the_error_of_a_forecast_is_scaled_by_the_past() -> None:
    """One channel steps by 2, the other by 10, and is stepped over; a third stands still."""
    past = torch.tensor([[[0.0, 0.0, 5.0], [2.0, 10.0, 5.0], [0.0, 0.0, 5.0]]])
    target = torch.zeros(1, 2, 3)
    predicted = torch.tensor([[[1.0, 5.0, 9.0], [3.0, 15.0, 9.0]]])
    assert scaled_errors(predicted, target, past) == pytest.approx([(2 / 2 + 10 / 10) / 2])
    (still,) = scaled_errors(predicted[..., 2:], target[..., 2:], past[..., 2:])
    assert math.isnan(still)
    (score,) = score_arrays(predicted, {"past_values": past, "labels": target})
    assert score.scaled == pytest.approx(1.0)
    (alike,) = score_arrays(predicted, {"x": past, "labels": target})
    assert math.isnan(alike.scaled), "only a series has a past"


def test_f1_is_that_of_scikit_learn() -> None:
    """Worked out by hand: 0 is right twice and missed once, 1 is found once in two guesses, 2 never."""
    pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (2, 0)]
    scores = [RowScore(0.0, 1, 0.0, label=label, guess=guess) for label, guess in pairs]
    assert macro_f1(scores) == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    assert math.isnan(macro_f1([RowScore(0.0, 1, 0.0)]))
