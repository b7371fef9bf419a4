"""The table has every setting, keys do not collide, and what is written reads back as what was meant."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rankwise.optimizer.domain import Adapter, Level, Method, Quantization
from rankwise.optimizer.trainers.cells import Cannot, Effect, Unsaid
from rankwise.optimizer.trainers.formats import Format, Outline, outline
from rankwise.optimizer.trainers.settings import SETTINGS, settings_of
from rankwise.optimizer.trainers.table import TABLE, Trainer
from rankwise.optimizer.trainers.writing import ExportRefused, write

from ....conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from consumer_parts.cases import ATTENTION, HALF, LORA, NF4, RECIPE, Case, cases, training

CASES = list(cases())
PAIRS = [pytest.param(case, trainer, id=f"{case.name}-{trainer}") for case in CASES for trainer in Trainer]
DTYPES = st.sampled_from(("float32", "bfloat16", "float16"))

ADAPTERS = st.builds(
    replace,
    st.just(LORA),
    rank=st.sampled_from((4, 8, 64)),
    alpha=st.sampled_from((8.0, 16.0, 8.5)),
    dropout=st.sampled_from((0.0, 0.1)),
    targets=st.sampled_from((ATTENTION, ("q_proj",), ("self_attn.q_proj", "mlp.down_proj"))),
    use_rslora=st.booleans(),
    use_dora=st.booleans(),
    init_weights=st.sampled_from((None, "pissa", "olora")),
    rank_pattern=st.sampled_from(((), ((r"layers\.1\..*", 16),))),
    trained_modules=st.sampled_from(((), ("lm_head",))),
) | st.sampled_from(
    (
        Adapter(method=Method.FULL),
        Adapter(method=Method.LAST_BLOCKS, unfrozen=("model.layers.1",), last_blocks=1),
        Adapter(method=Method.BITFIT, unfrozen=("bias",)),
        Adapter(method=Method.IA3, targets=("k_proj",)),
    )
)
LEVELS = st.builds(
    Level,
    weight_dtype=DTYPES,
    compute_dtype=DTYPES,
    adapter_dtype=DTYPES,
    quantization=st.sampled_from(Quantization),
    double_quantization=st.booleans(),
    skip_modules=st.sampled_from(((), ("o_proj",))),
    gradient_checkpointing=st.booleans(),
    attention=st.sampled_from(("sdpa", "eager", "flash_attention_2")),
    loss=st.sampled_from(("plain", "chunked", "liger")),
    compile=st.booleans(),
    optimizer=st.sampled_from(("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit")),
    zero_stage=st.sampled_from((0, 3)),
).filter(lambda level: not level.amp or level.compute_dtype != "float32")
"""Autocast is to 16 bits."""
RECIPES = st.builds(
    replace,
    st.just(RECIPE),
    packing=st.booleans(),
    epochs=st.sampled_from((0.5, 1.0, 3.0)),
    warmup_ratio=st.sampled_from((0.0, 0.06)),
    weight_decay=st.sampled_from((0.0, 0.01)),
    effective_batch=st.sampled_from((8, 10, 16)),
)

TEXTS = {
    Format.TRL: Trainer.TRL,
    Format.AXOLOTL: Trainer.AXOLOTL,
    Format.LLAMA_FACTORY: Trainer.LLAMA_FACTORY,
}

UNREADABLE = {
    # Told in whole steps: a test below holds these.
    (Trainer.AXOLOTL, "warmup_share"),
    (Trainer.LLAMA_FACTORY, "warmup_share"),
    # The several methods that unfreeze parts are one word.
    (Trainer.AXOLOTL, "method"),
}


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    assert set(TABLE) == set(SETTINGS) == set(settings_of(training()))


@pytest.mark.parametrize(("case", "trainer"), PAIRS)
def test_cells_write_the_keys_they_name_and_no_two_the_same_with_another_value(
    case: Case, trainer: Trainer
) -> None:
    settings = settings_of(case.training)
    written: dict[str, Any] = {}
    for setting, row in TABLE.items():
        cell = row.cell(trainer)
        try:
            keys = cell.write(settings, setting)
        except Cannot as gap:
            keys = gap.keys
        assert set(keys) <= set(cell.keys), setting
        assert all(written.get(key, value) == value for key, value in keys.items()), setting
        written |= keys


@given(adapter=ADAPTERS, level=LEVELS, recipe=RECIPES)
def test_any_candidate_is_refused_with_one_message_or_written_as_it_reads_back(
    adapter: Adapter, level: Level, recipe: Any
) -> None:
    one = training(adapter, level, recipe)
    settings = settings_of(one)
    for form, trainer in TEXTS.items():
        try:
            outlined = outline(one, form)
        except ExportRefused:
            gaps = write(settings, trainer).gaps
            assert Effect.OTHER_TRAINING in {gap.effect for gap in gaps}
            continue
        text = next((text for name, text in outlined.files.items() if name.endswith(".yaml")), None)
        if text is None:
            continue
        keys = yaml.safe_load(text)
        missing = {gap.setting for gap in outlined.gaps}
        wrong: dict[str, Any] = {}
        assert Effect.OTHER_TRAINING not in {gap.effect for gap in outlined.gaps}
        for setting, row in TABLE.items():
            cell = row.cell(trainer)
            untold = settings[setting] in (None, []) or not cell.keys
            # Without frozen weights there is nothing beside them.
            untold = untold or (setting == "adapter_dtype" and adapter.method is Method.FULL)
            if untold or setting in missing or (trainer, setting) in UNREADABLE:
                continue
            try:
                understood = cell.read(keys)
            except Unsaid:
                continue
            if understood != settings[setting] and (understood or settings[setting]):
                wrong[setting] = understood
        assert wrong == {}, trainer


@pytest.mark.parametrize(("share", "total_steps"), [(0.0, 338), (0.06, 338), (0.03, 9), (0.5, 3)])
@pytest.mark.parametrize("trainer", [Trainer.TRL, Trainer.AXOLOTL, Trainer.LLAMA_FACTORY])
def test_warm_up_reads_back_as_the_steps_that_it_takes(
    trainer: Trainer, share: float, total_steps: int
) -> None:
    recipe = replace(RECIPE, warmup_ratio=share)
    keys = write(settings_of(training(recipe=recipe, total_steps=total_steps)), trainer).keys
    understood = TABLE["warmup_share"].cell(trainer).read(keys)
    assert math.ceil(understood * total_steps) == math.ceil(share * total_steps)


@pytest.mark.parametrize(
    ("changes", "setting", "meant"),
    [
        # What is said alone is autocast too: Axolotl's builders take either word for it.
        ({"bfloat16": True}, "autocast", "bfloat16"),
        ({"float16": True}, "autocast", None),
        ({"peft_autocast_adapter_dtype": False, "bf16": True}, "adapter_dtype", "bfloat16"),
        ({"peft_autocast_adapter_dtype": True, "bf16": True}, "adapter_dtype", "float32"),
        ({"adapter": None, "bf16": True}, "adapter_dtype", "bfloat16"),
        ({"curriculum_sampling": True, "datasets": [{}, {}]}, "row_order", None),
        ({"curriculum_sampling": True, "datasets": [{}]}, "row_order", "prepared"),
        ({"max_steps": 12}, "total_steps", 12),
        ({"max_steps": 12, "warmup_steps": 3}, "warmup_share", 0.25),
        ({}, "zero_stage", 0),
    ],
)
def test_axolotl_is_read_as_it_trains(changes: dict[str, Any], setting: str, meant: Any) -> None:
    assert TABLE[setting].cell(Trainer.AXOLOTL).read({"adapter": "lora", **changes}) == meant


@pytest.mark.parametrize(
    ("setting", "keys"),
    [
        ("total_steps", {"max_steps": -1}),
        ("warmup_share", {"warmup_steps": 10}),
        ("zero_stage", {"deepspeed": "zero3.json"}),
    ],
)
def test_what_a_file_alone_does_not_tell_is_not_read(setting: str, keys: dict[str, Any]) -> None:
    with pytest.raises(Unsaid):
        TABLE[setting].cell(Trainer.TRL).read(keys)


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
@pytest.mark.parametrize(
    ("trained", "effect"),
    [
        ((), None),
        (("lm_head",), None),
        (("embed_tokens", "lm_head"), None),
        # transformers leaves the output embeddings alone; the trial left alone only what it trains.
        (("embed_tokens",), Effect.OTHER_NUMBERS),
        (("o_proj",), Effect.OTHER_TRAINING),
    ],
)
def test_modules_that_are_trained_beside_quantized_ones(
    trained: tuple[str, ...], effect: Effect | None, quantization: Quantization
) -> None:
    one = training(replace(LORA, trained_modules=trained), replace(HALF, quantization=quantization))
    for trainer in (Trainer.TRL, Trainer.LLAMA_FACTORY, Trainer.AXOLOTL):
        gaps = {gap.setting: gap.effect for gap in write(settings_of(one), trainer).gaps}
        can_name = trainer is Trainer.AXOLOTL and quantization.is_4bit
        assert gaps.get("skip_modules") == (None if can_name else effect), trainer


@pytest.mark.parametrize("form", [Format.AXOLOTL, Format.LLAMA_FACTORY])
def test_quantized_models_are_trained_with_adapters_only(form: Format) -> None:
    blocks = Adapter(method=Method.LAST_BLOCKS, unfrozen=("model.layers.1",), last_blocks=1)
    level = replace(NF4, adapter_dtype="bfloat16")
    with pytest.raises(ExportRefused, match="quantization is 'nf4'"):
        outline(training(blocks, level), form)


def test_a_path_with_quotes_survives_the_file() -> None:
    case = next(case for case in CASES if case.name == "a path with quotes")
    for form, key in ((Format.AXOLOTL, "base_model"), (Format.TRL, "model_name_or_path")):
        text = next(
            text for name, text in outline(case.training, form).files.items() if name.endswith(".yaml")
        )
        assert yaml.safe_load(text)[key] == case.training.model


def test_one_target_of_trl_is_a_pattern_that_matches_whole_names() -> None:
    keys = write(settings_of(training(replace(LORA, targets=("q.proj",)))), Trainer.TRL).keys
    assert keys["lora_target_modules"] == [r"(.*\.)?q\.proj"]


def test_axolotl_kernels_are_off() -> None:
    keys = write(settings_of(training()), Trainer.AXOLOTL).keys
    assert [keys[f"lora_{part}_kernel"] for part in ("mlp", "qkv", "o", "embedding")] == [False] * 4


def test_double_quantization_is_told_where_a_trainer_would_take_it_unasked() -> None:
    settings = settings_of(training(level=NF4))
    assert write(settings, Trainer.AXOLOTL).keys["bnb_config_kwargs"]["bnb_4bit_use_double_quant"] is False
    assert write(settings, Trainer.LLAMA_FACTORY).keys["double_quantization"] is False


@pytest.mark.parametrize("trainer", [Trainer.TRL, Trainer.AXOLOTL, Trainer.LLAMA_FACTORY])
def test_micro_batches_that_do_not_make_a_step_are_another_training(trainer: Trainer) -> None:
    gaps = write(settings_of(training(recipe=replace(RECIPE, effective_batch=10))), trainer).gaps
    assert [gap.setting for gap in gaps if gap.effect is Effect.OTHER_TRAINING] == ["effective_batch"]


def test_llama_factory_has_no_float32_on_a_gpu() -> None:
    gaps = write(settings_of(training(level=Level())), Trainer.LLAMA_FACTORY).gaps
    assert [(gap.setting, gap.effect) for gap in gaps] == [("weight_dtype", Effect.OTHER_TRAINING)]
    assert not write(settings_of(training(level=Level(), on_cpu=True)), Trainer.LLAMA_FACTORY).gaps


def test_every_format_of_a_plain_lora_has_files_and_commands() -> None:
    for form in Format:
        outlined = outline(training(), form)
        assert isinstance(outlined, Outline)
        assert outlined.files or outlined.programs
        assert outlined.commands or form is Format.PEFT


def test_steps_are_told_by_their_number_where_trainers_count_otherwise() -> None:
    settings = settings_of(training(level=HALF, total_steps=5))
    for trainer in (Trainer.TRL, Trainer.AXOLOTL, Trainer.LLAMA_FACTORY):
        assert write(settings, trainer).keys["max_steps"] == 5
