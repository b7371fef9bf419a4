from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from rankwise.errors import InputError
from rankwise.optimizer.differences import Change, are_comparable, difference
from rankwise.optimizer.domain import (
    Candidate,
    Measurement,
    Outcome,
    Rung,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialPlan,
    TrialState,
)

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def facts(build) -> StudyFacts:
    return build.facts()


@pytest.fixture
def candidate(candidates: list[Candidate]) -> Candidate:
    return candidates[0]


@pytest.fixture
def then(facts: StudyFacts) -> Study:
    return study("then", facts)


@pytest.fixture
def now(facts: StudyFacts) -> Study:
    host = replace(facts.hardware.host, libraries={**facts.hardware.host.libraries, "torch": "9.9"})
    return study("now", replace(facts, hardware=replace(facts.hardware, host=host)))


def study(name: str, facts: StudyFacts | None) -> Study:
    return Study(
        id=name,
        request=StudyRequest(model="m", dataset="d"),
        state=StudyState.SUCCEEDED,
        created_at=MOMENT,
        updated_at=MOMENT,
        facts=facts,
    )


def trial(
    candidate: Candidate, speed: float | None, size_bytes: int | None, *, number: int = 1, steps: int = 0
) -> Trial:
    return Trial(
        id=f"t{number}",
        study_id="s",
        number=number,
        plan=TrialPlan(candidate=candidate, rung=Rung.TRAIN if steps else Rung.PROBE, train_steps=steps),
        state=TrialState.FINISHED,
        outcome=Outcome.OK,
        measurement=Measurement(
            tokens_per_s=speed, tokens_per_s_rel_halfwidth=0.02, peak_device_bytes=size_bytes
        ),
    )


def test_what_differs_of_the_environment_is_named(then: Study, now: Study, candidate: Candidate) -> None:
    found = difference(then, [trial(candidate, 1.0, 1)], None, now, [trial(candidate, 1.0, 1)], None)
    assert [(each.name, each.now) for each in found.environment] == [("torch", "9.9")]
    assert not found.same_environment
    again = difference(
        then, [trial(candidate, 1.0, 1)], None, replace(then, id="b"), [trial(candidate, 1.0, 1)], None
    )
    assert (again.same_environment, again.environment) == (True, ())


@pytest.mark.parametrize(
    ("speed", "change"),
    [(1020.0, Change.NO_DIFFERENCE), (1100.0, Change.MORE), (900.0, Change.LESS), (None, Change.UNKNOWN)],
)
def test_speeds_differ_where_their_intervals_say_so(
    then: Study, now: Study, candidate: Candidate, speed: float | None, change: Change
) -> None:
    [shape] = difference(
        then, [trial(candidate, 1000.0, 1)], None, now, [trial(candidate, speed, 1)], None
    ).shapes
    assert shape.speed is change
    assert shape.speed_ratio == (None if speed is None else pytest.approx(speed / 1000))


@pytest.mark.parametrize(
    ("size_bytes", "again_bytes", "change"),
    [
        (1005, 1005, Change.NO_DIFFERENCE),
        (1200, 1200, Change.MORE),
        (800, 800, Change.LESS),
        (1200, 990, Change.NO_DIFFERENCE),
        (None, None, Change.UNKNOWN),
    ],
)
def test_peaks_differ_where_their_ranges_do_not_meet(
    then: Study,
    now: Study,
    candidate: Candidate,
    size_bytes: int | None,
    again_bytes: int | None,
    change: Change,
) -> None:
    trials = [trial(candidate, 1.0, size_bytes), trial(candidate, 1.0, again_bytes, number=2, steps=9)]
    [shape] = difference(then, [trial(candidate, 1.0, 1000)], None, now, trials, None).shapes
    assert shape.memory is change


def test_a_shape_is_matched_at_any_learning_rate(then: Study, now: Study, candidate: Candidate) -> None:
    other = replace(candidate, learning_rate=candidate.learning_rate * 3)
    larger = replace(candidate, micro_batch=candidate.micro_batch * 2)
    found = difference(
        then, [trial(candidate, 1.0, 1)], None, now, [trial(other, 2.0, 1), trial(larger, 1.0, 1)], None
    )
    assert len(found.shapes) == 1
    assert (found.only_then, found.only_now) == (0, 1)


def test_nothing_in_common_is_said(then: Study, now: Study, candidate: Candidate) -> None:
    larger = replace(candidate, micro_batch=candidate.micro_batch * 2)
    with pytest.raises(InputError, match="share no measured shape"):
        difference(then, [trial(candidate, 1.0, 1)], None, now, [trial(larger, 1.0, 1)], None)


def test_other_models_rows_and_empty_studies_are_refused(then: Study, now: Study, facts: StudyFacts) -> None:
    model = replace(facts, model=replace(facts.model, structure_sha256="1" * 64))
    rows = replace(facts, dataset=replace(facts.dataset, lengths=None, sha256="1" * 64))
    for other, message in (
        (study("b", model), "whose structures differ"),
        (study("b", rows), "whose rows differ"),
        (study("b", None), "nothing was measured"),
        (then, "compared with itself"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            difference(then, [], None, other, [], None)
        assert caught.value.next_step
        assert not are_comparable(other, then)
    assert are_comparable(then, now)
    assert not are_comparable(then, replace(then, id="b"))


def test_what_else_differs_is_noted(then: Study, now: Study, candidate: Candidate) -> None:
    asked = replace(now, request=replace(now.request, seed=3, memory_limit_bytes=2**30))
    found = difference(then, [trial(candidate, 1.0, 1)], None, asked, [trial(candidate, 1.0, 1)], None)
    assert [note.split()[1] for note in found.notes] == ["seeds", "memory"]
