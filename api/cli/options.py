"""Parameters that several commands share, and text that becomes values. Knows nothing about commands."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from ...errors import InputError
from ...optimizer.domain import Weights

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def parse_weights(text: str) -> Weights:
    """``speed=0.5,memory=0.1,quality=0.4``; a part that is not named counts nothing.

    Raises:
        InputError: an unknown or repeated part, or a value that is no number.
    """
    known = [item.name for item in dataclasses.fields(Weights)]
    hint = "write it like speed=0.5,memory=0.1,quality=0.4"
    values = dict.fromkeys(known, 0.0)
    named: set[str] = set()
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in known or name in named:
            what = "given twice" if name in named else f"unknown (known: {', '.join(known)})"
            raise InputError(f"weight {name!r} is {what} in --weights {text}", next_step=hint)
        named.add(name)
        try:
            values[name] = float(number)
        except ValueError:
            raise InputError(f"weight {name}={number!r} is not a number", next_step=hint) from None
    return Weights(**values)
