"""What the training programs share: their rows in memory, the model, the log, and what is left at the end.

Imports nothing of rankwise but the sources that the programs are made of. Knows no loop and no trainer.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..build import Census, InvalidTrial, census_of
from ..modules import InvalidQuantization
from ..recipe import Example, training_steps
from ..saving import save_trained
from ..trainee import Trainee, open_trainee
from ..trial.evaluation import Judged, evaluate
from .shared import (
    VALUES,
    RowReader,
    data_explained,
    first_line,
    is_first_process,
    make_parser,
    require_both_sides,
    say,
    say_split_by_chance,
    split_by_chance,
    split_rows,
)

EXIT_STOPPED = 143
"""By convention 128 + SIGTERM."""


def positive(text: str) -> int:
    """A whole number from 1 up, as an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def make_training_parser() -> argparse.ArgumentParser:
    """The arguments that every training program has."""
    parser = make_parser()
    parser.add_argument(
        "--out", type=Path, default=Path("trained"), help="results go here (default: %(default)s)"
    )
    parser.add_argument("--max-steps", type=positive, help="stop after this many optimizer steps")
    parser.add_argument("--log", type=Path, help="also write each step as a JSON line to this file")
    parser.add_argument("--cpu", action="store_true", default=VALUES["on_cpu"], help="train on the CPU")
    return parser


def read_examples(read: RowReader, *, as_in_trial: bool) -> tuple[list[Example], list[Example]]:
    """Rows to train on, packed if the recipe says so, and held-out ones, split as the trial split them.

    Args:
        read: see :data:`RowReader`.
        as_in_trial: only the rows that the trial met. Those held out always are.
    """
    packing = VALUES["candidate"]["recipe"]["packing"]
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example, heldout in split_rows(read, VALUES["split"], as_in_trial=as_in_trial, packing=packing):
        sides[heldout].append(example)
    if all(sides) or as_in_trial or VALUES["split"] == split_by_chance():
        return sides
    say_split_by_chance()
    sides = ([], [])
    for example, heldout in split_rows(read, split_by_chance(), as_in_trial=False, packing=packing):
        sides[heldout].append(example)
    return sides


def load_examples(
    path: str, read: RowReader, *, as_in_trial: bool = False
) -> tuple[list[Example], list[Example]]:
    """See :func:`read_examples`; leaves the program where that fails, or one side is empty."""
    with data_explained(path):
        rows, heldout = read_examples(read, as_in_trial=as_in_trial)
    require_both_sides(path, len(rows), len(heldout))
    return rows, heldout


def whole_training(rows: int) -> int:
    """Optimizer steps of the training on so many rows."""
    return training_steps(rows, VALUES["candidate"]["recipe"])


def last_step(total_steps: int, max_steps: int | None) -> int:
    """The number of steps after which to stop; the learning rate follows the whole training's schedule."""
    return total_steps if max_steps is None else min(total_steps, max_steps)


def pad_id_of(tokenizer: Any | None) -> int:
    """The token that short rows are filled up with; of no account where rows are no text."""
    return 0 if tokenizer is None else int(tokenizer.pad_token_id)


def open_model(model: str, *, tokenizer: Any | None, total_steps: int, on_cpu: bool) -> Trainee:
    """The model as the trial trained it, on a GPU where there is one unless ``on_cpu``."""
    device = torch.device("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")
    with model_explained(model):
        return open_trainee(
            model,
            task=VALUES["task"],
            candidate=VALUES["candidate"],
            adapter_config=fitted_schedule(VALUES["adapter_config"], total_steps),
            pad_id=pad_id_of(tokenizer),
            seed=VALUES["seed"],
            device=device,
            trust_remote_code=VALUES["trust_remote_code"],
            factory=VALUES["factory"],
        )


@contextmanager
def model_explained(model: str) -> Iterator[None]:
    """Leave the program with one message where the model cannot be what was recommended."""
    try:
        yield
    except (OSError, InvalidTrial, InvalidQuantization) as error:
        sys.exit(f"--model {model}: {first_line(error)}")


def fitted_schedule(config: Mapping[str, Any] | None, total_steps: int) -> Mapping[str, Any] | None:
    """AdaLoRA's plan of pruning stretched to this training: other data make another number of steps."""
    if config is None or "total_step" not in config:
        return config
    stretch = total_steps / config["total_step"]
    plan = {name: int(config[name] * stretch) for name in ("tinit", "tfinal")}
    return {**config, **plan, "total_step": total_steps, "deltaT": max(1, round(config["deltaT"] * stretch))}


class Stop:
    """Set by SIGTERM and Ctrl-C: finish the step, save, leave."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_: Any) -> None:
        """Signal handler."""
        self.asked = True


class StepLog:
    """Tells each step, counted from 1, on standard output, and as a JSON line in a file if there is one."""

    def __init__(self, file: Path | None, last: int) -> None:
        self.file, self.last = file, last

    def tell(self, step: int, loss: float, learning_rate: float, note: str = "") -> None:
        """What was minimised in a step, and at which rate."""
        say(f"step {step}/{self.last}  loss {loss:.6f}{note}")
        if self.file is not None and is_first_process():
            line = json.dumps({"step": step, "loss": loss, "learning_rate": learning_rate})
            with self.file.open("a", encoding="utf-8") as opened:
                opened.write(f"{line}\n")


def finish(
    judged: Judged,
    model: Any,
    heldout: list[Example],
    folder: Path,
    tokenizer: Any | None,
    *,
    census: Census | None = None,
    save: Callable[..., None] | None = None,
) -> None:
    """Evaluate and save the result, and say what it is.

    Args:
        judged: the model as it is called.
        model: the same without what a loop put around it.
        heldout: rows to evaluate on.
        folder: where it is saved.
        tokenizer: saved with it; None where rows are no text.
        census: of the model before processes divided it; None where they did not.
        save: takes the arguments of ``save_trained`` but the model; None: that is what saves.
    """
    result = evaluate(judged, heldout)
    metrics = "".join(f", {name} {value:.4f}" for name, value in result.metrics.items())
    say(f"held-out loss {result.loss:.4f} on {result.rows} rows{metrics}")
    census = census or census_of(model)
    same = census.trained_sha256 == VALUES["trial"]["trainable_sha256"]
    say(f"trained {census.trained:,} parameters, {'the' if same else 'NOT the'} tensors that were measured")
    save = save or partial(save_trained, model)
    save(folder, labels=VALUES["task"]["labels"], is_made=VALUES["factory"] is not None)
    if tokenizer is not None and is_first_process():
        tokenizer.save_pretrained(folder)
    say(f"saved to {folder}")
