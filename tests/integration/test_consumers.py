"""The trainers themselves read what is exported, and understand what was meant.

Each trainer's own parser runs in a process of its own over all cases (``benchmarks/consumer_parts``). A test
here fails where a trainer takes a key no more, or does something else unasked than its column says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.trainers.cells import Effect
from rankwise.optimizer.trainers.formats import Format, Outline

from ..conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from consumer_parts.cases import ODD_PATH, cases
from consumer_parts.page import SHOWN, page
from consumer_parts.reading import CONSUMERS, Read, read_all

pytestmark = [
    pytest.mark.skipif(not CONSUMERS.is_dir(), reason="the trainers are laid out by `make install`"),
    # Three processes that import torch and a trainer each; on a busy machine that takes minutes.
    pytest.mark.timeout(900),
]

CAUSAL_FILES = ("sft.yaml", "axolotl.yaml", "llamafactory.yaml")


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Read]:
    return {read.case.name: read for read in read_all(cases(), tmp_path_factory.mktemp("consumers"))}


def answers(reads: dict[str, Read], *names: str) -> Iterator[tuple[Read, str, dict[str, Any]]]:
    for read in reads.values():
        for name in names:
            if name in read.answers:
                yield read, name, dict(read.answers[name])


def test_every_file_is_accepted(reads: dict[str, Read]) -> None:
    wrong = {
        f"{read.case.name}, {name}": answer["error"]
        for read, name, answer in answers(reads, *SHOWN.values())
        if "error" in answer
    }
    assert wrong == {}
    written = {
        (read.case.name, form)
        for read in reads.values()
        for form, name in SHOWN.items()
        if isinstance(outlined := read.exported[form], Outline) and name in outlined.files
    }
    read_back = {
        (read.case.name, form)
        for read in reads.values()
        for form, name in SHOWN.items()
        if name in read.answers
    }
    assert written == read_back


def test_every_value_is_understood_as_it_stands(reads: dict[str, Read]) -> None:
    changed = {
        f"{read.case.name}, {name}": answer["changed"]
        for read, name, answer in answers(reads, "axolotl.yaml", "llamafactory.yaml", "training_args.json")
        if answer["changed"]
    }
    assert changed == {}


def test_adapters_train_the_same_parameters(reads: dict[str, Read]) -> None:
    compared = 0
    for read, name, answer in answers(reads, *CAUSAL_FILES):
        if "adapter" in answer:
            assert answer["trained"] == read.answers["adapter_config.json"]["trained"], (read.case.name, name)
            compared += 1
    assert compared > 60


def test_adapters_are_the_same_field_by_field(reads: dict[str, Read]) -> None:
    """TRL makes a pattern of a single target, and nobody but PEFT's file names the base."""
    for read, name, answer in answers(reads, *CAUSAL_FILES):
        if "adapter" not in answer:
            continue
        ours = read.answers["adapter_config.json"]["adapter"]
        theirs = answer["adapter"]
        apart = {
            field
            for field in ours
            if field in theirs and field != "base_model_name_or_path" and differ(ours[field], theirs[field])
        }
        if name == "llamafactory.yaml":
            # Seen on the adapted model only: PEFT has set it by then where it met a Conv1D.
            apart.discard("fan_in_fan_out")
        one_target = name == "sft.yaml" and len(read.case.training.candidate.adapter.targets) == 1
        assert apart == ({"target_modules"} if one_target else set()), (read.case.name, name)


