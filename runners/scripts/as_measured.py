"""transformers' Trainer, made to train as the trial did: order of rows, weights of losses, optimizer, ranks.

Imports nothing of rankwise but the sources that the programs are made of. What ``training_args.json`` says is
taken from there: batch, epochs, learning rate, schedule, weight decay, optimizer and seed. What is decided
when the model is built (dtypes, quantization, checkpointing, compiling, how the loss is computed) is part of
the program.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader
from transformers.trainer_utils import get_last_checkpoint

from ..adalora import allocate_ranks
from ..build import make_optimizer
from ..forward import batch_loss, run_model
from ..recipe import count_scored, epoch_order, training_steps
from ..trainee import Trainee
from .shared import VALUES, say
from .training import EXIT_STOPPED, StepLog, Stop, last_step

SETTINGS_FILE = "training_args.json"

DECIDED_BY_THE_MODEL: Mapping[str, Any] = {
    "activation_checkpointing": False,
    "torch_compile": False,
    "use_liger_kernel": False,
}
"""The model is built with them; a Trainer that sets them anew would, say, have PEFT ask for the gradients of
all inputs."""


def read_settings(rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the Trainer: those of the file, and what the program's own arguments and the data say.

    Args:
        rows: to train on.
        arguments: of the program.
    """
    file = Path(__file__).with_name(SETTINGS_FILE)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{file}: {error}; put the one that was written with this program beside it")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.exit("this program trains in one process, as was measured: start it without a launcher")
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    epochs = settings["num_train_epochs"]
    return {
        "logging_steps": 1,
        "save_steps": VALUES["checkpoint_every"],
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        **settings,
        **DECIDED_BY_THE_MODEL,
        "output_dir": str(arguments.out),
        "max_steps": training_steps(rows, {"effective_batch": batch, "epochs": epochs}),
        "use_cpu": arguments.cpu or not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "label_names": ["labels"],
    }


def on_one_device(settings: Any) -> Any:
    """``TrainingArguments`` that know of one GPU, whatever the machine has: a Trainer would take them all."""
    if settings.device.type == "cuda":  # asking for the device counts them
        settings._n_gpu = 1
    return settings


class EpochBatches:
    """Row numbers of micro-batches, an epoch at a time, in the order in which the trial's loop takes them."""

    def __init__(self, rows: int, *, effective_batch: int, micro_batch: int, seed: int) -> None:
        self.rows, self.batch, self.micro_batch = rows, min(effective_batch, rows), micro_batch
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch comes."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches an epoch; its incomplete last batch is dropped."""
        return self.rows // self.batch * -(-self.batch // self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        """Those of the epoch that was set."""
        order = epoch_order(self.rows, seed=self.seed, epoch=self.epoch)
        for start in range(0, self.rows - self.batch + 1, self.batch):
            chosen = order[start : start + self.batch]
            for first in range(0, self.batch, self.micro_batch):
                yield chosen[first : first + self.micro_batch]


