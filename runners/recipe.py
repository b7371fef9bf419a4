"""From rows to batches: which rows are held out, how text becomes tokens, in which order they are learnt.

Imports nothing of rankwise but :mod:`..probes.rows`, which is free of it too: trials and the exported
script share this source. A *recipe* and a *task* are plain mappings with the fields of ``Recipe`` and
``TaskProfile``. Everything here is determined by its arguments: the same rows and the same seed give the
same batches, whatever the micro-batch.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..probes.rows import row_text

IGNORED_LABEL = -100
"""Positions with this label carry no loss (the convention of transformers and torch)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row. ``label`` is a class index, or None for language modelling."""

    input_ids: Sequence[int]
    label: int | None = None


def heldout_share(rows: int) -> float:
    """Share of rows to hold out: a tenth, at most about 1,024 rows, at least about 20, never over half."""
    return max(min(0.1, 1024 / max(rows, 1)), min(0.5, 20 / max(rows, 1)))


def is_heldout(text: str, *, seed: int, share: float) -> bool:
    """Decide by a hash of the text: duplicates fall on the same side, and no list needs to be kept."""
    value = hashlib.sha256(f"{seed}\0{text}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(value[:8], "big") < share * 2**64


def usable_row(row: dict[str, Any], task: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Text and label of a row, or None if either is missing. Language modelling has no label."""
    text = row_text(row, task["text_column"])
    label = row_text(row, task["label_column"]) if task["label_column"] else None
    return (text, label) if text.strip() and (label is None or label.strip()) else None


def encode(
    text: str, label: str | None, *, tokenizer: Any, task: Mapping[str, Any], recipe: Mapping[str, Any]
) -> tuple[Example, int]:
    """Tokenise one row; also return its token count before truncation.

    Classification takes the tokenizer's own special tokens. Language modelling appends the
    end-of-sequence token, so that the model learns where texts end; a truncated text gets none.

    Raises:
        ValueError: the label is not one of the task's labels.
    """
    limit = recipe["max_length"]
    if task["kind"] == "text-classification":
        if label not in task["labels"]:
            raise ValueError(f"label {label!r} is not one of {', '.join(task['labels'])}")
        full: list[int] = tokenizer(text, verbose=False)["input_ids"]
        kept = full if len(full) <= limit else tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return Example(array("i", kept), task["labels"].index(label)), len(full)
    full = tokenizer(text, verbose=False)["input_ids"]
    if tokenizer.eos_token_id is not None and full[-1:] != [tokenizer.eos_token_id]:
        full = [*full, tokenizer.eos_token_id]
    return Example(array("i", full[:limit])), len(full)


def step_rows(rows: int, *, effective_batch: int, seed: int) -> Iterator[list[int]]:
    """Row numbers of each optimizer step, for ever: every epoch is a fresh seeded permutation.

    An epoch's incomplete last batch is dropped, so that every step has the same number of rows.
    """
    batch = min(effective_batch, rows)
    epoch = 0
    while True:
        order = list(range(rows))
        random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - a shuffle, not a secret
        for start in range(0, rows - batch + 1, batch):
            yield order[start : start + batch]
        epoch += 1


def training_steps(rows: int, recipe: Mapping[str, Any]) -> int:
    """Optimizer steps of the whole training: whole batches of an epoch times epochs."""
    steps_per_epoch = max(1, rows // recipe["effective_batch"])
    return max(1, round(steps_per_epoch * recipe["epochs"]))


def collate(examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Pad to the longest row: ``input_ids``, ``attention_mask`` and ``labels``.

    Shapes: (rows, longest); ``labels`` is (rows,) with class indices, (rows, longest) for language
    modelling, where padding is :data:`IGNORED_LABEL`.
    """
    longest = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids, dtype=torch.long)
        mask[row, :length] = 1
    if examples[0].label is None:
        labels = input_ids.masked_fill(mask == 0, IGNORED_LABEL)
    else:
        labels = torch.tensor([example.label for example in examples], dtype=torch.long)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def count_scored(batch: Mapping[str, torch.Tensor]) -> int:
    """How many items the loss is a mean over: rows, or next-token predictions."""
    labels = batch["labels"]
    return len(labels) if labels.dim() == 1 else int((labels[:, 1:] != IGNORED_LABEL).sum())
