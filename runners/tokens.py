"""Token files: the rows of a dataset as a model sees them, written once and mapped by every trial.

One folder per (data, tokenizer, recipe, task, split) hash holds ``train.arrow`` and ``heldout.arrow``. Rows
that are no text have files of another layout (:mod:`.array_files`), which this module writes too.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .recipe import Example, count_tokens

BATCH_ROWS = 4096
BATCH_TOKENS = 4_000_000
"""A batch ends earlier where rows are long: it is held in memory."""
COUNTS_NAME = "counts.json"
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("label", pa.int32()),
        ("value", pa.float64()),
        ("mask", pa.list_(pa.int8())),
        ("target_ids", pa.list_(pa.int32())),
        ("token_types", pa.list_(pa.int8())),
        ("starts", pa.list_(pa.int32())),
    ]
)
"""The fields of :class:`~.recipe.Example`, null where a task does not have them."""


class RowFile(Sequence[Example]):
    """A mapped file as a sequence of examples; nothing is read until a row is asked for."""

    @abstractmethod
    def heaviest(self, rows: int, *, micro_batch: int) -> list[Example]:
        """The heaviest rows that a step can meet."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.row(index)

    @abstractmethod
    def row(self, index: int) -> Example:
        """The row of a number that exists."""

    def __iter__(self) -> Iterator[Example]:
        return (self[number] for number in range(len(self)))


class TokenFile(RowFile):
    """The rows of a text task, as tokens."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            self._table = pa.ipc.open_file(source).read_all()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> Example:
        """See the base."""
        cells = (self._table.column(name)[index] for name in SCHEMA.names)
        values: Iterator[Any] = (
            numbers_of(cell.values) if cell.is_valid and pa.types.is_list(cell.type) else cell.as_py()
            for cell in cells
        )
        return Example(*values)

    def longest(self) -> Example:
        """The heaviest row that a batch can hold: of most tokens (the first of several), the fullest pack.

        Source and target come from different rows where the longest ones do: they meet in one batch.
        """
        row = self[self._row_of_most("input_ids")]
        if row.target_ids is None:
            return row
        return dataclasses.replace(row, target_ids=self[self._row_of_most("target_ids")].target_ids)

    def heaviest(self, rows: int, *, micro_batch: int) -> list[Example]:
        """The heaviest rows of a step: the longest, of which one in each micro-batch is a token shorter.

        Attention takes a mask as soon as a batch is padded, and kernels that take one need more memory. Rows
        that several samples share are told apart by positions, and rows of one length need no padding.
        """
        longest = self.longest()
        if longest.starts is not None or micro_batch == 1 or not self._has_shorter(longest):
            return [longest] * rows
        is_last = [number % micro_batch == micro_batch - 1 for number in range(rows)]
        return [shortened(longest) if last else longest for last in is_last]

    def _has_shorter(self, longest: Example) -> bool:
        return len(longest.input_ids) > 1 and bool(self._lengths("input_ids").min() < len(longest.input_ids))

    def _row_of_most(self, column: str) -> int:
        return int(np.argmax(self._lengths(column)))

    def _lengths(self, column: str) -> np.ndarray[Any, Any]:
        lengths = pc.list_value_length(self._table.column(column))
        return np.concatenate([numbers_of(chunk) for chunk in lengths.chunks])


def numbers_of(array: Any) -> np.ndarray[Any, Any]:
    """An Arrow array of numbers, none of them null, as it lies in memory.

    Arrow's own ``to_numpy`` imports pandas where there is one, and each trial is a process of its own.
    """
    return np.from_dlpack(array)


def shortened(example: Example) -> Example:
    """Without its last input token."""
    return dataclasses.replace(
        example,
        input_ids=example.input_ids[:-1],
        mask=None if example.mask is None else example.mask[:-1],
        token_types=None if example.token_types is None else example.token_types[:-1],
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """How examples lie in a file."""

    schema: Any
    to_batch: Callable[[Sequence[Example]], Any]
    """An Arrow record batch of examples."""
    size: Callable[[Example], int]
    """Numbers in an example: a batch of :data:`BATCH_TOKENS` is full."""


def write_token_files(
    folder: Path,
    rows: Iterable[tuple[Example, bool]],
    counts_of_reading: Mapping[str, int] | None = None,
    layout: Layout | None = None,
) -> tuple[int, int]:
    """Write (example, held out) pairs into a new folder, which appears only when it is complete.

    Args:
        folder: appears with everything in it; if somebody else makes it first, theirs stays.
        rows: the pairs, read once.
        counts_of_reading: written beside them, as they are once the rows have been read; and how many rows
            each class has on either side, see :func:`read_classes`.
        layout: of the files; None for tokens.

    Returns:
        Number of training rows and of held-out rows.
    """
    layout = layout or Layout(SCHEMA, to_batch, count_tokens)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    counts = [0, 0]
    try:
        with (
            pa.OSFile(str(staging / "train.arrow"), "wb") as train,
            pa.OSFile(str(staging / "heldout.arrow"), "wb") as heldout,
            pa.ipc.new_file(train, layout.schema) as train_writer,
            pa.ipc.new_file(heldout, layout.schema) as heldout_writer,
        ):
            writers = (train_writer, heldout_writer)
            pending: tuple[list[Example], list[Example]] = ([], [])
            tokens = [0, 0]
            classes: Counter[tuple[int, int]] = Counter()
            for example, is_heldout in rows:
                side = int(is_heldout)
                counts[side] += 1
                if example.label is not None:
                    classes[example.label, side] += 1
                pending[side].append(example)
                tokens[side] += layout.size(example)
                if len(pending[side]) >= BATCH_ROWS or tokens[side] >= BATCH_TOKENS:
                    writers[side].write_batch(layout.to_batch(pending[side]))
                    pending[side].clear()
                    tokens[side] = 0
            for writer, examples in zip(writers, pending, strict=True):
                if examples:
                    writer.write_batch(layout.to_batch(examples))
        labels = sorted({label for label, _ in classes})
        by_class = [[label, classes[label, 0], classes[label, 1]] for label in labels]
        written = {**(counts_of_reading or {}), "classes": by_class}
        (staging / COUNTS_NAME).write_text(json.dumps(written), encoding="utf-8")
        try:
            staging.replace(folder)
        except OSError:
            if not folder.is_dir():  # somebody else wrote the same tokens meanwhile: theirs will do
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return counts[0], counts[1]


def read_classes(folder: Path) -> dict[int, tuple[int, int]]:
    """How many rows of each class are trained on and held out, of a folder of written files.

    Empty where rows have no class, or share rows.
    """
    counts = json.loads((folder / COUNTS_NAME).read_text(encoding="utf-8"))
    return {label: (trained, heldout) for label, trained, heldout in counts.get("classes", ())}


def to_batch(examples: Sequence[Example]) -> Any:
    """An Arrow record batch of these examples."""
    columns = []
    for field in SCHEMA:
        cells = [getattr(example, field.name) for example in examples]
        if pa.types.is_list(field.type):
            cells = [None if cell is None else np.asarray(cell) for cell in cells]
        columns.append(pa.array(cells, field.type))
    return pa.record_batch(columns, schema=SCHEMA)
