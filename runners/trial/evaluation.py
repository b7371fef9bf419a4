"""Held-out rows judged by a model: the task's loss with its error, and the task's metric.

Imports nothing of rankwise but the loop and the batches, which are free of it too: the exported script is
made of these sources. Knows nothing about trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..build import InvalidTrial
from ..forward import TARGET, class_scores, fitted, has_logits, is_fitting, own_loss, predictions, run_model
from ..recipe import IGNORED_LABEL, Example, collate, count_tokens
from .loop import Session

SAME_LOSS = 0.01
"""Losses that differ by less, relatively, are one: 16-bit arithmetic rounds by about so much."""

LARGEST_EXPONENT = 50.0
"""The perplexity of a higher loss is not given: it means no more than the loss does."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out loss (mean over scored items) with its standard error over rows, and the task's metric."""

    loss: float
    loss_se: float | None
    rows: int
    metric_name: str | None
    """``accuracy``, ``mae`` (mean absolute error, in the labels' unit) or ``perplexity`` per token.

    None where all that is known is a module's own loss."""
    metric_value: float | None
    losses: tuple[float, ...]
    """Of each row, summed over its items, in the order of the rows; of each batch where ``shared``."""
    items: tuple[int, ...]
    """How many these are sums over."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """One row judged, or a batch of rows by a loss that is theirs together."""

    loss: float
    """Summed over its items."""
    items: int
    """What is scored of it: itself, or the tokens to be predicted."""
    metric: float
    """1 for the right class, else 0; for a number, how far off it is. Tokens, and a module's own loss, have
    none: NaN."""
    shared: bool = False
    """Of a batch, by a module's own loss: nobody can tell its rows apart."""


@torch.no_grad()
def evaluate(session: Session, rows: Sequence[Example]) -> Evaluation:
    """Task loss on the rows, without any penalty that an adapter adds to its training loss.

    The loss is computed here from the logits, in float32, per row: cross entropy, or the squared error of a
    number. Its standard error treats rows as the sample (a ratio estimate where rows hold different numbers
    of scored items).
    """
    session.model.eval()
    with same_chance(session):
        scores = judged(session, rows)
    session.model.train()
    losses, items = tuple(row.loss for row in scores), tuple(row.items for row in scores)
    loss, standard_error = ratio_with_error(losses, items)
    name, value = main_metric(rows[0], scores, loss)
    return Evaluation(loss, standard_error, len(rows), name, value, losses, items)


def main_metric(row: Example, scores: Sequence[RowScore], loss: float) -> tuple[str | None, float | None]:
    """Name and value of the metric of a task that has such rows."""
    mean = sum(score.metric * score.items for score in scores) / sum(score.items for score in scores)
    if row.label is not None and not math.isnan(mean):
        return "accuracy", mean
    if row.value is not None or (row.numbers is not None and not math.isnan(mean)):
        return "mae", mean
    if row.arrays is not None:
        return None, None
    return "perplexity", math.exp(loss) if loss < LARGEST_EXPONENT else None


def judged(session: Session, rows: Sequence[Example]) -> list[RowScore]:
    """The scores of all rows, in their order.

    A loss of the module's own that is no mean of what can be told row by row is asked for one row at a time:
    micro-batches of candidates differ. Without a target it may compare the rows of a batch with each other:
    all candidates then get batches of one size, the effective batch, and each batch has one score.
    """
    first = rows[0]
    if first.arrays is None or first.label is not None or first.numbers is not None:
        scores: list[tuple[int, RowScore]] = []
        for batch in batch_scores(session, rows, session.candidate["micro_batch"]):
            if batch[0][1].shared:
                return [batch[0][1] for batch in batch_scores(session, rows, 1)]
            scores += batch
        return [score for _, score in sorted(scores, key=lambda pair: pair[0])]
    return [
        batch[0][1] for batch in batch_scores(session, rows, session.candidate["recipe"]["effective_batch"])
    ]


def batch_scores(
    session: Session, rows: Sequence[Example], size: int
) -> Iterator[list[tuple[int, RowScore]]]:
    """Batch by batch, the scores of rows with their numbers; the shortest rows first, for little padding."""
    numbered = sorted(enumerate(rows), key=lambda pair: count_tokens(pair[1]))
    for start in range(0, len(numbered), size):
        batch = numbered[start : start + size]
        scores = score_rows(session, [row for _, row in batch])
        yield list(zip((number for number, _ in batch), scores, strict=False))  # one of them, if shared


