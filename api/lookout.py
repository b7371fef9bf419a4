"""One look at the store for all clients that follow studies, every :data:`POLL_S`, however many they are.

Clients wait for what it saw; the events of a study are read and written out once for all who follow it. It
looks only while somebody follows. Runs in the event loop, and asks the store in a thread. Knows nothing of
requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from ..errors import StoreError
from ..optimizer.domain import Event, TrialState
from ..store import Store
from ..store.marks import Mark
from .response_schemas.events import EventDocument, StudyChange

log = logging.getLogger(__name__)

POLL_S = 0.25
HEARTBEAT_S = 15.0
"""After so long without news a comment is sent: proxies close what is silent, and it shows who has gone."""
LONGEST_S = 3600.0
"""Then a stream ends, and its client asks again with what it read last: so rights are looked at again."""
RECONNECT_MS = 2000
REMEMBERED = 1000
"""Events of a channel that are kept for clients that are a little behind; others read the store."""
PAGE = 1000
CLOCKS_MAY_DIFFER = timedelta(seconds=2)
"""Between servers on one database: so much is told again to one who resumes."""

OPENING = format_sse_event(retry=RECONNECT_MS)


class _Channel:
    """What is told to all who follow one thing, numbered without gaps."""

    def __init__(self, last: int) -> None:
        self.followers = 0
        self.last = last
        """Number of the newest message."""
        self._messages: deque[bytes] = deque(maxlen=REMEMBERED)
        self._news = asyncio.Event()

    def tell(self, messages: Iterable[bytes]) -> None:
        """Add messages, and wake all who wait."""
        for message in messages:
            self._messages.append(message)
            self.last += 1
        self.wake()

    def wake(self) -> None:
        """Wake all who wait, with or without a message."""
        self._news.set()
        self._news = asyncio.Event()

    def after(self, number: int) -> list[bytes] | None:
        """The messages after the one of this number; None where they are not remembered any more."""
        kept = len(self._messages)
        missing = max(0, self.last - number)
        return None if missing > kept else list(islice(self._messages, kept - missing, kept))

    async def news(self, within_s: float) -> bool:
        """Whether something was told in that time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), within_s)
            return True
        return False


class _StudyChannel(_Channel):
    """The events of one study."""

    def __init__(self, mark: Mark) -> None:
        super().__init__(mark.last_event)
        self.mark = mark


AnyChannel = TypeVar("AnyChannel", bound=_Channel)


