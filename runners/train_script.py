"""The main program of the exported ``train.py``: the full training run of a recommended candidate.

Imports nothing of rankwise but the sources that the exported file is made of (:mod:`..probes.rows`,
:mod:`.recipe`, :mod:`.build`, :mod:`.trial.loop`). ``VALUES`` is replaced by the study's values when the
file is composed; in this package it is empty, and the program is not run.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from ..probes.rows import read_rows
from .build import load_tokenizer, trainable_sha256
from .recipe import Example, encode, is_heldout, step_rows, training_steps, usable_row
from .trial.loop import Session, Step, evaluate, open_session, run_steps

VALUES: Mapping[str, Any] = {}

LOSS_TOLERANCE = 1e-3
EXIT_STOPPED = 143
"""By convention 128 + SIGTERM."""


def positive(text: str) -> int:
    """A whole number from 1 up, as an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def parse_arguments() -> argparse.Namespace:
    """The few things that may differ from what was measured: where files are, and how long to run."""
    parser = argparse.ArgumentParser(description=VALUES["description"])
    parser.add_argument(
        "--model", default=VALUES["model"], help="model folder or hub id (default: %(default)s)"
    )
    parser.add_argument("--data", default=VALUES["dataset"], help="dataset file (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("trained"), help="results go here (default: %(default)s)"
    )
    parser.add_argument("--max-steps", type=positive, help="stop after this many optimizer steps")
    parser.add_argument("--log", type=Path, help="also write each step as a JSON line to this file")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--cpu", action="store_true", default=VALUES["on_cpu"], help="train on the CPU")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="repeat the first steps of the trial that was measured and compare the losses",
    )
    return parser.parse_args()


def read_examples(path: str, tokenizer: Any) -> tuple[list[Example], list[Example]]:
    """Training and held-out rows, split as the trial split them."""
    task, recipe, split = VALUES["task"], VALUES["candidate"]["recipe"], VALUES["split"]
    sides: tuple[list[Example], list[Example]] = ([], [])
    for row in read_rows(Path(path)):
        if found := usable_row(row, task):
            text, label = found
            example, _ = encode(text, label, tokenizer=tokenizer, task=task, recipe=recipe)
            sides[is_heldout(text, seed=split["seed"], share=split["share"])].append(example)
    return sides


