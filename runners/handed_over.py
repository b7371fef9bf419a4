"""A candidate that was measured, with all that trainers and schedulers have to be told of it."""

from __future__ import annotations

from typing import Any

from ..errors import Conflict
from ..optimizer.domain import Candidate, Measurement, Study, StudyFacts, Trial
from ..optimizer.exports.peft import adapter_config
from ..optimizer.keys import derive_seed
from ..optimizer.recipe import steps_for
from ..optimizer.resources import resources_of
from ..optimizer.trainers.settings import Training


def training_of(study: Study, trial: Trial, candidate: Candidate, measured: Measurement | None) -> Training:
    """The candidate with what trainers and schedulers have to know beside it.

    Raises:
        Conflict: the study was never prepared.
    """
    facts = study.facts
    if facts is None:
        raise Conflict(f"study {study.id} never came to look at its model", next_step="export another one")
    model, gpus = facts.model, facts.hardware.gpus
    total_steps = steps_for(facts.train_rows, facts.recipe)
    return Training(
        candidate=candidate,
        task=facts.dataset.task.kind,
        model=model.base if model.revision else model.path,
        model_revision=model.revision,
        has_weights=model.has_weights,
        runs_remote_code=model.runs_remote_code,
        factory=model.factory.name if model.factory else None,
        adapter_config=exported_adapter(candidate, facts, total_steps),
        classes=len(facts.dataset.task.labels),
        total_steps=total_steps,
        seed=derive_seed(study.request.seed, "model", trial.plan.replicate),
        on_cpu=not gpus,
        gpu_name=gpus[0].name if gpus else None,
        resources=resources_of(candidate, measured, total_steps=total_steps, hardware=facts.hardware),
        study_id=study.id,
        libraries=facts.hardware.host.libraries,
    )


def exported_adapter(candidate: Candidate, facts: StudyFacts, total_steps: int) -> dict[str, Any] | None:
    """PEFT's configuration for a training of so many steps, in which AdaLoRA prunes its ranks."""
    config = adapter_config(
        candidate,
        task_kind=facts.dataset.task.kind,
        base_model=facts.model.base,
        total_steps=total_steps,
    )
    if config and facts.model.revision:
        config["revision"] = facts.model.revision
    return config