class Lookout:
    """Follows studies in the store for as long as somebody wants to know."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._studies: dict[str, _StudyChannel] = {}
        self._all = _Channel(0)
        self._live: dict[str, Mark] = {}
        self._newest = ""
        self._task: asyncio.Task[None] | None = None
        self._has_looked = asyncio.Event()
        self.is_closed = False

    @property
    def followers(self) -> int:
        """How many clients follow something."""
        return self._all.followers + sum(channel.followers for channel in self._studies.values())

    async def close(self) -> None:
        """End every stream and every wait, now and later."""
        self.is_closed = True
        self._has_looked.set()
        for channel in (*self._studies.values(), self._all):
            channel.wake()
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def wait_until_final(self, mark: Mark, *, wait_s: float) -> bool:
        """Whether the study of this mark has ended; returns at the latest after ``wait_s``."""
        with self._following_study(mark) as channel:
            deadline = asyncio.get_running_loop().time() + wait_s
            while not channel.mark.state.is_final and not self.is_closed:
                left_s = deadline - asyncio.get_running_loop().time()
                if left_s <= 0:
                    break
                await channel.news(left_s)
            return channel.mark.state.is_final

    async def study_events(self, mark: Mark, *, after: int) -> AsyncIterator[bytes]:
        """The events of the study of this mark after the one numbered ``after``, until it has ended."""
        seen = after
        with self._following_study(mark) as channel:
            yield OPENING
            async for is_silent in self._while_open(channel):
                if is_silent:
                    yield KEEPALIVE_COMMENT
                    continue
                while (known := channel.after(seen)) is None or known:
                    if known is None:
                        known = await self._read_events(mark.study_id, seen)
                    for message in known:
                        yield message
                    seen += len(known)
                if channel.mark.state.is_final and seen >= channel.mark.last_event:
                    return

    async def changes(self, *, since: datetime | None) -> AsyncIterator[bytes]:
        """Every study as it changes.

        Args:
            since: begin with what changed from then on; if None, with the studies that are not final.
        """
        with self._following(self._all) as channel:
            yield OPENING
            # Only now: what changes between reading the store here and its first look, nobody would tell.
            await self._has_looked.wait()
            seen = channel.last
            if since is None:
                begun = await run_in_threadpool(self._store.list_marks)
            else:
                begun = await run_in_threadpool(
                    self._store.list_marks_since, since - CLOCKS_MAY_DIFFER, limit=PAGE
                )
            for message in await self._written(begun):
                yield message
            async for is_silent in self._while_open(channel):
                if is_silent:
                    yield KEEPALIVE_COMMENT
                    continue
                while known := channel.after(seen):
                    for message in known:
                        yield message
                    seen += len(known)
                if known is None:
                    return  # it is too slow, and asks again with what it read last

    async def _while_open(self, channel: _Channel) -> AsyncIterator[bool]:
        """One turn at once and one for every news, with whether it was silent for too long instead."""
        ends = asyncio.get_running_loop().time() + LONGEST_S
        is_silent = False
        while not self.is_closed and asyncio.get_running_loop().time() < ends:
            yield is_silent
            is_silent = not await channel.news(HEARTBEAT_S)

    @contextmanager
    def _following_study(self, mark: Mark) -> Iterator[_StudyChannel]:
        channel = self._studies.setdefault(mark.study_id, _StudyChannel(mark))
        try:
            with self._following(channel):
                yield channel
        finally:
            if not channel.followers:
                self._studies.pop(mark.study_id, None)

    @contextmanager
    def _following(self, channel: AnyChannel) -> Iterator[AnyChannel]:
        channel.followers += 1
        if self._task is None or self._task.done():
            self._has_looked.clear()
            self._task = asyncio.create_task(self._look(), name="lookout")
        try:
            yield channel
        finally:
            channel.followers -= 1

    async def _look(self) -> None:
        """Look again and again, while there are followers."""
        is_first = True
        while self.followers:
            try:
                if is_first:
                    self._newest = await run_in_threadpool(self._store.newest_study)
                await self._look_once(is_first=is_first)
                is_first = False
                self._has_looked.set()
            except StoreError as error:
                log.warning("studies cannot be followed at present: %s", error)
            await asyncio.sleep(POLL_S)

    async def _look_once(self, *, is_first: bool) -> None:
        marks = await run_in_threadpool(
            self._store.list_marks, newer_than=self._newest, also={*self._live, *self._studies}
        )
        changed = [mark for mark in marks if self._live.get(mark.study_id) != mark]
        self._live = {mark.study_id: mark for mark in marks if not mark.state.is_final}
        self._newest = max(self._newest, *(mark.study_id for mark in marks), "")
        for mark in marks:
            channel = self._studies.get(mark.study_id)
            if channel is None or channel.mark == mark:
                continue
            if mark.last_event > channel.last:
                channel.tell(await self._read_events(mark.study_id, channel.last))
            if channel.last >= mark.last_event:
                channel.mark = mark
                channel.wake()
        if self._all.followers and changed and not is_first:
            self._all.tell(await self._written(changed))

    async def _read_events(self, study_id: str, after: int) -> list[bytes]:
        events = await run_in_threadpool(self._store.events_after, study_id, after, limit=PAGE)
        return [_event_message(event) for event in events]

    async def _written(self, marks: Iterable[Mark]) -> list[bytes]:
        marks = list(marks)
        counts: Mapping[str, Mapping[TrialState, int]] = await run_in_threadpool(
            self._store.count_trials, [mark.study_id for mark in marks]
        )
        return [
            format_sse_event(
                data_str=StudyChange.of(mark, counts[mark.study_id]).model_dump_json(),
                event="study",
                id=mark.updated_at.isoformat(),
            )
            for mark in marks
        ]


def _event_message(event: Event) -> bytes:
    document = EventDocument.model_validate(event, from_attributes=True)
    return format_sse_event(data_str=document.model_dump_json(), event=event.kind, id=str(event.seq))
