"""From a candidate to a model and an optimizer that train it.

Imports nothing of rankwise: dry run, trial and exported script share this source, so that what was
estimated is what is measured and what is handed over. A candidate is a plain mapping (its JSON form).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model

TASK_TYPES = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}
MODEL_CLASSES = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
}
AUTOCAST_NAMES = {"bfloat16": "bf16", "float16": "fp16"}


def load_tokenizer(model_path: str, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, with a padding token (the end-of-sequence token where it has none)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def build_model(
    model_path: str,
    *,
    task: Mapping[str, Any],
    candidate: Mapping[str, Any],
    pad_id: int,
    seed: int,
    trust_remote_code: bool = False,
) -> torch.nn.Module:
    """Load the base model, set the level's switches, and wrap it in the candidate's adapter.

    Weights come from safetensors files only; code of the model's folder runs only if it is trusted. The
    seed fixes what is initialised here: a new head and the adapter.
    """
    torch.manual_seed(seed)
    level = candidate["level"]
    arguments: dict[str, Any] = {}
    if task["kind"] == "text-classification":
        labels = task["labels"]
        arguments["id2label"] = dict(enumerate(labels))
        arguments["label2id"] = {label: index for index, label in enumerate(labels)}
    model = MODEL_CLASSES[task["kind"]].from_pretrained(
        model_path,
        dtype=getattr(torch, level["weight_dtype"]),
        attn_implementation=level["attention"],
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        **arguments,
    )
    model.config.pad_token_id = pad_id
    model.config.use_cache = False
    model.train()
    if level["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    dtype = getattr(torch, level["adapter_dtype"])
    return add_adapter(model, task=task, adapter=candidate["adapter"], dtype=dtype)


def add_adapter(
    model: torch.nn.Module, *, task: Mapping[str, Any], adapter: Mapping[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """Wrap the model as PEFT does, what is trained in ``dtype``; full fine-tuning leaves it as it is."""
    if adapter["method"] == "full":
        return model
    wrapped: torch.nn.Module = get_peft_model(model, peft_config(adapter, task_kind=task["kind"]))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:  # PEFT leaves a trained head in the weights' dtype
            parameter.data = parameter.data.to(dtype)
    return wrapped


def peft_config(adapter: Mapping[str, Any], *, task_kind: str) -> PeftConfig:
    """The PEFT configuration of an adapter that is not ``full``."""
    shared: dict[str, Any] = {
        "task_type": TASK_TYPES[task_kind],
        "target_modules": list(adapter["targets"]),
        "modules_to_save": list(adapter["trained_modules"]) or None,
    }
    if adapter["method"] == "ia3":
        return IA3Config(**shared, feedforward_modules=list(adapter["feedforward"]))
    return LoraConfig(
        **shared,
        r=adapter["rank"],
        lora_alpha=adapter["alpha"],
        lora_dropout=adapter["dropout"],
        use_rslora=adapter["use_rslora"],
        use_dora=adapter["use_dora"],
    )


def autocast_name(level: Mapping[str, Any]) -> str:
    """accelerate's ``mixed_precision``: on where computing, weights and adapter differ in dtype."""
    compute = level["compute_dtype"]
    if level["weight_dtype"] == compute == level["adapter_dtype"]:
        return "no"
    return AUTOCAST_NAMES[compute]


def make_optimizer(model: torch.nn.Module, candidate: Mapping[str, Any]) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters only; weight decay spares vectors (biases, norms, IA3)."""
    decay = candidate["recipe"]["weight_decay"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=candidate["learning_rate"])


def make_schedule(optimizer: torch.optim.Optimizer, *, recipe: Mapping[str, Any], total_steps: int) -> Any:
    """transformers' schedule of this name over ``total_steps``, warm-up included."""
    return transformers.get_scheduler(
        recipe["schedule"],
        optimizer,
        num_warmup_steps=math.ceil(total_steps * recipe["warmup_ratio"]),
        num_training_steps=total_steps,
    )


def trainable_sha256(model: torch.nn.Module) -> str:
    """A hash over names and shapes of all trainable parameters: equal models train the same tensors."""
    lines = sorted(f"{name} {tuple(p.shape)}" for name, p in model.named_parameters() if p.requires_grad)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