class Stop:
    """Set by SIGTERM and Ctrl-C: finish the step, save, leave."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_: Any) -> None:
        """Signal handler."""
        self.asked = True


def save_checkpoint(session: Session, folder: Path, step: int) -> None:
    """Weights (safetensors), optimizer, schedule, random state and step; complete or not there at all."""
    staging = folder / "checkpoint.writing"
    staging.mkdir(parents=True, exist_ok=True)
    save_file(trained_weights(session.model), staging / "weights.safetensors")
    state = {
        "optimizer": session.optimizer.state_dict(),
        "schedule": session.schedule.state_dict(),
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "step": step,
    }
    torch.save(state, staging / "state.pt")
    final, previous = folder / "checkpoint", folder / "checkpoint.previous"
    if final.exists():
        final.rename(previous)
    staging.rename(final)
    remove_folder(previous)


def load_checkpoint(session: Session, folder: Path) -> int:
    """Restore everything that :func:`save_checkpoint` saved; returns the next step's number."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        checkpoint = folder / "checkpoint.previous"  # stopped between the two renames
    if not checkpoint.exists():
        sys.exit(f"no checkpoint in {folder}: run without --resume, or name its folder with --out")
    weights = load_file(checkpoint / "weights.safetensors")
    if VALUES["candidate"]["adapter"]["method"] == "full":
        session.model.load_state_dict(weights, strict=False)
    else:
        set_peft_model_state_dict(session.model, weights)
    state = torch.load(checkpoint / "state.pt", weights_only=True)  # tensors and plain data, no code
    session.optimizer.load_state_dict(state["optimizer"])
    session.schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"])
    if state["cuda_random"]:
        torch.cuda.set_rng_state_all(state["cuda_random"])
    return int(state["step"])


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of what is trained: the adapter and its head, or all weights, tied ones once."""
    if VALUES["candidate"]["adapter"]["method"] != "full":
        return {name: value.contiguous().clone() for name, value in get_peft_model_state_dict(model).items()}
    return {name: value.detach().contiguous().clone() for name, value in model.named_parameters()}


def remove_folder(folder: Path) -> None:
    """Remove a folder of plain files, if it is there."""
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def verify(session: Session, steps: Iterator[Step]) -> int:
    """Compare what is trained and the first losses with the measured trial; returns the exit code."""
    same_tensors = trainable_sha256(session.model) == VALUES["trial"]["trainable_sha256"]
    if not same_tensors:
        say("NOT the same as measured: other tensors, or other shapes, are trained")
    expected = VALUES["trial"]["first_losses"]
    if not expected:
        say("nothing to compare with: this candidate's speed and memory were measured, its training was not")
        return 1
    worst = 0.0
    for step, loss in zip(steps, expected, strict=False):
        worst = max(worst, abs(step.loss - loss))
        say(f"step {step.number + 1:3d}  loss {step.loss:.6f}  measured {loss:.6f}")
    same_losses = worst <= LOSS_TOLERANCE
    verdict = "the same" if same_losses else "NOT the same"
    say(f"losses {verdict} as measured: they differ by {worst:.2e} at most")
    return 0 if same_tensors and same_losses else 1


def say(text: str) -> None:
    """Progress goes to standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Train; returns the process's exit code."""
    arguments = parse_arguments()
    candidate = VALUES["candidate"]
    trust = VALUES["trust_remote_code"]
    tokenizer = load_tokenizer(arguments.model, trust_remote_code=trust)
    rows, heldout = read_examples(arguments.data, tokenizer)
    batch = candidate["recipe"]["effective_batch"]
    full_steps = training_steps(len(rows), candidate["recipe"])
    total_steps = VALUES["trial"]["steps"] if arguments.verify else full_steps
    last = total_steps if arguments.max_steps is None else min(total_steps, arguments.max_steps)
    session = open_session(
        arguments.model,
        task=VALUES["task"],
        candidate=candidate,
        pad_id=tokenizer.pad_token_id,
        seed=VALUES["seed"],
        total_steps=total_steps,
        on_cpu=arguments.cpu,
        trust_remote_code=trust,
    )
    first = load_checkpoint(session, arguments.out) if arguments.resume else 0
    order = step_rows(len(rows), effective_batch=batch, seed=VALUES["order_seed"])
    steps = run_steps(session, rows, order, first=first, last=last)
    if arguments.verify:
        return verify(session, steps)
    return train(session, steps, heldout, arguments, tokenizer, last)


def train(
    session: Session,
    steps: Iterator[Step],
    heldout: list[Example],
    arguments: argparse.Namespace,
    tokenizer: Any,
    last: int,
) -> int:
    """Take the steps, saving on request; then evaluate and save the result."""
    stop = Stop()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.log.open("a", encoding="utf-8") if arguments.log else None
    for step in steps:
        done = step.number + 1
        say(f"step {done}/{last}  loss {step.loss:.6f}  {step.tokens / step.seconds:.0f} tokens/s")
        if log:
            log.write(
                json.dumps({"step": done, "loss": step.loss, "learning_rate": step.learning_rate}) + "\n"
            )
            log.flush()
        if stop.asked:
            save_checkpoint(session, arguments.out, done)
            say(f"stopped after step {done}; go on with --resume --out {arguments.out}")
            return EXIT_STOPPED
        if done % VALUES["checkpoint_every"] == 0:
            save_checkpoint(session, arguments.out, done)
    result = evaluate(session, heldout)
    metric = "" if result.metric_value is None else f", {result.metric_name} {result.metric_value:.4f}"
    say(f"held-out loss {result.loss:.4f} on {result.rows} rows{metric}")
    session.accelerator.unwrap_model(session.model).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    say(f"saved to {arguments.out}")
    return 0
