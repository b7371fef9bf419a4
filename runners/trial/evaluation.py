"""Held-out rows judged by a model: the task's loss with its error, and the task's metric.

Imports nothing of rankwise but sources that are free of it too, the forward pass among them: the exported
programs are made of these sources. Knows nothing about trials and loops.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..build import InvalidTrial
from ..forward import TARGET, class_scores, fitted, has_logits, is_fitting, own_loss, predictions, run_model
from ..recipe import IGNORED_LABEL, Example, collate, count_tokens
from ..team import gathered, in_turns

SAME_LOSS = 0.01
"""Losses that differ by less, relatively, are one: 16-bit arithmetic rounds by about so much."""

PAST = "past_values"
"""Under this name a batch holds what precedes the numbers to be predicted, if it is a series."""

LARGEST_EXPONENT = 50.0
"""The perplexity of a higher loss is not given: it means no more than the loss does."""


class Judged(Protocol):
    """A model as evaluation wants it: what a loop trains, with what its batches depend on."""

    @property
    def model(self) -> Any:
        """Takes a batch of ``collate``."""

    @property
    def candidate(self) -> Mapping[str, Any]:
        """Its micro-batch and its effective batch are evaluated with."""

    @property
    def pad_id(self) -> int:
        """The token that short rows are filled up with."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Around each forward pass."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out loss (mean over scored items) with its standard error over rows, and the task's metrics."""

    loss: float
    loss_se: float | None
    rows: int
    metric_name: str | None
    """``accuracy``, ``mae`` (mean absolute error, in the labels' unit) or ``perplexity`` per token.

    None where all that is known is a module's own loss."""
    metric_value: float | None
    metrics: Mapping[str, float]
    """All that can be said beside the loss, the metric above first; see :func:`all_metrics`."""
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
    square: float = math.nan
    """Of numbers: the mean of their squared errors."""
    scaled: float = math.nan
    """Of a series: its absolute error in units of what a naive forecast errs by."""
    label: int | None = None
    guess: int | None = None
    """Of a class: what it is, and what it was taken for."""
    hits: int = 0
    """Of tokens: how many were the most likely ones."""


@torch.no_grad()
def evaluate(session: Judged, rows: Sequence[Example]) -> Evaluation:
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
    found = all_metrics(rows[0], scores, loss)
    metrics = {name: value for name, value in found.items() if math.isfinite(value)}
    name = next(iter(found), None)
    if rows[0].arrays is not None and name not in metrics:
        name = None
    value = metrics.get(name) if name else None
    return Evaluation(loss, standard_error, len(rows), name, value, metrics, losses, items)


def all_metrics(row: Example, scores: Sequence[RowScore], loss: float) -> dict[str, float]:
    """Name → value, of a task that has such rows, the main one first; NaN where nothing tells it.

    ``accuracy`` and ``macro_f1`` of classes; ``mae`` and ``rmse`` of numbers, of series ``mase``, too;
    ``perplexity`` and ``token_accuracy`` of texts. A module's own loss has none.
    """
    items = sum(score.items for score in scores)
    mean = sum(score.metric * score.items for score in scores) / items
    if row.label is not None:
        found = {"accuracy": mean, "macro_f1": macro_f1(scores)}
    elif row.value is not None or row.numbers is not None:
        squares = sum(score.square * score.items for score in scores) / items
        scaled = [score.scaled for score in scores if not math.isnan(score.scaled)]
        found = {"mae": mean, "rmse": math.sqrt(squares)}
        if scaled and not math.isnan(mean):
            found["mase"] = sum(scaled) / len(scaled)
    elif row.arrays is not None:
        found = {}
    else:
        perplexity = math.exp(loss) if loss < LARGEST_EXPONENT else math.nan
        found = {"perplexity": perplexity, "token_accuracy": sum(score.hits for score in scores) / items}
    return found


def macro_f1(scores: Sequence[RowScore]) -> float:
    """The mean over classes of 2·TP / (2·TP + FP + FN), of those that there are or that were guessed.

    As scikit-learn's ``f1_score(average="macro")``; NaN where no class is known.
    """
    right = Counter(score.label for score in scores if score.label == score.guess)
    seen = Counter(name for score in scores for name in (score.label, score.guess))
    del seen[None]  # where there were no scores of classes
    return sum(2 * right[name] / count for name, count in seen.items()) / len(seen) if seen else math.nan


def judged(session: Judged, rows: Sequence[Example]) -> list[RowScore]:
    """The scores of all rows, in their order.

    A loss of the module's own that is no mean of what can be told row by row is asked for one row at a time:
    micro-batches of candidates differ. Without a target it may compare the rows of a batch with each other:
    all candidates then get batches of one size, the effective batch, and each batch has one score.
    """
    first = rows[0]
    if first.arrays is None or first.label is not None or first.numbers is not None:
        scores: list[tuple[int, RowScore]] = []
        for batch in batch_scores(session, rows, session.candidate["micro_batch"]):
            if any(score.shared for _, score in batch):
                return in_order(batch_scores(session, rows, 1))
            scores += batch
        return in_order([scores])
    return in_order(batch_scores(session, rows, session.candidate["recipe"]["effective_batch"]))


