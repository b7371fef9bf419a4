"""Rows of tokens as plain data, for those who make batches by themselves.

Imports nothing of rankwise but the sources that the programs are made of.
"""

from __future__ import annotations

from typing import Any

from ..recipe import Example, collate


def plain_row(example: Example) -> dict[str, Any]:
    """What ``collate`` makes of a row, as numbers and lists of them.

    ``input_ids``; ``attention_mask``, or ``position_ids`` where samples share the row; ``token_type_ids``
    where there are; ``labels``, -100 where nothing is learnt, or a class, or a number.
    """
    return {name: values[0].tolist() for name, values in collate([example], pad_id=0).items()}
