"""What a trial's process is told, and the limits that it is kept to.

Knows nothing of how trials are run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..home import Home
from ..optimizer.codec import to_json
from ..optimizer.domain import Rung, StudyFacts, StudyRequest, Trial
from ..optimizer.exports.peft import adapter_config
from ..optimizer.keys import derive_seed, measurement_key, training_key
from ..optimizer.recipe import judged_rows, steps_for
from ..optimizer.trainers.writing import deepspeed_config
from ..probes.profiles import GpuProfile
from .guard import Limits
from .messages import TrialSpec

TRIAL_LIMIT_SHARE = 2.0
"""A trial may take this multiple of the study's budget before it is ended as hanging …"""
MIN_TRIAL_LIMIT_S = 300.0
"""… but at least this long: loading a large model alone takes minutes."""


def key_of(facts: StudyFacts, request: StudyRequest, trial: Trial) -> str | None:
    """What the trial measures; None where no other study can use it.

    What code from a model's folder, a factory or an evaluation command does no key can tell.
    """
    if facts.model.runs_own_code:
        return None
    seed, limit_bytes = request.seed, request.memory_limit_bytes
    if trial.plan.rung is Rung.PROBE:
        return measurement_key(facts, trial.candidate, seed=seed, memory_limit_bytes=limit_bytes)
    if request.eval_command:
        return None
    return training_key(facts, trial.plan, seed=seed, memory_limit_bytes=limit_bytes)


def spec_of(
    facts: StudyFacts, request: StudyRequest, trial: Trial, devices: Sequence[GpuProfile], home: Home
) -> TrialSpec:
    """What the child process needs to know."""
    total_steps = trial.plan.train_steps or steps_for(facts.train_rows, facts.recipe)
    return TrialSpec(
        model_path=facts.model.path,
        tokens_path=facts.tokens_path,
        task=to_json(facts.dataset.task),
        candidate=to_json(trial.candidate),
        adapter_config=adapter_config(
            trial.candidate,
            task_kind=facts.dataset.task.kind,
            base_model=facts.model.base,
            total_steps=total_steps,
        ),
        rung=trial.plan.rung.value,
        total_steps=total_steps,
        pad_id=facts.pad_id,
        seed=derive_seed(request.seed, "model", trial.plan.replicate),
        order_seed=derive_seed(request.seed, "order", trial.plan.replicate),
        devices=[device.uuid for device in devices],
        threads=facts.hardware.host.usable_cores,
        heldout_rows=judged_rows(facts.heldout_rows, total_steps, trial.candidate.recipe),
        memory_limit_bytes=request.memory_limit_bytes if devices else None,
        trust_remote_code=facts.model.runs_remote_code,
        has_weights=facts.model.has_weights,
        factory=None if facts.model.factory is None else to_json(facts.model.factory),
        judge=_judge(request, trial, home),
        deepspeed=deepspeed_config(trial.candidate),
    )


def limits_of(request: StudyRequest, *, on_gpu: bool, disk_bytes: int) -> Limits:
    """On a CPU the study's memory limit is the process's; on a GPU the allocator holds it."""
    return Limits(
        time_s=time_limit_s(request),
        host_memory_bytes=None if on_gpu else request.memory_limit_bytes,
        disk_bytes=disk_bytes,
    )


def time_limit_s(request: StudyRequest) -> float:
    """When a trial is ended as hanging."""
    return max(MIN_TRIAL_LIMIT_S, TRIAL_LIMIT_SHARE * request.budget_s)


def _judge(request: StudyRequest, trial: Trial, home: Home) -> dict[str, Any] | None:
    """How the user's command evaluates a training, in half of the time that a trial may take at most."""
    if not request.eval_command or trial.plan.rung is not Rung.TRAIN:
        return None
    return {
        "command": list(request.eval_command),
        "folder": str(home.trial_folder(trial.id) / "trained"),
        "limit_s": time_limit_s(request) / 2,
        "lower_is_better": request.eval_lower_is_better,
    }
