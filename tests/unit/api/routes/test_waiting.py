from __future__ import annotations

import pytest

from rankwise.api.routes.waiting import preferred_wait


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        (["wait=10"], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "WAIT = 3"], 3),
        (['wait="7"; strict'], 7),
        (["wait=0"], 0),
        (["wait=999999"], 600),
        (["wait=5, wait=9"], 5),
    ],
)
def test_a_wait_is_read_as_the_rfc_writes_it(prefer: list[str], wait_s: int) -> None:
    assert preferred_wait(prefer) == wait_s


@pytest.mark.parametrize(
    "prefer", [[], [""], ["respond-async"], ["wait"], ["wait=-1"], ["wait=1.5"], ["await=3"]]
)
def test_anything_else_is_passed_over(prefer: list[str]) -> None:
    assert preferred_wait(prefer) is None
