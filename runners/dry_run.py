"""A training step on fake tensors: what it would allocate and compute, without weights and without a GPU.

The model is built by the trial's own builder from its configuration alone, cut to a few layers, and each
storage that an operator returns is noted when it comes and when it goes. Knows nothing of what a device can
hold, nor of how tapes are stretched and played (``optimizer/estimates``).
"""

from __future__ import annotations

import gc
import math
import re
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from ..optimizer.estimates.tape import Event, Kind, Phase, Place, Tape, Work
from .build import autocast_name, make_optimizer
from .cuda_semantics import cuda_semantics
from .tensor_memory import attached_tensors

LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<layer>\d+)(?=\.|$)")
"""A module within a list of modules."""

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """The shape of one micro-batch."""

    rows: int
    length: int
    """Tokens a row, padding included."""
    target_length: int | None = None
    """Tokens that an encoder-decoder writes."""
    padded: bool = False
    """Rows differ in length, so that attention needs a mask."""
    packed: bool = False
    """Several samples share a row, so that attention needs positions."""


class Recorder(TorchDispatchMode):
    """While active, notes every storage that an operator returns, and when it is freed.

    Each storage counts once, however many tensors view it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.kinds: dict[int, Kind] = {}
        self.work: defaultdict[Place | None, Work] = defaultdict(Work)
        self.phase = Phase.BUILD
        self.place: Place | None = None
        self.kind = Kind.TEMPORARIES
        self._blocks: dict[int, int] = {}
        self._places: dict[int, Place | None] = {}

    def enter(self, phase: Phase, kind: Kind) -> None:
        """From now on the step is in this phase, in no layer, and what it allocates is of this kind."""
        self.phase, self.kind, self.place = phase, kind, None

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

    def count_flops(self, dtype: str, operations: float) -> None:
        """Add operations that no single operator stands for."""
        if self.phase in (Phase.FORWARD, Phase.BACKWARD):
            self.work[self.place].flops[dtype] += round(operations)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator; note what it returns, what it computes, and what it keeps to itself meanwhile."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace == "prim":
            return result  # a look at a tensor's device or layout
        by_owner = self.phase is Phase.OPTIMIZER
        if isinstance(result, list | tuple) and by_owner:
            # An operator on lists, one of whose entries is a parameter's, gradient's or state's.
            given = next((value for value in args if isinstance(value, list | tuple)), ())
            for number, item in enumerate(result):
                like = given[number] if len(given) == len(result) else None
                self._note_all(item, self._place_of(like))
        else:
            first = next((value for value in args if isinstance(value, torch.Tensor)), None)
            place = self._place_of(first) if by_owner else self.place
            # Of numbers that are no parameter's, an optimizer's counters of steps live on the host.
            if not (by_owner and place is None and isinstance(result, torch.Tensor) and result.dim() == 0):
                self._note_all(result, place)
        if self.phase is not Phase.BUILD:
            self._count(func, args, kwargs, result)
            self._note_hidden(func, args)
        return result

    def _note_all(self, result: Any, place: Place | None) -> None:
        for item in tree_iter(result):
            if isinstance(item, torch.Tensor):
                self._note(item, self.kind, place)

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

    def _place_of(self, tensor: Any) -> Place | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        return self._places.get(tensor.untyped_storage()._cdata)

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if self.phase in (Phase.EVALUATION, Phase.SAVE) or func.is_view:
            return
        work = self.work[self.place]
        outputs = [item for item in tree_iter(result) if isinstance(item, torch.Tensor)]
        inputs = [item for item in tree_iter((args, kwargs)) if isinstance(item, torch.Tensor)]
        work.kernels += 1
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            work.moved_bytes += sum(item.numel() * item.element_size() for item in (*inputs, *outputs))
        elif outputs:
            dtype = str(outputs[0].dtype).removeprefix("torch.")
            work.flops[dtype] += formula(*args, **kwargs, out_val=result)

    def _note_hidden(self, func: Any, args: tuple[Any, ...]) -> None:
        """What an operator of bitsandbytes allocates inside on CUDA: a 4-bit matrix unpacked (gemm_4bit)."""
        if func.name() != "bitsandbytes::gemm_4bit":
            return
        given, shape = args[0], args[2]
        unpacked = math.prod(shape) * given.element_size()
        block = len(self.kinds)
        self.kinds[block] = Kind.DEQUANTISED
        self.events.append(Event(block, unpacked, self.phase, self.place))
        self.events.append(Event(block, 0, self.phase, self.place))
        dtype = str(given.dtype).removeprefix("torch.")
        self.work[self.place].flops[dtype] += 2 * given.numel() * math.prod(shape) // given.shape[-1]
        self.work[self.place].moved_bytes += 2 * unpacked


def record(
    model: torch.nn.Module,
    candidate: Mapping[str, Any],
    batch: Batch,
    *,
    passes: int = 1,
    has_labels_per_row: bool = False,
    on_cuda: bool = True,
) -> Tape:
    """One optimizer step of this model, an evaluation and a checkpoint, as a tape.

    Args:
        model: built and wrapped in its adapter, its tensors fake or real, in training mode.
        passes: micro-batches that add up to one step; a third adds nothing to the second.
        has_labels_per_row: one label a row, and not one a token.
        on_cuda: allocate as CUDA does; else as the CPU does that this runs on.
    """
    recorder = Recorder()
    level = candidate["level"]
    optimizer = make_optimizer(model, candidate)
    if on_cuda and level["optimizer"] == "adamw_torch":
        for group in optimizer.param_groups:
            group["foreach"] = True  # the default on CUDA
    places = places_of(model)
    with ExitStack() as stack:
        stack.enter_context(undisturbed())
        stack.enter_context(known_packing(batch))
        stack.enter_context(marked_layers(model, recorder, places))
        if on_cuda:
            stack.enter_context(cuda_semantics(recorder.count_flops))
        stack.enter_context(recorder)
        follow_model(model, recorder, places)
        forward = autocast_forward(model, level)
        for _ in range(min(passes, 2)):
            recorder.enter(Phase.FORWARD, Kind.INPUTS)
            inputs = make_inputs(batch, has_labels_per_row=has_labels_per_row)
            recorder.enter(Phase.FORWARD, Kind.ACTIVATIONS)
            loss = forward(**inputs).loss
            weighted = loss * 1.0
            del loss
            recorder.enter(Phase.BACKWARD, Kind.TEMPORARIES)
            weighted.backward()
            recorder.place = None
            del weighted, inputs
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        recorder.holds((p.grad for p in trained if p.grad is not None), Kind.GRADIENTS)
        recorder.enter(Phase.OPTIMIZER, Kind.TEMPORARIES)
        torch.nn.utils.clip_grad_norm_(
            trained, candidate["recipe"]["max_grad_norm"], foreach=True if on_cuda else None
        )
        optimizer.step()
        recorder.holds(
            (
                value
                for state in optimizer.state.values()
                for value in state.values()
                if torch.is_tensor(value)
            ),
            Kind.OPTIMIZER_STATE,
        )
        optimizer.zero_grad()
        recorder.enter(Phase.EVALUATION, Kind.ACTIVATIONS)
        evaluate_once(model, forward, batch, has_labels_per_row=has_labels_per_row)
        return Tape(tuple(recorder.events), dict(recorder.kinds), dict(recorder.work))


def fake_tensors() -> FakeTensorMode:
    """The mode in which a dry run's model is made and run; real tensors may take part."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def materialise(model: torch.nn.Module) -> None:
    """Move a model from the meta device to fake tensors on the CPU. Call it in a mode for fakes.

    Tied parameters stay tied, and what bitsandbytes would quantize on its way to a device is quantized.
    """
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = materialised(tensor)
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = fake(parameter)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
    # Kept until here: an id may be given away as soon as its tensor is gone.
    made.clear()


