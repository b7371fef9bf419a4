"""Tests that run beside each other do not share cores."""

from __future__ import annotations

import pytest

from ..conftest import share_of_cores


@pytest.mark.parametrize(
    ("cores", "workers"), [({0, 1}, 2), ({0, 1, 2, 3, 4}, 2), (set(range(3, 64)), 4), ({5}, 1)]
)
def test_every_core_is_used_once(cores: set[int], workers: int) -> None:
    shares = [share_of_cores(cores, f"gw{number}", workers) for number in range(workers)]
    assert all(shares)
    assert sorted(core for share in shares for core in share) == sorted(cores)


def test_more_workers_than_cores_take_turns() -> None:
    assert [share_of_cores({4, 7}, f"gw{number}", 3) for number in range(3)] == [{4}, {7}, {4}]
