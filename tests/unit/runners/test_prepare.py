"""What precedes the first trial, for every task: small files, a real tokenizer, and one of random tokens."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import T5Config

from rankwise.errors import DatasetError, InputError, ModelError
from rankwise.optimizer.codec import from_json, to_json
from rankwise.optimizer.domain import LossMask, Recipe, StudyFacts, StudyRequest
from rankwise.probes.host import read_hardware
from rankwise.probes.profiles import TEXT_TASKS, DatasetProfile, ModelProfile, TaskKind, TaskProfile
from rankwise.runners.prepare import (
    given_template,
    run,
    set_chat_template,
    tokenizer_for,
    tokens_key,
    with_lengths,
    write_tokens,
)
from rankwise.runners.random_tokens import RandomTokens
from rankwise.runners.samples import SampleError
from rankwise.runners.text_splits import split_texts
from rankwise.runners.tokenizer import load_tokenizer
from rankwise.runners.tokens import TokenFile

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TASKS = {
    kind: TaskProfile(
        kind=kind,
        text_column="talk" if kind is TaskKind.CHAT else "text",
        target_column="answer" if kind in (TaskKind.PROMPT_COMPLETION, TaskKind.SEQ2SEQ) else None,
        label_column={TaskKind.TEXT_CLASSIFICATION: "label", TaskKind.REGRESSION: "length"}.get(kind),
        labels=("even", "odd") if kind is TaskKind.TEXT_CLASSIFICATION else (),
    )
    for kind in TEXT_TASKS
}
SPLIT = {"seed": 0, "share": 0.1}
MASKS = {TaskKind.CHAT: LossMask.ASSISTANT, TaskKind.PROMPT_COMPLETION: LossMask.COMPLETION}


def make_rows(count: int) -> Iterable[dict[str, Any]]:
    for number in range(count):
        text, answer = f"The film number {number} was long. " * (1 + number % 5), f"It was {number}."
        yield {
            "text": text,
            "answer": answer,
            "length": len(text),
            "label": ("even", "odd")[number % 2],
            "talk": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}],
        }


@pytest.fixture(scope="module")
def rows_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(300)), encoding="utf-8")
    return path


def profile(path: Path, kind: TaskKind, **changes: Any) -> DatasetProfile:
    values: dict[str, Any] = {
        "source": path.name,
        "path": str(path),
        "sha256": "0" * 64,
        "format": "jsonl",
        "size_bytes": path.stat().st_size,
        "rows": 300,
        "usable_rows": 300,
        "columns": ("text",),
        "task": TASKS[kind],
    }
    return DatasetProfile(**{**values, **changes})


def split_of(dataset: DatasetProfile, **asked: Any) -> dict[str, Any]:
    return split_texts(dataset, StudyRequest(model="m", dataset="d", **asked))[1]


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    tokenizer = load_tokenizer(str(tiny_llama))
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "packing"),
    [(kind, packing) for kind in TEXT_TASKS for packing in (False, True) if kind.is_causal or not packing],
)
@pytest.mark.parametrize("real", [True, False], ids=["tokenizer", "random"])
def test_rows_of_every_task_become_tokens(
    tmp_path: Path, rows_jsonl: Path, tokenizer: Any, kind: TaskKind, packing: bool, real: bool
) -> None:
    tokenizer = tokenizer if real else RandomTokens(500, seed=0)
    dataset = with_lengths(profile(rows_jsonl, kind), tokenizer, seed=0)
    assert dataset.lengths is not None
    recipe = Recipe(max_length=dataset.lengths.max, packing=packing, loss_mask=MASKS.get(kind, LossMask.ALL))
    truncated = write_tokens(tmp_path / "t", dataset, tokenizer, recipe, split=split_of(dataset))
    assert truncated == (0, 0.0)
    train, heldout = (TokenFile(tmp_path / "t" / f"{name}.arrow") for name in ("train", "heldout"))
    assert max(len(row.input_ids) for row in train) <= dataset.lengths.max
    samples = sum(1 if row.starts is None else len(row.starts) for row in train)
    assert samples + len(heldout) == 300
    assert len(heldout) == 30
    assert all(row.starts is None for row in heldout), "held-out rows are never packed"
    if packing:
        assert len(train) < samples
    tokens = sum(len(row.input_ids) for rows in (train, heldout) for row in rows)
    assert tokens / 300 == pytest.approx(dataset.lengths.mean)
    if kind in MASKS:
        assert all(row.mask is not None and 0 < sum(row.mask) < len(row.mask) for row in heldout)


def test_what_is_cut_off_is_counted(tmp_path: Path, rows_jsonl: Path, tokenizer: Any) -> None:
    dataset = with_lengths(profile(rows_jsonl, TaskKind.CAUSAL_LM), tokenizer, seed=0)
    assert dataset.lengths is not None
    rows, share = write_tokens(tmp_path / "t", dataset, tokenizer, Recipe(max_length=20), split=SPLIT)
    kept = sum(
        len(row.input_ids)
        for name in ("train", "heldout")
        for row in TokenFile(tmp_path / "t" / f"{name}.arrow")
    )
    assert 0 < rows < 300
    assert share == pytest.approx(1 - kept / (300 * dataset.lengths.mean))
    again = write_tokens(tmp_path / "t", dataset, tokenizer, Recipe(max_length=20), split=SPLIT)
    assert again == (rows, share), "read from the files that are there"


def test_of_skipped_rows_nothing_is_written(tmp_path: Path, rows_jsonl: Path, tokenizer: Any) -> None:
    dataset = profile(rows_jsonl, TaskKind.CAUSAL_LM, every_nth_row=3)
    write_tokens(tmp_path / "t", dataset, tokenizer, Recipe(max_length=200), split=split_of(dataset))
    texts = {
        tokenizer.decode(row.input_ids).partition(".")[0]
        for name in ("train", "heldout")
        for row in TokenFile(tmp_path / "t" / f"{name}.arrow")
    }
    assert texts == {f"The film number {number} was long" for number in range(0, 300, 3)}
    assert len(TokenFile(tmp_path / "t" / "heldout.arrow")) == 20, "a fifth of the 100 rows that are met"


def test_rows_with_nothing_left_to_learn(tmp_path: Path, rows_jsonl: Path, tokenizer: Any) -> None:
    dataset = profile(rows_jsonl, TaskKind.CHAT)
    recipe = Recipe(max_length=6, loss_mask=LossMask.ASSISTANT)
    with pytest.raises(DatasetError, match=r"leaves 0 rows .*300 rows have nothing left to learn within 6"):
        write_tokens(tmp_path / "t", dataset, tokenizer, recipe, split=SPLIT)


def test_a_template_that_hides_who_speaks(tmp_path: Path, rows_jsonl: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    recipe = Recipe(max_length=99, loss_mask=LossMask.ASSISTANT)
    with pytest.raises(SampleError, match="row 1: no token"):
        write_tokens(tmp_path / "t", profile(rows_jsonl, TaskKind.CHAT), tokenizer, recipe, split=SPLIT)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "change",
    [{"max_length": 65}, {"packing": True}, {"loss_mask": "completion"}, {"chat_template_sha256": "a"}],
    ids=lambda change: next(iter(change)),
)
def test_other_recipes_have_other_tokens(rows_jsonl: Path, tokenizer: Any, change: dict[str, Any]) -> None:
    dataset, recipe = profile(rows_jsonl, TaskKind.CAUSAL_LM), Recipe(max_length=64)
    key = tokens_key(dataset, tokenizer, recipe, SPLIT)
    assert key == tokens_key(dataset, tokenizer, replace(recipe, epochs=9.0), SPLIT)
    assert key != tokens_key(dataset, tokenizer, replace(recipe, **change), SPLIT)


def test_other_splits_have_other_tokens(rows_jsonl: Path, tokenizer: Any) -> None:
    dataset = profile(rows_jsonl, TaskKind.CAUSAL_LM)
    splits = [
        SPLIT,
        {**SPLIT, "seed": 1},
        *(split_of(dataset, **it) for it in ({}, {"group_column": "label"})),
    ]
    keys = {tokens_key(dataset, tokenizer, Recipe(max_length=64), split) for split in splits}
    assert len(keys) == 4


def test_other_rows_and_other_tokenizers_have_other_tokens(rows_jsonl: Path, tokenizer: Any) -> None:
    dataset, recipe = profile(rows_jsonl, TaskKind.CAUSAL_LM), Recipe(max_length=64)
    tokenizers = [tokenizer, RandomTokens(500, seed=0), RandomTokens(600, seed=0)]
    keys = [tokens_key(dataset, each, recipe, SPLIT) for each in tokenizers]
    keys.append(tokens_key(replace(dataset, every_nth_row=2), tokenizer, recipe, SPLIT))
    assert len(set(keys)) == 4


def test_keys_of_texts_stay_what_they_were(rows_jsonl: Path) -> None:
    """Else everybody's tokens would be made again: a new field of the task must not count."""
    dataset = replace(profile(rows_jsonl, TaskKind.CAUSAL_LM), task=TASKS[TaskKind.CAUSAL_LM])
    key = tokens_key(dataset, RandomTokens(500, seed=0), Recipe(max_length=64), SPLIT)
    assert key == "0b01ef9937b12f9c2450e10afac95c71a55ac09a26064d7d13abc26b67a4b9af"


