"""Array files: rows that are no text, written once and mapped by every trial, as token files are.

Each array is a column of lists of one length; the schema says its shape. Knows nothing of where arrays come
from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..probes.profiles import ArrayForm, ArrayShape
from .recipe import Example
from .tokens import Layout, RowFile, TokenFile, numbers_of

ARROW_TYPES = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
CLASS_COLUMN = "class"
NUMBERS_COLUMN = "numbers"
INPUT_PREFIX = "input:"
"""Before the names of a model's arguments, so that none is taken for a target."""


@dataclass(frozen=True, slots=True)
class _Column:
    """An array of every row."""

    name: str
    shape: tuple[int, ...]


class ArrayFile(RowFile):
    """The rows of a task on arrays."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            self._table = pa.ipc.open_file(source).read_all()
        self._inputs, self._numbers = [], None
        for field in self._table.schema:
            if field.name != CLASS_COLUMN:
                column = _Column(field.name, tuple(json.loads(field.metadata[b"shape"])))
                if field.name == NUMBERS_COLUMN:
                    self._numbers = column
                else:
                    self._inputs.append(column)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> Example:
        """See the base."""
        label = None
        if CLASS_COLUMN in self._table.column_names:
            label = self._table.column(CLASS_COLUMN)[index].as_py()
        return Example(
            label=label,
            arrays={
                column.name.removeprefix(INPUT_PREFIX): self._array(column, index) for column in self._inputs
            },
            numbers=None if self._numbers is None else self._array(self._numbers, index),
        )

    def heaviest(self, rows: int, *, micro_batch: int) -> list[Example]:  # noqa: ARG002
        """All rows are of one shape, so that the first will do."""
        return [self[0]] * rows

    def _array(self, column: _Column, index: int) -> np.ndarray[Any, Any]:
        values = self._table.column(column.name)[index].values
        # Arrow packs truth values into bits, which nothing else reads.
        is_packed = pa.types.is_boolean(values.type)
        found = values.to_numpy(zero_copy_only=False) if is_packed else numbers_of(values)
        return np.reshape(found, column.shape)


def open_rows(path: Path) -> RowFile:
    """The rows in a file, of whichever layout it is."""
    with pa.memory_map(str(path)) as source:
        is_tokens = "input_ids" in pa.ipc.open_file(source).schema.names
    return TokenFile(path) if is_tokens else ArrayFile(path)


def array_layout(form: ArrayForm, *, has_class: bool) -> Layout:
    """How rows of this form lie in a file.

    Args:
        has_class: each row has a class to predict.
    """
    fields = [_field(INPUT_PREFIX + shape.name, shape) for shape in form.inputs]
    if form.target is not None:
        fields.append(_field(NUMBERS_COLUMN, form.target))
    if has_class:
        fields.append(pa.field(CLASS_COLUMN, pa.int32()))
    schema = pa.schema(fields)
    size = sum(math.prod(shape.shape) for shape in (*form.inputs, *((form.target,) if form.target else ())))
    return Layout(schema, lambda examples: _to_batch(examples, schema), lambda _: size)


def row_bytes(form: ArrayForm) -> int:
    """What a row takes on disk, about."""
    shapes = (*form.inputs, *((form.target,) if form.target else ()))
    return sum(np.dtype(shape.dtype).itemsize * math.prod(shape.shape) for shape in shapes)


def _field(name: str, shape: ArrayShape) -> Any:
    kind = pa.list_(ARROW_TYPES[shape.dtype], math.prod(shape.shape))
    return pa.field(name, kind, metadata={"shape": json.dumps(shape.shape)})


def _to_batch(examples: Sequence[Example], schema: Any) -> Any:
    columns = []
    for field in schema:
        if field.name == CLASS_COLUMN:
            columns.append(pa.array([example.label for example in examples], field.type))
            continue
        if field.name == NUMBERS_COLUMN:
            arrays = [example.numbers for example in examples]
        else:
            name = field.name.removeprefix(INPUT_PREFIX)
            arrays = [_arrays_of(example)[name] for example in examples]
        flat = pa.array(np.concatenate([np.asarray(array).reshape(-1) for array in arrays]))
        columns.append(
            pa.FixedSizeListArray.from_arrays(flat.cast(field.type.value_type), field.type.list_size)
        )
    return pa.record_batch(columns, schema=schema)


def _arrays_of(example: Example) -> Mapping[str, Any]:
    if example.arrays is None:
        raise TypeError("a row of text in a file of arrays")
    return example.arrays
