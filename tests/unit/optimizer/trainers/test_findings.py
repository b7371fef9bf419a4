"""Each rule about a trainer's file finds what it is about, with its key, and leaves a sound file alone."""

from __future__ import annotations

from typing import Any

import pytest

from rankwise.optimizer.trainers.file_facts import Facts, Severity
from rankwise.optimizer.trainers.file_rules import FILE_RULES
from rankwise.optimizer.trainers.findings import findings
from rankwise.optimizer.trainers.reading import read

SOUND: dict[str, dict[str, Any]] = {
    "trl": {
        "model_name_or_path": "org/m",
        "use_peft": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_modules": ["q_proj", "v_proj"],
        "dtype": "bfloat16",
        "learning_rate": 3e-4,
    },
    "axolotl": {
        "base_model": "org/m",
        "adapter": "qlora",
        "load_in_4bit": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "learning_rate": 3e-4,
        "sample_packing": True,
        "flash_attention": True,
    },
    "llamafactory": {
        "model_name_or_path": "org/m",
        "stage": "sft",
        "finetuning_type": "lora",
        "learning_rate": "3e-4",
        "bf16": True,
    },
    "transformers": {"learning_rate": 5e-5, "bf16": True},
    "peft": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["query"]},
}


def found(trainer: str, changes: dict[str, Any], **facts: Any) -> dict[str, Any]:
    keys = {name: value for name, value in (SOUND[trainer] | changes).items() if value is not None}
    for name in ("deepspeed", "adapter"):
        if name in facts:
            facts[name] = read(facts[name], "peft" if name == "adapter" else name)
    return {each.id: each for each in findings(Facts(reading=read(keys, trainer), **facts))}


@pytest.mark.parametrize("trainer", SOUND)
def test_a_sound_file_has_nothing_wrong(trainer: str) -> None:
    assert found(trainer, {}) == {}


CASES: list[tuple[str, str, dict[str, Any], dict[str, Any], str | None]] = [
    ("both-precisions", "trl", {"bf16": True, "fp16": True}, {}, "fp16"),
    ("both-quantizations", "trl", {"load_in_4bit": True, "load_in_8bit": True}, {}, "load_in_8bit"),
    ("full-quantized", "trl", {"use_peft": False, "load_in_4bit": True}, {}, "load_in_4bit"),
    ("adapter-not-named", "axolotl", {"adapter": None, "load_in_4bit": None}, {}, "lora_r"),
    ("qlora-unquantized", "axolotl", {"load_in_4bit": None}, {}, "adapter"),
    ("experts-dropout", "trl", {"lora_target_parameters": ["w"], "lora_dropout": 0.1}, {}, "lora_dropout"),
    (
        "experts-dora",
        "trl",
        {"lora_target_parameters": ["w"], "lora_dropout": 0.0, "use_dora": True},
        {},
        "use_dora",
    ),
    (
        "flash-attention-float32",
        "trl",
        {"attn_implementation": "flash_attention_2", "dtype": "float32", "bf16": False},
        {},
        "attn_implementation",
    ),
    ("packing-mixes-samples", "axolotl", {"flash_attention": None}, {}, "sample_packing"),
    ("packing-contaminates", "llamafactory", {"packing": True}, {}, "packing"),
    ("without-bitsandbytes", "trl", {"optim": "adamw_8bit"}, {"libraries": frozenset({"torch"})}, "optim"),
    ("single-target", "trl", {"lora_target_modules": ["q_proj"]}, {}, "lora_target_modules"),
    ("scale-of-adapter", "trl", {"lora_alpha": 1}, {}, "lora_alpha"),
    ("rate-of-full-fine-tuning", "trl", {"learning_rate": 2e-5}, {}, "learning_rate"),
    (
        "rate-of-lora",
        "trl",
        {"use_peft": False, "lora_r": None, "lora_alpha": None, "learning_rate": 2e-3},
        {},
        "learning_rate",
    ),
    (
        "reentrant-checkpointing",
        "trl",
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {},
        "gradient_checkpointing_kwargs",
    ),
    ("warmup-beyond-end", "trl", {"warmup_steps": 100, "max_steps": 50}, {}, "warmup_steps"),
    ("double-quantization-alone", "trl", {"use_bnb_nested_quant": True}, {}, "use_bnb_nested_quant"),
    ("float32-weights", "trl", {"dtype": None}, {}, "use_peft"),
    ("computes-in-float32", "llamafactory", {"bf16": None}, {}, None),
    (
        "deepspeed-micro-batch",
        "trl",
        {"per_device_train_batch_size": 4},
        {"deepspeed": {"train_micro_batch_size_per_gpu": 2}},
        "per_device_train_batch_size",
    ),
    (
        "deepspeed-accumulation",
        "trl",
        {"gradient_accumulation_steps": 4},
        {"deepspeed": {"gradient_accumulation_steps": 2}},
        "gradient_accumulation_steps",
    ),
    (
        "deepspeed-batch",
        "trl",
        {"per_device_train_batch_size": 4, "deepspeed": "ds.json"},
        {"deepspeed": {"train_batch_size": 64}, "gpus": 2},
        "deepspeed",
    ),
    ("adalora-without-steps", "peft", {"peft_type": "ADALORA", "target_r": 8}, {}, "peft_type"),
    ("frozen-head", "peft", {}, {"architecture": "BertForSequenceClassification"}, None),
    ("optimizer-not-estimated", "trl", {"optim": "adafactor"}, {}, "optim"),
]


