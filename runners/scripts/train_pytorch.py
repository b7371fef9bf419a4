"""The main program of ``train_pytorch.py``: the full training run as a plain loop, to be taken apart.

Imports nothing of rankwise but the sources that the program is made of, and neither accelerate nor a trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
import transformers

from ..adalora import allocate_ranks
from ..build import autocast_name, make_optimizer, make_schedule
from ..forward import batch_loss, run_model
from ..recipe import Example, micro_batches, step_rows
from ..trainee import Trainee
from .any_rows import open_any_rows
from .shared import VALUES
from .training import (
    StepLog,
    finish,
    last_step,
    load_examples,
    make_training_parser,
    open_model,
    whole_training,
)


def main() -> int:
    """Train; returns the process's exit code."""
    arguments = make_training_parser().parse_args()
    tokenizer, read = open_any_rows(arguments.model, arguments.data)
    rows, heldout = load_examples(arguments.data, read)
    total_steps = whole_training(len(rows))
    trainee = open_model(arguments.model, tokenizer=tokenizer, total_steps=total_steps, on_cpu=arguments.cpu)
    last = last_step(total_steps, arguments.max_steps)
    log = StepLog(arguments.log, last)
    steps = train(trainee, rows, total_steps=total_steps)
    for number, (loss, learning_rate) in enumerate(islice(steps, last), start=1):
        log.tell(number, loss, learning_rate)
    finish(trainee, trainee.model, heldout, arguments.out, tokenizer)
    return 0


def train(trainee: Trainee, rows: list[Example], *, total_steps: int) -> Iterator[tuple[float, float]]:
    """Optimizer steps: the loss of each, and the learning rate that it was taken with."""
    model, device, recipe = trainee.model, trainee.device, trainee.candidate["recipe"]
    optimizer = make_optimizer(model, trainee.candidate)
    schedule = make_schedule(optimizer, recipe=recipe, total_steps=total_steps)
    # Gradients in float16 are scaled, lest small ones vanish; for other dtypes the scaler does nothing.
    is_scaled = device.type == "cuda" and autocast_name(trainee.candidate["level"]) == "fp16"
    scaler = torch.amp.GradScaler(device.type, enabled=is_scaled)
    order = step_rows(len(rows), effective_batch=recipe["effective_batch"], seed=VALUES["order_seed"])
    transformers.set_seed(VALUES["seed"])  # of dropout
    for number, chosen in enumerate(order):
        loss_sum = 0.0
        examples = [rows[row] for row in chosen]
        for batch, share in micro_batches(
            examples, size=trainee.candidate["micro_batch"], pad_id=trainee.pad_id
        ):
            if share == 0:
                continue  # a mean over nothing is NaN
            on_device = {name: value.to(device) for name, value in batch.items()}
            with trainee.autocast():
                loss = batch_loss(run_model(model, on_device), on_device) * share
            scaler.scale(loss).backward()
            loss_sum += float(loss.detach())
        learning_rate = optimizer.param_groups[0]["lr"]
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["max_grad_norm"])
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if trainee.tuner is not None:
            allocate_ranks(trainee.tuner, number, skipped=scaler.get_scale() < scale)
        schedule.step()
        optimizer.zero_grad()
        yield loss_sum, learning_rate
