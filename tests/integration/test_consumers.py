"""The trainers themselves read what is exported, and understand what was meant.

Each trainer's own parser runs in a process of its own over all cases (``benchmarks/consumer_parts``). A test
here fails where a trainer takes a key no more, or does something else unasked than its column says.

Three cases come with prepared rows. Axolotl's ``prepare_datasets`` and LLaMA-Factory's ``get_dataset`` load
them, and LLaMA-Factory trains on them, on the CPU. What stands in for parts that do not run here: of Axolotl,
its package of loaders, which imports kernels for GPUs, and what reports to its makers; of LLaMA-Factory,
torchaudio and a class that TRL has no more, both empty. Both are held against newer versions of transformers
and PEFT than they ask for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Level, LossMask, Method
from rankwise.optimizer.trainers.cells import Effect
from rankwise.optimizer.trainers.formats import Format, Outline, outline
from rankwise.probes.profiles import TaskKind
from rankwise.probes.rows import read_rows
from rankwise.runners.ready_files import compose_program
from rankwise.runners.recipe import Example, epoch_order
from rankwise.runners.scripts.plain_rows import plain_row
from rankwise.runners.weights import quantization_config

from ..conftest import REPOSITORY
from .test_programs import Measured, make_task, measure

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from consumer_parts.cases import LORA, ODD_PATH, RECIPE, Case, cases, training
from consumer_parts.page import SHOWN, page
from consumer_parts.reading import CONSUMERS, Read, read_all

pytestmark = [
    pytest.mark.skipif(not CONSUMERS.is_dir(), reason="the trainers are laid out by `make install`"),
    # Three processes that import torch and a trainer each; on a busy machine that takes minutes.
    pytest.mark.timeout(900),
]

CAUSAL_FILES = ("sft.yaml", "axolotl.yaml", "llamafactory.yaml")


STEPS = 3


@pytest.fixture(scope="module")
def trials(
    tiny_llama: Path, texts_jsonl: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Measured]:
    """On a CPU; only completions are learnt, so that micro-batches score different numbers of tokens."""
    data = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    texts = [row["text"] for row in read_rows(texts_jsonl)]
    lines = (json.dumps({"text": text[: len(text) // 2], "answer": text[len(text) // 2 :]}) for text in texts)
    data.write_text("\n".join(lines), encoding="utf-8")
    recipe = replace(RECIPE, max_length=48, epochs=1.0, loss_mask=LossMask.COMPLETION)
    adapters = {
        "rows, LoRA": replace(LORA, targets=("q_proj", "v_proj")),
        "rows, full": Adapter(method=Method.FULL),
    }
    task = make_task(TaskKind.PROMPT_COMPLETION, target_column="answer")
    return {
        name: measure(
            tiny_llama,
            data,
            task=task,
            candidate=training(adapter, Level(), recipe).candidate,
            steps=STEPS,
        )
        for name, adapter in adapters.items()
    }


def rows_cases(trials: dict[str, Measured], folder: Path) -> Iterator[Case]:
    """What was measured, with the rows that the exported program writes; and on a GPU, packed."""
    (folder / "prepare_data.py").write_text(
        compose_program("prepare_data.py", trials["rows, LoRA"].values), encoding="utf-8"
    )
    for name, measured in trials.items():
        one = training(
            task=TaskKind.PROMPT_COMPLETION,
            model=measured.values["model"],
            total_steps=measured.values["trial"]["steps"],
            on_cpu=True,
            gpu_name=None,
        )
        one = replace(one, candidate=measured.candidate, adapter_config=measured.values["adapter_config"])
        yield Case("rows", name, one, rows=folder / "data")
    command = outline(one, Format.LLAMA_FACTORY).commands[0]
    subprocess.run([sys.executable, *command[1:]], cwd=folder, check=True, capture_output=True)
    recipe = replace(measured.candidate.recipe, packing=True)
    packed = training(recipe=recipe, model=measured.values["model"])
    yield Case("rows", "rows, packed", packed, rows=folder / "data")


@pytest.fixture(scope="module")
def reads(trials: dict[str, Measured], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Read]:
    with_rows = rows_cases(trials, tmp_path_factory.mktemp("rows"))
    folder = tmp_path_factory.mktemp("consumers")
    return {read.case.name: read for read in read_all([*cases(), *with_rows], folder)}


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


@pytest.mark.parametrize("name", ["int8", "nf4", "fp4", "nf4, double", "nf4 in bfloat16 over float32"])
def test_llama_factory_quantizes_as_the_trial_did(reads: dict[str, Read], name: str) -> None:
    """Adapters upon it are compared above, with all others."""
    answer = reads[name].answers["llamafactory.yaml"]
    level = to_json(reads[name].case.training.candidate.level)
    ours = quantization_config(level, ())
    assert ours is not None
    apart = {key: value for key, value in ours.to_dict().items() if answer["quantization"][key] != value}
    # What packed 4-bit numbers are stored as does not change them.
    assert apart == ({} if name == "int8" else {"bnb_4bit_quant_storage": "uint8"})
    assert len(answer["quantized"]) == 2 * 7
    assert not any("lm_head" in module for module in answer["quantized"])


def as_written(rows: list[Example]) -> list[dict[str, Any]]:
    return [{name: plain_row(row)[name] for name in ("input_ids", "labels")} for row in rows]


@pytest.mark.parametrize("file", ["axolotl.yaml", "llamafactory.yaml"])
@pytest.mark.parametrize("name", ["rows, LoRA", "rows, full"])
def test_prepared_rows_are_loaded_as_the_trial_learnt_them(
    reads: dict[str, Read], trials: dict[str, Measured], name: str, file: str
) -> None:
    """The same tokens and labels, as many, in the order of the trial's first epoch."""
    measured, loaded = trials[name], reads[name].answers[file]["rows"]
    order = epoch_order(len(measured.rows), seed=measured.values["order_seed"], epoch=0)
    assert loaded["train"] == as_written([measured.rows[at] for at in order])
    assert loaded["validation"] == as_written(measured.heldout)
    assert any(-100 in row["labels"] for row in loaded["train"])


def test_axolotl_packs_the_samples_of_the_trial(reads: dict[str, Read], trials: dict[str, Measured]) -> None:
    loaded, measured = reads["rows, packed"].answers["axolotl.yaml"]["rows"], trials["rows, LoRA"]
    assert sorted(map(repr, loaded["train"])) == sorted(map(repr, as_written(measured.rows)))
    assert loaded["validation"] == as_written(measured.heldout)


def test_llama_factory_trains_what_the_trial_trained(
    reads: dict[str, Read], trials: dict[str, Measured]
) -> None:
    """Its own loop, on a CPU. Adapters begin with other numbers, which tell from the second step on."""
    full, lora = (reads[name].answers["llamafactory.yaml"]["losses"] for name in ("rows, full", "rows, LoRA"))
    assert full[:STEPS] == pytest.approx(trials["rows, full"].losses, abs=1e-3)
    assert lora[0] == pytest.approx(trials["rows, LoRA"].losses[0], abs=1e-3)
    assert len(full) == trials["rows, full"].values["trial"]["steps"]


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
    assert written == page([read for read in reads.values() if read.case.group != "rows"])


def test_prepared_rows_are_found_by_those_who_take_a_folder(tmp_path: Path) -> None:
    """TRL's ``dataset_name`` is a folder: which file is which split is told by their names."""
    from datasets import load_dataset

    row = json.dumps({"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [-100, 2]}) + "\n"
    (tmp_path / "train.jsonl").write_text(row * 3)
    (tmp_path / "validation.jsonl").write_text(row)
    found = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 3, "validation": 1}
