"""How many bytes of tensors are alive at once, counted from the outside of any allocator.

Knows nothing about devices: it sees storages come and go, on a CPU, a GPU or as fakes. The count is
exact and repeatable where a process's resident set is neither.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..optimizer.estimates.allocator import rounded


class TensorMemory(TorchDispatchMode):
    """While active, follows every storage that an operation returns until it is freed.

    Each untyped storage counts once, however many tensors view it, rounded up as CUDA's allocator does.
    Tensors from before must be named with :meth:`follow`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def follow(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count the storages of these tensors from now on, if they are not counted already."""
        for tensor in tensors:
            storage = held(tensor).untyped_storage()
            key = storage._cdata
            if key in self._sizes:
                continue
            size = rounded(storage.nbytes())
            self._sizes[key] = size
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and follow what it returns."""
        result = func(*args, **(kwargs or {}))
        self.follow(item for item in tree_iter(result) if isinstance(item, torch.Tensor))
        return result


def held(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that several share."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def training_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """All tensors that outlive a step: parameters, buffers, gradients, optimizer state.

    A parameter of bitsandbytes' has the scales of its blocks as attributes.
    """
    for parameter in model.parameters():
        yield parameter
        yield from attached_tensors(parameter)  # ZeRO's part of it, and the scales of quantized blocks
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def attached_tensors(thing: object) -> Iterable[torch.Tensor]:
    """Tensors among the attributes of a quantized parameter, and of the states that these hold in turn."""
    for value in vars(thing).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value).__module__.startswith("bitsandbytes."):
            yield from attached_tensors(value)