def materialised(tensor: torch.Tensor) -> torch.Tensor:
    """One tensor as a fake on the CPU; a parameter of bitsandbytes' quantized, as by its move to a device.

    Fakes cannot be of another subclass of tensors, so that those parameters become plain ones with the
    attributes that bitsandbytes (0.50) looks for.
    """
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, torch.nn.Parameter):
        return fake
    given: Any = tensor
    if type(tensor).__name__ == "Params4bit":
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(
            fake,
            blocksize=given.blocksize,
            compress_statistics=given.compress_statistics,
            quant_type=given.quant_type,
            quant_storage=given.quant_storage,
        )
        return with_attributes(packed, quant_state=state, bnb_quantized=True)
    if type(tensor).__name__ == "Int8Params":
        numbers = torch.empty_like(fake, dtype=torch.int8)
        scales = torch.empty(fake.shape[0], dtype=torch.float32)
        return with_attributes(numbers, CB=numbers, SCB=scales, has_fp16_weights=False)
    return torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)


def with_attributes(tensor: torch.Tensor, **attributes: Any) -> torch.nn.Parameter:
    """A frozen parameter of this tensor that has these attributes."""
    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter


def follow_model(model: torch.nn.Module, recorder: Recorder, places: Mapping[str, Place]) -> None:
    """Note what is there before the first step."""
    for name, parameter in model.named_parameters():
        kind = Kind.ADAPTER if parameter.requires_grad else Kind.BASE_WEIGHTS
        place = places.get(name)
        recorder.follow([parameter, *attached_tensors(parameter)], kind, place)
    for name, buffer in model.named_buffers():
        recorder.follow([buffer], Kind.BASE_WEIGHTS, places.get(name))


