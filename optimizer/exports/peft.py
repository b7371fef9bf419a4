"""A candidate's adapter as PEFT's ``adapter_config.json``. Knows names and values, not PEFT itself."""

from __future__ import annotations

from typing import Any

from ...probes.profiles import TaskKind
from ..domain import Candidate
from ..methods import METHODS

TASK_TYPES = {
    TaskKind.TEXT_CLASSIFICATION: "SEQ_CLS",
    TaskKind.REGRESSION: "SEQ_CLS",
    TaskKind.CAUSAL_LM: "CAUSAL_LM",
    TaskKind.PROMPT_COMPLETION: "CAUSAL_LM",
    TaskKind.CHAT: "CAUSAL_LM",
    TaskKind.SEQ2SEQ: "SEQ_2_SEQ_LM",
}
"""PEFT's (0.21) word for a task; where rows are no text it has none, and needs none."""


def adapter_config(
    candidate: Candidate, *, task_kind: TaskKind | None, base_model: str, total_steps: int
) -> dict[str, Any] | None:
    """Plain JSON data that ``peft.PeftConfig.from_pretrained`` loads; None for full fine-tuning.

    Trials and the exported script build their adapter from these very fields.

    Args:
        task_kind: None where nothing is known of it: PEFT then adds nothing for a task.
        total_steps: optimizer steps of the training, over which AdaLoRA spreads its pruning of ranks.
    """
    adapter = candidate.adapter
    spec = METHODS[adapter.method]
    if spec.peft_type is None:
        return None
    return {
        "peft_type": spec.peft_type,
        "task_type": task_kind and TASK_TYPES.get(task_kind),
        "base_model_name_or_path": base_model,
        "inference_mode": False,
        "target_modules": adapter.target_pattern or list(adapter.targets),
        "modules_to_save": list(adapter.trained_modules) or None,
        **spec.config_fields(adapter, total_steps),
    }
