"""Models made of fakes: tensors that have shapes and no numbers.

Knows what the libraries cannot do with them (transformers 5.23, PEFT 0.21, bitsandbytes 0.50), and does it in
their place. Knows nothing of what is noted about a model that runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from .operators import STAND_INS


class Fakes(FakeTensorMode):
    """Fakes that can be given to operators which torch and bitsandbytes describe in part only."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here; see :meth:`.recorder.Recorder._should_skip_dynamo`."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the operator returns, or would return."""
        stand_in = STAND_INS.get(func._schema.name)
        if stand_in is None:
            return self.dispatch(func, types, args, kwargs or {})
        with self:
            return stand_in(*args, **(kwargs or {}))


def fake_tensors() -> FakeTensorMode:
    """The mode in which a dry run's model is made and run; real tensors may take part."""
    return Fakes(allow_non_fake_inputs=True)


@contextmanager
def on_meta(level: Mapping[str, Any]) -> Iterator[None]:
    """While active, models are built on the meta device, and what is to be quantized is left as it is.

    transformers (5.23) would copy 8-bit matrices from there, and PEFT (0.21: DoRA) unpack 4-bit ones.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        if level["quantization"] != "none":
            from peft.utils import integrations
            from transformers.integrations.bitsandbytes import Bnb8bitQuantize

            stack.enter_context(replaced(Bnb8bitQuantize, "convert", left_alone))
            stack.enter_context(
                replaced(integrations, "dequantize_bnb_weight", lambda weight, **_: weight.data)
            )
        yield


def left_alone(_: Any, input_dict: Mapping[str, Any], model: Any = None, **__: Any) -> dict[str, Any]:
    """In place of transformers' conversion to 8 bits: as it was, but of bitsandbytes' class."""
    from bitsandbytes.nn import Int8Params
    from transformers.pytorch_utils import Conv1D

    result = {}
    for name, value in input_dict.items():
        matrix = value[0] if isinstance(value, list) else value
        module = model.get_submodule(name.rpartition(".")[0])
        if issubclass(module.source_cls, Conv1D):
            matrix = matrix.T
        result[name] = Int8Params(matrix, requires_grad=False)
    return result


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While active, a module's or class's own attribute is this."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def materialise(model: torch.nn.Module) -> None:
    """Move a model from the meta device to fake tensors on the CPU. Call it in a mode for fakes.

    Tied parameters stay tied, and what bitsandbytes would quantize on its way to a device is quantized.
    """
    # With the tensors themselves: PEFT's attention makes parameters anew while its modules are gone through,
    # and those could get the id of one that is gone.
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = tensor, materialised(tensor)
        return made[id(tensor)][1]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = fake(parameter)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)


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
        from bitsandbytes import functional

        # Its table of 8-bit numbers, shared by all that is quantized twice, is read while it is made.
        with unset_fake_temporarily():
            if "dynamic" not in functional.name2qmap:
                functional.name2qmap["dynamic"] = functional.create_dynamic_map()
        packed, state = functional.quantize_4bit(
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


@contextmanager
def known_masks(*, padded: bool, packed: bool) -> Iterator[None]:
    """Let transformers know what it cannot read from fakes: whether rows are padded, and samples share them.

    It leaves out masks that mask nothing, and then takes kernels that need none.
    """
    masks: Any = sys.modules.get("transformers.masking_utils")
    answers: dict[str, Callable[..., Any]] = {}
    if not packed:
        answers["find_packed_sequence_indices"] = lambda *_, **__: None
    for name in ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa"):
        answers[name] = partial(masks_nothing, getattr(masks, name, None), padded)
    with ExitStack() as stack:
        for name, answer in answers.items():
            if hasattr(masks, name):
                stack.enter_context(replaced(masks, name, answer))
        yield


def masks_nothing(ignores: Any, padded: bool, mask: Any, *rest: Any, **named: Any) -> bool:
    """Whether transformers may leave a mask out, which looks whether it hides anything."""
    return not (padded and mask is not None) and ignores(None, *rest, **named)


@contextmanager
def known_weights() -> Iterator[None]:
    """Let PEFT unpack quantized fakes, whose class it does not know: DoRA takes the norm of them."""
    dora: Any = sys.modules.get("peft.tuners.lora.dora")
    if dora is None:
        yield
        return
    with replaced(dora, "dequantize_module_weight", partial(unpacked, dora.dequantize_module_weight)):
        yield


def unpacked(unpack: Callable[[Any], Any], module: Any) -> Any:
    """The matrix of a layer, quantized or not, real or fake."""
    weight = module.weight
    if type(weight).__name__ in ("Params4bit", "Int8Params"):
        return unpack(module)
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if hasattr(weight, "SCB"):
        from bitsandbytes.functional import int8_vectorwise_dequant

        return int8_vectorwise_dequant(weight.data, module.state.SCB if weight.SCB is None else weight.SCB)
    return unpack(module)
