from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rankwise import errors
from rankwise.api.problems import MEDIA_TYPE, Problem, problem_of, problem_response
from rankwise.api.request_schemas import POINTERS, StudyBody
from rankwise.api.submission import BOUNDS, InvalidRequest, RequestProblem
from rankwise.errors import InputError, PathNotAllowed, RankwiseError


def subclasses(kind: type[RankwiseError]) -> Iterator[type[RankwiseError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def documented_statuses() -> dict[str, int]:
    """Class name → HTTP status, from the table in the docstring of rankwise.errors."""
    lines = (line.split() for line in (errors.__doc__ or "").splitlines() if " / HTTP " in line)
    return {next(word for word in words if word.isalnum()): int(words[-1]) for words in lines}


def test_every_error_has_the_status_that_its_table_promises() -> None:
    documented = documented_statuses()
    assert len(documented) >= 9
    for name, status in documented.items():
        assert problem_of(getattr(errors, name)("it went wrong")).status == status, name


def test_no_error_is_without_an_answer() -> None:
    for kind in subclasses(RankwiseError):
        if kind is not InvalidRequest:
            assert 400 <= problem_of(kind("it went wrong")).status < 600


def test_a_problem_names_kind_cause_place_and_next_step() -> None:
    error = PathNotAllowed("x lies outside", next_step="move it")
    assert problem_of(error, instance="/v1/studies") == Problem(
        status=403,
        title="Path not allowed",
        detail="x lies outside",
        type="urn:rankwise:problem:path-not-allowed",
        instance="/v1/studies",
        next_step="move it",
    )


def test_several_problems_share_a_status_only_where_they_agree() -> None:
    outside = RequestProblem("model", PathNotAllowed("outside"))
    also_outside = RequestProblem("dataset", PathNotAllowed("outside"))
    wrong = RequestProblem("epochs", InputError("wrong"))
    assert problem_of(InvalidRequest([outside, also_outside])).status == 403
    assert problem_of(InvalidRequest([outside, wrong])).status == 422


def test_every_field_has_a_place_in_the_body() -> None:
    body = StudyBody(model="m", dataset="d").model_dump()
    assert {*BOUNDS, "model", "dataset", "weights", "chat_template"} <= POINTERS.keys()
    for pointer in POINTERS.values():
        place: Any = body
        for name in pointer.removeprefix("/").split("/"):
            place = place[name]


@pytest.mark.parametrize("detail", ["naïve", "lone surrogate \ud800", "line\nbreak"])
def test_any_text_can_be_sent(detail: str) -> None:
    response = problem_response(Problem(status=422, title="Invalid", detail=detail), {"Location": "/x"})
    assert response.headers["Content-Type"] == MEDIA_TYPE
    assert response.headers["Location"] == "/x"
    assert json.loads(bytes(response.body))["detail"] == detail
