from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.api.asking import parse_weights, read_request
from rankwise.errors import InputError
from rankwise.optimizer.domain import (
    ASKED_FIELDS,
    Baseline,
    Complexity,
    LossMask,
    Method,
    Objective,
    OwnLora,
    Preset,
    Quantization,
    Scoring,
    StudyRequest,
    Weights,
)

WRITTEN: dict[str, Any] = {
    "objective": "Speed",
    "weights": "speed=1,memory=2",
    "scoring": "CLASSIC",
    "memory_limit": "2GiB",
    "finish_limit": "6h",
    "quality_within": "2%",
    "price_per_hour": 2.5,
    "processes": 2,
    "budget": "90s",
    "max_trials": 4,
    "seed": 3,
    "task": "Chat",
    "text_column": "t",
    "context_column": "c",
    "target_column": "w",
    "label_column": "l",
    "max_length": 64,
    "effective_batch": 8,
    "epochs": 1,
    "packing": False,
    "loss_mask": "assistant",
    "chat_template": Path("chat.jinja"),
    "methods": ["LoRA", Method.IA3, "lora"],
    "quantizations": "NF4",
    "presets": ["balanced", "QLORA_memory"],
    "lora": {"r": 4, "target_modules": "q, v", "quantization": {"type": "fp4"}},
    "baseline": {"trainer": "trl", "settings": {"method": "lora", "rank": 4}, "name": "sft.yaml"},
    "only_presets": True,
    "use_tiers": True,
    "complexity": "very complex",
    "model_arguments": {"depth": 2},
    "time_column": "d",
    "channels": "a",
    "group_column": "u",
    "eval_command": "python 'my judge.py' --fast",
    "eval_lower_is_better": True,
    "context_length": 32,
    "prediction_length": 8,
}
UNDERSTOOD = StudyRequest(
    model="m",
    dataset="d",
    objective=Objective.SPEED,
    weights=Weights(speed=1.0, memory=2.0, quality=0.0),
    scoring=Scoring.CLASSIC,
    memory_limit_bytes=2 * 2**30,
    finish_limit_s=21_600.0,
    quality_within=0.02,
    price_per_hour=2.5,
    processes=2,
    budget_s=90.0,
    max_trials=4,
    seed=3,
    task="chat",
    text_column="t",
    context_column="c",
    target_column="w",
    label_column="l",
    max_length=64,
    effective_batch=8,
    epochs=1.0,
    packing=False,
    loss_mask=LossMask.ASSISTANT,
    chat_template="chat.jinja",
    methods=(Method.LORA, Method.IA3),
    quantizations=(Quantization.NF4,),
    presets=(Preset.BALANCED, Preset.QLORA_MEMORY),
    lora=OwnLora(rank=4, targets=("q", "v"), quantization=Quantization.FP4),
    baseline=Baseline(name="sft.yaml", trainer="trl", settings={"method": "lora", "rank": 4}),
    only_presets=True,
    use_tiers=True,
    complexity=Complexity.VERY_COMPLEX,
    model_arguments={"depth": 2},
    time_column="d",
    channels=("a",),
    group_column="u",
    eval_command=("python", "my judge.py", "--fast"),
    eval_lower_is_better=True,
    context_length=32,
    prediction_length=8,
)


def test_everything_that_a_study_knows_can_be_asked_for() -> None:
    for field in ASKED_FIELDS:
        assert getattr(UNDERSTOOD, field.name) not in (field.default, {}), f"{field.name} is not tested"
    assert read_request("m", Path("d"), **WRITTEN) == UNDERSTOOD


def test_what_is_left_out_has_the_default() -> None:
    assert read_request("m", "d") == StudyRequest(model="m", dataset="d")
    assert read_request("m", "d", memory_limit=None, task=None, weights=None) == read_request("m", "d")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objective": "cheap"}, "objective 'cheap' is unknown — use one of balanced, "),
        ({"loss_mask": "some"}, "loss mask 'some' is unknown — use one of all, "),
        ({"methods": "lora,ia3"}, "method 'lora,ia3' is unknown — use one of lora, "),
        ({"methods": [3]}, "method 3 is unknown"),
        ({"quantizations": ["nf4", "nf8"]}, "quantization 'nf8' is unknown"),
        ({"max_trials": "many"}, "max_trials"),
        ({"packing": "perhaps"}, "packing"),
        ({"eval_command": "python 'judge.py"}, "split into words: no closing quotation — close its"),
        ({"memory_limit": "much"}, "'much' is not a size"),
        ({"budget": None}, "budget_s"),
        ({"finish_limit": "soon"}, "'soon' is not a duration"),
        ({"quality_within": "close"}, "'close' is not a share — write it like 1% or 0.01"),
        ({"price_per_hour": "cheap"}, "price_per_hour"),
    ],
)
def test_a_value_that_is_not_understood_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_request("m", "d", **wrong)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["method", "memory_limit_bytes"])
def test_an_argument_that_there_is_none_of_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        read_request("m", "d", **{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("speed=0.5,memory=0.1,quality=0.4", Weights(speed=0.5, memory=0.1, quality=0.4)),
        (" quality = 3 , speed=1 ", Weights(speed=1.0, memory=0.0, quality=3.0)),
    ],
)
def test_weights(text: str, weights: Weights) -> None:
    assert parse_weights(text) == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pace=1", "unknown"),
        ("speed=1,speed=2", "given twice"),
        ("speed", "not a number"),
        ("speed=fast", "not a number"),
        ("", "unknown"),
    ],
)
def test_weights_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_weights(text)
    assert "speed=0.5" in caught.value.next_step


def test_a_baseline_says_how_many_rows_and_passes_unless_somebody_else_does() -> None:
    keys = {"base_model": "m", "adapter": "lora", "micro_batch_size": 2, "num_epochs": 4}
    request = read_request("m", "d", baseline={**keys, "gradient_accumulation_steps": 3})
    assert (request.effective_batch, request.epochs) == (6, 4.0)
    assert read_request("m", "d", baseline=keys, effective_batch=8, epochs=1).effective_batch == 8


def test_a_baseline_of_what_no_file_holds_is_refused() -> None:
    for value in (object(), 7, {"base_model": object(), "adapter": "lora"}):
        with pytest.raises(InputError, match="baseline"):
            read_request("m", "d", baseline=value)  # type: ignore[arg-type]