def score_rows(session: Session, examples: Sequence[Example]) -> list[RowScore]:
    """One micro-batch through the model. Logits become float32 a row at a time: a copy of all is large."""
    device = session.accelerator.device
    batch = {name: value.to(device) for name, value in collate(examples, pad_id=session.pad_id).items()}
    if examples[0].arrays is not None:
        with session.accelerator.autocast():
            return score_arrays(run_model(session.model, batch), batch)
    labels = batch["labels"]
    writes = examples[0].target_ids is not None
    if not writes:  # an encoder-decoder makes the decoder's input from them
        del batch["labels"]
    with session.accelerator.autocast():
        logits = predictions(run_model(session.model, batch))
    if logits is None:
        raise InvalidTrial("the module returned no scores in evaluation")
    if examples[0].value is not None:
        errors = (logits.float().reshape(-1) - labels).tolist()
        return [RowScore(error**2, 1, abs(error)) for error in errors]
    if examples[0].label is not None:
        return score_classes(logits, labels)
    if not writes:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return [
        RowScore(
            float(torch.nn.functional.cross_entropy(row_logits.float(), row_labels, reduction="sum")),
            int((row_labels != IGNORED_LABEL).sum()),
            math.nan,
        )
        for row_logits, row_labels in zip(logits, labels, strict=True)
    ]


@contextmanager
def same_chance(session: Session) -> Iterator[None]:
    """Let whatever a module draws in evaluation (masks, crops) be the same for all, and disturb nothing."""
    device = session.accelerator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def score_arrays(output: Any, batch: Mapping[str, torch.Tensor]) -> list[RowScore]:
    """Rows that are no text: each by its prediction, or all of them by a loss that only the module knows.

    A class has its cross entropy, numbers the mean of their squared errors. Where the module's own loss is
    another one, that is what counts: numbers that it calls logits are then on a scale of their own.

    Raises:
        InvalidTrial: there is neither, or the prediction is not shaped like the target.
    """
    target, predicted, own = batch.get(TARGET), predictions(output), own_loss(output)
    if own is None and (target is None or predicted is None):
        raise InvalidTrial("the module returned neither a loss nor predictions in evaluation")
    scores: list[RowScore] = []
    if target is not None and predicted is not None and (own is None or is_fitting(predicted, target)):
        scores = score_predictions(predicted.float(), target)
    if own is None:
        return scores
    rows, loss = len(next(iter(batch.values()))), float(own)
    if scores and math.isclose(loss, sum(score.loss for score in scores) / rows, rel_tol=SAME_LOSS):
        return scores
    means_little = target is None or (target.is_floating_point() and has_logits(output))
    metric = math.nan if means_little or not scores else sum(score.metric for score in scores) / rows
    return [RowScore(loss * rows, rows, metric, shared=True)]


def score_predictions(predicted: torch.Tensor, target: torch.Tensor) -> list[RowScore]:
    """Rows with a class, or with numbers to predict, one or many each."""
    if not target.is_floating_point():
        return score_classes(class_scores(predicted, target), target)
    errors = (fitted(predicted, target) - target).reshape(len(target), -1)
    squares, sizes = errors.square().mean(1).tolist(), errors.abs().mean(1).tolist()
    return [RowScore(square, 1, size) for square, size in zip(squares, sizes, strict=True)]


def score_classes(logits: torch.Tensor, labels: torch.Tensor) -> list[RowScore]:
    """Rows with a class each."""
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none").tolist()
    right = (logits.argmax(-1) == labels).tolist()
    return [RowScore(loss, 1, float(hit)) for loss, hit in zip(losses, right, strict=True)]


def ratio_with_error(totals: Sequence[float], counts: Sequence[float]) -> tuple[float, float | None]:
    """Σtotals/Σcounts with its standard error by linearisation (Cochran, Sampling Techniques, §6.4).

    The error is None for fewer than two pairs.
    """
    n = len(totals)
    ratio = sum(totals) / sum(counts)
    if n < 2:
        return ratio, None
    residuals = sum((total - ratio * count) ** 2 for total, count in zip(totals, counts, strict=True))
    return ratio, math.sqrt(residuals / (n * (n - 1))) / (sum(counts) / n)
