"""The training loop: optimizer steps over real batches, and evaluation on held-out rows.

Imports nothing of rankwise but sources that are free of it too, the batches (:mod:`..recipe`) and the builder
(:mod:`..build`) among them: the exported script is made of all these. Knows nothing about what is measured,
saved or reported: callers watch the steps go by.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..adalora import allocate_ranks
from ..build import autocast_name, make_optimizer, make_schedule
from ..forward import batch_loss, run_model
from ..recipe import Example, count_tokens, micro_batches
from ..trainee import open_trainee


@dataclass
class Session:
    """A model made ready to train: what one optimizer step needs."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    candidate: Mapping[str, Any]
    pad_id: int

    @property
    def bare_model(self) -> Any:
        """The model without what accelerate put around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def device(self) -> torch.device:
        """What the model is on."""
        return self.accelerator.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Around each forward pass."""
        return self.accelerator.autocast()

    @property
    def has_adapter(self) -> bool:
        """PEFT put something beside the model's weights; else some or all of these are trained themselves."""
        return hasattr(self.bare_model, "peft_config")

    @property
    def tuner(self) -> Any | None:
        """PEFT's model around the base where ranks are to be pruned (AdaLoRA), else None."""
        return self.bare_model.base_model if self.candidate["adapter"]["method"] == "adalora" else None


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step did. ``tokens`` counts no padding, and rows that are no text as one each.

    The device idles at both ends.
    """

    number: int
    loss: float
    """What was minimised, an adapter's penalty included (AdaLoRA's, for matrices that are not orthogonal)."""
    tokens: int
    rows: int
    seconds: float
    learning_rate: float
    skipped: bool
    """The gradient overflowed under float16 loss scaling, and nothing was updated."""


def open_session(
    model_path: str,
    *,
    task: Mapping[str, Any],
    candidate: Mapping[str, Any],
    adapter_config: Mapping[str, Any] | None,
    pad_id: int,
    seed: int,
    total_steps: int,
    on_cpu: bool,
    has_weights: bool = True,
    trust_remote_code: bool = False,
    factory: Mapping[str, Any] | None = None,
) -> Session:
    """Build model, optimizer and schedule, on the device that accelerate finds.

    Raises:
        InvalidTrial: model or device cannot do what the level says.
    """
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=autocast_name(candidate["level"]))
    trainee = open_trainee(
        model_path,
        task=task,
        candidate=candidate,
        adapter_config=adapter_config,
        pad_id=pad_id,
        seed=seed,
        device=accelerator.device,
        has_weights=has_weights,
        trust_remote_code=trust_remote_code,
        factory=factory,
    )
    optimizer = make_optimizer(trainee.model, candidate)
    schedule = make_schedule(optimizer, recipe=candidate["recipe"], total_steps=total_steps)
    model, optimizer = accelerator.prepare(trainee.model, optimizer)
    set_seed(seed)
    return Session(accelerator, model, optimizer, schedule, candidate, pad_id)


def run_step(session: Session, examples: Sequence[Example], number: int) -> Step:
    """One optimizer step over the rows of one effective batch, in micro-batches.

    Each micro-batch is weighted by its share of the scored items, so that the loss and its gradient are
    the mean over the whole effective batch whatever the micro-batch.
    """
    device = session.device
    batches = micro_batches(examples, size=session.candidate["micro_batch"], pad_id=session.pad_id)
    learning_rate = session.optimizer.param_groups[0]["lr"]
    synchronize(device)
    started = time.perf_counter()
    loss_sum = torch.zeros((), device=device)
    for batch, share in batches:
        if share == 0:
            continue  # a mean over nothing is NaN
        with session.autocast():
            on_device = {name: value.to(device) for name, value in batch.items()}
            loss = batch_loss(run_model(session.model, on_device), on_device)
        weighted = loss * share
        session.accelerator.backward(weighted)
        loss_sum += weighted.detach()
    session.accelerator.clip_grad_norm_(
        session.model.parameters(), session.candidate["recipe"]["max_grad_norm"]
    )
    session.optimizer.step()
    skipped = session.accelerator.optimizer_step_was_skipped
    if (tuner := session.tuner) is not None:
        allocate_ranks(tuner, number, skipped=skipped)
    session.schedule.step()
    session.optimizer.zero_grad()
    synchronize(device)
    return Step(
        number=number,
        loss=float(loss_sum),
        tokens=sum(count_tokens(example) for example in examples),
        rows=len(examples),
        seconds=time.perf_counter() - started,
        learning_rate=learning_rate,
        skipped=skipped,
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


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it, so that a clock reads work and not queueing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
