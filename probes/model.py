"""A model's structure, found by building it on the meta device: its modules, what is new, what it weighs.

Reads configuration and headers only, never a weight, so it takes seconds and little memory whatever the
size. The only probe that imports torch and transformers; it runs in a child of the warm server. Knows
nothing of adapters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from .model_source import TensorHeader, read_json_object, weight_headers
from .profiles import ModelProfile, ModuleProfile, TaskKind, TaskProfile

_LIMITS = tuple(
    (re.compile(names), least, most)
    for names, least, most in (
        (r"num_hidden_layers|num_layers|n_layers?", 1, 1_000),
        (r"\w+_layers", 0, 1_000),
        (r"hidden_size|embedding_size|d_model|dim|n_embd|head_dim", 1, 200_000),
        (r"intermediate_size|(\w+_)?ffn_dim|d_ff|hidden_dim|n_inner", 1, 2_000_000),
        (r"num_(attention|key_value)_heads|n_heads?|num_(local_)?experts|n_routed_experts", 1, 20_000),
        (r"vocab_size|max_position_embeddings|n_positions|n_ctx|num_labels", 1, 20_000_000),
    )
)
"""(fields of config.json, least, most): far beyond all published models, and far below what would take
minutes or gigabytes to build without weights."""

_CANNOT_BUILD = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers' configurations and models were seen to raise on fields that they did not expect."""

_ROLES = tuple(
    (role, re.compile(rf"(.*\.)?({names})"))
    for role, names in (
        ("qkv", r"c_attn|query_key_value|qkv_proj|qkv|Wqkv"),
        ("query", r"q_proj|query|query_proj|q_lin|\w*[aA]tt\w*\.q"),
        ("key", r"k_proj|key|key_proj|k_lin|\w*[aA]tt\w*\.k"),
        ("value", r"v_proj|value|value_proj|v_lin|\w*[aA]tt\w*\.v"),
        ("attention_output", r"o_proj|out_lin|\w*[aA]tt\w*\.(output\.dense|dense|c_proj|out_proj|Wo|o)"),
        ("mlp_gate", r"gate_proj|wi_0"),
        (
            "mlp_in",
            r"up_proj|gate_up_proj|intermediate\.dense|fc1|fc_in|lin1|c_fc|dense_h_to_4h|ffn|Wi|wi|wi_1",
        ),
        ("mlp_out", r"down_proj|output\.dense|fc2|fc_out|lin2|mlp\.c_proj|dense_4h_to_h|ffn_output|Wo|wo"),
    )
)
"""(role, how module names of that role end); the first that matches holds."""

_AUTO_CLASSES = {
    TaskKind.TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    TaskKind.CAUSAL_LM: "AutoModelForCausalLM",
}
"""The names under which ``auto_map`` in config.json lists classes of the model's own code."""

_NO_STRUCTURE = re.compile(
    r"_.*|architectures|transformers_version|(torch_)?dtype|id2label|label2id|problem_type|initializer_\w+"
    r"|\w+_token_id|task_specific_params|finetuning_task"
)
"""Fields of a configuration that change neither memory nor speed."""


def inspect_model(
    path: Path, *, source: str, revision: str | None, task: TaskProfile, allow_remote_code: bool = False
) -> ModelProfile:
    """Return the structure of a model as it will be trained for a task.

    Args:
        path: a folder that :func:`~.model_source.resolve_model` returned.
        source, revision: from the same, copied into the profile.
        task: decides the model's class and, with its labels, the size of the head.
        allow_remote_code: run the Python code that the model brings, if it brings any.

    Raises:
        ModelError: transformers does not know the model, cannot build it or has no such task for it, or
            configuration and weights do not belong together.
    """
    _check_sizes(read_json_object(path / "config.json"))
    headers = weight_headers(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=allow_remote_code, local_files_only=True)
        remote_class = _remote_class(config, task, path) if allow_remote_code else None
        model, missing = _build(remote_class or _model_class(config, task), config, task, headers)
    except _CANNOT_BUILD as error:
        cause = " ".join(str(error).split())
        raise ModelError(
            f"model {source} cannot be built ({type(error).__name__}: {cause:.300})",
            next_step="check config.json, and that this version of transformers supports the model",
        ) from error
    text_config = config.get_text_config()
    return ModelProfile(
        source=source,
        path=str(path),
        revision=revision,
        architecture=type(model).__name__,
        model_type=config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=sum(header.stored_bytes for header in headers.values()),
        structure_sha256=_structure_sha256(model),
        hidden_size=getattr(text_config, "hidden_size", None),
        layers=getattr(text_config, "num_hidden_layers", None),
        max_positions=_max_positions(model),
        supports_gradient_checkpointing=model.supports_gradient_checkpointing,
        runs_remote_code=remote_class is not None,
        modules=tuple(_modules(model)),
        new_modules=_new_modules(model, missing, source),
    )


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse sizes that would keep the machine busy before anything else can object to them."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value)
        if name == "quantization_config":
            raise ModelError(
                "the model's weights are already quantized (quantization_config in config.json)",
                next_step="name the model that they were made from; rankwise tries quantization itself",
            )
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        for names, least, most in _LIMITS:
            if names.fullmatch(name):
                if not least <= value <= most:
                    raise ModelError(
                        f"config.json has {name} = {value}, which is not from {least} to {most}",
                        next_step="correct config.json, or download the model again",
                    )
                break


