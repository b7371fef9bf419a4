"""``Prefer: wait=N`` (RFC 7240): how long a client would wait, and the wait. Knows nothing of answers."""

from __future__ import annotations

import re

import anyio
from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from ...optimizer.domain import Study
from ...store import Store
from ..lookout import Lookout

LONGEST_WAIT_S = 600
STILL_THERE_S = 2.0
"""How often it is looked whether the client still waits."""

_WAIT = re.compile(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:;.*)?', re.IGNORECASE | re.ASCII)


def preferred_wait(prefer: list[str]) -> int | None:
    """Seconds that the Prefer headers ask to wait, at most 600; None where they do not ask.

    A preference that is malformed or unknown is passed over, as the RFC demands.
    """
    for preference in ",".join(prefer).split(","):
        if match := _WAIT.fullmatch(preference):
            return min(int(match[1]), LONGEST_WAIT_S)
    return None


async def wait_until_final(
    lookout: Lookout, store: Store, study_id: str, *, wait_s: float, request: Request
) -> Study:
    """The study once it is final, ``wait_s`` are over, the client has gone or the server ends, whichever is
    first."""
    mark = await run_in_threadpool(store.get_mark, study_id)
    deadline = anyio.current_time() + wait_s
    while (left_s := deadline - anyio.current_time()) > 0 and not lookout.is_closed:
        is_final = await lookout.wait_until_final(mark, wait_s=min(STILL_THERE_S, left_s))
        if is_final or await request.is_disconnected():
            break
    return await run_in_threadpool(store.get_study, study_id)
