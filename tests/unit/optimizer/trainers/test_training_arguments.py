"""Candidates as a Trainer's arguments: the installed library takes them, and means the same by them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe
from rankwise.optimizer.trainers.writing import training_arguments

ADAPTER = Adapter(method=Method.LORA, rank=8, alpha=16.0, targets=("q_proj",))
RECIPE = Recipe(max_length=128, effective_batch=12, epochs=2.5, warmup_ratio=0.07, weight_decay=0.1)


def arguments(level: Level, recipe: Recipe = RECIPE) -> dict[str, Any]:
    candidate = Candidate(adapter=ADAPTER, level=level, recipe=recipe, micro_batch=4, learning_rate=3e-4)
    return training_arguments(candidate, seed=7, on_cpu=True)


@pytest.mark.parametrize(
    "level",
    [
        Level(),
        Level(compute_dtype="bfloat16", gradient_checkpointing=True, optimizer="adamw_torch_fused"),
        Level(compile=True),
        Level(loss="chunked"),
    ],
    ids=lambda level: level.describe(),
)
def test_the_library_takes_them_from_a_file(tmp_path: Path, level: Level) -> None:
    data = json.loads(json.dumps(arguments(level)))
    found = TrainingArguments(output_dir=str(tmp_path), **data)
    assert {name: getattr(found, name) for name in data} == data
    assert found.per_device_train_batch_size * found.gradient_accumulation_steps == 12
    assert found.get_warmup_steps(101) == math.ceil(101 * 0.07)
    assert found.device.type == "cpu"


def test_without_warm_up(tmp_path: Path) -> None:
    data = arguments(Level(), dataclasses.replace(RECIPE, warmup_ratio=0.0))
    assert TrainingArguments(output_dir=str(tmp_path), **data).get_warmup_steps(100) == 0


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (Level(), (False, False)),
        (Level(compute_dtype="bfloat16"), (True, False)),
        (Level(compute_dtype="float16"), (False, True)),
        (Level(weight_dtype="bfloat16", compute_dtype="bfloat16"), (True, False)),
        (Level(weight_dtype="bfloat16", compute_dtype="bfloat16", adapter_dtype="bfloat16"), (False, False)),
    ],
    ids=["float32", "bfloat16", "float16", "bfloat16 weights", "bfloat16 throughout"],
)
def test_mixed_precision_is_on_where_dtypes_differ(level: Level, expected: tuple[bool, bool]) -> None:
    data = arguments(level)
    assert (data["bf16"], data["fp16"]) == expected


def test_of_ligers_kernels_only_the_loss_is_asked_for() -> None:
    data = arguments(Level(loss="liger"))
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert data.keys() <= known
    parts = data["liger_kernel_config"]
    assert [name for name, is_on in parts.items() if is_on] == ["fused_linear_cross_entropy"]


def test_the_names_of_optimizers_are_the_librarys() -> None:
    from transformers.training_args import OptimizerNames

    for name in ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"):
        assert arguments(Level(optimizer=name))["optim"] in list(OptimizerNames)
