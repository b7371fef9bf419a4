"""The main program of the exported ``train.py``: the full training run, by the loop that the trial ran.

Imports nothing of rankwise but the sources that the program is made of (``PROGRAMS`` in
:mod:`..ready_files`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..adalora import rank_state, restore_ranks
from ..recipe import step_rows
from ..team import largest
from ..trial.loop import Session, Step, open_session, run_steps
from .any_rows import open_any_rows
from .shared import VALUES, is_first_process, say
from .training import (
    EXIT_STOPPED,
    StepLog,
    Stop,
    finish,
    fitted_schedule,
    last_step,
    load_examples,
    make_training_parser,
    model_explained,
    pad_id_of,
    whole_training,
)

LOSS_TOLERANCE = 1e-3


def parse_arguments() -> argparse.Namespace:
    """The few things that may differ from what was measured: where files are, and how long to run."""
    parser = make_training_parser()
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="repeat the first steps of the trial that was measured and compare the losses",
    )
    return parser.parse_args()


def save_checkpoint(session: Session, folder: Path, step: int, *, run_sha256: str) -> None:
    """Weights (safetensors), optimizer, schedule, random state and step; complete or not there at all.

    What each of several processes holds all of, the first one writes.
    """
    if not is_first_process():
        return
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


def is_divided() -> bool:
    """No process holds all of the model with its optimizer."""
    level = VALUES["candidate"]["level"]
    return bool(level["zero_stage"] or level["fsdp"])


def remove_folder(folder: Path) -> None:
    """Remove a folder of plain files, if it is there."""
    if folder.exists() and is_first_process():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def verify(session: Session, steps: Iterator[Step]) -> int:
    """Compare what is trained and the first losses with the measured trial; returns the exit code."""
    same_tensors = session.census.trained_sha256 == VALUES["trial"]["trainable_sha256"]
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


def main() -> int:
    """Train; returns the process's exit code."""
    arguments = parse_arguments()
    candidate = VALUES["candidate"]
    if arguments.cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    tokenizer, read = open_any_rows(arguments.model, arguments.data)
    rows, heldout = load_examples(arguments.data, read, as_in_trial=arguments.verify)
    if arguments.resume and is_divided():
        sys.exit(
            "--resume: a model that processes share leaves no checkpoint; train it anew, without --resume"
        )
    total_steps, config = whole_training(len(rows)), VALUES["adapter_config"]
    if arguments.verify:
        total_steps, config = VALUES["trial"]["steps"], VALUES["trial"]["adapter_config"]
    last = last_step(total_steps, arguments.max_steps)
    with model_explained(arguments.model):
        session = open_session(
            arguments.model,
            task=VALUES["task"],
            candidate=candidate,
            adapter_config=fitted_schedule(config, total_steps),
            pad_id=pad_id_of(tokenizer),
            seed=VALUES["seed"],
            total_steps=total_steps,
            on_cpu=arguments.cpu,
            trust_remote_code=VALUES["trust_remote_code"],
            factory=VALUES["factory"],
            deepspeed=VALUES["deepspeed"],
        )
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
    finish(
        session,
        session.bare_model,
        heldout,
        arguments.out,
        tokenizer,
        census=session.census,
        save=session.save,
    )
    for name in ("checkpoint", "checkpoint.previous", "checkpoint.writing"):
        remove_folder(arguments.out / name)  # nobody needs them any more
    return 0


def train(
    session: Session, steps: Iterator[Step], arguments: argparse.Namespace, *, run_sha256: str, last: int
) -> bool:
    """Take the steps, saving from time to time and when asked to stop; False if so."""
    stop, log = Stop(), StepLog(arguments.log, last)
    arguments.out.mkdir(parents=True, exist_ok=True)
    unit = "tokens" if VALUES["task"]["arrays"] is None else "samples"
    for step in steps:
        done = step.number + 1
        log.tell(done, step.loss, step.learning_rate, f"  {step.tokens / step.seconds:.0f} {unit}/s")
        is_asked = bool(largest(stop.asked, session.device))  # of any process: all stop after the same step
        if is_divided():
            if is_asked:
                sys.exit(f"stopped after step {done}; a model that processes share leaves no checkpoint")
            continue
        if is_asked or done % VALUES["checkpoint_every"] == 0:
            save_checkpoint(session, arguments.out, done, run_sha256=run_sha256)
        if is_asked:
            say(f"stopped after step {done}; go on with --resume --out {arguments.out}")
            return False
    return True
