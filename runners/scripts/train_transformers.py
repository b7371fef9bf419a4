"""The main program of ``train_transformers.py``: the full training run by transformers' Trainer.

Its settings are those of ``training_args.json`` beside it. Imports nothing of rankwise but the sources that
the program is made of.
"""

from __future__ import annotations

from functools import partial

import transformers

from ..recipe import collate
from .any_rows import open_any_rows
from .as_measured import AsMeasured, Following, add_resume, on_one_device, read_settings, run_trainer
from .training import finish, load_examples, make_training_parser, open_model


def main() -> int:
    """Train; returns the process's exit code."""
    parser = make_training_parser()
    add_resume(parser)
    arguments = parser.parse_args()
    tokenizer, read = open_any_rows(arguments.model, arguments.data)
    rows, heldout = load_examples(arguments.data, read)
    settings = on_one_device(transformers.TrainingArguments(**read_settings(len(rows), arguments)))
    trainee = open_model(
        arguments.model, tokenizer=tokenizer, total_steps=settings.max_steps, on_cpu=settings.use_cpu
    )
    trainer = AsMeasured(
        trainee,
        args=settings,
        train_dataset=rows,
        data_collator=partial(collate, pad_id=trainee.pad_id),
    )
    code = run_trainer(trainer, Following(arguments, settings.max_steps), arguments)
    if code == 0:
        finish(trainee, trainee.model, heldout, arguments.out, tokenizer)
    return code