def model_at(path: Path, *, has_weights: bool) -> ModelProfile:
    return ModelProfile(
        source="some/model",
        path=str(path),
        revision=None,
        architecture="LlamaForCausalLM",
        model_type="llama",
        parameters=1,
        weight_bytes=4,
        structure_sha256="0" * 64,
        hidden_size=64,
        layers=2,
        max_positions=512,
        supports_gradient_checkpointing=True,
        has_weights=has_weights,
        modules=(),
        new_modules=(),
    )


def run_job(home: Path, model: Path, data: Path, **asked: Any) -> StudyFacts:
    """What the job reports at last."""
    request = StudyRequest(model=str(model), dataset=str(data), **asked)
    spec = {
        "request": to_json(request),
        "hardware": to_json(read_hardware(home)),
        "model_path": str(model),
        "model_source": request.model,
        "revision": None,
        "factory": None,
        "allow_remote_code": False,
        "dataset_path": str(data),
        "tokens_root": str(home / "tokens"),
    }
    reports: list[dict[str, Any]] = []

    class Collect:
        def __call__(self, kind: str, /, **fields: Any) -> None:
            reports.append({"type": kind, **fields})

    run(spec, cast(Any, Collect()))
    return from_json(StudyFacts, reports[-1]["facts"])


def test_a_study_of_conversations(tmp_path: Path, tiny_llama: Path, rows_jsonl: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML, encoding="utf-8")
    asked = {"task": "chat", "text_column": "talk", "chat_template": str(template)}
    facts = run_job(tmp_path, tiny_llama, rows_jsonl, **asked)
    assert facts.dataset.task.kind is TaskKind.CHAT
    assert facts.recipe.loss_mask is LossMask.ASSISTANT
    assert facts.recipe.chat_template_sha256 == hashlib.sha256(CHATML.encode()).hexdigest()
    assert (facts.chat_template, facts.tokens_estimated) == (CHATML, False)
    assert facts.train_rows == len(TokenFile(Path(facts.tokens_path) / "train.arrow"))


