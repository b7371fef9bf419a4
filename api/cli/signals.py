"""Ctrl-C and SIGTERM while a command waits: the block is unwound, a sentence said, the exit code theirs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from .console import EXIT_INTERRUPTED, EXIT_TERMINATED, print_note


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextmanager
def stopped_by_signals(sentence: str) -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does, say ``sentence`` and end the command.

    Raises:
        typer.Exit: with 130 or 143.
    """

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        print_note(f"{'terminated' if is_terminated else 'interrupted'}; {sentence}")
        raise typer.Exit(EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
