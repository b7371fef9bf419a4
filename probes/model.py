"""A model's structure, found by building it on the meta device: its modules, what is new, what it weighs.

Reads configuration and headers only, never a weight, so it takes seconds and little memory whatever the
size. Imports torch and transformers, as only ``roles.py``, ``tensors.py`` and ``attention.py`` do beside it;
runs in a child of the warm server. Knows nothing of adapters.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ..errors import ModelError
from .attention import CANNOT_BUILD, attention_kernels, supports_packing
from .model_source import TensorHeader, has_weights, sample_weights, weight_headers
from .profiles import ARRAY_TASKS, Factory, ModelProfile, TaskKind, TaskProfile
from .roles import in_body, is_of_transformers, layer_of, module_profiles
from .structure import Call, block_numbers
from .tensors import tensor_profiles

_SCORES = ("AutoModelForSequenceClassification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
_CONTINUES = ("AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING)
_CLASSES: Mapping[TaskKind, tuple[str, Any]] = {
    TaskKind.TEXT_CLASSIFICATION: _SCORES,
    TaskKind.REGRESSION: _SCORES,
    TaskKind.CAUSAL_LM: _CONTINUES,
    TaskKind.PROMPT_COMPLETION: _CONTINUES,
    TaskKind.CHAT: _CONTINUES,
    TaskKind.SEQ2SEQ: ("AutoModelForSeq2SeqLM", MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    TaskKind.IMAGE_CLASSIFICATION: (
        "AutoModelForImageClassification",
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    ),
    **dict.fromkeys((kind for kind in ARRAY_TASKS if not kind.reads_images), ("AutoModel", {})),
}
"""Task → (name under which ``auto_map`` lists a class of the model's own code, transformers' own classes)."""

_NO_STRUCTURE = re.compile(
    r"_.*|architectures|transformers_version|(torch_)?dtype|id2label|label2id|problem_type|initializer_\w+"
    r"|\w+_token_id|task_specific_params|finetuning_task"
)
"""Fields of a configuration that change neither memory nor speed."""


def inspect_model(
    path: Path,
    *,
    source: str,
    revision: str | None,
    task: TaskProfile,
    allow_remote_code: bool = False,
    try_packing: bool = True,
) -> ModelProfile:
    """Return the structure of a model as it will be trained for a task.

    Args:
        path: a folder that :func:`~.model_source.resolve_model` returned, with weights or without.
        source, revision: from the same, copied into the profile.
        task: decides the model's class and, with its labels, the size of the head.
        allow_remote_code: run the Python code that the model brings, if it brings any.
        try_packing: find out whether samples may share a row; else the profile says that they may not.

    Raises:
        ModelError: transformers does not know the model, cannot build it or has no such task for it, or
            configuration and weights do not belong together.
    """
    config = _configuration(path, allow_remote_code=allow_remote_code)
    headers = weight_headers(path) if has_weights(path) else None
    try:
        remote_class = _remote_class(config, task, path) if allow_remote_code else None
        model, missing = _build(remote_class or _model_class(config, task), config, task, headers)
    except CANNOT_BUILD as error:
        raise _cannot_be_built(source, error) from error
    text_config = config.get_text_config()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelProfile(
        source=source,
        path=str(path),
        revision=revision,
        architecture=type(model).__name__,
        model_type=config.model_type,
        parameters=parameters,
        weight_bytes=parameters * _dtype(config).itemsize
        if headers is None
        else sum(header.stored_bytes for header in headers.values()),
        structure_sha256=_structure_sha256(model),
        weights_sha256=None if headers is None else sample_weights(path),
        hidden_size=getattr(text_config, "hidden_size", None),
        layers=getattr(text_config, "num_hidden_layers", None),
        max_positions=_max_positions(model),
        image_shape=_image_shape(config) if task.kind.reads_images else None,
        window=_window(config) if task.kind is TaskKind.FORECASTING else None,
        supports_gradient_checkpointing=model.supports_gradient_checkpointing,
        has_weights=headers is not None,
        is_encoder_decoder=config.is_encoder_decoder,
        attention_kernels=attention_kernels(model),
        supports_packing=try_packing and task.kind.is_causal and supports_packing(model),
        runs_remote_code=remote_class is not None,
        modules=module_profiles(model),
        new_modules=_new_modules(model, missing, source),
        tensors=tensor_profiles(model),
    )


def inspect_module(module: nn.Module, factory: Factory, calls: Sequence[Call] = ()) -> ModelProfile:
    """Return the structure of a module that a factory made.

    Args:
        module: on any device; nothing of it is read but its structure.
        factory: what made it.
        calls: of a run that was watched, where there was one: they tell what structure alone does not.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    config = module.config if is_of_transformers(module) else None
    blocks = block_numbers(module)
    return ModelProfile(
        source=factory.name,
        path=factory.folder,
        revision=None,
        architecture=type(module).__name__,
        model_type=getattr(config, "model_type", "module"),
        parameters=parameters,
        weight_bytes=sum(each.numel() * each.element_size() for each in module.parameters()),
        structure_sha256=_structure_sha256(module),
        hidden_size=getattr(config, "hidden_size", None),
        layers=1 + max(blocks.values()) if blocks else None,
        max_positions=None,
        supports_gradient_checkpointing=bool(getattr(module, "supports_gradient_checkpointing", False)),
        modules=module_profiles(module, calls),
        new_modules=(),
        tensors=tensor_profiles(module),
        factory=factory,
        forward_arguments=forward_arguments(module),
    )


