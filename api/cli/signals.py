"""Ctrl-C and SIGTERM while a command waits: the block is unwound, a sentence said, the exit code theirs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from .console import EXIT_INTERRUPTED, EXIT_TERMINATED, print_note


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, or the time is over."""


@contextmanager
def stopped_by_signals(sentence: str, *, after_s: float | None = None) -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does, say ``sentence`` and end the command.

    Args:
        sentence: how to go on.
        after_s: do the same by oneself then.

    Raises:
        typer.Exit: with 130 or 143.
    """

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGALRM)}
    if after_s is not None:
        signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        print_note(f"{'terminated' if is_terminated else 'interrupted'}; {sentence}")
        raise typer.Exit(EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
