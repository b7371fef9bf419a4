"""The main program of the exported ``train.py``: the full training run of a recommended candidate.

Imports nothing of rankwise but the sources that the exported file is made of (``SCRIPT_SOURCES`` in
:mod:`.ready_files`). ``VALUES`` is replaced by the study's values when the file is composed; in this package
it is empty, and the program is not run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..probes.rows import RowError
from .adalora import rank_state, restore_ranks
from .array_samples import array_examples
from .build import InvalidTrial, load_tokenizer, trainable_sha256
from .modules import InvalidQuantization
from .recipe import Example, pack_training_rows, step_rows, training_steps
from .samples import SampleError, encode_rows
from .saving import save_trained
from .trial.evaluation import evaluate
from .trial.loop import Session, Step, open_session, run_steps

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
    if VALUES["has_weights"]:
        parser.add_argument(
            "--model", default=VALUES["model"], help="folder or hub id (default: %(default)s)"
        )
    else:
        parser.add_argument(
            "--model", required=True, help="folder or hub id with weights: what was measured had random ones"
        )
    parser.add_argument("--data", default=VALUES["dataset"], help="dataset (default: %(default)s)")
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


def open_tokenizer(model: str) -> Any | None:
    """The model's tokenizer, with the chat template that the samples were measured with; None where rows are
    no text."""
    if VALUES["task"]["arrays"] is not None:
        return None
    tokenizer = load_tokenizer(model, trust_remote_code=VALUES["trust_remote_code"])
    if VALUES["chat_template"] is not None:
        tokenizer.chat_template = VALUES["chat_template"]
    expected = VALUES["candidate"]["recipe"]["chat_template_sha256"]
    if expected is not None:
        found = hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()
        if found != expected:
            raise ValueError("its tokenizer has another chat template than the one that was measured")
    return tokenizer


def read_examples(
    path: str, tokenizer: Any | None, *, as_in_trial: bool
) -> tuple[list[Example], list[Example]]:
    """Rows to train on, packed if the recipe says so, and held-out ones, split as the trial split them.

    Args:
        as_in_trial: only the rows that the trial met. Those held out always are.
    """
    sides = split_examples(path, tokenizer, VALUES["split"], as_in_trial=as_in_trial)
    by_chance = {name: VALUES["split"][name] for name in ("seed", "share")}
    if all(sides) or as_in_trial or by_chance == VALUES["split"]:
        return sides
    say("these are other data than those that were measured: chance decides which rows are held out")
    return split_examples(path, tokenizer, by_chance, as_in_trial=False)


def split_examples(
    path: str, tokenizer: Any | None, split: Mapping[str, Any], *, as_in_trial: bool
) -> tuple[list[Example], list[Example]]:
    """See :func:`read_examples`; ``split`` decides."""
    every, recipe = VALUES["every_nth_row"], VALUES["candidate"]["recipe"]

    def rows(step: int) -> Iterator[tuple[Example, bool]]:
        if tokenizer is None:
            yield from array_examples(Path(path), every=step, task=VALUES["task"], split=split)
            return
        shared = {"tokenizer": tokenizer, "task": VALUES["task"], "recipe": recipe, "split": split}
        for encoded, heldout in encode_rows(Path(path), every=step, **shared):
            if encoded.example is not None:
                yield encoded.example, heldout

    pairs = rows(every if as_in_trial else 1)
    if recipe["packing"]:
        pairs = pack_training_rows(pairs, max_length=recipe["max_length"], seed=split["seed"])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example, heldout in pairs:
        sides[heldout].append(example)
    if not as_in_trial and every > 1:
        return sides[0], [example for example, heldout in rows(every) if heldout]
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


def save_checkpoint(session: Session, folder: Path, step: int, *, run_sha256: str) -> None:
    """Weights (safetensors), optimizer, schedule, random state and step; complete or not there at all."""
    staging = folder / "checkpoint.writing"
    staging.mkdir(parents=True, exist_ok=True)
    weights = {
        name: parameter.detach().contiguous().clone()
        for name, parameter in session.model.named_parameters()
        if parameter.requires_grad
    }
    save_file(weights, staging / "weights.safetensors")
    scaler, tuner = session.accelerator.scaler, session.tuner
    state = {
        "optimizer": session.optimizer.state_dict(),
        "schedule": session.schedule.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "ranks": None if tuner is None else rank_state(tuner),
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "step": step,
        "run_sha256": run_sha256,
    }
    torch.save(state, staging / "state.pt")
    final, previous = folder / "checkpoint", folder / "checkpoint.previous"
    if final.exists():
        final.rename(previous)
    staging.rename(final)
    remove_folder(previous)


def load_checkpoint(session: Session, folder: Path, *, run_sha256: str) -> int:
    """Restore everything that :func:`save_checkpoint` saved; returns the next step's number."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        checkpoint = folder / "checkpoint.previous"  # stopped between the two renames
    if not checkpoint.exists():
        sys.exit(f"no checkpoint in {folder}: run without --resume, or name its folder with --out")
    state = torch.load(checkpoint / "state.pt", weights_only=True)  # tensors and plain data, no code
    if state["run_sha256"] != run_sha256:
        sys.exit(f"{checkpoint} is of another training: other values in train.py, or other rows")
    session.model.load_state_dict(load_file(checkpoint / "weights.safetensors"), strict=False)
    session.optimizer.load_state_dict(state["optimizer"])
    session.schedule.load_state_dict(state["schedule"])
    if state["scaler"] is not None:
        session.accelerator.scaler.load_state_dict(state["scaler"])
    if state["ranks"] is not None:
        restore_ranks(session.tuner, state["ranks"])
    torch.set_rng_state(state["random"])
    if state["cuda_random"]:
        torch.cuda.set_rng_state_all(state["cuda_random"])
    return int(state["step"])


