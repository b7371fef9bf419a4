"""A recommendation as ``RANKWISE_…=`` lines, safe to be evaluated by a shell.

The names are a promise: scripts break where one goes. Every name is written each time, empty where nothing is
known or nothing of the kind is used. Knows nothing of where the recommendation is from.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ..optimizer.domain import StudyState
from ..optimizer.resources import flat
from .response_schemas.recommendations import RecommendationDocument

PREFIX = "RANKWISE_"

STUDY_NAMES: Mapping[str, str] = {
    "study_id": "of the study",
    "state": "of the study: succeeded; queued or running where nobody waited",
}

NAMES: Mapping[str, str] = {
    **STUDY_NAMES,
    "trial_id": "that measured the recommended configuration",
    "candidate_id": "SHA-256 of the configuration",
    "description": "the configuration in words",
    "score": "0 to 100, against the others of the study",
    "method": "lora, adalora, ia3, full …",
    "rank": "of the adapter",
    "alpha": "of the adapter",
    "dropout": "of the adapter",
    "rslora": "1 or 0: scaled with alpha / √rank",
    "dora": "1 or 0: direction and magnitude apart",
    "targets": "adapted modules, separated by commas",
    "quantization": "none, int8, nf4 or fp4",
    "weight_dtype": "of frozen weights as loaded",
    "compute_dtype": "that is computed in",
    "gradient_checkpointing": "1 or 0",
    "attention": "transformers' name of the kernel",
    "optimizer": "transformers' name",
    "micro_batch": "rows a device takes at once",
    "accumulation": "micro-batches an optimizer step",
    "effective_batch": "rows an optimizer step",
    "learning_rate": "at its peak",
    "max_length": "tokens a row",
    "packing": "1 or 0: several samples share a row",
    "epochs": "passes over the data",
    "processes": "that train together, one a device",
    "zero_stage": "of DeepSpeed; 0 without",
    "fsdp": "version of FSDP; 0 without",
    "offload": "what is kept in the host's memory: none, optimizer or all",
    "heldout_loss": "after the trial's training",
    "tokens_per_second": "that carry content",
    "samples_per_second": "of rows",
    "peak_bytes": "measured: of each GPU, without one of the process",
    "gpus": "to ask for, on one node; 0 where a CPU was measured",
    "gpu_name": "that was measured on",
    "gpu_bytes": "of memory that each GPU needs, with a margin",
    "gpu_gib": "the same in GiB, rounded up",
    "gpu_card_gb": "the same as a size that cards are sold with",
    "cpus": "cores to ask for",
    "host_bytes": "of the node's memory to ask for",
    "host_gib": "the same in GiB, rounded up",
    "hours": "that all epochs take at the measured speed",
    "hours_low": "lower end of its interval",
    "hours_high": "upper end of its interval",
    "limit_seconds": "time limit to ask for: with evaluation, saving and a slower node",
    "limit_minutes": "the same in minutes, rounded up",
}
"""Name without prefix → what it is."""


def study_lines(study_id: str, state: StudyState) -> str:
    """Of a study that recommends nothing yet."""
    return _lines({"study_id": study_id, "state": state.value}, STUDY_NAMES)


def shell_lines(found: RecommendationDocument) -> str:
    """One line a name, in the order of :data:`NAMES`."""
    candidate, evidence = found.candidate, found.evidence
    adapter, level, recipe = candidate.adapter, candidate.level, candidate.recipe
    values: dict[str, Any] = {
        "study_id": found.study_id,
        "state": StudyState.SUCCEEDED.value,
        "trial_id": found.trial_id,
        "candidate_id": found.candidate_id,
        "description": found.description,
        "score": found.score,
        "method": adapter.method.value,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "dropout": adapter.dropout,
        "rslora": adapter.use_rslora,
        "dora": adapter.use_dora,
        "targets": adapter.target_pattern or ",".join(adapter.targets),
        "quantization": level.quantization.value,
        "weight_dtype": level.weight_dtype,
        "compute_dtype": level.compute_dtype,
        "gradient_checkpointing": level.gradient_checkpointing,
        "attention": level.attention,
        "optimizer": level.optimizer,
        "micro_batch": candidate.micro_batch,
        "accumulation": candidate.accumulation,
        "effective_batch": recipe.effective_batch,
        "learning_rate": candidate.learning_rate,
        "max_length": recipe.max_length,
        "packing": recipe.packing,
        "epochs": recipe.epochs,
        "processes": level.processes,
        "zero_stage": level.zero_stage,
        "fsdp": level.fsdp,
        "offload": level.offload,
        "heldout_loss": evidence.heldout_loss,
        "tokens_per_second": evidence.tokens_per_s,
        "samples_per_second": evidence.samples_per_s,
        "peak_bytes": evidence.memory_bytes,
        **(flat(found.resources) if found.resources else {}),
    }
    return _lines(values, NAMES)


def _lines(values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return "".join(f"{PREFIX}{name.upper()}={shlex.quote(_text(values.get(name)))}\n" for name in names)


def _text(value: Any) -> str:
    """Numbers as shells and most programs read them, switches as 1 and 0."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)
