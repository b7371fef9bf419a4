from __future__ import annotations

from typing import Any

import pytest
import torch

from rankwise.runners.messages import TrialSpec
from rankwise.runners.trial import job


def test_a_gpu_that_torch_does_not_find_is_no_reason_to_take_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    spec = TrialSpec(
        model_path="model",
        tokens_path="tokens",
        task={},
        candidate={},
        adapter_config=None,
        rung="probe",
        total_steps=1,
        pad_id=0,
        seed=0,
        order_seed=0,
        devices=["GPU-1"],
        threads=1,
    )
    said: list[tuple[str, dict[str, Any]]] = []
    job.run(spec.to_mapping(), lambda kind, **fields: said.append((kind, fields)))  # type: ignore[arg-type]
    [(kind, fields)] = said
    assert (kind, fields["outcome"]) == ("failure", "invalid")
    assert "does not find the GPU GPU-1" in fields["reason"]
