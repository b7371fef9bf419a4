from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankwise.runners.messages import TrialSpec
from rankwise.runners.trial import job
from rankwise.runners.trial.loop import Step


def test_a_gpu_that_torch_does_not_find_is_no_reason_to_take_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    spec = TrialSpec(
        model_path="model",
        tokens_path="tokens",
        task={},
        candidate={"level": {"processes": 1, "zero_stage": 0}},
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


@pytest.mark.parametrize(
    ("device", "compiled", "first"), [("cpu", False, 1), ("cpu", True, 3), ("cuda", False, 4)]
)
def test_a_probe_times_what_comes_after_warming_up(
    monkeypatch: pytest.MonkeyPatch, device: str, compiled: bool, first: int
) -> None:
    """The checked steps count where nothing warms up or is compiled in them."""
    monkeypatch.setattr(job, "ParameterWatch", lambda _: SimpleNamespace(check=lambda *_, **__: None))
    session: Any = SimpleNamespace(
        model=None,
        device=torch.device(device),
        candidate={"level": {"compile": compiled}, "adapter": {"trained_modules": (), "unfrozen": ()}},
        has_adapter=True,
        tuner=None,
    )
    steps = [
        Step(number=number, loss=1.0, tokens=8, rows=1, seconds=0.1, learning_rate=0.1, skipped=False)
        for number in range(8)
    ]
    assert [step.number for step in job.warm_steps(session, iter(steps))] == list(range(first, 8))


def test_a_probe_whose_loss_is_no_number_has_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "checked", lambda _, steps, *__, **___: steps)
    session: Any = SimpleNamespace(device=torch.device("cpu"), candidate={"level": {"compile": False}})
    step = Step(number=0, loss=float("nan"), tokens=8, rows=1, seconds=0.1, learning_rate=0.1, skipped=False)
    with pytest.raises(job.Diverged, match="loss became nan at optimizer step 1"):
        list(job.warm_steps(session, iter([step])))
