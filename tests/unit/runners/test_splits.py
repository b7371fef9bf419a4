"""Which of few rows are held out; hypothesis looks for sets that break what is promised."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import DatasetError
from rankwise.runners.recipe import heldout_rule, heldout_share, row_hash
from rankwise.runners.splits import choose_border, choose_keys

Rows = list[tuple[str, str | None]]


def chosen(
    rows: Rows, share: float, *, seed: int = 0, together: list[tuple[str, str]] | None = None
) -> set[str]:
    """Keys that are held out."""
    hashes = choose_keys(rows, share, seed=seed, source="data", together=together or ())
    rule = heldout_rule({"seed": seed, "share": share, "hashes": hashes})
    return {key for key, _ in rows if rule(key)}


@pytest.mark.parametrize("count", [2, 3, 4, 10, 12, 20, 39, 50, 120, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_of_few_rows_just_as_many_are_held_out_as_should_be(count: int, seed: int) -> None:
    share = heldout_share(count)
    rows: Rows = [(f"film {number}", None) for number in range(count)]
    assert len(chosen(rows, share, seed=seed)) == max(1, math.floor(share * count + 1e-9))


@pytest.mark.parametrize("seed", range(3))
def test_each_class_gives_its_share(seed: int) -> None:
    sizes = {"a": 600, "b": 300, "c": 100}
    rows: Rows = [(f"{name} {number}", name) for name, size in sizes.items() for number in range(size)]
    held = Counter(key[0] for key in chosen(rows, 0.1, seed=seed))
    assert held == {"a": 60, "b": 30, "c": 10}


def test_of_a_rare_class_one_row_is_held_out_and_one_is_learnt() -> None:
    rows: Rows = [*((f"a {number}", "a") for number in range(200)), ("b 0", "b"), ("b 1", "b"), ("c", "c")]
    held = Counter(key[0] for key in chosen(rows, 0.1))
    assert held["b"] == 1
    assert held["c"] == 0, "a class with one input is learnt, and not judged"


def test_another_seed_holds_out_other_rows() -> None:
    rows: Rows = [(f"film {number}", None) for number in range(100)]
    assert chosen(rows, 0.2, seed=0) != chosen(rows, 0.2, seed=1)
    assert chosen(rows, 0.2, seed=0) == chosen(rows[::-1], 0.2, seed=0)


@pytest.mark.parametrize("seed", range(10))
def test_an_input_that_most_rows_have_is_learnt(seed: int) -> None:
    rows: Rows = [*[("same", None)] * 40, *((f"film {number}", None) for number in range(5))]
    held = chosen(rows, heldout_share(45), seed=seed)
    assert "same" not in held
    assert len(held) == 3, "half of the others"


def test_two_inputs_of_many_rows_each() -> None:
    assert len(chosen([*[("a", "x")] * 6, *[("b", "y")] * 6], 0.5)) == 1


@pytest.mark.parametrize("rows", [[("same", None)] * 12, [("same", "a"), ("same", "b")], []])
def test_rows_that_all_stay_together(rows: Rows) -> None:
    with pytest.raises(DatasetError, match=r"data have the same input or group.*none can be held out"):
        choose_keys(rows, 0.5, seed=0, source="data")


def test_keys_that_stay_together() -> None:
    rows: Rows = [(f"user {number}", None) for number in range(40)]
    pairs = [(f"user {number}", f"user {number + 1}") for number in range(0, 40, 2)]
    for seed in range(5):
        held = chosen(rows, 0.25, seed=seed, together=pairs)
        assert len(held) == 10
        assert all((first in held) == (second in held) for first, second in pairs)


def test_keys_that_should_all_stay_together_do_not() -> None:
    """As where every user once said the same: held out by user then, as was asked for."""
    rows: Rows = [(f"user {number}", None) for number in range(40)]
    chain = [("user 0", f"user {number}") for number in range(1, 40)]
    assert len(chosen(rows, 0.25, together=chain)) == 10


@given(
    st.lists(st.tuples(st.integers(0, 30).map(str), st.sampled_from("abc")), min_size=2, max_size=120),
    st.integers(0, 5),
)
def test_no_class_is_on_one_side_if_it_need_not_be(rows: Rows, seed: int) -> None:
    rows = [(f"{name} {key}", name) for key, name in rows]
    if len({key for key, _ in rows}) < 2:
        return
    held = chosen(rows, heldout_share(len(rows)), seed=seed)
    assert held
    assert held != {key for key, _ in rows}
    of_class: dict[str | None, set[str]] = defaultdict(set)
    for key, name in rows:
        of_class[name].add(key)
    if any(len(keys) > 1 for keys in of_class.values()):
        for keys in of_class.values():
            assert len(keys) == 1 or 0 < len(keys & held) < len(keys)
    assert 2 * sum(key in held for key, _ in rows) <= len(rows)


@given(st.lists(st.integers(0, 20).map(float), min_size=2, max_size=100))
def test_nothing_that_is_learnt_is_later_than_what_is_held_out(times: list[float]) -> None:
    if len(set(times)) < 2:
        with pytest.raises(DatasetError, match="the same time"):
            choose_border(times, 0.2, source="data")
        return
    border = choose_border(times, 0.2, source="data")
    held = [time for time in times if time >= border]
    assert 0 < len(held) < len(times)
    assert len(held) <= 0.2 * len(times) or set(held) == {max(times)}


def test_a_border_holds_out_the_share() -> None:
    assert choose_border([float(number) for number in range(100)], 0.1, source="data") == 90.0


def test_a_hash_is_that_of_the_rule() -> None:
    rule = heldout_rule({"seed": 3, "share": 0.5})
    assert rule("film") == (int(row_hash("film", seed=3), 16) < 2**63)