def differ(ours: Any, theirs: Any) -> bool:
    """Nothing is said in many ways, and lists of names have no order."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return sorted(ours) != sorted(theirs)
    return (ours or None) != (theirs or None)


def test_what_is_trained_without_an_adapter(reads: dict[str, Read]) -> None:
    """Of the tiny Llama: all of it, one of its two blocks, or four biases a block."""
    whole = reads["full, float32"].answers["axolotl.yaml"]["trained"]
    assert reads["full, float32"].answers["llamafactory.yaml"]["trained"] == whole
    block = reads["last block, pure bfloat16"].answers
    assert block["axolotl.yaml"]["trained"] == block["llamafactory.yaml"]["trained"]
    assert 0 < block["axolotl.yaml"]["trained"]["count"] < whole["count"] / 2
    assert reads["biases, float32"].answers["axolotl.yaml"]["trained"]["count"] == 2 * 4 * 16


def test_axolotl_warms_up_autocasts_and_multiplies_as_it_is_told(reads: dict[str, Read]) -> None:
    for read, _, answer in answers(reads, "axolotl.yaml"):
        told = answer["arguments"]
        assert not told["tf32"], read.case.name
        assert answer["kernels"] == [], read.case.name
    assert reads["half an epoch"].answers["axolotl.yaml"]["arguments"]["warmup_steps"] == 4
    # What the remarks say: one step becomes two, and weights alone are autocast.
    assert reads["one step of warm-up"].answers["axolotl.yaml"]["arguments"]["warmup_steps"] == 2
    assert reads["pure bfloat16"].answers["axolotl.yaml"]["arguments"]["bf16"] is True


def test_quantization_is_the_one_that_was_measured(reads: dict[str, Read]) -> None:
    for name, kind, double in (("nf4", "nf4", False), ("fp4", "fp4", False), ("nf4, double", "nf4", True)):
        for file in ("sft.yaml", "axolotl.yaml"):
            told = reads[name].answers[file]["quantization"]
            assert (told["bnb_4bit_quant_type"], told["bnb_4bit_use_double_quant"]) == (kind, double)
            assert told["bnb_4bit_compute_dtype"] == "bfloat16"
    spared = reads["nf4 but some modules"].answers["axolotl.yaml"]["quantization"]
    assert spared["llm_int8_skip_modules"] == ["o_proj"]
    # What the remark says: TRL's 4-bit layers compute in the dtype of the weights.
    told = reads["nf4 in bfloat16 over float32"].answers["sft.yaml"]["quantization"]
    assert told["bnb_4bit_compute_dtype"] == "float32"


def test_llama_factory_keeps_adapters_in_float32(reads: dict[str, Read]) -> None:
    for read, _, answer in answers(reads, "llamafactory.yaml"):
        if "adapter" in answer:
            assert answer["trained_dtypes"] == ["torch.float32"], read.case.name
    assert reads["full, pure bfloat16"].answers["llamafactory.yaml"]["trained_dtypes"] == ["torch.bfloat16"]


def test_trl_has_one_loss_which_never_has_all_logits(reads: dict[str, Read]) -> None:
    from trl import SFTConfig

    assert "deprecated alias" in (SFTConfig.__doc__ or "")
    gaps = reads["LoRA"].exported[Format.TRL].gaps
    assert [(gap.setting, gap.effect) for gap in gaps] == [("loss", Effect.OTHER_COST)]
    assert reads["chunked loss"].exported[Format.TRL].gaps == ()


def test_launchers_divide_what_they_are_told_to(reads: dict[str, Read]) -> None:
    answered = reads["ZeRO 3, all offloaded"].answers
    assert answered["accelerate.yaml"]["use_deepspeed"] is True
    assert answered["ds_config.json"] == {
        "stage": 3,
        "micro_batch": 4,
        "accumulation": 4,
        "clipping": 1.0,
        "offload_optimizer": True,
        "offload_parameters": True,
    }
    assert reads["LoRA"].answers["accelerate.yaml"]["use_deepspeed"] is False


def test_a_path_with_quotes_arrives(reads: dict[str, Read]) -> None:
    assert reads["a path with quotes"].answers["sft.yaml"]["model"] == ODD_PATH


def test_the_page_is_what_the_trainers_said(reads: dict[str, Read]) -> None:
    """Else: ``python benchmarks/consumers.py``."""
    written = (REPOSITORY / "docs" / "exports.md").read_text(encoding="utf-8")
    assert written == page(list(reads.values()))


def test_prepared_rows_are_found_by_those_who_take_a_folder(tmp_path: Path) -> None:
    """TRL's ``dataset_name`` is a folder: which file is which split is told by their names."""
    from datasets import load_dataset

    row = json.dumps({"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [-100, 2]}) + "\n"
    (tmp_path / "train.jsonl").write_text(row * 3)
    (tmp_path / "validation.jsonl").write_text(row)
    found = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 3, "validation": 1}
