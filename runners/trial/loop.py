"""The training loop: optimizer steps over real batches, and evaluation on held-out rows.

Imports nothing of rankwise but the batches (:mod:`..recipe`) and the builder (:mod:`..build`), which are
free of it too: the exported script is made of these sources. Knows nothing about what is measured, saved
or reported: callers watch the steps go by.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from ..build import autocast_name, build_model, make_optimizer, make_schedule
from ..recipe import Example, collate, count_scored


@dataclass
class Session:
    """A model made ready to train: what one optimizer step needs."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    candidate: Mapping[str, Any]
    pad_id: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step did. ``tokens`` counts no padding; the device idles at both ends."""

    number: int
    loss: float
    tokens: int
    rows: int
    seconds: float
    learning_rate: float
    skipped: bool
    """The gradient overflowed under float16 loss scaling, and nothing was updated."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out loss (mean over scored items) with its standard error over rows, and the task's metric."""

    loss: float
    loss_se: float | None
    rows: int
    metric_name: str
    metric_value: float | None


def open_session(
    model_path: str,
    *,
    task: Mapping[str, Any],
    candidate: Mapping[str, Any],
    pad_id: int,
    seed: int,
    total_steps: int,
    on_cpu: bool,
    trust_remote_code: bool = False,
) -> Session:
    """Build model, optimizer and schedule, and place them on the device that accelerate finds."""
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=autocast_name(candidate["level"]))
    model = build_model(
        model_path,
        task=task,
        candidate=candidate,
        pad_id=pad_id,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    model = model.to(accelerator.device)
    optimizer = make_optimizer(model, candidate)
    schedule = make_schedule(optimizer, recipe=candidate["recipe"], total_steps=total_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(seed)
    return Session(accelerator, model, optimizer, schedule, candidate, pad_id)


def run_step(session: Session, examples: Sequence[Example], number: int) -> Step:
    """One optimizer step over the rows of one effective batch, in micro-batches.

    Each micro-batch is weighted by its share of the scored items, so that the loss and its gradient are
    the mean over the whole effective batch whatever the micro-batch.
    """
    micro_batch = session.candidate["micro_batch"]
    device = session.accelerator.device
    batches = [
        collate(examples[start : start + micro_batch], pad_id=session.pad_id)
        for start in range(0, len(examples), micro_batch)
    ]
    scored = [count_scored(batch) for batch in batches]
    total_scored = max(1, sum(scored))
    learning_rate = session.optimizer.param_groups[0]["lr"]
    synchronize(device)
    started = time.perf_counter()
    loss_sum = torch.zeros((), device=device)
    for batch, items in zip(batches, scored, strict=True):
        if items == 0:
            continue  # a mean over nothing is NaN
        with session.accelerator.autocast():
            loss = session.model(**{name: value.to(device) for name, value in batch.items()}).loss
        weighted = loss * (items / total_scored)
        session.accelerator.backward(weighted)
        loss_sum += weighted.detach()
    session.accelerator.clip_grad_norm_(
        session.model.parameters(), session.candidate["recipe"]["max_grad_norm"]
    )
    session.optimizer.step()
    session.schedule.step()
    session.optimizer.zero_grad()
    synchronize(device)
    return Step(
        number=number,
        loss=float(loss_sum),
        tokens=sum(len(example.input_ids) for example in examples),
        rows=len(examples),
        seconds=time.perf_counter() - started,
        learning_rate=learning_rate,
        skipped=session.accelerator.optimizer_step_was_skipped,
    )


def run_steps(
    session: Session,
    rows: Sequence[Example],
    order: Iterator[list[int]],
    *,
    first: int = 0,
    last: int | None = None,
) -> Iterator[Step]:
    """Optimizer steps ``first`` (0-based) up to ``last`` (exclusive; None: as long as the caller asks).

    Steps before ``first`` are skipped in the order of rows, which is how a resumed run meets the rows
    that the interrupted one had not seen.
    """
    for number, chosen in enumerate(order):
        if last is not None and number >= last:
            return
        if number >= first:
            yield run_step(session, [rows[row] for row in chosen], number)


@torch.no_grad()
def evaluate(session: Session, rows: Sequence[Example]) -> Evaluation:
    """Task loss on the rows, without any penalty that an adapter adds to its training loss.

    The loss is computed here from the logits, in float32, per row; its standard error treats rows as
    the sample (a ratio estimate where rows hold different numbers of scored items).
    """
    model = session.model
    model.eval()
    losses: list[float] = []
    items: list[int] = []
    correct = 0
    micro_batch = session.candidate["micro_batch"]
    shortest_first = sorted(rows, key=lambda example: len(example.input_ids))  # little padding
    for start in range(0, len(shortest_first), micro_batch):
        examples = shortest_first[start : start + micro_batch]
        batch = collate(examples, pad_id=session.pad_id)
        labels = batch.pop("labels").to(session.accelerator.device)
        with session.accelerator.autocast():
            logits = model(**{name: value.to(labels.device) for name, value in batch.items()}).logits
        if labels.dim() == 1:
            correct += int((logits.argmax(-1) == labels).sum())
        else:
            logits, labels = logits[:, :-1], labels[:, 1:]
        per_item = torch.nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none"
        ).reshape(len(examples), -1)
        losses += per_item.sum(1).tolist()
        items += (labels != -100).reshape(len(examples), -1).sum(1).tolist()
    model.train()
    loss, standard_error = ratio_with_error(losses, items)
    if rows[0].label is not None:
        return Evaluation(loss, standard_error, len(rows), "accuracy", correct / len(rows))
    perplexity = math.exp(loss) if loss < 50 else None
    return Evaluation(loss, standard_error, len(rows), "perplexity", perplexity)


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


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it, so that a clock reads work and not queueing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
