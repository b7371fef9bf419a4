"""Study files: what they may hold, and that everything that is wrong with one is told at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rankwise.api.asking import STUDY_KEYS, read_request
from rankwise.api.own_lora import own_lora_blocks, problems_of, read_own_lora
from rankwise.api.study_file import read_study_file
from rankwise.api.study_template import study_template
from rankwise.errors import InputError
from rankwise.optimizer.domain import Method, OwnLora, Preset, Quantization, Weights


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_in_the_designs_form(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
model_name: google/vit-base
data: rows.csv
budget: 90s
methods: [lora, bitfit]
preset: auto
weights: {speed: 1, quality: 2}
lora:
  r: 16
  alpha: 32
  dropout: 0.05
  target_modules: [query, key, value, dense]
  bias: none
quantization:
  enabled: true
  type: nf4
  compute_dtype: bf16
  skip_modules: [pooler.dense]
  mode: hf
""",
    )
    request = read_request(**read_study_file(path))
    assert (request.model, request.dataset, request.budget_s) == ("google/vit-base", "rows.csv", 90.0)
    assert request.methods == (Method.LORA, Method.BITFIT)
    assert request.presets == (Preset.AUTO,)
    assert request.weights == Weights(speed=1.0, memory=0.0, quality=2.0)
    assert request.lora == OwnLora(
        rank=16,
        alpha=32.0,
        dropout=0.05,
        targets=("query", "key", "value", "dense"),
        quantization=Quantization.NF4,
        compute_dtype="bfloat16",
        skip_modules=("pooler.dense",),
    )


def test_everything_that_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
modle: m
dataset: d
max_trials: many
budget: soon
epochs: 0
methods: [lora, adaline]
seed: 1
seed: 2
lora:
  r: 0
  target_module: [q]
  dropout: 2
  bias: all
quantization:
  type: nf8
  mode: auto
""",
    )
    with pytest.raises(InputError) as caught:
        read_study_file(path)
    message = caught.value.message
    assert message.startswith(f"study file {path} has 12 problems: ")
    told = re.findall(r"line (\d+): ([^;]*)", message)
    assert [int(line) for line, _ in told] == [1, 3, 4, 5, 6, 8, 10, 11, 12, 13, 15, 16]
    for line, words in (
        (1, "did you mean model?"),
        (3, "max_trials"),
        (4, "'soon' is not a duration"),
        (5, "epochs 0"),
        (6, "'adaline' is unknown"),
        (8, "seed is given twice"),
        (10, "lora.r: 0 is no rank"),
        (11, "did you mean target_modules?"),
        (12, "lora.dropout: 2 is no share"),
        (13, "use none, or --method bitfit"),
        (15, "'nf8' is unknown"),
        (16, "'auto' is unknown"),
    ):
        assert any(int(number) == line and words in text for number, text in told), (line, words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no keys"),
        ("- model", "holds no keys"),
        ("model: [m", r"line 1, column \d+:"),
        ("model: !!python/object/apply:os.system [date]", "line 1: could not determine a constructor"),
        ("model: 3", "line 1: model: 3 is not understood"),
        ("methods: 3", "line 1: methods: 3 is not understood"),
        ("lora: 8", "line 1: lora is no block of keys"),
        ("quantization: {type: nf4}", "belongs to a block lora"),
        ("lora: {enabled: false}\nquantization: {type: nf4}", "line 2: .* belongs to a block lora"),
        ("lora: {r: 8, rank: 4}", "under two names"),
        ("lora: {r: 8, r: 4}", "lora.r is given twice"),
        ("lora: {}\nquantization: {type: int8, double_quant: true}", "line 2: only the scales of 4-bit"),
        ("lora: {rank_pattern: {'(a+)+': 4}}", "repeats a group"),
        ("lora: {rank_pattern: {'(': 4}}", "is no regular expression"),
        ("lora: {rank_pattern: {a: x}}", "'x' is no rank"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_study_file(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file .*rankwise init"):
        read_study_file(tmp_path / "none.yaml")


def test_paths_that_exist_beside_the_file_are_meant(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    values = read_study_file(write(tmp_path, "model: org/model\ndataset: rows.csv\nloss_mask:"))
    assert values == {"model": "org/model", "dataset": str(tmp_path / "rows.csv")}


def test_a_block_that_is_not_enabled_is_absent(tmp_path: Path) -> None:
    assert read_study_file(write(tmp_path, "lora: {enabled: false, r: 8}")) == {}
    found = read_study_file(write(tmp_path, "lora: {r: 8}\nquantization: {enabled: false, type: nf4}"))
    assert found == {"lora": OwnLora(rank=8)}


def test_the_template_is_a_study_and_shows_every_key(tmp_path: Path) -> None:
    text = study_template("./model", "a: b.csv")
    assert read_study_file(write(tmp_path, text)) == {"model": "./model", "dataset": "a: b.csv"}
    shown = re.sub(r"(?m)^# ( *[a-z_]+:)", r"\1", text)
    assert set(yaml.safe_load(shown)) == {*STUDY_KEYS, "quantization"}
    (tmp_path / "axolotl.yaml").write_text("base_model: m\nadapter: lora\n")
    found = read_study_file(write(tmp_path, shown))
    assert found["baseline"] == str(tmp_path / "axolotl.yaml")
    defaults = read_request("m", "d")
    request = read_request(**found)
    for name in ("effective_batch", "epochs", "objective", "scoring", "use_tiers", "budget_s", "max_trials"):
        assert getattr(request, name) == getattr(defaults, name), name


@pytest.mark.parametrize(
    "own",
    [
        OwnLora(),
        OwnLora(
            rank=4,
            alpha=4.0,
            targets=("q",),
            use_dora=True,
            first_rank=2,
            rank_pattern=(("q", 2),),
            alpha_pattern=(("q", 1.0),),
            quantization=Quantization.FP4,
            double_quantization=True,
            compute_dtype="float16",
            skip_modules=("pooler",),
        ),
    ],
)
def test_blocks_describe_all_of_it(own: OwnLora) -> None:
    assert read_own_lora(*own_lora_blocks(own)) == (own, ())
    assert list(problems_of(own)) == []


def test_fields_that_were_given_one_by_one_are_checked_alike() -> None:
    wrong = OwnLora(rank=0, dropout=1.5, targets=(), rank_pattern=((".*.*.*.*", 4),))
    assert len(list(problems_of(wrong))) == 4