def places_of(model: torch.nn.Module) -> dict[str, Place]:
    """Name of each parameter, buffer and module → the layer that it belongs to, if it belongs to one."""
    found = {}
    for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()):
        if match := LAYER.match(name):
            found[name] = Place(match["stack"], int(match["layer"]))
    return found


@contextmanager
def marked_layers(model: torch.nn.Module, recorder: Recorder, places: Mapping[str, Place]) -> Iterator[None]:
    """While active, the recorder knows in which layer the step is, forward and backward."""
    handles = []
    for name, module in model.named_modules():
        place = places.get(name)
        if place is None or name != f"{place.stack}.{place.layer}":
            continue

        def enter(_: Any, __: Any, place: Place = place) -> None:
            if recorder.phase in (Phase.FORWARD, Phase.EVALUATION):
                recorder.place = place

        def leave(_: Any, __: Any, output: Any, place: Place = place) -> None:
            if recorder.phase is not Phase.FORWARD:
                return
            for tensor in tree_iter(output):
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: setattr(recorder, "place", place))
                    break

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def known_packing(batch: Batch) -> Iterator[None]:
    """Let transformers know what it cannot read from fake positions: whether samples share rows."""
    masks: Any = sys.modules.get("transformers.masking_utils")
    find = getattr(masks, "find_packed_sequence_indices", None)
    if find is None or batch.packed:
        yield
        return
    masks.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masks.find_packed_sequence_indices = find


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without the collector: when it runs is chance, and what it frees would be noted then."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def autocast_forward(model: torch.nn.Module, level: Mapping[str, Any]) -> Any:
    """The model's forward pass as accelerate prepares it: outputs leave autocast as float32."""
    if autocast_name(level) == "no":
        return model
    from accelerate.utils.operations import convert_outputs_to_fp32

    context = torch.autocast("cpu", dtype=getattr(torch, level["compute_dtype"]))
    return convert_outputs_to_fp32(context(model.__call__))


def make_inputs(batch: Batch, *, has_labels_per_row: bool) -> dict[str, torch.Tensor]:
    """One micro-batch of the heaviest shape, as the recipe's ``collate`` makes it."""
    shape = (batch.rows, batch.length)
    inputs = {"input_ids": torch.zeros(shape, dtype=torch.long)}
    if batch.packed:
        inputs["position_ids"] = torch.zeros(shape, dtype=torch.long)
    elif batch.padded:
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.long)
    if has_labels_per_row:
        inputs["labels"] = torch.zeros(batch.rows, dtype=torch.long)
    else:
        inputs["labels"] = torch.zeros((batch.rows, batch.target_length or batch.length), dtype=torch.long)
    return inputs


@torch.no_grad()
def evaluate_once(model: torch.nn.Module, forward: Any, batch: Batch, *, has_labels_per_row: bool) -> None:
    """One micro-batch of an evaluation, with the loss of a row at a time."""
    inputs = make_inputs(batch, has_labels_per_row=has_labels_per_row)
    labels = inputs["labels"]
    if batch.target_length is None:
        del inputs["labels"]
    model.eval()
    logits = forward(**inputs).logits
    if not has_labels_per_row:
        for row, wanted in zip(logits, labels, strict=True):
            torch.nn.functional.cross_entropy(row.float(), wanted, reduction="sum")
    model.train()
