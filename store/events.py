"""The events that the store itself appends, each in the transaction of the change that it tells of.

    study.created           model, dataset, objective, budget_s, max_trials
    study.running           worker; claimed, and again whenever another supervisor takes the study over
    study.released          back in the queue: its supervisor is shutting down
    study.lost              worker, reason; back in the queue: its supervisor is gone
    study.cancel_requested  the supervisor will act on it
    study.facts             parameters, train_rows, heldout_rows, max_length
    study.finished          state, reason; score and trial_id of the recommendation, if there is one
    candidate.ruled_out     candidate in words, reason; by an estimate: it is never run
    trial.planned           number, rung, candidate in words, reason
    trial.running           number, attempt, devices
    trial.lost              number, attempt, reason; the trial is back in the queue
    trial.disturbed         number, attempt, reason; the trial is back in the queue
    trial.finished          number, attempt, outcome, reason, wall_s and the figures that people follow;
                            disturbances, and reused_from where a measurement was taken from another trial

Every ``trial.*`` payload has ``trial_id``. Payloads hold ids, figures and short texts: whoever wants more
reads the study or trial. Supervisors append kinds of their own. Knows nothing about how events are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from ..optimizer.domain import (
    Candidate,
    Estimate,
    Recommendation,
    Study,
    StudyFacts,
    StudyRequest,
    Trial,
)


class EventKind(StrEnum):
    """The kinds listed above."""

    STUDY_CREATED = "study.created"
    STUDY_RUNNING = "study.running"
    STUDY_RELEASED = "study.released"
    STUDY_LOST = "study.lost"
    STUDY_CANCEL_REQUESTED = "study.cancel_requested"
    STUDY_FACTS = "study.facts"
    STUDY_FINISHED = "study.finished"
    CANDIDATE_RULED_OUT = "candidate.ruled_out"
    TRIAL_PLANNED = "trial.planned"
    TRIAL_RUNNING = "trial.running"
    TRIAL_LOST = "trial.lost"
    TRIAL_DISTURBED = "trial.disturbed"
    TRIAL_FINISHED = "trial.finished"


BASELINE_LEFT_OUT = "baseline.left_out"
"""Of a supervisor: name, reason. What is trained with now cannot be run, and the study goes on without it."""

Payload = Mapping[str, Any]


def study_created(request: StudyRequest) -> Payload:
    """What was asked for."""
    return {
        "model": request.model,
        "dataset": request.dataset,
        "objective": request.objective,
        "budget_s": request.budget_s,
        "max_trials": request.max_trials,
    }


def study_running(worker: str) -> Payload:
    """Who runs it."""
    return {"worker": worker}


def study_lost(worker: str | None, reason: str) -> Payload:
    """Who ran it, and why no more."""
    return {"worker": worker, "reason": reason}


def study_facts(facts: StudyFacts) -> Payload:
    """What was found."""
    return {
        "parameters": facts.model.parameters,
        "train_rows": facts.train_rows,
        "heldout_rows": facts.heldout_rows,
        "max_length": facts.recipe.max_length,
    }


def study_finished(study: Study, recommendation: Recommendation | None) -> Payload:
    """How it ended."""
    chosen = {"trial_id": recommendation.trial_id, "score": recommendation.score} if recommendation else {}
    return {"state": study.state, "reason": study.reason, **chosen}


def candidate_ruled_out(candidate: Candidate, estimate: Estimate) -> Payload:
    """What will not be tried, and why."""
    return {"candidate": candidate.describe(), "reason": estimate.reason}


def trial_planned(trial: Trial) -> Payload:
    """What will be tried, and why."""
    return {
        "trial_id": trial.id,
        "number": trial.number,
        "rung": trial.plan.rung,
        "candidate": trial.candidate.describe(),
        "reason": trial.plan.reason,
    }


def trial_running(trial: Trial, devices: Sequence[str]) -> Payload:
    """Where it runs."""
    return {
        "trial_id": trial.id,
        "number": trial.number,
        "attempt": trial.attempts,
        "devices": list(devices),
    }


def trial_requeued(trial: Trial) -> Payload:
    """Why an attempt came to nothing."""
    return {"trial_id": trial.id, "number": trial.number, "attempt": trial.attempts, "reason": trial.reason}


def trial_finished(trial: Trial) -> Payload:
    """How it ended, with what was measured."""
    measured = trial.measurement
    return {
        "trial_id": trial.id,
        "number": trial.number,
        "attempt": trial.attempts,
        "outcome": trial.outcome,
        "reason": trial.reason,
        "wall_s": trial.wall_s,
        "tokens_per_s": measured.tokens_per_s if measured else None,
        "samples_per_s": measured.samples_per_s if measured else None,
        "memory_bytes": measured.memory_bytes if measured else None,
        "heldout_loss": measured.heldout_loss if measured else None,
        "disturbances": list(measured.disturbances) if measured else [],
        "reused_from": trial.reused_from,
    }
