"""The constraints alone, without the code above them: SQL that no method of the store would send."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Insert, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import StaticPool
from sqlmodel import SQLModel

from rankwise.store.tables import Row

NOW = "2026-01-01"


def insert(name: str, **values: object) -> Insert:
    """Without the columns' types, which would refuse illegal values before the database does."""
    return sa.insert(sa.table(name, *map(sa.column, values))).values(values)


def study(**changes: object) -> Insert:
    values = {"id": 2, "ulid": "S2", "request": "{}", "state": "queued", "cancel_requested": 0, "wall_s": 0}
    values |= {
        "last_event": 0,
        "fence": 0,
        "created_at": NOW,
        "updated_at": NOW,
        "model": "m",
        "dataset": "d",
    }
    return insert("study", **{**values, **changes})


def trial(**changes: object) -> Insert:
    """The third of the study, unless changed."""
    values = {"id": 3, "ulid": "T3", "study_id": 1, "number": 3, "candidate_id": "c3", "rung": "probe"}
    values |= {"replicate": 0, "train_steps": 0, "plan": "{}", "state": "queued", "attempts": 0}
    return insert("trial", **{**values, **changes})


def attempt(**changes: object) -> Insert:
    """A live attempt at the second trial, unless changed."""
    values = {
        "trial_id": 2,
        "number": 1,
        "worker": "w",
        "boot_id": "b",
        "lease_until": 1.0,
        "started_at": NOW,
    }
    return insert("attempt", **{**values, **changes})


def event(seq: int) -> Insert:
    return insert("event", study_id=1, seq=seq, kind="x", payload="{}", created_at=NOW)


def lease(device: str, fence: int) -> Insert:
    return insert("device_lease", device=device, fence=fence)


def recommendation() -> Insert:
    return insert("recommendation", study_id=1, snapshot="{}", created_at=NOW)


RUNNING = {"state": "running", "fence": 1, "boot_id": "b", "lease_until": 1.0}
ENDED = {"ended_at": NOW, "outcome": "lost"}


@pytest.fixture
def connection() -> Iterator[Connection]:
    """One running study with a running trial, its live attempt and device; and a queued trial."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Row.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.rollback()
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        for statement in (
            study(id=1, ulid="S1", **RUNNING),
            trial(id=1, ulid="T1", number=1, candidate_id="c1", state="running", attempts=1),
            trial(id=2, ulid="T2", number=2, candidate_id="c2"),
            attempt(trial_id=1),
            lease("GPU-1", 1),
            event(1),
            recommendation(),
        ):
            connection.execute(statement)
        yield connection
    engine.dispose()


LEGAL = {
    "a second study": study(),
    "a second study that runs": study(**RUNNING),
    "a third trial": trial(),
    "a finished trial": trial(state="finished", outcome="ok", finished_at=NOW),
    "a trial that took over a measurement": trial(
        state="finished", outcome="ok", finished_at=NOW, measurement="{}", reused_from="T1"
    ),
    "a live attempt at the other trial": attempt(),
    "a disturbed attempt": attempt(ended_at=NOW, outcome="disturbed"),
    "an ended attempt at the same trial": attempt(trial_id=1, number=2, **ENDED),
    "another device for the same attempt": lease("GPU-2", 1),
    "the next event": event(2),
}

ILLEGAL = {
    "an unknown state of a study": ("ck_study_state", study(state="paused")),
    "a study running without a lease": ("ck_study_leased", study(state="running", fence=1)),
    "a lease of a study that does not run": ("ck_study_leased", study(boot_id="b", lease_until=1.0)),
    "a lease of no boot": ("ck_study_lease", study(**{**RUNNING, "boot_id": None})),
    "a study running without a fence": ("ck_study_claimed", study(**{**RUNNING, "fence": 0})),
    "negative time": ("ck_study_times", study(wall_s=-1)),
    "a study's id twice": ("study.ulid", study(ulid="S1")),
    "an unknown state of a trial": ("ck_trial_state", trial(state="paused")),
    "an unknown rung": ("ck_trial_rung", trial(rung="guess")),
    "a trial's number twice": ("trial.number", trial(number=1)),
    "a trial planned twice": ("trial.candidate_id", trial(candidate_id="c1")),
    "a trial of no study": ("FOREIGN KEY", trial(study_id=9)),
    "a trial running without an attempt": ("ck_trial_attempted", trial(state="running")),
    "a trial finished without an outcome": (
        "ck_trial_finished_outcome",
        trial(state="finished", finished_at=NOW),
    ),
    "a trial finished without a time": ("ck_trial_finished_at", trial(state="finished", outcome="ok")),
    "a queued trial with an outcome": ("ck_trial_finished_outcome", trial(outcome="ok")),
    "an unknown outcome": ("ck_trial_outcome", trial(state="finished", outcome="fine", finished_at=NOW)),
    "a disturbed trial": (
        "ck_trial_undisturbed",
        trial(state="finished", outcome="disturbed", finished_at=NOW),
    ),
    "a measurement taken over from no trial": (
        "FOREIGN KEY",
        trial(state="finished", outcome="ok", finished_at=NOW, measurement="{}", reused_from="T9"),
    ),
    "nothing taken over": (
        "ck_trial_reused",
        trial(state="finished", outcome="ok", finished_at=NOW, reused_from="T1"),
    ),
    "a measurement taken over before the end": (
        "ck_trial_reused",
        trial(measurement="{}", reused_from="T1"),
    ),
    "an attempt of negative time": ("ck_attempt_times", attempt(wall_s=-1)),
    "a second live attempt": ("attempt.trial_id", attempt(trial_id=1, number=2)),
    "an attempt's number twice": ("attempt.number", attempt(trial_id=1, number=1, **ENDED)),
    "an attempt ended without an outcome": ("ck_attempt_ended", attempt(ended_at=NOW)),
    "an attempt with an unknown outcome": ("ck_attempt_outcome", attempt(ended_at=NOW, outcome="fine")),
    "a device leased twice": ("device_lease.device", lease("GPU-1", 1)),
    "a device leased to no attempt": ("FOREIGN KEY", lease("GPU-2", 9)),
    "an event's number twice": ("event.seq", event(1)),
    "an event's number zero": ("ck_event_seq", event(0)),
    "a second recommendation": ("recommendation.study_id", recommendation()),
    "a study deleted under its trials": ("FOREIGN KEY", text("DELETE FROM study")),
}


@pytest.mark.parametrize("statement", LEGAL.values(), ids=LEGAL.keys())
def test_legal(connection: Connection, statement: Insert) -> None:
    connection.execute(statement)


@pytest.mark.parametrize(("named", "statement"), ILLEGAL.values(), ids=ILLEGAL.keys())
def test_illegal(connection: Connection, named: str, statement: Insert) -> None:
    with pytest.raises(IntegrityError, match=named):
        connection.execute(statement)


def test_fences_are_never_given_twice(connection: Connection) -> None:
    connection.execute(text("DELETE FROM device_lease"))
    connection.execute(text("DELETE FROM attempt"))
    connection.execute(attempt())
    assert connection.execute(text("SELECT fence FROM attempt")).scalar_one() == 2


def test_every_constraint_is_named() -> None:
    unnamed = [
        (table.name, constraint)
        for table in Row.metadata.tables.values()
        for constraint in table.constraints
        if constraint.name is None
    ]
    assert unnamed == []


def test_other_programs_tables_are_left_alone() -> None:
    assert not set(Row.metadata.tables) & set(SQLModel.metadata.tables)
