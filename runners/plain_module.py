"""What a training step of any ``nn.Module`` needs, told in this process without weights and without a GPU.

Knows nothing of transformers, adapters and candidates.
"""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_iter

from ..errors import InputError
from ..optimizer.estimates.need import Need, need_of
from ..optimizer.estimates.overheads import TRAINING_THREADS, cublas_workspace_bytes
from ..optimizer.estimates.tape import Kind
from ..probes.attention import CANNOT_BUILD
from .dry_run import LossScaler, record_step, state_tensors
from .fakes import fake_tensors, materialise
from .recorder import Recorder

Source = torch.nn.Module | Callable[[], torch.nn.Module] | str
Shapes = Sequence[tuple[Sequence[int], str]] | Mapping[str, tuple[Sequence[int], str]]
LossOf = Callable[[Any], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNeed(Need):
    """Bytes that training a module needs, and what there is of it."""

    parameters: int
    trainable_parameters: int


def need_of_module(
    source: Source, shapes: Shapes, *, loss: LossOf | None, autocast: str | None, on_cuda: bool
) -> ModuleNeed:
    """Run a step dry; see :func:`rankwise.estimate_module`.

    Raises:
        InputError: the module cannot be built, or not be run on tensors without numbers.
    """
    module = built(source)
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    if not any(is_trained for _, is_trained in parameters):
        raise InputError("the module has nothing to train", next_step="set requires_grad on its parameters")
    if any(isinstance(part, torch.nn.RNNBase) for part in module.modules()):
        # cuDNN's reserve, and oneDNN's workspace on a CPU: torch (2.13) gives fakes none.
        raise InputError(
            "the module has recurrent layers: only libraries know what these keep for the backward pass",
            next_step="measure it, or build the layers of cells such as nn.LSTMCell",
        )
    make = partial(
        inputs_of, {name: (tuple(shape), dtype_of(dtype)) for name, (shape, dtype) in _named(shapes)}
    )
    half = None if autocast is None else dtype_of(autocast)
    try:
        with fake_tensors():
            materialise(module)
            step = PlainStep(module, make, loss or loss_of, autocast=half, on_cuda=on_cuda)
            tape = record_step(module, step, Recorder(on_cuda=on_cuda), on_cuda=on_cuda)
    except CANNOT_BUILD as error:
        raise _refused(error, "be run dry", "check the shapes; numbers of tensors cannot be read") from error
    # What is trained is noted as an adapter's.
    kinds = {block: Kind.BASE_WEIGHTS if kind is Kind.ADAPTER else kind for block, kind in tape.kinds.items()}
    tape = replace(tape, kinds=kinds)
    need = need_of(tape, workspaces=(cublas_workspace_bytes(None),) * TRAINING_THREADS if on_cuda else ())
    return ModuleNeed(
        **{field.name: getattr(need, field.name) for field in fields(need)},
        parameters=sum(number for number, _ in parameters),
        trainable_parameters=sum(number for number, is_trained in parameters if is_trained),
    )


def built(source: Source) -> torch.nn.Module:
    """The module on the meta device, in training mode; one that exists already is copied without its numbers.

    Raises:
        InputError: there is no such factory, or it makes no module.
    """
    try:
        if isinstance(source, torch.nn.Module):
            module: Any = copy.deepcopy(
                source, {id(tensor): emptied(tensor) for tensor in tensors_of(source)}
            )
        else:
            make = pkgutil.resolve_name(source) if isinstance(source, str) else source
            with torch.device("meta"):
                module = make()
    except CANNOT_BUILD as error:
        raise _refused(
            error, "be built", "give a module, what makes one, or package.module:factory"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"the factory gave {type(module).__name__}, no module", next_step="have it return an nn.Module"
        )
    return module.train()


def tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers, each once."""
    yield from module.parameters()
    yield from module.buffers()


def emptied(tensor: torch.Tensor) -> torch.Tensor:
    """The same without numbers."""
    empty = torch.empty_like(tensor, device="meta")
    return (
        torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty
    )


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype of this name.

    Raises:
        InputError: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"torch has no dtype {name!r:.80}", next_step="use one such as float32 or int64")
    return dtype


def inputs_of(shapes: Mapping[str | int, tuple[Sequence[int], torch.dtype]]) -> dict[str | int, torch.Tensor]:
    """A batch of zeros, by name or by position."""
    return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def loss_of(output: Any) -> torch.Tensor:
    """What the output calls its loss, or the sum of all that is in it."""
    loss = getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss
    sums = [
        part.sum()
        for part in tree_iter(output)
        if isinstance(part, torch.Tensor) and part.is_floating_point()
    ]
    return torch.stack(sums).sum() if len(sums) > 1 else sums[0]


class PlainStep:
    """``loss(module(inputs)).backward()`` and AdamW; its parts are those of :class:`~.dry_run.Step`."""

    def __init__(
        self,
        module: torch.nn.Module,
        make: Callable[[], dict[str | int, torch.Tensor]],
        loss: LossOf,
        *,
        autocast: torch.dtype | None,
        on_cuda: bool,
    ) -> None:
        self.inputs = make
        self._module, self._loss_of, self._half = module, loss, autocast
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, foreach=on_cuda)  # the default there, not on a CPU
        self._scaler = LossScaler("cpu", enabled=autocast is torch.float16)
        self._losses: list[torch.Tensor] = []

    def begin(self) -> None:
        pass

    def forward(self, inputs: dict[str | int, torch.Tensor]) -> None:
        with self._autocast():
            self._losses.append(self._loss_of(self._run(inputs)))

    def backward(self) -> None:
        self._scaler.scale(self._losses[-1]).backward()

    def update(self) -> Sequence[torch.Tensor]:
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return [*self._scaler.kept(), *state_tensors(self._optimizer)]

    def end(self) -> None:
        self._optimizer.zero_grad()
        self._losses.clear()

    def evaluate(self, inputs: dict[str | int, torch.Tensor]) -> None:
        with evaluating(self._module), self._autocast():
            self._run(inputs)

    def _run(self, inputs: dict[str | int, torch.Tensor]) -> Any:
        named = {name: tensor for name, tensor in inputs.items() if isinstance(name, str)}
        return self._module(*(inputs[at] for at in inputs if at not in named), **named)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._half is None else torch.autocast("cpu", dtype=self._half)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """While active, the module is evaluated and nothing is kept for gradients."""
    module.eval()
    with torch.no_grad():
        yield
    module.train()


def _named(shapes: Shapes) -> Iterator[tuple[str | int, tuple[Sequence[int], str]]]:
    yield from shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes)


def _refused(error: BaseException, what: str, next_step: str) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(
        f"the module cannot {what} ({type(error).__name__}: {reason:.300})", next_step=next_step
    )
