from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from rankwise.api.request_schemas import StudyBody
from rankwise.api.response_schemas.studies import StudyDocument
from rankwise.api.response_schemas.trials import TrialDocument
from rankwise.optimizer.domain import (
    ASKED_FIELDS,
    Baseline,
    Candidate,
    Complexity,
    LossMask,
    Measurement,
    Method,
    Objective,
    OwnLora,
    Preset,
    Quantization,
    Rung,
    Scoring,
    Study,
    StudyRequest,
    StudyState,
    Trial,
    TrialPlan,
    TrialState,
    Weights,
)

UNUSUAL = StudyRequest(
    model="m",
    model_arguments={"depth": 2, "kinds": ["a"]},
    dataset="d",
    objective=Objective.MEMORY,
    weights=Weights(speed=1.0, memory=2.0, quality=3.0),
    scoring=Scoring.CLASSIC,
    memory_limit_bytes=2**30,
    finish_limit_s=7200.0,
    quality_within=0.015,
    price_per_hour=1.25,
    processes=2,
    budget_s=61.0,
    max_trials=3,
    seed=9,
    text_column="t",
    label_column="l",
    task="text-classification",
    max_length=64,
    effective_batch=2,
    epochs=0.5,
    methods=(Method.IA3,),
    quantizations=(Quantization.NF4, Quantization.NONE),
    presets=(Preset.QLORA_MEMORY, Preset.AUTO),
    lora=OwnLora(
        rank=4,
        alpha=5.0,
        targets=("q", "v"),
        rank_pattern=(("q", 2), ("v", 3)),
        alpha_pattern=(("q", 1.5),),
        last_rank=16,
        quantization=Quantization.NF4,
        compute_dtype="bfloat16",
        skip_modules=("pooler.dense",),
    ),
    baseline=Baseline(
        name="a.yaml", trainer="axolotl", settings={"method": "lora", "rank": 4}, said=("method", "rank")
    ),
    only_presets=True,
    use_tiers=True,
    complexity=Complexity.VERY_COMPLEX,
    context_column="c",
    target_column="g",
    packing=False,
    loss_mask=LossMask.COMPLETION,
    chat_template="chat.jinja",
    time_column="d",
    channels=("a", "b"),
    group_column="u",
    eval_command=("python", "judge.py"),
    eval_lower_is_better=True,
    context_length=32,
    prediction_length=8,
)


def test_no_field_of_a_request_is_lost_on_the_wire() -> None:
    for field in ASKED_FIELDS:
        assert getattr(UNUSUAL, field.name) not in (field.default, {}), f"{field.name} is not tested"
    body = StudyBody.from_request(UNUSUAL)
    assert body.to_request() == UNUSUAL
    sent = body.model_copy(update={"eval_command": ()})
    received = StudyBody.model_validate_json(sent.model_dump_json()).to_request()
    assert received == dataclasses.replace(UNUSUAL, eval_command=())


def test_no_body_has_the_server_run_a_command() -> None:
    with pytest.raises(ValidationError, match="no command can be asked for over HTTP"):
        StudyBody.model_validate({"model": "m", "dataset": "d", "eval_command": ["rm", "-r", "/"]})


def test_times_are_utc_and_unknown_is_null() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    study = Study(
        id="s", request=UNUSUAL, state=StudyState.QUEUED, created_at=moment, updated_at=moment, facts=None
    )
    wire = json.loads(StudyDocument.of(study, {}).model_dump_json())
    assert wire["created_at"] == "2026-01-02T03:04:05Z"
    assert wire["facts"] is None
    assert wire["reason"] is None


def test_what_is_no_number_is_null(candidates: tuple[Candidate, Candidate]) -> None:
    trial = Trial(
        id="t",
        study_id="s",
        number=1,
        plan=TrialPlan(candidate=candidates[0], rung=Rung.PROBE),
        state=TrialState.FINISHED,
        measurement=Measurement(heldout_loss=math.nan, tokens_per_s=math.inf),
    )
    measurement = json.loads(TrialDocument.of(trial).model_dump_json())["measurement"]
    assert measurement["heldout_loss"] is None
    assert measurement["tokens_per_s"] is None


def test_a_trial_says_what_was_reused_and_what_disturbed_it(candidates: tuple[Candidate, Candidate]) -> None:
    trial = Trial(
        id="t",
        study_id="s",
        number=1,
        plan=TrialPlan(candidate=candidates[0], rung=Rung.PROBE),
        state=TrialState.FINISHED,
        measurement=Measurement(tokens_per_s=5.0, disturbances=("a neighbour took 3 GiB",)),
        reused_from="older",
    )
    wire = json.loads(TrialDocument.of(trial).model_dump_json())
    assert wire["reused_from"] == "older"
    assert wire["measurement"]["disturbances"] == ["a neighbour took 3 GiB"]
    assert wire["candidate"]["level"]["quantization"] == "none"