@pytest.mark.parametrize(
    ("rule", "trainer", "changes", "facts", "key"), CASES, ids=[case[0] for case in CASES]
)
def test_each_rule_finds_what_it_is_about(
    rule: str, trainer: str, changes: dict[str, Any], facts: dict[str, Any], key: str | None
) -> None:
    finding = found(trainer, changes, **facts)[rule]
    assert finding.key == key
    assert finding.message[-1] != "."


def test_every_rule_has_a_case() -> None:
    assert {rule.id for rule in FILE_RULES} == {case[0] for case in CASES}
    assert len({rule.id for rule in FILE_RULES}) == len(FILE_RULES)


@pytest.mark.parametrize(("trainer", "severity"), [("trl", Severity.ERROR), ("axolotl", Severity.WARNING)])
def test_unknown_keys_weigh_what_the_trainer_does_with_them(trainer: str, severity: Severity) -> None:
    finding = found(trainer, {"learning_ratee": 1e-4})["unknown-key"]
    assert (finding.severity, finding.key) == (severity, "learning_ratee")
    assert "learning_rate" in finding.next_step


def test_rates_are_judged_by_the_width_of_the_model() -> None:
    assert "rate-of-full-fine-tuning" not in found("trl", {"learning_rate": 1e-4})
    narrow = found("trl", {"learning_rate": 1e-4}, hidden_size=384)["rate-of-full-fine-tuning"]
    assert "0.0018 is where to begin" in narrow.message


@pytest.mark.parametrize(
    "changes", [{"task_type": "SEQ_CLS"}, {"modules_to_save": ["classifier"]}], ids=["task", "named"]
)
def test_a_head_that_is_trained_is_no_finding(changes: dict[str, Any]) -> None:
    assert found("peft", changes, architecture="BertForSequenceClassification") == {}


def test_auto_in_deepspeeds_file_contradicts_nothing() -> None:
    auto = {"train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto"}
    assert found("trl", {"per_device_train_batch_size": 4}, deepspeed=auto, gpus=2) == {}


def test_the_worst_comes_first() -> None:
    keys = {**SOUND["trl"], "optim": "adafactor", "learning_rate": 2e-5, "bf16": True, "fp16": True}
    severities = [each.severity for each in findings(Facts(reading=read(keys, "trl")))]
    assert severities == [Severity.ERROR, Severity.WARNING, Severity.HINT]
