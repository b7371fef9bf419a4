"""Rows of whatever the study's task is: texts, or what is no text.

Imports nothing of rankwise but the sources that the programs are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..array_samples import array_examples
from ..recipe import Example
from .shared import VALUES, RowReader, open_tokenizer, text_reader


def open_any_rows(model: str, path: str) -> tuple[Any | None, RowReader]:
    """The model's tokenizer, None where rows are no text, and what reads the data's rows."""
    if VALUES["task"]["arrays"] is None:
        tokenizer = open_tokenizer(model)
        return tokenizer, text_reader(path, tokenizer)

    def read(every: int, split: Mapping[str, Any]) -> Iterator[tuple[Example, bool]]:
        yield from array_examples(Path(path), every=every, task=VALUES["task"], split=split)

    return None, read
