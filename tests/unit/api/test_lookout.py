from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.sse import KEEPALIVE_COMMENT

from rankwise.api import lookout as module
from rankwise.api.lookout import Lookout
from rankwise.errors import StoreError
from rankwise.optimizer.domain import StudyRequest, StudyState
from rankwise.store import Store, StudyClaim, Worker

REQUEST = StudyRequest(model="models/MiniLM", dataset="data/reviews.csv")
WORKER = Worker(name="script", place="here")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "rankwise.db")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)


def with_lookout(store: Store, body: Callable[[Lookout], Awaitable[None]]) -> None:
    async def run() -> None:
        lookout = Lookout(store)
        try:
            async with asyncio.timeout(20):
                await body(lookout)
        finally:
            await lookout.close()

    asyncio.run(run())


def fields(message: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in message.decode().splitlines() if line)


async def numbers(stream: AsyncIterator[bytes]) -> list[int]:
    return [int(found["id"]) async for message in stream if "id" in (found := fields(message))]


async def read(stream: AsyncIterator[bytes]) -> None:
    async for _ in stream:
        pass


async def next_change(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    async for message in stream:
        if fields(message).get("event") == "study":
            told: dict[str, Any] = json.loads(fields(message)["data"])
            return told
    raise AssertionError("the stream ended")


def claimed(store: Store) -> StudyClaim:
    claim = store.claim_study(WORKER, only=store.create_study(REQUEST).id)
    assert claim is not None
    return claim


def told(store: Store, study_id: str) -> list[int]:
    return [event.seq for event in store.events_after(study_id, 0)]


def test_a_stream_has_every_event_once_and_ends_with_the_study(store: Store) -> None:
    study = claimed(store)

    async def body(lookout: Lookout) -> None:
        stream = asyncio.create_task(numbers(lookout.study_events(store.get_mark(study.id), after=0)))
        for turn in range(30):
            await asyncio.to_thread(store.append_event, study, "note", {"turn": turn})
            await asyncio.sleep(0.003)
        await asyncio.to_thread(store.finish_study, study, StudyState.CANCELLED)
        assert await stream == told(store, study.id)

    with_lookout(store, body)


def test_a_stream_goes_on_where_it_broke_off(store: Store) -> None:
    study = claimed(store)
    for turn in range(20):
        store.append_event(study, "note", {"turn": turn})
    store.finish_study(study, StudyState.CANCELLED)

    async def body(lookout: Lookout) -> None:
        rest = await numbers(lookout.study_events(store.get_mark(study.id), after=13))
        assert rest == told(store, study.id)[13:]

    with_lookout(store, body)


def test_one_who_is_far_behind_misses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    monkeypatch.setattr(module, "PAGE", 4)
    study = claimed(store)

    async def body(lookout: Lookout) -> None:
        stream = lookout.study_events(store.get_mark(study.id), after=0)
        seen = [int(fields(message)["id"]) for message in [await anext(stream), await anext(stream)][1:]]
        for turn in range(25):
            await asyncio.to_thread(store.append_event, study, "note", {"turn": turn})
        await asyncio.sleep(0.1)
        await asyncio.to_thread(store.finish_study, study, StudyState.CANCELLED)
        assert seen + await numbers(stream) == told(store, study.id)

    with_lookout(store, body)


def test_many_who_follow_ask_the_store_as_often_as_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    study = claimed(store)
    reads = 0
    read = store.events_after

    def counted(study_id: str, seq: int, *, limit: int = 1000) -> Any:
        nonlocal reads
        reads += 1
        return read(study_id, seq, limit=limit)

    monkeypatch.setattr(store, "events_after", counted)

    async def body(lookout: Lookout) -> None:
        mark = store.get_mark(study.id)
        streams = [
            asyncio.create_task(numbers(lookout.study_events(mark, after=mark.last_event))) for _ in range(50)
        ]
        await asyncio.sleep(0.05)
        for turn in range(5):
            await asyncio.to_thread(store.append_event, study, "note", {"turn": turn})
            await asyncio.sleep(0.05)
        await asyncio.to_thread(store.finish_study, study, StudyState.CANCELLED)
        found = await asyncio.gather(*streams)
        assert found == [[3, 4, 5, 6, 7, 8]] * 50
        assert reads <= 7  # once an event at most, not 50 times

    with_lookout(store, body)


def test_a_silent_stream_says_that_it_lives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    study = store.create_study(REQUEST)

    async def body(lookout: Lookout) -> None:
        stream = lookout.study_events(store.get_mark(study.id), after=1)
        assert [await anext(stream) for _ in range(3)][1:] == [KEEPALIVE_COMMENT] * 2

    with_lookout(store, body)


def test_streams_and_waits_end_when_the_server_does(store: Store) -> None:
    study = store.create_study(REQUEST)

    async def body(lookout: Lookout) -> None:
        mark = store.get_mark(study.id)
        ends: list[Coroutine[Any, Any, Any]] = [
            read(lookout.study_events(mark, after=0)),
            read(lookout.changes(since=None)),
            lookout.wait_until_final(mark, wait_s=600),
        ]
        tasks = [asyncio.create_task(each) for each in ends]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in tasks)
        await lookout.close()
        await asyncio.wait(tasks)
        assert lookout.followers == 0

    with_lookout(store, body)


def test_changes_tell_of_live_studies_first_and_then_of_each_that_changes(store: Store) -> None:
    store.request_cancel(store.create_study(REQUEST).id)
    live = store.create_study(REQUEST)

    async def body(lookout: Lookout) -> None:
        stream = lookout.changes(since=None)
        assert (await next_change(stream))["id"] == live.id
        new = await asyncio.to_thread(store.create_study, REQUEST)
        await asyncio.to_thread(store.request_cancel, new.id)  # before the next look, perhaps
        found = await next_change(stream)
        while found["state"] != "cancelled":
            found = await next_change(stream)
        assert found["id"] == new.id
        await asyncio.to_thread(store.claim_study, WORKER, only=live.id)
        found = await next_change(stream)
        assert (found["id"], found["state"]) == (live.id, "running")

    with_lookout(store, body)


def test_changes_go_on_from_a_moment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    study = store.create_study(REQUEST)
    ended = store.request_cancel(study.id)

    async def body(lookout: Lookout) -> None:
        found = await next_change(lookout.changes(since=ended.updated_at))
        assert (found["id"], found["state"]) == (study.id, "cancelled")

    with_lookout(store, body)


def test_a_store_that_cannot_be_read_for_a_while_ends_no_stream(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = store.create_study(REQUEST)
    look = store.list_marks
    fails = iter([False, True, True])

    def failing(**options: Any) -> Any:
        if next(fails, False):
            raise StoreError("the database is locked")
        return look(**options)

    monkeypatch.setattr(store, "list_marks", failing)

    async def body(lookout: Lookout) -> None:
        stream = asyncio.create_task(numbers(lookout.study_events(store.get_mark(study.id), after=1)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(store.request_cancel, study.id)
        assert await stream == [2]

    with_lookout(store, body)
