from __future__ import annotations

from array import array
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Recipe
from rankwise.optimizer.recipe import steps_for
from rankwise.runners.recipe import (
    IGNORED_LABEL,
    Example,
    collate,
    count_scored,
    encode,
    heldout_share,
    is_heldout,
    step_rows,
    training_steps,
    usable_row,
)

CLASSIFY = {
    "kind": "text-classification",
    "text_column": "text",
    "label_column": "label",
    "labels": ["negative", "positive"],
}
GENERATE = {"kind": "causal-lm", "text_column": "text", "label_column": None, "labels": []}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; [CLS] and [SEP] around each text."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


@pytest.fixture
def plain_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One token a word, nothing around the text, [SEP] as end of sequence."""
    backend = Tokenizer(models.WordLevel(tokenizer.get_vocab(), "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")


def examples(*lengths: int, label: int | None = None) -> list[Example]:
    return [Example(array("i", range(1, length + 1)), label) for length in lengths]


class TestHeldoutRows:
    @given(st.text(), st.integers(0, 2**31))
    def test_depends_on_nothing_but_text_and_seed(self, text: str, seed: int) -> None:
        assert is_heldout(text, seed=seed, share=0.3) == is_heldout(text, seed=seed, share=0.3)

    @given(st.text(st.characters(codec=None, categories=["Cs", "L"])))
    def test_takes_half_a_surrogate_pair(self, text: str) -> None:
        is_heldout(text, seed=0, share=0.5)

    @given(st.text(), st.floats(0, 1), st.floats(0, 1))
    def test_a_larger_share_keeps_what_a_smaller_one_held_out(
        self, text: str, one: float, two: float
    ) -> None:
        small, large = sorted((one, two))
        if is_heldout(text, seed=1, share=small):
            assert is_heldout(text, seed=1, share=large)

    def test_share_is_met(self) -> None:
        held = sum(is_heldout(f"row {number}", seed=7, share=0.1) for number in range(10_000))
        assert 900 < held < 1_100  # ± 3.3 standard deviations

    def test_seed_changes_the_split(self) -> None:
        sides = [[is_heldout(f"row {n}", seed=seed, share=0.5) for n in range(64)] for seed in (0, 1)]
        assert sides[0] != sides[1]

    @pytest.mark.parametrize(
        ("rows", "share"), [(0, 0.5), (10, 0.5), (40, 0.5), (100, 0.2), (200, 0.1), (5_000, 0.1)]
    )
    def test_share_by_size(self, rows: int, share: float) -> None:
        assert heldout_share(rows) == pytest.approx(share)

    def test_large_data_hold_out_about_a_thousand(self) -> None:
        assert heldout_share(1_000_000) * 1_000_000 == pytest.approx(1_024)


class TestUsableRow:
    @pytest.mark.parametrize(
        "row", [{"text": " ", "label": "x"}, {"text": "x", "label": None}, {"label": "x"}]
    )
    def test_sets_incomplete_rows_aside(self, row: dict[str, Any]) -> None:
        assert usable_row(row, CLASSIFY) is None

    def test_language_modelling_needs_no_label(self) -> None:
        assert usable_row({"text": "x"}, GENERATE) == ("x", None)

    def test_numbers_become_text(self) -> None:
        assert usable_row({"text": "x", "label": 1}, CLASSIFY) == ("x", "1")


class TestEncode:
    def test_classification_takes_the_tokenizers_special_tokens(self, tokenizer: Any) -> None:
        example, full = encode(
            "a b", "positive", tokenizer=tokenizer, task=CLASSIFY, recipe={"max_length": 9}
        )
        assert (list(example.input_ids), example.label, full) == ([1, 4, 5, 2], 1, 4)

    def test_truncated_classification_still_ends_with_the_separator(self, tokenizer: Any) -> None:
        example, full = encode(
            "a b c d", "negative", tokenizer=tokenizer, task=CLASSIFY, recipe={"max_length": 4}
        )
        assert (list(example.input_ids), full) == ([1, 4, 5, 2], 6)

    def test_unknown_label_is_named(self, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match="'neutral' is not one of negative, positive"):
            encode("a", "neutral", tokenizer=tokenizer, task=CLASSIFY, recipe={"max_length": 4})

    def test_language_modelling_learns_the_end(self, plain_tokenizer: Any) -> None:
        example, full = encode(
            "a b", None, tokenizer=plain_tokenizer, task=GENERATE, recipe={"max_length": 9}
        )
        assert (list(example.input_ids), example.label, full) == ([4, 5, 2], None, 3)

    def test_the_end_is_not_doubled(self, tokenizer: Any) -> None:
        tokenizer.eos_token = "[SEP]"
        example, _ = encode("a", None, tokenizer=tokenizer, task=GENERATE, recipe={"max_length": 9})
        assert list(example.input_ids) == [1, 4, 2]

    def test_a_truncated_text_gets_no_end(self, plain_tokenizer: Any) -> None:
        example, full = encode(
            "a b c d", None, tokenizer=plain_tokenizer, task=GENERATE, recipe={"max_length": 3}
        )
        assert (list(example.input_ids), full) == ([4, 5, 6], 5)


class TestOrder:
    @given(rows=st.integers(1, 60), batch=st.integers(1, 70), seed=st.integers(0, 100))
    def test_an_epoch_meets_each_row_at_most_once_and_full_batches_only(
        self, rows: int, batch: int, seed: int
    ) -> None:
        steps = training_steps(rows, {"effective_batch": batch, "epochs": 1})
        epoch = list(islice(step_rows(rows, effective_batch=batch, seed=seed), steps))
        met = [row for step in epoch for row in step]
        assert {len(step) for step in epoch} == {min(batch, rows)}
        assert len(set(met)) == len(met) > rows - min(batch, rows)
        assert set(met) <= set(range(rows))

    @given(rows=st.integers(1, 5000), batch=st.integers(1, 64), epochs=st.floats(0.01, 20))
    def test_the_search_counts_steps_as_the_loop_does(self, rows: int, batch: int, epochs: float) -> None:
        recipe = Recipe(max_length=8, effective_batch=batch, epochs=epochs)
        assert training_steps(rows, to_json(recipe)) == steps_for(rows, recipe)

    def test_is_repeatable_and_seeded(self) -> None:
        first, again, other = (
            list(islice(step_rows(50, effective_batch=8, seed=seed), 20)) for seed in (3, 3, 4)
        )
        assert first == again != other

    def test_epochs_are_different_permutations(self) -> None:
        order = step_rows(32, effective_batch=8, seed=0)
        epochs = [[row for step in islice(order, 4) for row in step] for _ in range(3)]
        assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 3

    def test_a_longer_run_starts_like_a_shorter_one(self) -> None:
        short, long = (list(islice(step_rows(9, effective_batch=4, seed=1), n)) for n in (3, 30))
        assert long[:3] == short


class TestCollate:
    def test_pads_on_the_right_to_the_longest(self) -> None:
        batch = collate(examples(2, 4), pad_id=9)
        assert batch["input_ids"].tolist() == [[1, 2, 9, 9], [1, 2, 3, 4]]
        assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        assert batch["labels"].tolist() == [[1, 2, IGNORED_LABEL, IGNORED_LABEL], [1, 2, 3, 4]]

    def test_a_pad_id_inside_a_text_is_learnt(self) -> None:
        batch = collate([Example(array("i", [7, 9, 7])), *examples(4)], pad_id=9)
        assert batch["labels"][0].tolist() == [7, 9, 7, IGNORED_LABEL]

    def test_classes_make_one_label_a_row(self) -> None:
        batch = collate(examples(2, 4, 1, label=1), pad_id=0)
        assert batch["labels"].tolist() == [1, 1, 1]
        assert {tensor.dtype for tensor in batch.values()} == {torch.long}

    def test_scored_items_are_rows_or_predicted_tokens(self) -> None:
        assert count_scored(collate(examples(2, 4, label=0), pad_id=0)) == 2
        assert count_scored(collate(examples(2, 4, 1), pad_id=0)) == 1 + 3 + 0
