"""The main program of ``train_trl.py``: the full training run of a causal language model by TRL's SFTTrainer.

Its settings are those of ``training_args.json`` beside it. Rows are tokenised, masked and packed as they were
measured, and the loss is the trial's: TRL's own leaves out what an adapter adds to it (AdaLoRA's penalty).
Imports nothing of rankwise but the sources that the program is made of.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import datasets
import torch
import trl

from ..recipe import IGNORED_LABEL, padded
from .as_measured import AsMeasured, Following, add_resume, on_one_device, read_settings, run_trainer
from .plain_rows import plain_row
from .shared import VALUES, first_line, open_tokenizer, text_reader
from .training import finish, load_examples, make_training_parser, open_model

CAUSAL_TASKS = ("causal-lm", "prompt-completion", "chat")

ROWS_ARE_READY = {
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "packing": False,
    "gradient_checkpointing": False,
}
"""Tokenised, cut and packed. Checkpointing, which TRL switches on unasked, is the model's matter."""


class MeasuredSFTTrainer(AsMeasured, trl.SFTTrainer):
    """TRL's trainer whose steps are those of the trial."""


def main() -> int:
    """Train; returns the process's exit code."""
    parser = make_training_parser()
    add_resume(parser)
    arguments = parser.parse_args()
    kind = VALUES["task"]["kind"]
    if kind not in CAUSAL_TASKS:
        sys.exit(
            f"TRL's SFTTrainer trains causal language models, the task is {kind}: see train_transformers.py"
        )
    tokenizer = open_tokenizer(arguments.model)
    rows, heldout = load_examples(arguments.data, text_reader(arguments.data, tokenizer))
    settings = on_one_device(trl.SFTConfig(**{**read_settings(len(rows), arguments), **ROWS_ARE_READY}))
    trainee = open_model(
        arguments.model, tokenizer=tokenizer, total_steps=settings.max_steps, on_cpu=settings.use_cpu
    )

    def collate_plain(chosen: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        fill = {"input_ids": trainee.pad_id, "labels": IGNORED_LABEL}
        return {name: padded([row[name] for row in chosen], fill.get(name, 0)) for name in chosen[0]}

    try:
        trainer = MeasuredSFTTrainer(
            trainee,
            args=settings,
            train_dataset=datasets.Dataset.from_list([plain_row(row) for row in rows]),
            data_collator=collate_plain,
            processing_class=tokenizer,
        )
    except ValueError as error:  # it takes no adapter on the output embeddings, say
        sys.exit(f"TRL refuses what was recommended: {first_line(error)}")
    code = run_trainer(trainer, Following(arguments, settings.max_steps), arguments)
    if code == 0:
        finish(trainee, trainee.model, heldout, arguments.out, tokenizer)
    return code
