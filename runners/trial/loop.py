"""The training loop: optimizer steps over real batches, and evaluation on held-out rows.

Imports nothing of rankwise but sources that are free of it too, the batches (:mod:`..recipe`) and the builder
(:mod:`..build`) among them: the exported script is made of all these. Knows nothing about what is measured,
saved or reported: callers watch the steps go by.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..adalora import allocate_ranks
from ..build import Census, census_of, make_optimizer, make_schedule
from ..forward import batch_loss, run_model
from ..recipe import Example, count_tokens, micro_batches
from ..saving import save_trained
from ..spreading import (
    base_optimizer,
    build_device,
    gathers_weights,
    is_spread,
    make_accelerator,
    whole_parameters,
)
from ..team import largest, own_batches, own_rank, summed, world_size
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
    census: Census
    """Of the model before it was divided."""
    loss_scale: float = 1.0
    """By which losses are multiplied because what spreads the training divides gradients by it."""

    @property
    def bare_model(self) -> Any:
        """The model without what accelerate put around it."""
        if not is_spread(self.candidate["level"]):
            return self.model  # nothing is around it; asked, accelerate (1.15) would import DeepSpeed
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

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Around one micro-batch's passes: gradients are exchanged, and weights updated, after the last."""
        self.accelerator.sync_gradients = is_last
        waits = not is_last and world_size() > 1 and not self.candidate["level"]["zero_stage"]
        with self.accelerator.no_sync(self.model) if waits else nullcontext():
            yield

    def save(self, folder: Path, *, labels: Sequence[str], is_made: bool) -> None:
        """Write what was trained, see :mod:`..saving`. All processes have to ask, one writes."""
        state = None
        if gathers_weights(self.candidate["level"]):
            state = whole_parameters(self.bare_model, trained_only=self.has_adapter)
        if own_rank() == 0:
            save_trained(self.bare_model, folder, labels=labels, is_made=is_made, state=state)


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step of all processes did, the same in each of them.

    ``tokens`` counts no padding, and rows that are no text as one each. The device idles at both ends.
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
    deepspeed: Mapping[str, Any] | None = None,
) -> Session:
    """Build model, optimizer and schedule, on the device that accelerate finds.

    Raises:
        InvalidTrial: model or device cannot do what the level says.
    """
    accelerator = make_accelerator(candidate, deepspeed=deepspeed, on_cpu=on_cpu)
    trainee = open_trainee(
        model_path,
        task=task,
        candidate=candidate,
        adapter_config=adapter_config,
        pad_id=pad_id,
        seed=seed,
        device=build_device(candidate["level"], accelerator.device),
        has_weights=has_weights,
        trust_remote_code=trust_remote_code,
        factory=factory,
    )
    census = census_of(trainee.model)
    optimizer = make_optimizer(trainee.model, candidate)
    model, optimizer = accelerator.prepare(trainee.model, optimizer)
    # Of the optimizer that really steps: DeepSpeed puts another in the place of one that is offloaded.
    schedule = make_schedule(base_optimizer(optimizer), recipe=candidate["recipe"], total_steps=total_steps)
    # Dropout differs from process to process, as it does from row to row.
    set_seed(seed + own_rank())
    return Session(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        candidate=candidate,
        pad_id=pad_id,
        census=census,
        loss_scale=world_size() * (1 if deepspeed is None else deepspeed["gradient_accumulation_steps"]),
    )


def run_step(session: Session, examples: Sequence[Example], number: int) -> Step:
    """One optimizer step over the rows of one effective batch, in micro-batches.

    Each micro-batch is weighted by its share of the scored items, so that the loss and its gradient are
    the mean over the whole effective batch whatever the micro-batch and however many processes.
    """
    device = session.device
    batches = micro_batches(examples, size=session.candidate["micro_batch"], pad_id=session.pad_id)
    own = own_batches(batches)
    learning_rate = session.optimizer.param_groups[0]["lr"]
    synchronize(device)
    started = time.perf_counter()
    loss_sum = torch.zeros((), device=device)
    for number_in_step, (batch, share) in enumerate(own, 1):
        with session.accumulating(is_last=number_in_step == len(own)):
            with session.autocast():
                on_device = {name: value.to(device) for name, value in batch.items()}
                loss = batch_loss(run_model(session.model, on_device), on_device)
            weighted = loss * share
            session.accelerator.backward(
                weighted if session.loss_scale == 1 else weighted * session.loss_scale
            )
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
        seconds=largest(time.perf_counter() - started, device),
        loss=float(summed(loss_sum)),
        tokens=sum(count_tokens(example) for example in examples),
        rows=len(examples),
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