class EpochLoader(DataLoader[Any]):
    """A loader whose order the Trainer's epochs decide."""

    def set_epoch(self, epoch: int) -> None:
        """Passed on to the batches."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


@contextmanager
def beside_quantized_weights(model: Any) -> Iterator[None]:
    """Within it, a Trainer takes a quantized model without an adapter, whose trained parts are not quantized.

    transformers (5.23) refuses it lest quantized weights are trained; these are frozen.
    """
    refused = getattr(model, "is_quantized", False) and not hasattr(model, "peft_config")
    if refused:
        model._hf_peft_config_loaded = True
    yield
    if refused:
        del model._hf_peft_config_loaded


class AsMeasured(transformers.Trainer):
    """A Trainer whose steps are those of the trial."""

    def __init__(self, trainee: Trainee, **options: Any) -> None:
        self.trainee = trainee
        self.optimizer: Any = None
        model = trainee.model
        trained = [(part, part.data) for part in model.parameters() if part.requires_grad]
        with beside_quantized_weights(model):
            super().__init__(model=model, **options)
        for part, data in trained:
            part.data = data  # TRL (1.16) makes adapters of quantized models bfloat16
        self.loss_is_scaled_for_ga = True  # see compute_loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches in the trial's order; nothing is drawn from the random numbers of dropout."""
        micro_batch = self.args.per_device_train_batch_size
        batches = EpochBatches(
            len(self.train_dataset),
            effective_batch=micro_batch * self.args.gradient_accumulation_steps,
            micro_batch=micro_batch,
            seed=VALUES["order_seed"],
        )
        return EpochLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The trial's, at the rate and the decay of the Trainer's arguments."""
        if self.optimizer is None:
            candidate = self.trainee.candidate
            form = {
                "learning_rate": self.args.learning_rate,
                "recipe": {**candidate["recipe"], "weight_decay": self.args.weight_decay},
                "level": {**candidate["level"], "optimizer": str(self.args.optim.value)},
            }
            self.optimizer = make_optimizer(self.model if model is None else model, {**candidate, **form})
        return self.optimizer

    def get_batch_samples(self, *arguments: Any, **options: Any) -> tuple[list[Any], int]:
        """The micro-batches of a step, and how many items are scored in all of them."""
        batches, _ = super().get_batch_samples(*arguments, **options)
        return batches, max(1, sum(map(count_scored, batches)))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """A micro-batch; one in which nothing is scored is left out, for a mean over nothing is NaN."""
        if count_scored(inputs) == 0:
            return torch.zeros((), device=self.args.device)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss, weighted by its share of the step's scored items.

        A Trainer weights micro-batches alike where the model does not ask for their number (classifiers).
        """
        with self.trainee.autocast():
            output = run_model(self.trainee.model, inputs, call=model)
            loss = batch_loss(output, inputs)
        if num_items_in_batch is not None:
            loss = loss * (count_scored(inputs) / int(num_items_in_batch))
        return (loss, output) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: all parameters would be looked through for each micro-batch."""
        return 0


class Following(transformers.TrainerCallback):
    """What the trial's loop does beside its steps: seed, prune ranks, tell the loss, stop."""

    def __init__(self, arguments: argparse.Namespace, total_steps: int) -> None:
        self.last, self.stop = last_step(total_steps, arguments.max_steps), Stop()
        self.log = StepLog(arguments.log, self.last)
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A Trainer draws random numbers before its first step: begin again with those of the trial."""
        if state.global_step == 0:
            transformers.set_seed(args.seed)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Gradients are still there: ranks are pruned by them."""
        skipped = self.trainer.accelerator.optimizer_step_was_skipped
        if (tuner := self.trainer.trainee.tuner) is not None:
            allocate_ranks(tuner, state.global_step, skipped=skipped)
        if skipped:
            self.trainer.lr_scheduler.step()  # the trial's rate falls with each step, this one too

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and leave when asked to; leave after the last step."""
        control.should_save |= self.stop.asked
        control.should_training_stop |= self.stop.asked or state.global_step >= self.last

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Tell the loss of a step."""
        if "loss" in logs:
            self.log.tell(state.global_step, logs["loss"], logs["learning_rate"])


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Trainers save checkpoints, and can go on from them."""
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")


def run_trainer(trainer: AsMeasured, following: Following, arguments: argparse.Namespace) -> int:
    """Train, from the last checkpoint if so asked; returns the exit code, 0 at the training's end."""
    if arguments.resume and trainer.trainee.tuner is not None:
        sys.exit(
            "--resume: a Trainer's checkpoint does not tell which ranks matter; train.py resumes AdaLoRA"
        )
    if arguments.resume and get_last_checkpoint(arguments.out) is None:
        sys.exit(f"no checkpoint in {arguments.out}: run without --resume, or name its folder with --out")
    following.trainer = trainer
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(following)
    trainer.train(resume_from_checkpoint=arguments.resume)
    if following.stop.asked:
        say(f"stopped after step {trainer.state.global_step}; go on with --resume --out {arguments.out}")
        return EXIT_STOPPED
    return 0