def forward_arguments(module: nn.Module) -> tuple[str, ...]:
    """Names of what a module can be called with, in order; catch-alls are left out."""
    parameters = inspect.signature(module.forward).parameters.values()
    catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind not in catch_all)


def random_model(path: Path, task: TaskProfile, *, device: str) -> Any:
    """The model of a configuration with random weights, or on the meta device with none.

    Raises:
        ModelError: transformers does not know the model, cannot build it or has no such task for it.
    """
    config = _configuration(path, allow_remote_code=False)
    try:
        with torch.device(device):
            return _model_class(config, task)._from_config(config)
    except CANNOT_BUILD as error:
        raise _cannot_be_built(str(path), error) from error


def is_encoder_decoder(path: Path, *, allow_remote_code: bool = False) -> bool:
    """Whether the model writes one text from another; read from its configuration alone.

    Raises:
        ModelError: the configuration cannot be read.
    """
    return bool(_configuration(path, allow_remote_code=allow_remote_code).is_encoder_decoder)


def natural_task(path: Path, *, allow_remote_code: bool = False) -> TaskProfile:
    """The task that a model was made for, with the reason; where nothing tells, texts are classified.

    It has no columns: there are no data. Classes are as many as the configuration has, by default two.

    Raises:
        ModelError: the configuration cannot be read.
    """
    config = _configuration(path, allow_remote_code=allow_remote_code)
    name = next(iter(getattr(config, "architectures", None) or ()), type(config).__name__)
    if name.endswith("ForSequenceClassification"):
        kind, reason = TaskKind.TEXT_CLASSIFICATION, f"{name} with {config.num_labels} labels"
    elif type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        kind, reason = TaskKind.SEQ2SEQ, f"{name} is an encoder-decoder"
    elif _is_decoder(config) and not config.is_encoder_decoder:
        kind, reason = TaskKind.CAUSAL_LM, f"{name} is a decoder"
    elif name.endswith("ForImageClassification") or ("For" not in name and _reads_images_only(config)):
        kind, reason = TaskKind.IMAGE_CLASSIFICATION, f"{name} reads images; {config.num_labels} labels"
    elif type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        kind = TaskKind.TEXT_CLASSIFICATION
        reason = f"{name} reads in both directions; {config.num_labels} labels are assumed"
    else:
        kind, reason = _kind_by_name(name), f"{name} reads neither texts nor images; its name says no more"
    return task_without_data(kind, labels=config.num_labels, reason=reason)


def _kind_by_name(name: str) -> TaskKind:
    """What transformers' words for models of arrays mean."""
    ends = {
        "ForPrediction": TaskKind.FORECASTING,
        "Classification": TaskKind.ARRAY_CLASSIFICATION,
        "ForRegression": TaskKind.ARRAY_REGRESSION,
    }
    return next((kind for end, kind in ends.items() if name.endswith(end)), TaskKind.SELF_SUPERVISED)


def task_without_data(kind: TaskKind, *, labels: int = 2, reason: str = "as asked for") -> TaskProfile:
    """A task of which nothing but the kind is known."""
    has_classes = kind in (TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION)
    names = tuple(map(str, range(labels))) if has_classes else ()
    return TaskProfile(kind=kind, text_column="", labels=names, reason=reason)


def _configuration(path: Path, *, allow_remote_code: bool) -> Any:
    """transformers' configuration of the model."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=allow_remote_code, local_files_only=True)
    except CANNOT_BUILD as error:
        raise _cannot_be_built(str(path), error) from error


def _cannot_be_built(source: str, error: BaseException) -> ModelError:
    cause = " ".join(str(error).split())
    return ModelError(
        f"model {source} cannot be built ({type(error).__name__}: {cause:.300})",
        next_step="check config.json, and that this version of transformers supports the model",
    )


def _remote_class(config: Any, task: TaskProfile, path: Path) -> Any:
    """The class that the model's own code has for this task; None if it brings none."""
    reference = getattr(config, "auto_map", {}).get(_CLASSES[task.kind][0])
    return reference and get_class_from_dynamic_module(reference, path)


