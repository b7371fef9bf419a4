from __future__ import annotations

import asyncio
import threading

from rankwise.api.routes.brief import THREADS, briefly


def test_brief_reads_take_few_threads_and_wait_for_no_others() -> None:
    running, most, lock = 0, 0, threading.Lock()
    all_threads = threading.Barrier(THREADS)

    def read() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        all_threads.wait(60)
        with lock:
            running -= 1

    async def ask() -> None:
        waiting = threading.Event()
        others = [asyncio.to_thread(waiting.wait, 60) for _ in range(8)]
        gathered = asyncio.gather(*others)
        await asyncio.gather(*(briefly(read) for _ in range(3 * THREADS)))
        waiting.set()
        await gathered

    asyncio.run(ask())
    assert most == THREADS