def _remote_class(config: Any, task: TaskProfile, path: Path) -> Any:
    """The class that the model's own code has for this task; None if it brings none."""
    reference = getattr(config, "auto_map", {}).get(_AUTO_CLASSES[task.kind])
    return reference and get_class_from_dynamic_module(reference, path)


def _model_class(config: Any, task: TaskProfile) -> Any:
    """The class that transformers has for this configuration and task."""
    if task.kind is TaskKind.TEXT_CLASSIFICATION:
        mapping = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    else:
        mapping = MODEL_FOR_CAUSAL_LM_MAPPING
        # transformers would build BERT and its kin as causal models that see the token to predict.
        is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
        if is_encoder or config.is_encoder_decoder:
            raise ModelError(
                f"a {config.model_type} model reads texts in both directions: it cannot continue them",
                next_step="name a decoder (Llama, Qwen, GPT-2, …), or a dataset with labels to classify",
            )
    if type(config) not in mapping:
        raise ModelError(
            f"transformers has no {task.kind.value} model of type {config.model_type}",
            next_step="name another model, or another --task",
        )
    return mapping[type(config)]


def _build(
    model_class: Any, config: Any, task: TaskProfile, headers: Mapping[str, TensorHeader]
) -> tuple[Any, set[str]]:
    """The model on the meta device, and the names of its parameters that the weight files do not fill.

    transformers itself matches names, so renamed, prefixed, merged and tied weights count as it loads them.
    """
    if task.kind is TaskKind.TEXT_CLASSIFICATION:
        config.num_labels = len(task.labels)
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


def _new_modules(model: Any, missing: Iterable[str], source: str) -> tuple[str, ...]:
    """The modules that own the missing parameters, which may be heads and poolers only."""
    parameters = dict(model.named_parameters())
    modules = sorted({name.rpartition(".")[0] for name in missing if name in parameters})
    broken = [
        name
        for name in modules
        if _layer(model, name) is not None or isinstance(model.get_submodule(name), nn.Embedding)
    ]
    if broken:
        raise ModelError(
            f"the weight files of model {source} do not fill {len(broken)} of its modules "
            f"({', '.join(broken[:3])}{', …' if broken[3:] else ''})",
            next_step="check that config.json belongs to the weights and that no file is missing",
        )
    return tuple(modules)


def _modules(model: Any) -> Iterator[ModuleProfile]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kind, sizes = "linear", (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            kind, sizes = "conv1d", (module.nx, module.nf)
        elif isinstance(module, nn.Embedding):
            kind, sizes = "embedding", (module.num_embeddings, module.embedding_dim)
        else:
            continue
        yield ModuleProfile(
            name=name,
            kind=kind,
            role=_role(model, name) if kind != "embedding" else "other",
            in_features=sizes[0],
            out_features=sizes[1],
            parameters=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
            layer=_layer(model, name),
        )


def _in_body(model: Any, name: str) -> bool:
    """The module is part of the base model rather than of what a task puts on top."""
    return model.base_model is model or name.startswith(f"{model.base_model_prefix}.")


def _role(model: Any, name: str) -> str:
    if not _in_body(model, name):
        return "head"
    return next((role for role, pattern in _ROLES if pattern.fullmatch(name)), "other")


def _layer(model: Any, name: str) -> int | None:
    """The first number in the module's path: layers come before experts."""
    if not _in_body(model, name):
        return None
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


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
    form = {
        "parameters": [(name, list(parameter.shape)) for name, parameter in model.named_parameters()],
        "modules": [(name, type(module).__name__) for name, module in model.named_modules()],
        "config": {
            name: value for name, value in model.config.to_dict().items() if not _NO_STRUCTURE.fullmatch(name)
        },
    }
    return hashlib.sha256(json.dumps(form, sort_keys=True, default=str).encode()).hexdigest()
