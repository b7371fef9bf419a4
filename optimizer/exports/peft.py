"""A candidate's adapter as PEFT's ``adapter_config.json``. Knows names and values, not PEFT itself."""

from __future__ import annotations

from typing import Any

from ...errors import InputError
from ...probes.profiles import TaskKind
from ..domain import Candidate, Method

TASK_TYPES = {TaskKind.TEXT_CLASSIFICATION: "SEQ_CLS", TaskKind.CAUSAL_LM: "CAUSAL_LM"}


def adapter_config(candidate: Candidate, *, task_kind: TaskKind, base_model: str) -> dict[str, Any]:
    """Plain JSON data that ``peft.PeftConfig.from_pretrained`` loads.

    Raises:
        InputError: full fine-tuning has no adapter.
    """
    adapter = candidate.adapter
    if adapter.method is Method.FULL:
        raise InputError(
            "full fine-tuning has no adapter configuration", next_step="train without PEFT, as train.py does"
        )
    shared = {
        "peft_type": adapter.method.name,
        "task_type": TASK_TYPES[task_kind],
        "base_model_name_or_path": base_model,
        "inference_mode": False,
        "target_modules": list(adapter.targets),
        "modules_to_save": list(adapter.trained_modules) or None,
    }
    if adapter.method is Method.IA3:
        return {**shared, "feedforward_modules": list(adapter.feedforward)}
    return {
        **shared,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
    }
