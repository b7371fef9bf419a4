"""Lengths, batches and steps that follow from data, model and request."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import DatasetError, InputError
from rankwise.optimizer.domain import LossMask, Recipe
from rankwise.optimizer.recipe import choose_recipe, judged_rows, steps_for
from rankwise.probes.profiles import TaskKind, TaskProfile


@pytest.mark.parametrize(
    ("p99", "max_positions", "expected"),
    [(1, 512, 64), (64, 512, 64), (65, 512, 128), (500, 512, 512), (600, 512, 512), (600, None, 640)],
)
def test_max_length_is_p99_rounded_up_within_the_model(build, p99, max_positions, expected):
    model = replace(build.bert(), max_positions=max_positions)
    recipe = choose_recipe(build.dataset(lengths=build.lengths(p99)), model, build.request())
    assert recipe.max_length == expected


def test_the_users_length_is_taken_as_it_is(build):
    assert choose_recipe(build.dataset(), build.bert(), build.request(max_length=100)).max_length == 100


def test_a_length_that_the_model_cannot_read_is_refused(build):
    with pytest.raises(InputError, match=r"513 exceeds the 512 positions of some/model — use at most 512"):
        choose_recipe(build.dataset(), build.bert(), build.request(max_length=513))


def test_unknown_lengths_need_the_users(build):
    with pytest.raises(DatasetError, match="name a max_length"):
        choose_recipe(build.dataset(), build.bert(), build.request())


@given(rows=st.integers(1, 10_000), requested=st.integers(1, 512))
def test_an_epoch_has_two_steps_unless_there_is_one_row(build, rows, requested):
    request = build.request(effective_batch=requested, max_length=64)
    batch = choose_recipe(build.dataset(usable_rows=rows), build.bert(), request).effective_batch
    assert 1 <= batch <= requested
    assert 2 * batch <= rows or batch == 1
    assert batch == requested or batch.bit_count() == 1


def causal(build, *, kind=TaskKind.CAUSAL_LM, mean=50.0, rows=5000):
    lengths = replace(build.lengths(500), mean=mean)
    dataset = build.dataset(usable_rows=rows, lengths=lengths)
    return replace(dataset, task=TaskProfile(kind=kind, text_column="text"))


def packs(build):
    return replace(build.gpt2(), supports_packing=True)


@pytest.mark.parametrize(("mean", "packed"), [(50.0, True), (256.0, True), (257.0, False), (900.0, False)])
@pytest.mark.parametrize("kind", [kind for kind in TaskKind if kind.is_causal])
def test_short_rows_are_packed_unasked(build, kind, mean, packed):
    assert choose_recipe(causal(build, kind=kind, mean=mean), packs(build), build.request()).packing is packed


def test_long_rows_are_packed_on_demand_and_short_ones_left_alone(build):
    recipes = [
        choose_recipe(causal(build, mean=mean), packs(build), build.request(packing=packing))
        for mean, packing in ((400.0, True), (50.0, False))
    ]
    assert [recipe.packing for recipe in recipes] == [True, False]


def test_unknown_lengths_are_not_packed_unasked(build):
    dataset = replace(causal(build), lengths=None)
    assert not choose_recipe(dataset, packs(build), build.request(max_length=64)).packing
    recipe = choose_recipe(dataset, packs(build), build.request(max_length=64, packing=True))
    assert (recipe.packing, recipe.effective_batch) == (True, 16)


def test_packing_that_the_model_cannot_do_is_refused(build):
    assert not choose_recipe(causal(build), build.gpt2(), build.request()).packing
    with pytest.raises(InputError, match=r"some/model \(some\) cannot keep samples apart.*leave packing out"):
        choose_recipe(causal(build), build.gpt2(), build.request(packing=True))


@pytest.mark.parametrize("kind", [kind for kind in TaskKind if not kind.is_causal])
def test_packing_of_other_tasks_is_refused(build, kind):
    dataset = causal(build, kind=kind)
    assert not choose_recipe(dataset, packs(build), build.request()).packing
    with pytest.raises(InputError, match=f"the task is {kind}"):
        choose_recipe(dataset, packs(build), build.request(packing=True))


@given(mean=st.floats(1, 600), requested=st.integers(1, 256), rows=st.integers(1, 100_000))
def test_a_packed_step_learns_about_as_many_tokens(build, mean, requested, rows):
    """Half to double, unless one row alone is more, or the data are too few."""
    request = build.request(effective_batch=requested, packing=True, max_length=512)
    recipe = choose_recipe(causal(build, mean=mean, rows=rows), packs(build), request)
    assert recipe.effective_batch.bit_count() == 1
    wanted = requested * min(mean, 512)
    assert recipe.effective_batch == 1 or recipe.effective_batch * 512 <= 1.5 * wanted
    if rows * min(mean, 512) >= 4 * 512 * requested:
        assert recipe.effective_batch * 512 >= wanted / 1.5


@given(mean=st.floats(1, 512), requested=st.integers(1, 64), rows=st.integers(1, 3000))
def test_packs_too_leave_two_steps_an_epoch(build, mean, requested, rows):
    request = build.request(effective_batch=requested, packing=True, max_length=512)
    batch = choose_recipe(causal(build, mean=mean, rows=rows), packs(build), request).effective_batch
    assert batch == 1 or 2 * batch <= rows * mean / 512


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        (TaskKind.CHAT, [LossMask.ASSISTANT, LossMask.ALL]),
        (TaskKind.PROMPT_COMPLETION, [LossMask.COMPLETION, LossMask.ALL]),
        (TaskKind.CAUSAL_LM, [LossMask.ALL]),
        (TaskKind.SEQ2SEQ, [LossMask.ALL]),
        (TaskKind.TEXT_CLASSIFICATION, [LossMask.ALL]),
        (TaskKind.REGRESSION, [LossMask.ALL]),
    ],
)
def test_loss_mask_suits_the_task(build, kind, allowed):
    dataset = causal(build, kind=kind)
    assert choose_recipe(dataset, build.gpt2(), build.request()).loss_mask is allowed[0]
    for mask in LossMask:
        request = build.request(loss_mask=mask)
        if mask in allowed:
            assert choose_recipe(dataset, build.gpt2(), request).loss_mask is mask
        else:
            with pytest.raises(InputError, match=f"the loss mask {mask} does not suit the task {kind}"):
                choose_recipe(dataset, build.gpt2(), request)


def test_the_chat_template_is_part_of_the_recipe(build):
    recipe = choose_recipe(causal(build), build.gpt2(), build.request(), chat_template_sha256="ab" * 32)
    assert recipe.chat_template_sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("rows", "epochs", "expected"), [(160, 3.0, 30), (175, 3.0, 30), (160, 0.5, 5), (5, 0.01, 1)]
)
def test_steps_count_whole_batches_and_epochs(rows, epochs, expected):
    assert steps_for(rows, Recipe(max_length=64, effective_batch=16, epochs=epochs)) == expected


@pytest.mark.parametrize(
    ("heldout", "steps", "expected"), [(385, 21, 128), (385, 42, 202), (385, 675, 385), (50, 21, 50)]
)
def test_judging_is_cheap_beside_training(heldout, steps, expected):
    recipe = Recipe(max_length=64, effective_batch=16, epochs=1.0)
    assert judged_rows(heldout, steps, recipe) == expected