def test_a_study_of_a_configuration(tmp_path: Path, tiny_llama: Path, rows_jsonl: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(tiny_llama / "config.json", tmp_path / "model")
    asked = {"task": "prompt-completion", "text_column": "text", "target_column": "answer"}
    facts = run_job(tmp_path, tmp_path / "model", rows_jsonl, packing=True, **asked)
    assert facts.tokens_estimated
    assert facts.recipe.packing
    heldout = TokenFile(Path(facts.tokens_path) / "heldout.arrow")
    assert (facts.pad_id, facts.heldout_rows) == (0, len(heldout))
    assert min(min(row.input_ids) for row in heldout) > 0


@pytest.mark.parametrize("asked", [{"task": "prompt-completion"}, {}], ids=["asked", "detected"])
def test_an_encoder_decoder_rewrites_what_others_continue(
    tmp_path: Path, tiny_llama: Path, rows_jsonl: Path, asked: dict[str, Any]
) -> None:
    model = tmp_path / "t5"
    T5Config(vocab_size=500, d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=2).save_pretrained(model)
    columns = {"text_column": "text", "target_column": "answer"}
    facts = run_job(tmp_path, model, rows_jsonl, **asked, **columns)
    assert facts.dataset.task.kind is TaskKind.SEQ2SEQ
    assert facts.dataset.task.reason.endswith("; the model is an encoder-decoder")
    assert (facts.model.architecture, facts.recipe.loss_mask) == ("T5ForConditionalGeneration", LossMask.ALL)
    decoder = run_job(tmp_path, tiny_llama, rows_jsonl, **asked, **columns)
    assert decoder.dataset.task.kind is TaskKind.PROMPT_COMPLETION


class TestTokenizer:
    def test_a_bare_configuration_has_random_tokens(self, tmp_path: Path, tiny_llama: Path) -> None:
        shutil.copy(tiny_llama / "config.json", tmp_path)
        tokenizer = tokenizer_for(model_at(tmp_path, has_weights=False), seed=3)
        assert isinstance(tokenizer, RandomTokens)
        assert tokenizer.vocabulary == json.loads((tmp_path / "config.json").read_text())["vocab_size"]

    def test_weights_without_a_tokenizer_are_refused(self, tmp_path: Path, tiny_llama: Path) -> None:
        shutil.copy(tiny_llama / "config.json", tmp_path)
        with pytest.raises(ModelError, match="tokenizer"):
            tokenizer_for(model_at(tmp_path, has_weights=True), seed=3)

    def test_a_tokenizer_that_is_there_is_used(self, tmp_path: Path, tiny_llama: Path) -> None:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_llama / name, tmp_path)
        assert tokenizer_for(model_at(tmp_path, has_weights=False), seed=3).eos_token == "<eos>"

    def test_a_configuration_without_a_vocabulary_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        with pytest.raises(ModelError, match="names no vocab_size"):
            tokenizer_for(model_at(tmp_path, has_weights=False), seed=3)


