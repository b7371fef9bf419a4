"""From examples to batches: which rows are held out, which share a row, in which order they are learnt.

Imports nothing of rankwise: trials and the exported script share this source. A *recipe* is a plain mapping
with the fields of ``Recipe``. Everything here is determined by its arguments: the same rows and the same
seed give the same batches, whatever the micro-batch.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

IGNORED_LABEL = -100
"""Positions with this label carry no loss (the convention of transformers and torch)."""

PACKED_AT_ONCE = 4096
"""Samples among which those that share a row are looked for: the data need not fit into memory."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the model sees it; only what the task needs is set."""

    input_ids: Sequence[int] = ()
    label: int | None = None
    """Classification: the class."""
    value: float | None = None
    """Regression: the number."""
    mask: Sequence[int] | None = None
    """Language modelling: 1 for each token that is learnt; None where all are."""
    target_ids: Sequence[int] | None = None
    """Sequence-to-sequence: the text to be written."""
    token_types: Sequence[int] | None = None
    """Which of two sentences each token belongs to, where the tokenizer tells."""
    starts: Sequence[int] | None = None
    """Where the samples begin that share this row; None for a row of one sample that is not packed."""
    arrays: Mapping[str, np.ndarray[Any, Any]] | None = None
    """A row that is no text: what a model takes, by name. It has no tokens."""
    numbers: np.ndarray[Any, Any] | None = None
    """Of such a row: the numbers to be predicted."""


def count_tokens(example: Example) -> int:
    """Tokens that the model reads and writes, without padding; a row that is no text counts as one."""
    if example.arrays is not None:
        return 1
    return len(example.input_ids) + (0 if example.target_ids is None else len(example.target_ids))


def heldout_share(rows: int) -> float:
    """Share of rows to hold out: a tenth, at most about 1,024 rows, at least about 20, never over half."""
    return max(min(0.1, 1024 / max(rows, 1)), min(0.5, 20 / max(rows, 1)))


def is_heldout(text: str, *, seed: int, share: float) -> bool:
    """Decide by a hash of the text: duplicates fall on the same side, and no list needs to be kept."""
    return int(row_hash(text, seed=seed), 16) < share * 2**64


def row_hash(text: str, *, seed: int) -> str:
    """The first 64 bits of a hash, in hexadecimal digits."""
    return hashlib.sha256(f"{seed}\0{text}".encode(errors="surrogatepass")).hexdigest()[:16]


