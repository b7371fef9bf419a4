"""How a base model comes into memory: its class, the dtype and quantization of its weights, real or random.

Imports nothing of rankwise but :mod:`.modules`, which is free of it too: it is part of what the exported
script is made of. Knows nothing about adapters and training. A *level* and a *task* are plain mappings with
the fields of ``Level`` and ``TaskProfile``.
"""

from __future__ import annotations

import logging
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from .modules import avoid_fast_paths, quantize_linears

# On import bitsandbytes says which optional kernels it did not find, and in each int8 product that it takes
# float16 inputs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

MODEL_CLASSES = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
    "prompt-completion": transformers.AutoModelForCausalLM,
    "chat": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "image-classification": transformers.AutoModelForImageClassification,
}

FOUR_BIT = ("nf4", "fp4")
"""Quantizations that bitsandbytes computes in a dtype of their own."""

DEFAULT_INITIALIZER_RANGE = 0.02
"""Standard deviation of random weights where a configuration names none (BERT's, and most models')."""


NAMED_BY_CONFIGURATION = ("forecasting", "array-classification", "array-regression", "self-supervised")
"""Tasks for which transformers has no Auto class: the configuration names the model's class."""


def load_base(
    model_path: str,
    *,
    task: Mapping[str, Any],
    level: Mapping[str, Any],
    trained_modules: Sequence[str],
    device: torch.device,
    seed: int,
    has_weights: bool,
    trust_remote_code: bool,
    skip_modules: Sequence[str] = (),
    factory: Mapping[str, Any] | None = None,
) -> Any:
    """The base model with a head for the task, its weights on the device in the level's dtype.

    Weights come from safetensors files only; code of the model's folder runs only if it is trusted. A factory
    makes its module as it likes, and that has the head that it has.

    Args:
        trained_modules: names, or ends of names, of modules that are trained in full, and so never quantized.
        has_weights: False draws random weights, for which the configuration is enough.
        skip_modules: ends of names of modules that are not quantized either.
        factory: name, folder and arguments of what makes the model, in place of transformers.
    """
    if factory is not None:
        made = make_module(factory).to(device=device, dtype=getattr(torch, level["weight_dtype"]))
        quantize_linears(made, level, skip=[*trained_modules, *skip_modules])
        avoid_fast_paths(made)
        if device.type == "cpu":
            widen_norms(made)
        return made
    config = transformers.AutoConfig.from_pretrained(
        model_path, trust_remote_code=trust_remote_code, **head_settings(task)
    )
    auto_class = model_class(config, task)
    arguments = {
        "dtype": getattr(torch, level["weight_dtype"]),
        "attn_implementation": level["attention"],
        "device_map": {"": 0 if device.type == "cuda" else device.type},
        "quantization_config": quantization_config(level, [*trained_modules, *skip_modules]),
    }
    if not has_weights:
        with torch.device("meta"):
            skeleton = make_skeleton(auto_class, config, trust_remote_code=trust_remote_code)
        tensors = random_tensors(skeleton, dtype=arguments["dtype"], device=device, seed=seed)
        model = type(skeleton).from_pretrained(
            None, config=skeleton.config, state_dict=tensors, **without_nones(arguments)
        )
    else:
        model, report = auto_class.from_pretrained(
            model_path,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head of other classes than the task's is made anew
            output_loading_info=True,
            **({} if is_named_by_configuration(task) else {"trust_remote_code": trust_remote_code}),
            **without_nones(arguments),
        )
        require_fitting(model, [name for name, *_ in report["mismatched_keys"]])
    if level["quantization"] in FOUR_BIT:
        keep_settings(model)
    if device.type == "cpu":
        widen_norms(model)
    return model


def require_fitting(model: Any, mismatched: Sequence[str]) -> None:
    """Raise ValueError if weights of the model's body, and not of its head alone, had other shapes."""
    body = [name for name in mismatched if name.startswith(f"{model.base_model_prefix}.")]
    if body:
        raise ValueError(
            f"{len(body)} weights have other shapes than config.json says: {', '.join(body[:3])}"
        )


def model_class(config: Any, task: Mapping[str, Any]) -> Any:
    """transformers' class for the task, automatic or the one that the configuration names.

    Raises:
        ValueError: the configuration names none that transformers has.
    """
    if not is_named_by_configuration(task):
        return MODEL_CLASSES[task["kind"]]
    name = next(iter(config.architectures or ()), "")
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"the configuration's architectures name no class of transformers ({name!r})")
    return found


