"""The main program of ``train_lightning.py``: the full training run by Lightning's Trainer.

Imports nothing of rankwise but the sources that the program is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning
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

PRECISIONS = {"no": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names of accelerate's. The first leaves the weights in whatever dtype they are."""

Weighted = tuple[dict[str, torch.Tensor], float]
"""A micro-batch with its share of the scored items of its step."""


class WeightedBatches:
    """The micro-batches of all steps, in the trial's order, for ever."""

    def __init__(self, trainee: Trainee, rows: list[Example]) -> None:
        self.trainee, self.rows = trainee, rows
        self.batch = min(trainee.candidate["recipe"]["effective_batch"], len(rows))

    @property
    def per_step(self) -> int:
        """Micro-batches that make an optimizer step."""
        return -(-self.batch // int(self.trainee.candidate["micro_batch"]))

    def __iter__(self) -> Iterator[Weighted]:
        """From the first step on."""
        size, pad_id = self.trainee.candidate["micro_batch"], self.trainee.pad_id
        for chosen in step_rows(len(self.rows), effective_batch=self.batch, seed=VALUES["order_seed"]):
            yield from micro_batches([self.rows[row] for row in chosen], size=size, pad_id=pad_id)


class Training(lightning.LightningModule):
    """The recommended model, with the optimizer and the schedule that were measured."""

    def __init__(
        self, trainee: Trainee, *, total_steps: int, log: StepLog, at_end: Callable[[], None]
    ) -> None:
        super().__init__()
        self.trainee, self.model = trainee, trainee.model
        self.total_steps, self.step_log, self.at_end = total_steps, log, at_end
        self.steps, self.loss_sum = 0, 0.0

    def configure_optimizers(self) -> dict[str, Any]:
        """Both follow the recommendation; the rate changes with each step."""
        recipe = self.trainee.candidate["recipe"]
        optimizer = make_optimizer(self.model, self.trainee.candidate)
        schedule = make_schedule(optimizer, recipe=recipe, total_steps=self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Dropout draws what it drew in the trial."""
        transformers.set_seed(VALUES["seed"])

    def training_step(self, weighted: Weighted, _: int) -> torch.Tensor | None:
        """A micro-batch's part of the step's loss; Lightning divides it by the number of micro-batches."""
        batch, share = weighted
        if share == 0:
            return None  # a mean over nothing is NaN
        loss = batch_loss(run_model(self.model, batch), batch) * share
        self.loss_sum += float(loss.detach())
        return loss * self.trainer.accumulate_grad_batches

    def optimizer_step(self, epoch: int, batch_number: int, optimizer: Any, closure: Any = None) -> None:
        """A step, and what follows it while its gradients are there."""
        learning_rate = optimizer.param_groups[0]["lr"]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        super().optimizer_step(epoch, batch_number, optimizer, closure)
        if self.trainee.tuner is not None:
            skipped = scaler is not None and scaler.get_scale() < scale
            allocate_ranks(self.trainee.tuner, self.steps, skipped=skipped)
        self.steps += 1
        self.step_log.tell(self.steps, self.loss_sum, learning_rate)
        self.loss_sum = 0.0

    def on_train_end(self) -> None:
        """Lightning moves the model off its device afterwards."""
        self.at_end()


def main() -> int:
    """Train; returns the process's exit code."""
    arguments = make_training_parser().parse_args()
    tokenizer, read = open_any_rows(arguments.model, arguments.data)
    rows, heldout = load_examples(arguments.data, read)
    total_steps = whole_training(len(rows))
    trainee = open_model(arguments.model, tokenizer=tokenizer, total_steps=total_steps, on_cpu=arguments.cpu)
    last = last_step(total_steps, arguments.max_steps)
    batches = WeightedBatches(trainee, rows)
    module = Training(
        trainee,
        total_steps=total_steps,
        log=StepLog(arguments.log, last),
        at_end=lambda: finish(trainee, trainee.model, heldout, arguments.out, tokenizer),
    )
    trainer = lightning.Trainer(
        accelerator="gpu" if trainee.device.type == "cuda" else "cpu",
        devices=1,
        precision=PRECISIONS[autocast_name(trainee.candidate["level"])],
        max_steps=last,
        accumulate_grad_batches=batches.per_step,
        gradient_clip_val=trainee.candidate["recipe"]["max_grad_norm"],
        default_root_dir=arguments.out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)
    return 0