def heldout_rule(split: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a row with this key is held out: its hash is listed, or chance decides where none are.

    A split is a plain mapping with ``seed`` and ``share``; and with ``hashes`` in one text, ``group_column``,
    or ``time_column``, ``border`` and ``late_share`` where these decide. The last is the share of the rows
    from the border on that is held out; the others of them are left out.
    """
    seed, share = split["seed"], split["share"]
    if "hashes" not in split:
        return lambda key: is_heldout(key, seed=seed, share=share)
    hashes = frozenset(split["hashes"].split())
    return lambda key: row_hash(key, seed=seed) in hashes


def pack_training_rows(
    rows: Iterable[tuple[Example, bool]], *, max_length: int, seed: int
) -> Iterator[tuple[Example, bool]]:
    """Of (example, held out) pairs, let those to train on share rows; held-out ones pass as they are."""
    waiting: list[Example] = []
    windows = 0
    for example, heldout in rows:
        if heldout:
            yield example, True
            continue
        waiting.append(example)
        if len(waiting) == PACKED_AT_ONCE:
            yield from (
                (row, False) for row in pack(waiting, max_length=max_length, seed=f"{seed}/{windows}")
            )
            waiting, windows = [], windows + 1
    yield from ((row, False) for row in pack(waiting, max_length=max_length, seed=f"{seed}/{windows}"))


def pack(samples: Sequence[Example], *, max_length: int, seed: str) -> list[Example]:
    """Let language-modelling samples share rows of at most ``max_length`` tokens.

    Best fit, longest first: each sample goes to the fullest row that has room for it. Samples of equal length
    are shuffled, and so are the rows, which would otherwise come sorted by length.
    """
    shuffler = random.Random(seed)  # noqa: S311 - a shuffle, not a secret
    waiting = list(samples)
    shuffler.shuffle(waiting)
    waiting.sort(key=lambda sample: -len(sample.input_ids))
    rows: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for sample in waiting:
        length = len(sample.input_ids)
        at = bisect_left(room, (length, 0))
        if at < len(room):
            left, row = room.pop(at)
            rows[row].append(sample)
        else:
            left, row = max_length, len(rows)
            rows.append([sample])
        insort(room, (left - length, row))
    shuffler.shuffle(rows)
    return [join(row) for row in rows]


def join(samples: Sequence[Example]) -> Example:
    """One row out of several samples."""
    ids, mask, starts = array("i"), array("b"), array("i")
    for sample in samples:
        starts.append(len(ids))
        ids.extend(sample.input_ids)
        mask.extend([1] * len(sample.input_ids) if sample.mask is None else sample.mask)
    return Example(ids, mask=None if all(mask) else mask, starts=starts)


def step_rows(rows: int, *, effective_batch: int, seed: int) -> Iterator[list[int]]:
    """Row numbers of each optimizer step, for ever: every epoch is a fresh seeded permutation.

    An epoch's incomplete last batch is dropped, so that every step has the same number of rows.
    """
    batch = min(effective_batch, rows)
    epoch = 0
    while True:
        order = epoch_order(rows, seed=seed, epoch=epoch)
        for start in range(0, rows - batch + 1, batch):
            yield order[start : start + batch]
        epoch += 1


def epoch_order(rows: int, *, seed: int, epoch: int) -> list[int]:
    """Row numbers in the order in which this epoch, counted from 0, meets them."""
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - a shuffle, not a secret
    return order


def training_steps(rows: int, recipe: Mapping[str, float]) -> int:
    """Optimizer steps of the whole training: whole batches of an epoch times epochs."""
    steps_per_epoch = max(1, int(rows // recipe["effective_batch"]))
    return max(1, round(steps_per_epoch * recipe["epochs"]))


def collate(examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Pad to the longest row, on the right.

    ``input_ids`` (rows, longest), with ``attention_mask``; rows that several samples share have
    ``position_ids`` instead, which begin anew with each sample: given these and no mask, transformers lets
    each token see only its own sample (masking_utils.find_packed_sequence_indices), as long as there is no
    cache. ``token_type_ids`` where sentences come in pairs. ``labels``: see :func:`make_labels`.

    Of rows that are no text, their arrays under their own names; without ``labels`` where there is no target.
    """
    if examples[0].arrays is not None:
        return stacked(examples)
    batch = {"input_ids": padded([example.input_ids for example in examples], pad_id)}
    if examples[0].starts is not None:
        # A padding token at position 0 is a sample of its own: it sees itself, and nobody sees it.
        batch["position_ids"] = padded([positions(example) for example in examples], 0)
    else:
        batch["attention_mask"] = padded([[1] * len(example.input_ids) for example in examples], 0)
    if any(example.token_types is not None for example in examples):
        types = [
            [0] * len(example.input_ids) if example.token_types is None else example.token_types
            for example in examples
        ]
        batch["token_type_ids"] = padded(types, 0)
    batch["labels"] = make_labels(examples)
    return batch


def stacked(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Rows of arrays as a batch."""
    rows = [example.arrays for example in examples if example.arrays is not None]
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    if examples[0].label is not None or examples[0].numbers is not None:
        batch["labels"] = make_labels(examples)
    return batch


def make_labels(examples: Sequence[Example]) -> torch.Tensor:
    """What is to be predicted, :data:`IGNORED_LABEL` where nothing is.

    Classification: classes, (rows,). Regression: float32 numbers, (rows,), from arrays (rows, …) in any
    shape. Sequence-to-sequence: tokens of the targets, (rows, longest target). Language modelling: tokens of
    the rows, (rows, longest); padding, masked tokens and the first of each sample, which nothing precedes,
    are ignored.
    """
    first = examples[0]
    if first.label is not None:
        return torch.tensor([example.label for example in examples], dtype=torch.long)
    if first.value is not None:
        return torch.tensor([example.value for example in examples], dtype=torch.float32)
    if first.numbers is not None:
        return torch.from_numpy(np.stack([row.numbers for row in examples if row.numbers is not None]))
    if first.target_ids is not None:
        targets = [example.target_ids for example in examples if example.target_ids is not None]
        return padded(targets, IGNORED_LABEL)
    labels = padded([example.input_ids for example in examples], IGNORED_LABEL)
    for row, example in enumerate(examples):
        if example.mask is not None:
            learnt = torch.tensor(example.mask, dtype=torch.bool)
            labels[row, : len(learnt)].masked_fill_(~learnt, IGNORED_LABEL)
        for start in (0,) if example.starts is None else example.starts:
            labels[row, start] = IGNORED_LABEL
    return labels


def positions(example: Example) -> list[int]:
    """Each token's position in its own sample."""
    borders = [*(() if example.starts is None else example.starts), len(example.input_ids)]
    return [at for first, last in pairwise(borders) for at in range(last - first)]


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Rows of numbers as one tensor, short ones filled up on the right."""
    tensor = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for number, row in enumerate(rows):
        tensor[number, : len(row)] = torch.tensor(row, dtype=torch.long)
    return tensor


def count_scored(batch: Mapping[str, torch.Tensor]) -> int:
    """How many items the loss is a mean over: rows, or predicted tokens."""
    labels = batch.get("labels")
    if labels is None or labels.dim() == 1 or labels.is_floating_point():
        return len(next(iter(batch.values())))
    return int((labels != IGNORED_LABEL).sum())


def micro_batches(
    examples: Sequence[Example], *, size: int, pad_id: int
) -> list[tuple[dict[str, torch.Tensor], float]]:
    """The rows of one effective batch as batches of ``size`` rows, each with its share of the scored items.

    Losses that are weighted by it sum up to the mean over the whole effective batch.
    """
    batches = [
        collate(examples[start : start + size], pad_id=pad_id) for start in range(0, len(examples), size)
    ]
    scored = [count_scored(batch) for batch in batches]
    total = max(1, sum(scored))
    return [(batch, items / total) for batch, items in zip(batches, scored, strict=True)]