def is_named_by_configuration(task: Mapping[str, Any]) -> bool:
    """The configuration names the class of models for this task."""
    return task["kind"] in NAMED_BY_CONFIGURATION


def make_skeleton(kind: Any, config: Any, *, trust_remote_code: bool) -> Any:
    """A model of this class, automatic or not, from its configuration."""
    if hasattr(kind, "_model_mapping"):
        return kind.from_config(config, trust_remote_code=trust_remote_code)
    return kind._from_config(config)


def make_module(factory: Mapping[str, Any]) -> torch.nn.Module:
    """What a factory makes, on the CPU whatever the default device is.

    Raises:
        TypeError: that is no module.
    """
    if factory["folder"] not in sys.path:
        sys.path.insert(0, factory["folder"])
    with torch.device("cpu"):
        made = pkgutil.resolve_name(factory["name"])(**factory["arguments"])
    if not isinstance(made, torch.nn.Module):
        raise TypeError(f"{factory['name']} returned {type(made).__name__}, no torch.nn.Module")
    return made


def widen_norms(model: torch.nn.Module) -> None:
    """Keep the parameters of layer norms in float32, as a CPU needs them.

    On a GPU autocast computes layer norms in float32. On a CPU (torch 2.13) it leaves them alone, and they
    take 16-bit parameters for inputs of the same dtype only; some of PEFT's layers (0.21: IA3 on 4-bit
    weights, AdaLoRA on 8-bit ones) give float32.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.float()


def keep_settings(model: torch.nn.Module) -> None:
    """Hold bitsandbytes (0.50) to what it was told about 4-bit layers.

    A layer otherwise computes in the dtype of the first input that it meets (float32 after a norm under
    autocast); on CPUs with AVX512-BF16 it packs its weights anew in the first evaluation, and no gradient
    passes through packed ones.
    """
    module: Any  # Its fields are bitsandbytes' own, which has no types.
    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):
            module.compute_type_is_set = True
            module.support_avx512bf16_for_cpu = False


def head_settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's configuration has to say about the task's head."""
    if task["kind"] == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    if task["kind"] in ("text-classification", "image-classification"):
        labels = task["labels"]
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }
    return {}


def without_nones(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are set: transformers tells None from absent."""
    return {name: value for name, value in arguments.items() if value is not None}


def quantization_config(
    level: Mapping[str, Any], left_alone: Sequence[str]
) -> transformers.BitsAndBytesConfig | None:
    """bitsandbytes' settings for the level; None where nothing is quantized.

    transformers leaves the output embeddings alone unless it is told what to leave alone: then only that.
    A classifier's new head it would quantize.
    """
    kind = level["quantization"]
    if kind == "none":
        return None
    kept = list(left_alone) or None
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=level["double_quantization"],
        bnb_4bit_compute_dtype=getattr(torch, level["compute_dtype"]),
        llm_int8_skip_modules=kept,
    )


class RandomTensor:
    """A tensor that is drawn when transformers slices it, as it does with the tensors of a weight file.

    So no more than a layer exists before it is quantized.
    """

    def __init__(
        self, shape: torch.Size, *, std: float, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        self.shape, self.std, self.dtype, self.device, self.seed = shape, std, dtype, device, seed

    def __getitem__(self, _: Any) -> torch.Tensor:
        """The whole tensor: it is asked for with an ellipsis only."""
        empty = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        if empty.is_meta:  # a dry run: there is nothing to draw
            return empty
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return empty.normal_(0.0, self.std, generator=generator)


def random_tensors(
    skeleton: Any, *, dtype: torch.dtype, device: torch.device, seed: int
) -> dict[str, RandomTensor]:
    """Matrices from a normal distribution, biases zero.

    All else is left to transformers, which initialises what no weight file has; a quantized layer's bias
    it forgets (5.23). On the meta device there is nothing to initialise, and nothing is missing.
    """
    std = getattr(skeleton.config, "initializer_range", DEFAULT_INITIALIZER_RANGE)
    return {
        name: RandomTensor(
            parameter.shape,
            std=0.0 if parameter.dim() == 1 else std,
            dtype=dtype,
            device=device,
            seed=seed + number,
        )
        for number, (name, parameter) in enumerate(skeleton.named_parameters())
        if parameter.dim() > 1 or name.endswith("bias") or device.type == "meta"
    }
