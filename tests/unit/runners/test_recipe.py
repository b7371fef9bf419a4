from __future__ import annotations

from array import array
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Recipe
from rankwise.optimizer.recipe import steps_for
from rankwise.runners import recipe as recipe_module
from rankwise.runners.recipe import (
    IGNORED_LABEL,
    Example,
    collate,
    count_scored,
    count_tokens,
    heldout_share,
    is_heldout,
    pack,
    pack_training_rows,
    step_rows,
    training_steps,
)

NOTHING = IGNORED_LABEL


def examples(*lengths: int, label: int | None = None) -> list[Example]:
    return [Example(array("i", range(1, length + 1)), label) for length in lengths]


def samples_of(row: Example) -> list[tuple[int, ...]]:
    """The samples that share a row, as tokens."""
    assert row.starts is not None
    borders = [*row.starts, len(row.input_ids)]
    return [tuple(row.input_ids[first:last]) for first, last in pairwise(borders)]


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


class TestPacking:
    @given(
        lengths=st.lists(st.integers(1, 30), max_size=200),
        heldout=st.integers(0, 5),
        seed=st.integers(0, 9),
        at_once=st.sampled_from([1, 7, 4096]),
    )
    def test_no_token_is_lost_or_doubled_or_changes_sides(
        self, lengths: list[int], heldout: int, seed: int, at_once: int
    ) -> None:
        numbers = iter(range(sum(lengths)))
        samples = [Example(array("i", [next(numbers) for _ in range(length)])) for length in lengths]
        pairs = [(sample, number % 7 < heldout) for number, sample in enumerate(samples)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe_module, "PACKED_AT_ONCE", at_once)
            rows = list(pack_training_rows(pairs, max_length=30, seed=seed))
        packed = sorted(sample for row, held in rows if not held for sample in samples_of(row))
        assert packed == sorted(tuple(sample.input_ids) for sample, held in pairs if not held)
        assert [row for row, held in rows if held] == [sample for sample, held in pairs if held]
        assert all(len(row.input_ids) <= 30 for row, _ in rows)

    @given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=300))
    def test_two_rows_never_fit_into_one(self, lengths: list[int]) -> None:
        rows = pack(examples(*lengths), max_length=64, seed="0")
        shortest = sorted(len(row.input_ids) for row in rows)[:2]
        assert len(rows) == 1 or sum(shortest) > 64

    def test_is_repeatable_and_seeded(self) -> None:
        samples = [Example(array("i", [number] * (1 + number % 5))) for number in range(100)]
        first, again, other = (
            [list(row.input_ids) for row in pack(samples, max_length=20, seed=seed)] for seed in "334"
        )
        assert first == again != other

    def test_masks_stay_with_their_tokens(self) -> None:
        samples = [Example(array("i", [5, 6, 7]), mask=[0, 0, 1]), Example(array("i", [8, 9]))]
        (row,) = pack(samples, max_length=8, seed="0")
        assert row.mask is not None
        learnt = [token for token, on in zip(row.input_ids, row.mask, strict=True) if on]
        assert sorted(learnt) == [7, 8, 9]

    def test_what_is_predicted_is_what_the_samples_alone_predict(self) -> None:
        samples = [*examples(5, 1, 3), Example(array("i", [5, 6, 7, 8]), mask=[0, 0, 1, 1])]
        rows = pack(samples, max_length=8, seed="0")
        assert len(rows) == 2
        assert count_scored(collate(rows, pad_id=0)) == count_scored(collate(samples, pad_id=0))


class TestCollate:
    def test_pads_on_the_right_to_the_longest(self) -> None:
        batch = collate(examples(2, 4), pad_id=9)
        assert batch["input_ids"].tolist() == [[1, 2, 9, 9], [1, 2, 3, 4]]
        assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        assert batch["labels"].tolist() == [[NOTHING, 2, NOTHING, NOTHING], [NOTHING, 2, 3, 4]]

    def test_a_pad_id_inside_a_text_is_learnt(self) -> None:
        batch = collate([Example(array("i", [7, 9, 7])), *examples(4)], pad_id=9)
        assert batch["labels"][0].tolist() == [NOTHING, 9, 7, NOTHING]

    def test_masked_tokens_are_read_and_not_learnt(self) -> None:
        batch = collate([Example([5, 6, 7], mask=[0, 1, 0]), *examples(4)], pad_id=9)
        assert batch["input_ids"][0].tolist() == [5, 6, 7, 9]
        assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0]
        assert batch["labels"][0].tolist() == [NOTHING, 6, NOTHING, NOTHING]

    def test_samples_that_share_a_row_are_told_apart_by_positions(self) -> None:
        rows = [Example([5, 6, 7, 8, 9], starts=[0, 2, 3]), Example([5, 6, 7], starts=[0])]
        batch = collate(rows, pad_id=1)
        assert set(batch) == {"input_ids", "position_ids", "labels"}
        assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 0, 0]]
        assert batch["labels"].tolist() == [
            [NOTHING, 6, NOTHING, NOTHING, 9],
            [NOTHING, 6, 7, NOTHING, NOTHING],
        ]

    def test_classes_make_one_label_a_row(self) -> None:
        batch = collate(examples(2, 4, 1, label=1), pad_id=0)
        assert batch["labels"].tolist() == [1, 1, 1]
        assert {tensor.dtype for tensor in batch.values()} == {torch.long}

    def test_numbers_make_one_float_a_row(self) -> None:
        batch = collate([Example([5], value=2.5), Example([5, 6], value=-1.0)], pad_id=0)
        assert batch["labels"].tolist() == [2.5, -1.0]
        assert batch["labels"].dtype is torch.float32

    def test_pairs_of_sentences_keep_their_types(self) -> None:
        rows = [Example([5, 6, 7], label=0, token_types=[0, 1, 1]), Example([5, 6, 7, 8], label=1)]
        assert collate(rows, pad_id=0)["token_type_ids"].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]

    def test_targets_are_padded_by_themselves(self) -> None:
        rows = [Example([5, 6, 7], target_ids=[8]), Example([5], target_ids=[8, 9, 1, 2])]
        batch = collate(rows, pad_id=0)
        assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
        assert batch["labels"].tolist() == [[8, NOTHING, NOTHING, NOTHING], [8, 9, 1, 2]]

    @pytest.mark.parametrize(
        ("rows", "scored"),
        [
            (examples(2, 4, label=0), 2),
            ([Example([5], value=0.5)], 1),
            (examples(2, 4, 1), 1 + 3 + 0),
            ([Example([5, 6, 7], mask=[1, 0, 1])], 1),
            ([Example([5, 6], target_ids=[7, 8, 9])], 3),
            ([Example([5, 6, 7, 8, 9], starts=[0, 2])], 1 + 2),
        ],
        ids=["classes", "numbers", "texts", "mask", "targets", "packed"],
    )
    def test_scored_items_are_rows_or_predicted_tokens(self, rows: list[Example], scored: int) -> None:
        assert count_scored(collate(rows, pad_id=0)) == scored

    def test_tokens_of_a_target_count(self) -> None:
        assert count_tokens(Example([5, 6], target_ids=[7])) == 3
        assert count_tokens(Example([5, 6])) == 2