def _model_class(config: Any, task: TaskProfile) -> Any:
    """The class that transformers has for this configuration and task, or the one that it names."""
    if task.kind.reads_arrays and not task.kind.reads_images:
        return _named_class(config, task)
    if task.kind.is_causal and (_reads_both_ways(config) or config.is_encoder_decoder):
        raise ModelError(
            f"a {config.model_type} model reads texts in both directions: it cannot continue them",
            next_step="give it pairs of texts and --task seq2seq, or name a decoder (Llama, Qwen, GPT-2, …)"
            if config.is_encoder_decoder
            else "name a decoder (Llama, Qwen, GPT-2, …), or a dataset with labels to classify",
        )
    if task.kind is TaskKind.SEQ2SEQ and not config.is_encoder_decoder:
        raise ModelError(
            f"a {config.model_type} model is no encoder-decoder: it cannot write one text from another",
            next_step="pass --task prompt-completion for a decoder, or name an encoder-decoder (T5, BART, …)",
        )
    mapping = _CLASSES[task.kind][1]
    if type(config) not in mapping:
        raise ModelError(
            f"transformers has no {task.kind.value} model of type {config.model_type}",
            next_step="name another model, or another --task",
        )
    return mapping[type(config)]


def _named_class(config: Any, task: TaskProfile) -> Any:
    name = next(iter(getattr(config, "architectures", None) or ()), "")
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelError(
            f"config.json of the {config.model_type} model names no class of transformers for the task "
            f"{task.kind} (architectures: {name!r})",
            next_step='add for example "architectures": ["PatchTSTForPrediction"] to it',
        )
    return found


def _is_decoder(config: Any) -> bool:
    return "AutoModelForCausalLM" in getattr(config, "auto_map", {}) or (
        type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not _reads_both_ways(config)
    )


def _reads_images_only(config: Any) -> bool:
    """Whether transformers has a classifier of images for it, and none of texts."""
    return (
        type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    )


def _image_shape(config: Any) -> tuple[int, int, int] | None:
    """Channels, height and width, of the configuration or of its part that tells of vision.

    None where there are no such fields, as networks of convolutions take images of any size.
    """
    vision = getattr(config, "vision_config", config)
    size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", None)
    if not size or not channels:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def _window(config: Any) -> tuple[int, int, int] | None:
    """Rows before, rows to predict, and channels; None where the configuration does not say all three."""
    names = ("context_length", "prediction_length", "num_input_channels")
    said = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    return (said[0], said[1], said[2]) if len(said) == len(names) else None


def _reads_both_ways(config: Any) -> bool:
    """BERT and its kin: transformers would build them as causal models that see the token to predict."""
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)


def _build(
    model_class: Any, config: Any, task: TaskProfile, headers: Mapping[str, TensorHeader] | None
) -> tuple[Any, set[str]]:
    """The model on the meta device, and the names of its parameters that the weight files do not fill.

    transformers itself matches names, so renamed, prefixed, merged and tied weights count as it loads them.
    Without headers, only the head of a new task is taken to be missing.
    """
    if task.kind.has_new_head:
        config.num_labels = max(1, len(task.labels))
    if headers is None:
        with torch.device("meta"):
            model = model_class._from_config(config, attn_implementation="eager")
        heads = (name for name, _ in model.named_parameters() if not in_body(model, name))
        return model, set(heads) if task.kind.has_new_head else set()
    stored = {name: torch.empty(header.shape, device="meta") for name, header in headers.items()}
    model, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=stored,
        device_map={"": "meta"},
        attn_implementation="eager",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return model, {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}


def _dtype(config: Any) -> torch.dtype:
    """What transformers loads the weights as, if no file says."""
    return config.dtype or config.get_text_config().dtype or torch.float32


def _new_modules(model: Any, missing: Iterable[str], source: str) -> tuple[str, ...]:
    """The modules that own the missing parameters, which may be heads and poolers only."""
    parameters = dict(model.named_parameters())
    modules = sorted({name.rpartition(".")[0] for name in missing if name in parameters})
    broken = [
        name
        for name in modules
        if layer_of(model, name) is not None or isinstance(model.get_submodule(name), nn.Embedding)
    ]
    if broken:
        raise ModelError(
            f"the weight files of model {source} do not fill {len(broken)} of its modules "
            f"({', '.join(broken[:3])}{', …' if broken[3:] else ''})",
            next_step="check that config.json belongs to the weights and that no file is missing",
        )
    return tuple(modules)


def _max_positions(model: Any) -> int | None:
    """Tokens that the model has positions for.

    RoBERTa and its kin number positions from ``padding_idx + 1`` on, so that the rows up to there are lost.
    """
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx:
            return module.num_embeddings - module.padding_idx - 1
    return limit


def _structure_sha256(model: Any) -> str:
    """Hash what decides memory and speed: shapes, classes of modules, the rest of the configuration."""
    config = model.config.to_dict() if is_of_transformers(model) else {}
    form = {
        "parameters": [(name, list(parameter.shape)) for name, parameter in model.named_parameters()],
        "modules": [(name, type(module).__name__) for name, module in model.named_modules()],
        "config": {name: value for name, value in config.items() if not _NO_STRUCTURE.fullmatch(name)},
    }
    return hashlib.sha256(json.dumps(form, sort_keys=True, default=str).encode()).hexdigest()