def run_sha256_of(rows: int) -> str:
    """Equal for trainings that may go on from one another's checkpoints."""
    form = json.dumps({"values": VALUES, "rows": rows}, sort_keys=True, default=str)
    return hashlib.sha256(form.encode()).hexdigest()


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
    for loss, step in zip(expected, steps, strict=False):
        worst = max(worst, abs(step.loss - loss) / max(1.0, abs(loss)))
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
    try:
        tokenizer = open_tokenizer(arguments.model)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"--model {arguments.model}: {first_line(error)}")
    try:
        rows, heldout = read_examples(arguments.data, tokenizer, as_in_trial=arguments.verify)
    except SampleError as error:
        sys.exit(f"--data {arguments.data}, {error}: {error.next_step}")
    except (OSError, RowError) as error:
        sys.exit(f"--data {arguments.data}: {first_line(error)}")
    if not rows or not heldout:
        sys.exit(
            f"--data {arguments.data}: {len(rows)} rows to train on and {len(heldout)} held out; "
            f"each needs {what_is_needed()}"
        )
    total_steps = (
        VALUES["trial"]["steps"] if arguments.verify else training_steps(len(rows), candidate["recipe"])
    )
    last = total_steps if arguments.max_steps is None else min(total_steps, arguments.max_steps)
    config = VALUES["trial"]["adapter_config"] if arguments.verify else VALUES["adapter_config"]
    try:
        session = open_session(
            arguments.model,
            task=VALUES["task"],
            candidate=candidate,
            adapter_config=fitted_schedule(config, total_steps),
            pad_id=0 if tokenizer is None else tokenizer.pad_token_id,
            seed=VALUES["seed"],
            total_steps=total_steps,
            on_cpu=arguments.cpu,
            trust_remote_code=VALUES["trust_remote_code"],
            factory=VALUES["factory"],
        )
    except (OSError, InvalidTrial, InvalidQuantization) as error:
        sys.exit(f"--model {arguments.model}: {first_line(error)}")
    run_sha256 = run_sha256_of(len(rows))
    first = load_checkpoint(session, arguments.out, run_sha256=run_sha256) if arguments.resume else 0
    order = step_rows(
        len(rows), effective_batch=candidate["recipe"]["effective_batch"], seed=VALUES["order_seed"]
    )
    steps = run_steps(session, rows, order, first=first, last=last)
    if arguments.verify:
        return verify(session, steps)
    if not train(session, steps, arguments, run_sha256=run_sha256, last=last):
        return EXIT_STOPPED
    finish(session, heldout, arguments.out, tokenizer)
    return 0


def fitted_schedule(config: Mapping[str, Any] | None, total_steps: int) -> Mapping[str, Any] | None:
    """AdaLoRA's plan of pruning stretched to this training: other data make another number of steps."""
    if config is None or "total_step" not in config:
        return config
    stretch = total_steps / config["total_step"]
    plan = {name: int(config[name] * stretch) for name in ("tinit", "tfinal")}
    return {**config, **plan, "total_step": total_steps, "deltaT": max(1, round(config["deltaT"] * stretch))}


def first_line(error: BaseException) -> str:
    """What went wrong, without the library's advice."""
    return str(error).partition("\n")[0] or type(error).__name__


def what_is_needed() -> str:
    """The columns of a usable row, in words."""
    task = VALUES["task"]
    if task["arrays"] is not None:
        return f"what the task {task['kind']} is learnt from"
    names = ("text_column", "context_column", "target_column", "label_column")
    columns = ", ".join(repr(task[name]) for name in names if task[name])
    labels = f" with one of the labels {', '.join(task['labels'])}" if task["labels"] else ""
    return f"the columns {columns}{labels}"


def train(
    session: Session, steps: Iterator[Step], arguments: argparse.Namespace, *, run_sha256: str, last: int
) -> bool:
    """Take the steps, saving from time to time and when asked to stop; False if so."""
    stop = Stop()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.log.open("a", encoding="utf-8") if arguments.log else None
    unit = "tokens" if VALUES["task"]["arrays"] is None else "samples"
    for step in steps:
        done = step.number + 1
        say(f"step {done}/{last}  loss {step.loss:.6f}  {step.tokens / step.seconds:.0f} {unit}/s")
        if log:
            log.write(
                json.dumps({"step": done, "loss": step.loss, "learning_rate": step.learning_rate}) + "\n"
            )
            log.flush()
        if stop.asked or done % VALUES["checkpoint_every"] == 0:
            save_checkpoint(session, arguments.out, done, run_sha256=run_sha256)
        if stop.asked:
            say(f"stopped after step {done}; go on with --resume --out {arguments.out}")
            return False
    return True


def finish(session: Session, heldout: list[Example], folder: Path, tokenizer: Any | None) -> None:
    """Evaluate, save the result, and remove the checkpoint, which nobody needs any more."""
    result = evaluate(session, heldout)
    metrics = "".join(f", {name} {value:.4f}" for name, value in result.metrics.items())
    say(f"held-out loss {result.loss:.4f} on {result.rows} rows{metrics}")
    save_trained(session, folder, labels=VALUES["task"]["labels"], is_made=VALUES["factory"] is not None)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    for name in ("checkpoint", "checkpoint.previous", "checkpoint.writing"):
        remove_folder(folder / name)
    say(f"saved to {folder}")
