"""What a running model allocates and computes, noted operator by operator.

Each storage that an operator returns is noted when it comes and when it goes. Knows nothing of candidates;
tensors may be real or fake.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..optimizer.estimates.tape import Event, Kind, Phase, Place, Work
from .operators import FLOPS, INSIDES, statistics_dtype

LITERAL = torch.ops.aten.lift_fresh.default
NORMS: dict[Any, int] = {
    torch.ops.aten.native_layer_norm.default: 2,
    torch.ops.aten.native_batch_norm.default: 1,
}
"""Operator that keeps statistics → which of its arguments is the weight."""
DEVICE = torch.ops.prim.device.default
READ_OUT = torch.ops.aten._local_scalar_dense.default

HOST_NAMESPACES = ("prim", "profiler")
"""Looks at a tensor's device or layout, and marks in a profile."""


class Recorder(TorchDispatchMode):
    """While active, notes every storage that an operator returns, and when it is freed.

    Each storage counts once, however many tensors view it.

    Args:
        on_cuda: what is noted is to be as on CUDA; else as on a CPU.
    """

    def __init__(self, *, on_cuda: bool) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.kinds: dict[int, Kind] = {}
        self.work: defaultdict[Place | None, Work] = defaultdict(Work)
        self.phase = Phase.BUILD
        self.place: Place | None = None
        self.kind = Kind.TEMPORARIES
        self._on_cuda = on_cuda
        self._looks_away = False
        self._blocks: dict[int, int] = {}
        self._places: dict[int, Place | None] = {}

    def enter(self, phase: Phase, kind: Kind) -> None:
        """From now on the step is in this phase, in no layer, and what it allocates is of this kind."""
        self.phase, self.kind, self.place = phase, kind, None

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """While active, nothing is noted: what is made is not in the device's memory."""
        self._looks_away = True
        try:
            yield
        finally:
            self._looks_away = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here; the wrapper that sees to it would take longer than the operator."""
        return False

    def follow(self, tensors: Iterable[torch.Tensor], kind: Kind, place: Place | None) -> None:
        """Note the storages of these tensors, unless they are known."""
        for tensor in tensors:
            self._note(tensor, kind, place)

    def holds(self, tensors: Iterable[torch.Tensor], kind: Kind) -> None:
        """Correct what the storages of these tensors are taken for."""
        for tensor in tensors:
            block = self._blocks.get(tensor.untyped_storage()._cdata)
            if block is not None:
                self.kinds[block] = kind

    def repeat_work(self, times: float) -> None:
        """Let what was computed so far stand for so many times as much."""
        for place, done in self.work.items():
            self.work[place] = Work()
            self.work[place].add(done, times)

    def count_flops(self, dtype: str, operations: float) -> None:
        """Add operations that no single operator stands for."""
        if self.phase in (Phase.FORWARD, Phase.BACKWARD):
            self.work[self.place].flops[dtype] += round(operations)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator; note what it returns, what it computes, and what it keeps to itself meanwhile."""
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # half of all calls; the long way round gives the same
        kwargs = kwargs or {}
        namespace = func.namespace
        if namespace in HOST_NAMESPACES or func is READ_OUT or self._looks_away:
            return func(*args, **kwargs)
        result = self._run(func, args, kwargs)
        phase = self.phase
        if phase is Phase.OPTIMIZER:
            self._note_by_owner(func, args, result)
        else:
            place = self._nearest_place(args) if self.place is None else self.place
            if isinstance(result, torch.Tensor):
                self._note(result, self.kind, place)
            else:
                self.follow(tensors_in(result), self.kind, place)
        if not (phase is Phase.EVALUATION or phase is Phase.BUILD or phase is Phase.SAVE or func.is_view):
            self._count(func, args, kwargs, result)
        if namespace == "bitsandbytes" and self._on_cuda:
            self._note_inside(func, args, kwargs)
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operator returns; of fakes what it would return on the device that is meant."""
        result = func(*args, **kwargs)
        if func in NORMS and isinstance(args[0], FakeTensor):
            dtype = statistics_dtype(args[0], args[NORMS[func]], on_cuda=self._on_cuda)
            return result[0], *(torch.empty_like(kept, dtype=dtype) for kept in result[1:])
        return result

    def _note_by_owner(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """An optimizer goes from parameter to parameter: what it allocates belongs where they do."""
        if isinstance(result, list | tuple):
            # An operator on lists, one of whose entries is a parameter's, gradient's or state's.
            given = next((value for value in args if isinstance(value, list | tuple)), ())
            for number, item in enumerate(result):
                like = given[number] if len(given) == len(result) else None
                self.follow(tensors_in(item), self.kind, self._place_of(like))
        elif func is LITERAL:
            if not self._on_cuda:  # there it stays on the host
                self._note(result, self.kind, self.place)
        else:
            # A state may be made of its shape alone: it comes among those of its parameter, or before them.
            if any(True for _ in tensors_in(args)):
                self.place = self._place_of(next((v for v in args if isinstance(v, torch.Tensor)), None))
            self.follow(tensors_in(result), self.kind, self.place)

    def _note(self, tensor: torch.Tensor, kind: Kind, place: Place | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._blocks:
            return
        size = storage.nbytes()
        if size == 0:
            return
        block = len(self.kinds)
        self._blocks[key] = block
        self._places[key] = place
        self.kinds[block] = kind
        self.events.append(Event(block, size, self.phase, place))
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        block, place = self._blocks.pop(key), self._places.pop(key)
        if self.phase is not Phase.OPTIMIZER:
            place = self.place
        self.events.append(Event(block, 0, self.phase, place))

    def _nearest_place(self, args: Any) -> Place | None:
        """Outside of layers: the layer that was gone through last of those that anything is made of.

        So a penalty on the parameters of all layers belongs to each of them in turn.
        """
        places = [place for tensor in tensors_in(args) if (place := self._place_of(tensor)) is not None]
        if not places:
            return None
        return min(places) if self.phase is Phase.BACKWARD else max(places)

    def _place_of(self, tensor: Any) -> Place | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        return self._places.get(tensor.untyped_storage()._cdata)

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        work = self.work[self.place]
        work.kernels += 1
        by_owner, is_of_many = self.phase is Phase.OPTIMIZER, isinstance(result, list | tuple)
        formula = FLOPS.get(func.overloadpacket)
        if formula is None:
            for own in (args, kwargs.values(), result):
                for tensor in tensors_in(own):
                    place = self._place_of(tensor) if by_owner else self.place
                    if place is None and not is_of_many:
                        place = self.place  # a table that all parameters share is read for this one
                    self.work[place].moved_bytes += tensor.numel() * tensor.element_size()
        elif (first := next(tensors_in(result), None)) is not None:
            work.flops[str(first.dtype).removeprefix("torch.")] += formula(*args, **kwargs, out_val=result)

    def _note_inside(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What an operator of bitsandbytes allocates and computes out of sight."""
        if self.phase is Phase.BUILD or (look := INSIDES.get(func._schema.name)) is None:
            return
        inside = look(*args, **kwargs)
        if inside.allocated_bytes:
            block = len(self.kinds)
            self.kinds[block] = Kind.DEQUANTISED
            self.events.append(Event(block, inside.allocated_bytes, self.phase, self.place))
            self.events.append(Event(block, 0, self.phase, self.place))
        if self.phase is not Phase.EVALUATION:
            work = self.work[self.place]
            work.flops[str(args[0].dtype).removeprefix("torch.")] += inside.flops
            work.moved_bytes += inside.moved_bytes


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of an operator's arguments or results: one, or lists of them, none deeper than two."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, str) or not isinstance(value, Iterable):
        return
    else:
        for item in value:
            if isinstance(item, torch.Tensor):
                yield item
            elif isinstance(item, list | tuple):
                yield from (inner for inner in item if isinstance(inner, torch.Tensor))
