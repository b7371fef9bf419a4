"""A file's keys tell whose they are, what is trained, and what the trainer does where they say nothing."""

from __future__ import annotations

import pytest

from rankwise.errors import InputError
from rankwise.optimizer.domain import Method, Quantization
from rankwise.optimizer.trainers.as_estimate import as_estimate
from rankwise.optimizer.trainers.reading import FORMATS, KINDS, read, whose
from rankwise.optimizer.trainers.settings import SETTINGS

AXOLOTL = {"base_model": "org/m", "adapter": "qlora", "load_in_4bit": True, "sequence_len": 2048}
TRL = {"model_name_or_path": "org/m", "use_peft": True, "lora_r": 8, "dataset_name": "d"}
LLAMA_FACTORY = {"model_name_or_path": "org/m", "stage": "sft", "finetuning_type": "lora", "template": "x"}
DEEPSPEED = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}


@pytest.mark.parametrize(
    ("keys", "format_name"),
    [
        (AXOLOTL, "axolotl"),
        (TRL, "trl"),
        (LLAMA_FACTORY, "llamafactory"),
        ({"per_device_train_batch_size": 4, "learning_rate": 1e-4}, "transformers"),
        (DEEPSPEED, "deepspeed"),
        ({"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO"}, "accelerate"),
        ({"peft_type": "LORA", "r": 8}, "peft"),
        ({**AXOLOTL, "lora_rr": 8, "microbatch": 2}, "axolotl"),
    ],
)
def test_a_file_is_known_by_its_keys(keys: dict[str, object], format_name: str) -> None:
    assert whose(keys) == format_name


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_name_or_path": "m", "learning_rate": 1e-4}, "llamafactory"),
        ({"name": "x", "on": "push", "jobs": {}}, "no trainer"),
    ],
)
def test_unclear_keys_are_refused_with_the_formats(keys: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        whose(keys)
    assert "name the format" in refused.value.next_step


def test_what_a_file_leaves_out_is_what_its_trainer_does() -> None:
    trl, axolotl = read(TRL, "trl"), read(AXOLOTL, "axolotl")
    factory = read(LLAMA_FACTORY, "llamafactory")
    assert (trl.get("weight_dtype"), trl.get("gradient_checkpointing")) == ("float32", True)
    assert (trl.get("autocast"), trl.get("learning_rate")) == ("bfloat16", 2e-5)
    assert (axolotl.get("schedule"), axolotl.get("autocast")) == ("cosine", "bfloat16")
    assert (factory.get("rank"), factory.get("alpha"), factory.get("autocast")) == (8, 16, None)
    assert "rank" in trl.said
    assert "learning_rate" not in trl.said
    assert trl.key_of["rank"] == "lora_r"


@pytest.mark.parametrize(
    ("changes", "autocast", "weights"),
    [
        ({}, "bfloat16", "bfloat16"),
        ({"bf16": False}, None, "float32"),
        ({"fp16": True}, "float16", "float16"),
        ({"bf16": "auto"}, "bfloat16", "bfloat16"),
    ],
)
def test_axolotl_takes_bfloat16_unless_told_otherwise(
    changes: dict[str, object], autocast: str | None, weights: str
) -> None:
    reading = read({"base_model": "m", "adapter": "lora", **changes}, "axolotl")
    assert (reading.get("autocast"), reading.get("weight_dtype")) == (autocast, weights)


def test_numbers_may_be_texts_as_yaml_has_them() -> None:
    reading = read({**TRL, "learning_rate": "1e-4", "lora_r": "16"}, "trl")
    assert (reading.get("learning_rate"), reading.get("rank"), reading.bad) == (1e-4, 16, ())


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("lora_r", "sixteen", "a whole number"),
        ("lora_r", 0, "a whole number"),
        ("lora_r", True, "a whole number"),
        ("learning_rate", [1e-4], "a number"),
        ("learning_rate", float("inf"), "a number"),
        ("use_dora", "perhaps", "true or false"),
        ("lora_target_modules", [1, 2], "a list of names, or one name"),
        ("optim", 8, "a word"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(key: str, value: object, wanted: str) -> None:
    reading = read({**TRL, key: value}, "trl")
    assert [(bad.key, bad.wanted) for bad in reading.bad] == [(key, wanted)]


def test_unknown_keys_come_with_the_nearest_known_one() -> None:
    reading = read({**AXOLOTL, "gradient_accumulation_step": 4, "loraR": 8, "qqqqqq": 1}, "axolotl")
    assert {each.key: each.nearest for each in reading.unknown} == {
        "gradient_accumulation_step": "gradient_accumulation_steps",
        "loraR": "lora_r",
        "qqqqqq": None,
    }


def test_keys_that_say_nothing_here_are_told_apart_from_unknown_ones() -> None:
    reading = read({**AXOLOTL, "wandb_project": "x", "datasets": []}, "axolotl")
    assert (reading.ignored, reading.unknown) == (("datasets", "wandb_project"), ())


def test_an_adapter_reads_with_pefts_defaults() -> None:
    reading = read(
        {"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": "m"}, "peft"
    )
    assert (reading.method, reading.get("rank"), reading.get("alpha")) == (Method.LORA, 8, 8)
    assert (reading.get("targets"), reading.get("model")) == (["q_proj"], "m")
    assert read({"peft_type": "VERA"}, "peft").method is None


def test_deepspeeds_auto_is_left_to_the_training() -> None:
    reading = read(DEEPSPEED, "deepspeed")
    assert reading.get("zero_stage") == 2
    assert "micro_batch" not in reading.said


@pytest.mark.parametrize(
    ("keys", "trainer", "expected"),
    [
        (AXOLOTL, "axolotl", {"precision": "bf16", "quantization": "nf4", "seq_len": 2048, "batch_size": 1}),
        (TRL, "trl", {"precision": "amp-bf16", "quantization": "none", "rank": 8, "batch_size": 8}),
        ({**TRL, "dtype": "bfloat16"}, "trl", {"precision": "bf16"}),
        (LLAMA_FACTORY, "llamafactory", {"precision": "fp32", "targets": "all-linear", "rank": 8}),
        ({**LLAMA_FACTORY, "bf16": True}, "llamafactory", {"precision": "bf16"}),
        ({**TRL, "optim": "adamw_bnb_8bit"}, "trl", {"optimizer": "adamw_8bit"}),
        ({**TRL, "lora_target_modules": ["q_proj", "v_proj"]}, "trl", {"targets": "q_proj,v_proj"}),
        ({**AXOLOTL, "lora_target_modules": r".*\.q_proj"}, "axolotl", {"targets": r"re:.*\.q_proj"}),
    ],
)
def test_settings_are_asked_of_an_estimate(
    keys: dict[str, object], trainer: str, expected: dict[str, object]
) -> None:
    options = as_estimate(read(keys, trainer))
    assert {name: options[name] for name in expected} == expected


def test_every_checked_setting_is_one() -> None:
    assert set(KINDS) <= set(SETTINGS)
    assert len(FORMATS) == len(set(FORMATS))


def test_quantization_of_another_name_is_none() -> None:
    reading = read({**LLAMA_FACTORY, "quantization_bit": 4, "quantization_type": "hqq4"}, "llamafactory")
    assert reading.quantization is Quantization.NONE
