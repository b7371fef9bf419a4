"""What all exported programs share: the study's values, where model and data are, and rows of text.

Imports nothing of rankwise but the sources that the programs are made of (``PROGRAMS`` in
:mod:`..ready_files`). ``VALUES`` is replaced by the study's values when a program is composed; in this
package it is empty, and no program is run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...probes.rows import RowError
from ..recipe import Example, pack_training_rows
from ..samples import SampleError, encode_rows
from ..tokenizer import load_tokenizer

VALUES: Mapping[str, Any] = {}

RowReader = Callable[[int, Mapping[str, Any]], Iterator[tuple[Example, bool]]]
"""Every nth row of the data, and whether this split holds it out."""


def make_parser() -> argparse.ArgumentParser:
    """The arguments that every program has: where model and data are."""
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
    return parser


def open_tokenizer(model: str) -> Any:
    """The model's tokenizer, with the chat template that the samples were measured with.

    Leaves the program where there is none, or none with such a template.
    """
    try:
        tokenizer = load_tokenizer(model, trust_remote_code=VALUES["trust_remote_code"])
        if VALUES["chat_template"] is not None:
            tokenizer.chat_template = VALUES["chat_template"]
        expected = VALUES["candidate"]["recipe"]["chat_template_sha256"]
        if expected is not None:
            found = hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()
            if found != expected:
                raise ValueError("its tokenizer has another chat template than the one that was measured")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"--model {model}: {first_line(error)}")
    return tokenizer


def text_reader(path: str, tokenizer: Any) -> RowReader:
    """Reads rows of text, tokenised."""

    def read(every: int, split: Mapping[str, Any]) -> Iterator[tuple[Example, bool]]:
        how = {"task": VALUES["task"], "recipe": VALUES["candidate"]["recipe"], "split": split}
        for encoded, heldout in encode_rows(Path(path), every=every, tokenizer=tokenizer, **how):
            if encoded.example is not None:
                yield encoded.example, heldout

    return read


def split_rows(
    read: RowReader, split: Mapping[str, Any], *, as_in_trial: bool, packing: bool
) -> Iterator[tuple[Example, bool]]:
    """Rows with whether they are held out, as the trial split them; those to train on share rows if asked.

    Args:
        as_in_trial: only the rows that the trial met. Those held out always are.
    """
    every = VALUES["every_nth_row"]
    pairs = read(every if as_in_trial else 1, split)
    if packing:
        max_length = VALUES["candidate"]["recipe"]["max_length"]
        pairs = pack_training_rows(pairs, max_length=max_length, seed=split["seed"])
    if as_in_trial or every == 1:
        yield from pairs
        return
    yield from (pair for pair in pairs if not pair[1])
    yield from (pair for pair in read(every, split) if pair[1])


def split_by_chance() -> dict[str, Any]:
    """How to split other data than those that were measured, of which no list and no border tells."""
    return {name: VALUES["split"][name] for name in ("seed", "share")}


@contextmanager
def data_explained(path: str) -> Iterator[None]:
    """Leave the program with one message where the data cannot be read."""
    try:
        yield
    except SampleError as error:
        sys.exit(f"--data {path}, {error}: {error.next_step}")
    except (OSError, RowError) as error:
        sys.exit(f"--data {path}: {first_line(error)}")


def require_both_sides(path: str, rows: int, heldout: int) -> None:
    """Leave the program unless there are rows to train on and rows held out."""
    if not rows or not heldout:
        sys.exit(
            f"--data {path}: {rows} rows to train on and {heldout} held out; each needs {what_is_needed()}"
        )


def what_is_needed() -> str:
    """The columns of a usable row, in words."""
    task = VALUES["task"]
    if task["arrays"] is not None:
        return f"what the task {task['kind']} is learnt from"
    names = ("text_column", "context_column", "target_column", "label_column")
    columns = ", ".join(repr(task[name]) for name in names if task[name])
    labels = f" with one of the labels {', '.join(task['labels'])}" if task["labels"] else ""
    return f"the columns {columns}{labels}"


def say_split_by_chance() -> None:
    """The rows held out are then others than those that were measured."""
    say("these are other data than those that were measured: chance decides which rows are held out")


def first_line(error: BaseException) -> str:
    """What went wrong, without the library's advice."""
    return str(error).partition("\n")[0] or type(error).__name__


def is_first_process() -> bool:
    """Of several, the one that speaks for all; launchers number them."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Progress goes to standard output, at once."""
    if is_first_process():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
