"""What the processes that train one model together tell each other.

With one process everything here is what it would be without: sums are the value itself, the share of a batch
is the batch. Imports nothing of rankwise: it is part of what the exported programs are made of. A *rank* is a
process's number, from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def own_rank() -> int:
    """Of this process."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def summed(value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        torch.distributed.all_reduce(value)
    return value


def largest(value: float, device: torch.device) -> float:
    """The highest of the processes' values, the same number in all of them."""
    if world_size() == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return float(found)


def gathered(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of their ranks."""
    if world_size() == 1:
        return list(items)
    found: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(found, list(items))
    return [item for items_of_one in found for item in items_of_one]


def in_turns(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Those of the items that are this process's, each with whether it counts.

    All processes get equally many, as models that are divided want; whoever would have too few gets the first
    item again, which then does not count.
    """
    for start in range(0, len(items), world_size()):
        at = start + own_rank()
        yield (items[at], True) if at < len(items) else (items[0], False)


def own_batches(batches: Sequence[tuple[T, float]]) -> list[tuple[T, float]]:
    """This process's micro-batches, each with its share of the scored items of the effective batch.

    One that nothing is scored of is left out, as a mean over nothing is no number; where several processes
    have to keep step, another one stands in for it, with no share.
    """
    if world_size() == 1:
        return [(batch, share) for batch, share in batches if share]
    fullest = max(batches, key=lambda pair: pair[1])[0]
    turns = in_turns(batches)
    return [(batch, share) if counts and share else (fullest, 0.0) for (batch, share), counts in turns]
