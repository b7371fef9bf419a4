"""A training in words that belong to no trainer: one flat mapping, a name a setting.

What a study recommends is written into these words (:func:`settings_of`) and from them into a trainer's
(:mod:`.table`); a trainer's file is read the other way round. Knows nothing of trainers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...probes.profiles import TaskKind
from ..domain import Candidate
from ..resources import Resources

Settings = Mapping[str, Any]
"""Name of a setting → its value; see :data:`SETTINGS`."""

SETTINGS: Mapping[str, str] = {
    "task": "what is learnt, as rankwise names tasks",
    "model": "folder or hub id of the base model",
    "model_revision": "commit, tag or branch of a model on the hub",
    "model_code": "code from the model's own folder runs",
    "model_weights": "the model's folder has weights; without them they are drawn",
    "method": "how weights are adapted",
    "rank": "of the adapter's matrices",
    "alpha": "their product is scaled with alpha / rank",
    "dropout": "before the adapter",
    "targets": "names, or ends of names, of the modules that are adapted; a text is a pattern",
    "target_parameters": "parameters that stack the matrices of experts",
    "trained_modules": "modules that are trained in full beside the adapter",
    "unfrozen": "without an adapter: what is trained, all else frozen",
    "last_blocks": "without an adapter: how many blocks are trained, counted from the end",
    "rslora": "scaled with alpha / √rank instead",
    "dora": "direction and magnitude of weights are adapted apart",
    "rank_pattern": "other ranks for some modules",
    "alpha_pattern": "other alphas for some modules",
    "init_weights": "how the adapter starts; none is B = 0",
    "weight_dtype": "of the frozen weights as loaded",
    "autocast": "dtype of automatic mixed precision; none where it is off",
    "adapter_dtype": "of what is trained",
    "quantization": "of frozen linear layers, by bitsandbytes",
    "double_quantization": "the scales of 4-bit blocks are quantized too",
    "quantization_dtype": "that 4-bit layers compute in",
    "skip_modules": "modules that are not quantized",
    "gradient_checkpointing": "activations are computed again in the backward pass",
    "attention": "transformers' name of the attention kernel",
    "loss": "how the loss is computed: plain, chunked or liger",
    "compile": "torch.compile",
    "optimizer": "transformers' name",
    "processes": "that train together, one a device",
    "zero_stage": "how DeepSpeed divides states among ranks",
    "fsdp": "version of PyTorch's FSDP that divides everything; 0 where it does not",
    "offload": "what is kept in the host's memory",
    "micro_batch": "rows a device takes at once",
    "accumulation": "micro-batches an optimizer step",
    "effective_batch": "rows an optimizer step learns",
    "epochs": "passes over the data",
    "total_steps": "optimizer steps of the whole training",
    "learning_rate": "at its peak",
    "schedule": "transformers' name",
    "warmup_share": "of all steps, in which the rate climbs",
    "weight_decay": "AdamW's",
    "max_grad_norm": "gradients are cut to this norm",
    "max_length": "tokens a row",
    "packing": "several samples share a row, each seeing only itself",
    "loss_mask": "which tokens are learnt",
    "row_order": "measured: the order of the prepared rows is kept",
    "seed": "of what is initialised, and of dropout",
    "cpu": "trained without a GPU",
}
"""Every setting with what it is."""

PREPARED = "prepared"
"""As the order of rows: that of the prepared file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A candidate with what a trainer has to know beside it."""

    candidate: Candidate
    task: TaskKind
    model: str
    """Its folder, or its id on the hub."""
    model_revision: str | None
    """The commit that was measured; None of a folder."""
    has_weights: bool
    runs_remote_code: bool
    factory: str | None
    """Name of what makes the model; None where transformers does."""
    adapter_config: Mapping[str, Any] | None
    """PEFT's; None without an adapter."""
    classes: int
    """Of a classification; 0 elsewhere."""
    total_steps: int
    seed: int
    on_cpu: bool
    gpu_name: str | None
    """That was measured on; None on a CPU."""
    resources: Resources
    """What the whole training asks for."""
    study_id: str
    libraries: Mapping[str, str]
    """Versions that were measured with."""


def settings_of(training: Training) -> dict[str, Any]:
    """The training in trainer-neutral words."""
    return {
        "task": training.task.value,
        "model": training.model,
        "model_revision": training.model_revision,
        "model_code": training.runs_remote_code,
        "model_weights": training.has_weights,
        **candidate_settings(training.candidate),
        "total_steps": training.total_steps,
        "row_order": PREPARED,
        "seed": training.seed,
        "cpu": training.on_cpu,
    }


def candidate_settings(candidate: Candidate) -> dict[str, Any]:
    """What a candidate says of a training by itself."""
    adapter, level, recipe = candidate.adapter, candidate.level, candidate.recipe
    return {
        "method": adapter.method.value,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "dropout": adapter.dropout,
        "targets": adapter.target_pattern or list(adapter.targets),
        "target_parameters": list(adapter.target_parameters),
        "trained_modules": list(adapter.trained_modules),
        "unfrozen": list(adapter.unfrozen),
        "last_blocks": adapter.last_blocks,
        "rslora": adapter.use_rslora,
        "dora": adapter.use_dora,
        "rank_pattern": dict(adapter.rank_pattern),
        "alpha_pattern": dict(adapter.alpha_pattern),
        "init_weights": adapter.init_weights,
        "weight_dtype": level.weight_dtype,
        "autocast": level.compute_dtype if level.amp else None,
        "adapter_dtype": level.adapter_dtype,
        "quantization": level.quantization.value,
        "double_quantization": level.double_quantization,
        "quantization_dtype": level.compute_dtype,
        "skip_modules": list(level.skip_modules),
        "gradient_checkpointing": level.gradient_checkpointing,
        "attention": level.attention,
        "loss": level.loss,
        "compile": level.compile,
        "optimizer": level.optimizer,
        "processes": level.processes,
        "zero_stage": level.zero_stage,
        "fsdp": level.fsdp,
        "offload": level.offload,
        "micro_batch": candidate.micro_batch,
        "accumulation": candidate.accumulation,
        "effective_batch": recipe.effective_batch,
        "epochs": recipe.epochs,
        "learning_rate": candidate.learning_rate,
        "schedule": recipe.schedule,
        "warmup_share": recipe.warmup_ratio,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "max_length": recipe.max_length,
        "packing": recipe.packing,
        "loss_mask": recipe.loss_mask.value,
    }
