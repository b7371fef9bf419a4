"""A candidate as arguments of transformers' Trainer. Knows their names and values, not the library.

Names are those of transformers 5.23. What a Trainer is not told by its arguments is left out: the adapter
has a file of its own (:mod:`.peft`), and how the model is loaded (quantization, dtype of the weights,
attention) and how rows become batches (packing, loss mask) is in the training script only.
"""

from __future__ import annotations

from typing import Any

from ..domain import Candidate

_MIXED_PRECISION = {"bfloat16": "bf16", "float16": "fp16"}

_ONLY_THE_LOSS = {
    **dict.fromkeys(("rope", "rms_norm", "layer_norm", "swiglu", "geglu", "cross_entropy"), False),
    "fused_linear_cross_entropy": True,
}
"""Of what Liger can replace, the part that trials were run with."""


def training_arguments(candidate: Candidate, *, seed: int, on_cpu: bool) -> dict[str, Any]:
    """Plain JSON data that ``transformers.TrainingArguments(**data)`` takes.

    The chunked loss is left out, since a Trainer has none: it computes the same with more memory.

    Args:
        seed: of what is initialised, and of dropout. The Trainer orders rows in its own way.
        on_cpu: trials ran without a GPU.
    """
    level, recipe = candidate.level, candidate.recipe
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": candidate.micro_batch,
        "gradient_accumulation_steps": candidate.accumulation,
        "num_train_epochs": recipe.epochs,
        "learning_rate": candidate.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        # Below 1 it is the share of all steps: there is no warmup_ratio any more.
        "warmup_steps": recipe.warmup_ratio,
        "optim": level.optimizer,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "activation_checkpointing": level.gradient_checkpointing,
        "bf16": False,
        "fp16": False,
        "torch_compile": level.compile,
        "seed": seed,
        "use_cpu": on_cpu,
    }
    if level.gradient_checkpointing:
        arguments["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    if level.amp:
        arguments[_MIXED_PRECISION[level.compute_dtype]] = True
    if level.loss == "liger":
        arguments |= {"use_liger_kernel": True, "liger_kernel_config": _ONLY_THE_LOSS}
    return arguments