def in_order(batches: Iterable[Sequence[tuple[int, RowScore]]]) -> list[RowScore]:
    """The scores of all processes by the numbers of their rows; of a shared one that of the first."""
    scores = dict(gathered([pair for batch in batches for pair in batch]))
    return [scores[number] for number in sorted(scores)]


def batch_scores(session: Judged, rows: Sequence[Example], size: int) -> Iterator[list[tuple[int, RowScore]]]:
    """Batch by batch, the scores of rows with their numbers; the shortest rows first, for little padding.

    Several processes take turns, each with its own batches.
    """
    numbered = sorted(enumerate(rows), key=lambda pair: count_tokens(pair[1]))
    batches = [numbered[start : start + size] for start in range(0, len(numbered), size)]
    for batch, _ in in_turns(batches):
        scores = score_rows(session, [row for _, row in batch])
        yield list(zip((number for number, _ in batch), scores, strict=False))  # one of them, if shared


def score_rows(session: Judged, examples: Sequence[Example]) -> list[RowScore]:
    """One micro-batch through the model. Logits become float32 a row at a time: a copy of all is large."""
    device = session.device
    batch = {name: value.to(device) for name, value in collate(examples, pad_id=session.pad_id).items()}
    if examples[0].arrays is not None:
        with session.autocast():
            return score_arrays(run_model(session.model, batch), batch)
    labels = batch["labels"]
    writes = examples[0].target_ids is not None
    if not writes:  # an encoder-decoder makes the decoder's input from them
        del batch["labels"]
    with session.autocast():
        logits = predictions(run_model(session.model, batch))
    if logits is None:
        raise InvalidTrial("the module returned no scores in evaluation")
    if examples[0].value is not None:
        errors = (logits.float().reshape(-1) - labels).tolist()
        return [RowScore(error**2, 1, abs(error), square=error**2) for error in errors]
    if examples[0].label is not None:
        return score_classes(logits, labels)
    if not writes:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return [score_tokens(*pair) for pair in zip(logits, labels, strict=True)]


def score_tokens(logits: torch.Tensor, labels: torch.Tensor) -> RowScore:
    """A row's tokens, each by the scores that it was predicted with."""
    learnt = labels != IGNORED_LABEL
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    hits = int((logits.argmax(-1) == labels)[learnt].sum())
    return RowScore(float(loss), int(learnt.sum()), math.nan, hits=hits)


@contextmanager
def same_chance(session: Judged) -> Iterator[None]:
    """Let whatever a module draws in evaluation (masks, crops) be the same for all, and disturb nothing."""
    device = session.device
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
        past = batch.get(PAST)
        if past is not None and past.dim() == 3 and past.shape[2:] == target.shape[2:]:
            errors = scaled_errors(fitted(predicted.float(), target), target, past)
            scores = [replace(score, scaled=error) for score, error in zip(scores, errors, strict=True)]
    if own is None:
        return scores
    rows, loss = len(next(iter(batch.values()))), float(own)
    if scores and math.isclose(loss, sum(score.loss for score in scores) / rows, rel_tol=SAME_LOSS):
        return scores
    means_little = target is None or (target.is_floating_point() and has_logits(output))
    if means_little or not scores:
        return [RowScore(loss * rows, rows, math.nan, shared=True)]
    metric = sum(score.metric for score in scores) / rows
    return [replace(scores[0], loss=loss * rows, items=rows, metric=metric, shared=True)]


def score_predictions(predicted: torch.Tensor, target: torch.Tensor) -> list[RowScore]:
    """Rows with a class, or with numbers to predict, one or many each."""
    if not target.is_floating_point():
        return score_classes(class_scores(predicted, target), target)
    errors = (fitted(predicted, target) - target).reshape(len(target), -1)
    squares, sizes = errors.square().mean(1).tolist(), errors.abs().mean(1).tolist()
    return [RowScore(square, 1, size, square=square) for square, size in zip(squares, sizes, strict=True)]


def scaled_errors(predicted: torch.Tensor, target: torch.Tensor, past: torch.Tensor) -> list[float]:
    """Of each row, the mean over steps and channels of |error| / (mean |y(t) - y(t-1)| of its own past).

    What the error is divided by is that of the naive forecast "as the last value", one step ahead; below 1 a
    forecast errs less than that. The mean over rows is the mean absolute scaled error (Hyndman & Koehler,
    Another look at measures of forecast accuracy, 2006). A channel whose past stands still is left out; NaN
    where all do. (rows, steps, channels), all three.
    """
    naive = past.diff(dim=1).abs().mean(1)
    moves = naive > 0
    errors = (predicted - target).abs().mean(1) / naive.where(moves, torch.ones_like(naive))
    return ((errors * moves).sum(1) / moves.sum(1)).tolist()  # 0 / 0 is NaN


def score_classes(logits: torch.Tensor, labels: torch.Tensor) -> list[RowScore]:
    """Rows with a class each."""
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none").tolist()
    rows = zip(losses, labels.tolist(), logits.argmax(-1).tolist(), strict=True)
    return [RowScore(loss, 1, float(label == guess), label=label, guess=guess) for loss, label, guess in rows]


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