class TestChatTemplate:
    def test_the_users_takes_the_place_of_the_tokenizers(
        self, tmp_path: Path, rows_jsonl: Path, tokenizer: Any
    ) -> None:
        path = tmp_path / "chat.jinja"
        path.write_text("{{ messages }}", encoding="utf-8")
        request = StudyRequest(model="m", dataset="d", chat_template=str(path))
        text = given_template(request, profile(rows_jsonl, TaskKind.CHAT))
        assert text == "{{ messages }}"
        sha256 = set_chat_template(tokenizer, text, source="m")
        assert tokenizer.chat_template == text
        assert sha256 == hashlib.sha256(text.encode()).hexdigest()

    def test_the_tokenizers_own_is_hashed(self, tokenizer: Any) -> None:
        expected = hashlib.sha256(CHATML.encode()).hexdigest()
        assert set_chat_template(tokenizer, None, source="m") == expected

    def test_none_at_all_is_refused(self, tokenizer: Any) -> None:
        tokenizer.chat_template = None
        with pytest.raises(ModelError, match=r"of some/model has no chat template.*--chat-template FILE"):
            set_chat_template(tokenizer, None, source="some/model")

    def test_one_for_another_task_is_refused(self, rows_jsonl: Path) -> None:
        request = StudyRequest(model="m", dataset="d", chat_template="chat.jinja")
        with pytest.raises(InputError, match="the task is causal-lm"):
            given_template(request, profile(rows_jsonl, TaskKind.CAUSAL_LM))

    def test_one_that_cannot_be_read_is_refused(self, rows_jsonl: Path) -> None:
        request = StudyRequest(model="m", dataset="d", chat_template="missing.jinja")
        with pytest.raises(InputError, match=r"missing\.jinja cannot be read"):
            given_template(request, profile(rows_jsonl, TaskKind.CHAT))
