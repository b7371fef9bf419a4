"""What every backend of the store promises about tokens, sessions and who owns what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from rankwise.errors import Conflict, NotFound
from rankwise.optimizer.domain import StudyRequest
from rankwise.roles import Role
from rankwise.store import Store
from rankwise.store.clock import Moment
from rankwise.store.tokens import MOST_SESSIONS

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class HandClock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.moment = START

    def now(self, _: Session) -> Moment:
        return Moment(self.moment, "a-boot", (self.moment - START).total_seconds())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'rankwise.db'}"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(url: str, clock: HandClock) -> Iterator[Store]:
    store = Store.open(url, clock=clock)
    yield store
    store.close()


def digests(store: Store) -> set[str]:
    return {credential.digest for credential in store.list_credentials()}


def test_a_token_is_kept_as_it_was_made(store: Store) -> None:
    later = START + timedelta(days=30)
    token = store.create_token(name="ci", role=Role.SUBMITTER, digest="d" * 64, expires_at=later)
    assert (token.name, token.role, token.expires_at) == ("ci", Role.SUBMITTER, later)
    assert (token.created_at, token.last_used_at, token.revoked_at) == (START, None, None)
    assert store.list_tokens() == [token]
    [credential] = store.list_credentials()
    assert (credential.digest, credential.token, credential.is_session) == ("d" * 64, token, False)


def test_a_revoked_token_is_accepted_no_more_and_is_remembered(store: Store, clock: HandClock) -> None:
    token = store.create_token(name="ci", role=Role.ADMIN, digest="d" * 64)
    store.begin_session(token.id, digest="s" * 64, expires_at=START + timedelta(hours=1))
    assert digests(store) == {"d" * 64, "s" * 64}
    clock.moment += timedelta(minutes=1)
    assert store.revoke_token(token.id).revoked_at == clock.moment
    assert digests(store) == set()
    assert store.list_tokens() == []
    clock.moment += timedelta(minutes=1)
    assert store.revoke_token(token.id).revoked_at == START + timedelta(minutes=1)
    assert [each.id for each in store.list_tokens(with_ended=True)] == [token.id]
    with pytest.raises(NotFound):
        store.revoke_token("none")
    with pytest.raises(NotFound):
        store.begin_session(token.id, digest="t" * 64, expires_at=START + timedelta(hours=1))


def test_a_token_ends_when_it_expires_and_its_sessions_with_it(store: Store, clock: HandClock) -> None:
    token = store.create_token(
        name="ci", role=Role.READER, digest="d" * 64, expires_at=START + timedelta(hours=1)
    )
    store.begin_session(token.id, digest="s" * 64, expires_at=START + timedelta(hours=9))
    clock.moment += timedelta(minutes=59)
    assert digests(store) == {"d" * 64, "s" * 64}
    clock.moment += timedelta(minutes=1)
    assert digests(store) == set()


def test_a_session_ends_by_itself_or_on_request(store: Store, clock: HandClock) -> None:
    token = store.create_token(name="ci", role=Role.READER, digest="d" * 64)
    for digest in ("a" * 64, "b" * 64):
        store.begin_session(token.id, digest=digest, expires_at=clock.moment + timedelta(hours=1))
    store.end_session("a" * 64)
    store.end_session("never begun")
    assert digests(store) == {"d" * 64, "b" * 64}
    clock.moment += timedelta(hours=1)
    assert digests(store) == {"d" * 64}


def test_forgotten_sessions_make_room(store: Store) -> None:
    token = store.create_token(name="ci", role=Role.READER, digest="d" * 64)
    other = store.create_token(name="other", role=Role.READER, digest="e" * 64)
    store.begin_session(other.id, digest="other", expires_at=START + timedelta(hours=1))
    for number in range(MOST_SESSIONS + 5):
        store.begin_session(token.id, digest=f"s{number}", expires_at=START + timedelta(hours=1))
    kept = {f"s{number}" for number in range(5, MOST_SESSIONS + 5)}
    assert digests(store) == {"d" * 64, "e" * 64, "other", *kept}


def test_when_a_token_was_used_only_moves_on(store: Store) -> None:
    token = store.create_token(name="ci", role=Role.READER, digest="d" * 64)
    for seconds, seen in ((60, 60), (30, 60), (90, 90)):
        store.note_tokens_used({token.id: START + timedelta(seconds=seconds), "gone": START})
        assert store.list_tokens()[0].last_used_at == START + timedelta(seconds=seen)


def test_a_study_remembers_who_asked_for_it(store: Store) -> None:
    request = StudyRequest(model="models/tiny", dataset="reviews.csv")
    assert store.create_study(request).owner is None
    study = store.create_study(request, owner="ci")
    assert store.get_study(study.id).owner == "ci"


def test_uploads_are_noted_once_for_each_who_sent_them(store: Store) -> None:
    first = store.add_upload("a.csv", owner="ada", filename="reviews.csv", size_bytes=5 * 2**30)
    assert store.add_upload("a.csv", owner="ada", filename="again.csv", size_bytes=1) == first
    store.add_upload("a.csv", owner="bob", filename="other.csv", size_bytes=5 * 2**30)
    assert [upload.owner for upload in store.find_upload("a.csv")] == ["ada", "bob"]
    assert [upload.owner for upload in store.list_uploads()] == ["bob", "ada"]
    assert not store.remove_upload("a.csv", owner="ada", path="uploads/a.csv")
    with pytest.raises(NotFound):
        store.remove_upload("a.csv", owner="ada", path="uploads/a.csv")
    assert store.remove_upload("a.csv", owner=None, path="uploads/a.csv")
    with pytest.raises(NotFound):
        store.find_upload("a.csv")


def test_an_upload_that_a_study_needs_stays(store: Store) -> None:
    store.add_upload("a.csv", owner="ada", filename="reviews.csv", size_bytes=1)
    study = store.create_study(StudyRequest(model="models/tiny", dataset="uploads/a.csv"))
    with pytest.raises(Conflict, match=study.id):
        store.remove_upload("a.csv", owner="ada", path="uploads/a.csv")
    store.request_cancel(study.id)
    assert store.remove_upload("a.csv", owner="ada", path="uploads/a.csv")
