"""What follows from shapes alone: parameters that are trained, and bytes that are needed whatever the batch.

Bytes are those of one process's device, of what it holds itself where several share a model. Knows nothing of
activations, and of which candidates there are.
"""

from __future__ import annotations

from ..probes.profiles import HardwareProfile, ModelProfile, ModuleProfile
from .domain import Adapter, Candidate, Level, Method, Quantization
from .methods import METHODS
from .parts import parameters_of
from .targets import adapted_modules, is_adaptable, is_trained

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}

MASTER_BYTES = 4
"""Weights that an optimizer updates, and their gradients, are float32."""

OPTIMIZER_BYTES_PER_PARAMETER = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_8bit": 2 + 2 * 4 / 256,
    "paged_adamw_8bit": 0.0,
}
"""Adam's two moments: float32, or a byte each with a scale for every 256; paged ones may be on the host."""

BYTES_PER_QUANTIZED_PARAMETER = {
    Quantization.INT8: 1.0,
    Quantization.NF4: 1 / 2 + 4 / 64,
    Quantization.FP4: 1 / 2 + 4 / 64,
}
"""Of bitsandbytes: 4-bit numbers have a float32 scale for every 64. (8-bit rows have one a row: left out.)"""

QUANTIZED_NUMBER_BYTES = {Quantization.INT8: 1.0, Quantization.NF4: 1 / 2, Quantization.FP4: 1 / 2}
"""Of these the numbers themselves; the rest are scales."""

BYTES_PER_DOUBLE_QUANTIZED_PARAMETER = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""The scales are a byte each, with a float32 for every 256 of them."""


ZERO_DIVIDES_GRADIENTS, ZERO_DIVIDES_WEIGHTS = 2, 3
"""Stages of DeepSpeed's ZeRO from which on it does."""


def divides_weights(level: Level) -> bool:
    """Each process holds a part of the model's weights, and has the others sent when they are due."""
    return level.fsdp > 0 or level.zero_stage >= ZERO_DIVIDES_WEIGHTS


def estimated_trainable(candidate: Candidate, model: ModelProfile) -> int:
    """Trainable parameters, from the shapes of the modules that are adapted or trained in full."""
    return trainable_parameters(candidate.adapter, model)


def trainable_parameters(adapter: Adapter, model: ModelProfile) -> int:
    """As :func:`estimated_trainable`, of an adapter at any level."""
    if adapter.method is Method.FULL:
        return model.parameters
    if adapter.method.unfreezes:
        return parameters_of(adapter.trained_parts, model)
    trained = sum(m.parameters for m in model.modules if is_trained(m.name, adapter.trained_modules))
    on = METHODS[adapter.method].trainable_on
    return trained + sum(on(adapter, module) for module in adapted_modules(adapter, model))


def least_bytes(candidate: Candidate, model: ModelProfile) -> int:
    """A lower bound on memory: weights, gradients and optimizer state, without a single activation.

    Frozen embeddings are left out: a host may map their file and touch only the rows in use.
    """
    adapter = candidate.adapter
    trained = trained_bytes(candidate.level, estimated_trainable(candidate, model))
    if adapter.method is Method.FULL:
        return trained
    return trained + frozen_bytes(
        candidate.level, model, adapter.trained_parts, in_place=in_place(adapter, model)
    )


def in_place(adapter: Adapter, model: ModelProfile) -> int:
    """Parameters of the model itself that are trained where they are; PEFT trains a copy of a head."""
    return trainable_parameters(adapter, model) if adapter.method.unfreezes else 0


def trained_bytes(level: Level, parameters: int) -> int:
    """Weights, gradients and optimizer state of this many trained parameters.

    Each of DeepSpeed's stages divides more: the optimizer's state with the float32 weights that it updates,
    then gradients, then the weights that are computed with. FSDP divides all of it.
    """
    state = OPTIMIZER_BYTES_PER_PARAMETER[level.optimizer]
    if not level.uses_deepspeed:
        ranks = level.processes if level.fsdp else 1
        return int((2 * MASTER_BYTES + state) * parameters / ranks)
    weights = gradients = float(BYTES_PER_ELEMENT[level.weight_dtype])
    divided = MASTER_BYTES + state
    if level.offload != "none":
        divided = gradients = 0.0
    if level.zero_stage >= ZERO_DIVIDES_GRADIENTS:
        gradients /= level.processes
    if level.zero_stage >= ZERO_DIVIDES_WEIGHTS:
        weights = 0.0 if level.offload == "all" else weights / level.processes
    return int((weights + gradients + divided / level.processes) * parameters)


def host_bytes(level: Level, parameters: int, frozen: int) -> int:
    """What all processes together keep in the host's memory in place of their devices'.

    Args:
        level: with what it offloads.
        parameters: that are trained.
        frozen: bytes of the frozen weights, undivided.
    """
    if level.offload == "none":
        return 0
    # Its masters, Adam's two moments and a gradient, float32 all.
    host = 4 * MASTER_BYTES * parameters
    if level.offload == "all":
        host += BYTES_PER_ELEMENT[level.weight_dtype] * parameters + frozen
    return host


def frozen_bytes(
    level: Level, model: ModelProfile, trained_parts: tuple[str, ...], *, in_place: int = 0
) -> int:
    """The base model's weights without embeddings, quantized where the level says so and the kind allows.

    ZeRO-3 and FSDP divide them, but for the scales of quantized ones, which are no parameters.

    Args:
        trained_parts: what is not quantized, because it is trained.
        in_place: how many of the model's own parameters are no frozen weights, but trained ones.
    """
    embeddings = sum(module.parameters for module in model.modules if module.kind == "embedding")
    frozen = max(0, model.parameters - embeddings - in_place)
    ranks = level.processes if divides_weights(level) else 1
    is_away = level.offload == "all"
    item = 0.0 if is_away else BYTES_PER_ELEMENT[level.weight_dtype] / ranks
    if level.quantization is Quantization.NONE:
        return int(item * frozen)
    quantized = min(frozen, quantizable_parameters(model, (*trained_parts, *level.skip_modules)))
    rate = (
        BYTES_PER_DOUBLE_QUANTIZED_PARAMETER
        if level.double_quantization
        else BYTES_PER_QUANTIZED_PARAMETER[level.quantization]
    )
    numbers = QUANTIZED_NUMBER_BYTES[level.quantization]
    held = rate - numbers + (0.0 if is_away else numbers / ranks)
    return int(item * (frozen - quantized)) + int(held * quantized)


def quantizable_parameters(model: ModelProfile, trained_parts: tuple[str, ...]) -> int:
    """Weights, without biases, that are quantized: of linear layers, not of stacked experts.

    transformers (5.23) leaves linear layers of a class of the model's own (Falcon's) as they are.
    """
    return sum(
        _matrix(module)
        for module in model.modules
        if module.is_plain and module.kind != "attention" and is_adaptable(module, trained_parts)
    )


def device_bytes(hardware: HardwareProfile) -> int:
    """Memory of the largest GPU, or the host's where there is none."""
    return max((gpu.total_bytes for gpu in hardware.gpus), default=hardware.host.ram_total_bytes)


def _matrix(module: ModuleProfile) -> int:
    return module.in_features * module.out_features * module.matrices
