"""A training step on fake tensors: what it would allocate and compute, without weights and without a GPU.

The model is built by the trial's own builder from its configuration alone, cut to a few layers, and does with
fakes what a trial does with numbers, while a :class:`~.recorder.Recorder` looks on. Knows nothing of what a
device can hold, nor of how tapes are stretched and played (``optimizer/estimates``).
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_iter

from ..optimizer.estimates.tape import Kind, Phase, Place, Tape, sorted_frees
from ..probes.profiles import ModelProfile
from .adalora import allocate_ranks, rank_tensors
from .build import autocast_name, make_optimizer
from .cuda_semantics import cuda_semantics
from .fakes import known_masks, known_weights
from .forward import TARGET, batch_loss, predictions, run_model
from .recorder import Recorder
from .tensor_memory import attached_tensors

LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<layer>\d+)(?:\.(?P<rest>.*))?$")
"""A module within a list of modules, the outermost if there are several."""

PAGED_NUMBERS = 100_000
"""Smaller states are not paged (bitsandbytes' ``Optimizer8bit.get_state_buffer``)."""


@dataclass(frozen=True, slots=True)
class ArrayOfBatch:
    """An array of rows that are no text, or what is to be predicted of them."""

    name: str
    shape: tuple[int, ...]
    """Of a row."""
    dtype: str


@dataclass(frozen=True, slots=True)
class Batch:
    """The shape of one micro-batch."""

    rows: int
    length: int
    """Tokens a row, padding included; of no account where rows are no text."""
    target_length: int | None = None
    """Tokens that an encoder-decoder writes."""
    padded: bool = False
    """Rows differ in length, so that attention needs a mask."""
    packed: bool = False
    """Several samples share a row, so that attention needs positions."""
    has_types: bool = False
    """Two texts share a row, and the tokenizer tells which one a token belongs to."""
    arrays: tuple[ArrayOfBatch, ...] = ()
    """Of rows that are no text."""


def arrays_for(model: ModelProfile) -> tuple[ArrayOfBatch, ...]:
    """What a model reads that is no text, and what it is to predict, as ``Batch.arrays``; empty for texts."""
    if model.image_shape is not None:
        images = ArrayOfBatch("pixel_values", model.image_shape, "float32")
        return images, ArrayOfBatch(TARGET, (), "int64")
    if model.window is not None:
        context, horizon, channels = model.window
        past = ArrayOfBatch("past_values", (context, channels), "float32")
        return past, ArrayOfBatch(TARGET, (horizon, channels), "float32")
    return ()


class Step(Protocol):
    """What is done in a training step, part by part, and in an evaluation."""

    def inputs(self) -> Any:
        """One micro-batch."""

    def begin(self) -> None:
        """Before the first micro-batch goes through the model."""

    def forward(self, inputs: Any) -> None:
        """One micro-batch through the model, to its loss."""

    def backward(self) -> None:
        """From that loss to gradients."""

    def update(self) -> Sequence[torch.Tensor]:
        """Let the optimizer step, and return what it keeps for the next."""

    def end(self) -> None:
        """Drop gradients and losses."""

    def evaluate(self, inputs: Any) -> None:
        """One micro-batch of an evaluation."""


def record(
    model: torch.nn.Module,
    candidate: Mapping[str, Any],
    batch: Batch,
    *,
    passes: int = 1,
    has_labels_per_row: bool = False,
    on_cuda: bool = True,
    uses_autocast: bool | None = None,
) -> Tape:
    """One optimizer step of this model, an evaluation and a checkpoint, as a tape.

    Args:
        model: built and wrapped in its adapter, its tensors fake or real, in training mode.
        passes: micro-batches that add up to one step.
        has_labels_per_row: one label a row, and not one a token.
        on_cuda: allocate as CUDA does; else as the CPU does that this runs on.
        uses_autocast: whether the trainer runs the model under autocast; None as this package's trials do.
    """
    recorder = Recorder(on_cuda=on_cuda)
    level = candidate["level"]
    optimizer = fake_optimizer(model, candidate, recorder)
    if on_cuda and level["optimizer"] == "adamw_torch":
        for group in optimizer.param_groups:
            group["foreach"] = True  # the default on CUDA
    if uses_autocast is None:
        uses_autocast = autocast_name(level) != "no"
    step = TrialStep(
        model,
        candidate,
        optimizer,
        make=partial(make_inputs, model, batch, has_labels_per_row=has_labels_per_row),
        forward=autocast_forward(model, level["compute_dtype"]) if uses_autocast else model,
        # accelerate scales losses only there, and where it casts to float16 (Accelerator.__init__ of 1.15).
        scales_loss=on_cuda and uses_autocast and level["compute_dtype"] == "float16",
        takes_target=batch.target_length is not None or bool(batch.arrays),
    )
    with known_masks(padded=batch.padded, packed=batch.packed), known_weights():
        return record_step(model, step, recorder, on_cuda=on_cuda, passes=passes, places=places_of(model))


def record_step(
    model: torch.nn.Module,
    step: Step,
    recorder: Recorder,
    *,
    on_cuda: bool,
    passes: int = 1,
    places: Mapping[str, Place] | None = None,
) -> Tape:
    """One step of any module and an evaluation, as a tape.

    Args:
        model: in training mode, its tensors fake or real.
        recorder: that has noted nothing yet, of a step that has not begun.
        passes: micro-batches of the step. Two are run: a third meets what the second does.
        places: name of each parameter, buffer and module → the layer that it belongs to.
    """
    places = places or {}
    run = min(passes, 2)
    with ExitStack() as stack:
        stack.enter_context(undisturbed())
        stack.enter_context(marked_layers(model, recorder, places))
        if on_cuda:
            stack.enter_context(cuda_semantics(recorder.count_flops))
        stack.enter_context(recorder)
        follow_model(model, recorder, places)
        recorder.enter(Phase.FORWARD, Kind.INPUTS)
        # A trial collates all micro-batches of a step on the host, and moves one at a time to a GPU.
        waiting = [] if on_cuda else [step.inputs() for _ in range(run)]
        step.begin()
        for number in range(run):
            recorder.enter(Phase.FORWARD, Kind.INPUTS)
            inputs = step.inputs() if on_cuda else waiting[number]
            recorder.enter(Phase.FORWARD, Kind.ACTIVATIONS)
            step.forward(inputs)
            del inputs
            recorder.enter(Phase.BACKWARD, Kind.LOGITS_AND_LOSS if places else Kind.TEMPORARIES)
            step.backward()
        recorder.place = None
        recorder.repeat_work(passes / run)
        recorder.holds((p.grad for p in model.parameters() if p.grad is not None), Kind.GRADIENTS)
        recorder.enter(Phase.OPTIMIZER, Kind.TEMPORARIES)
        recorder.holds(step.update(), Kind.OPTIMIZER_STATE)
        step.end()
        del waiting
        recorder.enter(Phase.EVALUATION, Kind.INPUTS)
        inputs = step.inputs()
        recorder.enter(Phase.EVALUATION, Kind.ACTIVATIONS)
        step.evaluate(inputs)
        return Tape(tuple(sorted_frees(recorder.events)), dict(recorder.kinds), dict(recorder.work))


class TrialStep:
    """A step as trials take it, with accelerate; its parts are those of :class:`Step`."""

    def __init__(
        self,
        model: torch.nn.Module,
        candidate: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        *,
        make: Callable[[], dict[str, torch.Tensor]],
        forward: Any,
        scales_loss: bool,
        takes_target: bool,
    ) -> None:
        self.inputs = make
        self._model, self._optimizer, self._forward = model, optimizer, forward
        self._takes_target = takes_target
        self._scaler = LossScaler("cpu", enabled=scales_loss)
        self._max_grad_norm = candidate["recipe"]["max_grad_norm"]
        base: Any = getattr(model, "base_model", None)
        self._tuner = base if candidate["adapter"]["method"] == "adalora" else None
        if self._tuner is not None:
            self._tuner.rankallocator.reset_ipt()  # this model may have been run before
        self._losses: dict[str, torch.Tensor] = {}

    def begin(self) -> None:
        self._losses["sum"] = torch.zeros(())

    def forward(self, inputs: dict[str, torch.Tensor]) -> None:
        self._losses["last"] = batch_loss(run_model(self._model, inputs, call=self._forward), inputs)
        self._losses["weighted"] = self._losses["last"] * 1.0

    def backward(self) -> None:
        weighted = self._losses["weighted"]
        # accelerate divides by the micro-batches that it accumulates.
        self._scaler.scale(weighted / 1).backward()
        self._losses["sum"] += weighted.detach()

    def update(self) -> Sequence[torch.Tensor]:
        self._scaler.unscale_(self._optimizer)
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, self._max_grad_norm, foreach=True)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._tuner is not None:
            allocate_ranks(self._tuner, 0, skipped=False)
        ranks = () if self._tuner is None else rank_tensors(self._tuner)
        return [*ranks, *self._scaler.kept(), *state_tensors(self._optimizer)]

    def end(self) -> None:
        self._optimizer.zero_grad()
        self._losses.clear()

    def evaluate(self, inputs: dict[str, torch.Tensor]) -> None:
        evaluate_once(self._model, self._forward, inputs, takes_target=self._takes_target)


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """What an optimizer keeps of each parameter."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))


class LossScaler(torch.amp.GradScaler):
    """torch's own, as accelerate takes it: it keeps two numbers, and unscales gradients where they are."""

    def kept(self) -> Iterator[torch.Tensor]:
        """What outlives a step; there is nothing of it before the first, nor where no loss is scaled."""
        if self.is_enabled():
            yield from (tensor for tensor in (self._scale, self._growth_tracker) if tensor is not None)

    def _maybe_opt_step(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Step: fakes do not tell whether a gradient overflowed, which torch (2.13) reads here."""
        optimizer.step()


def fake_optimizer(
    model: torch.nn.Module, candidate: Mapping[str, Any], recorder: Recorder
) -> torch.optim.Optimizer:
    """The optimizer that the trial's builder makes, as if this were the device that it needs."""
    name = candidate["level"]["optimizer"]
    is_paged = name == "paged_adamw_8bit"
    if is_paged:
        candidate = {**candidate, "level": {**candidate["level"], "optimizer": "adamw_8bit"}}
    with unset_fake_temporarily():  # bitsandbytes reads its tables of 8-bit numbers while it makes them
        optimizer = make_optimizer(model, candidate)
    if is_paged or name == "adamw_8bit":
        made: Any = optimizer
        made.get_state_buffer = partial(
            new_state, recorder, made.get_state_buffer, made.name2qmap, is_paged=is_paged
        )
    return optimizer


def new_state(
    recorder: Recorder,
    make: Any,
    tables: Mapping[str, torch.Tensor],
    parameter: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    is_paged: bool,
) -> torch.Tensor:
    """A state of bitsandbytes' (0.50), as :class:`Recorder` is to see it.

    Large ones may lie in memory that CUDA's allocator knows nothing of. Those of 8 bits share two tables,
    which are moved to the parameters' device when the first of them is made.
    """
    if dtype is torch.uint8:
        recorder.follow(tables.values(), Kind.OPTIMIZER_STATE, None)
    if not is_paged or parameter.numel() < PAGED_NUMBERS:
        return make(parameter, dtype=dtype)
    with recorder.looking_away():
        return make(parameter, dtype=dtype)


def follow_model(model: torch.nn.Module, recorder: Recorder, places: Mapping[str, Place]) -> None:
    """Note what is there before the first step."""
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            kind = Kind.ADAPTER if parameter.requires_grad else Kind.BASE_WEIGHTS
            recorder.follow([parameter, *scales_of(parameter, module)], kind, places.get(name))
    for name, buffer in model.named_buffers():
        recorder.follow([buffer], Kind.BASE_WEIGHTS, places.get(name))


def scales_of(parameter: torch.nn.Parameter, module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """What bitsandbytes (0.50) keeps with a quantized matrix; 8-bit layers take it when they first run."""
    yield from attached_tensors(parameter)
    state = getattr(module, "state", None)
    if parameter is getattr(module, "weight", None) and type(state).__module__.startswith("bitsandbytes."):
        yield from attached_tensors(state)


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
    last = {place.stack: place.layer for place in sorted(set(places.values()))}

    def reach(place: Place) -> None:
        recorder.place = place
        recorder.kind = Kind.TEMPORARIES if recorder.phase is Phase.BACKWARD else Kind.ACTIVATIONS

    for name, module in model.named_modules():
        place = places.get(name)
        if place is None or name != f"{place.stack}.{place.layer}":
            continue

        def enter(_: Any, __: Any, place: Place = place) -> None:
            # In a backward pass as well: a re-entrant checkpoint runs the layer again before any gradient
            # reaches it.
            reach(place)

        def leave(_: Any, __: Any, output: Any, place: Place = place) -> None:
            if recorder.phase is Phase.BACKWARD:
                return
            if place.layer == last[place.stack]:
                recorder.place, recorder.kind = None, Kind.LOGITS_AND_LOSS
            for tensor in tree_iter(output):
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: reach(place))
                    break

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without the collector: when it runs is chance, and what it frees would be noted then."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def autocast_forward(model: torch.nn.Module, dtype: str) -> Any:
    """The model's forward pass as accelerate prepares it: outputs leave autocast as float32."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    context = torch.autocast("cpu", dtype=getattr(torch, dtype))
    return convert_outputs_to_fp32(context(model.__call__))


def make_inputs(model: torch.nn.Module, batch: Batch, *, has_labels_per_row: bool) -> dict[str, torch.Tensor]:
    """One micro-batch of the heaviest shape, as the recipe's ``collate`` makes it."""
    if batch.arrays:
        return {
            each.name: torch.zeros((batch.rows, *each.shape), dtype=getattr(torch, each.dtype))
            for each in batch.arrays
        }
    shape = (batch.rows, batch.length)
    inputs = {"input_ids": torch.zeros(shape, dtype=torch.long)}
    if batch.packed:
        inputs["position_ids"] = torch.zeros(shape, dtype=torch.long)
    else:
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.long)
        if batch.padded:
            inputs["attention_mask"][:, -1].zero_()
    if batch.has_types:
        inputs["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
    if has_labels_per_row:
        is_number = getattr(getattr(model, "config", None), "problem_type", None) == "regression"
        inputs["labels"] = torch.zeros(batch.rows, dtype=torch.float32 if is_number else torch.long)
    else:
        inputs["labels"] = torch.zeros((batch.rows, batch.target_length or batch.length), dtype=torch.long)
    return inputs


@torch.no_grad()
def evaluate_once(
    model: torch.nn.Module, forward: Any, inputs: dict[str, torch.Tensor], *, takes_target: bool
) -> None:
    """One micro-batch of an evaluation, as a trial's ``score_rows`` has it, with the loss of one row.

    Rows come one after another, and each allocates and frees the same.

    Args:
        takes_target: the model gets what is to be predicted too, as an encoder-decoder does, which makes the
            decoder's input from it, and as rows that are no text have it.
    """
    labels = inputs.get(TARGET)
    if not takes_target:
        del inputs[TARGET]
    model.eval()
    logits = predictions(run_model(model, inputs, call=forward))
    if logits is not None and labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        if not takes_target:
            logits, labels = logits[:, :-1], labels[:, 1:]
        torch.nn.functional.cross_entropy(logits[0].float(), labels[0], reduction="sum")
    model.train()
