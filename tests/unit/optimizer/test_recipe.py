"""Lengths, batches and steps that follow from data, model and request."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import DatasetError, InputError
from rankwise.optimizer.domain import Recipe
from rankwise.optimizer.recipe import choose_recipe, steps_for


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


@pytest.mark.parametrize(
    ("rows", "epochs", "expected"), [(160, 3.0, 30), (175, 3.0, 30), (160, 0.5, 5), (5, 0.01, 1)]
)
def test_steps_count_whole_batches_and_epochs(rows, epochs, expected):
    assert steps_for(rows, Recipe(max_length=64, effective_batch=16, epochs=epochs)) == expected
