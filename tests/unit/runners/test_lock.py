from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from rankwise.home import Home
from rankwise.runners.lock import lock_holder, take_lock

HOLD = """
import sys, time
from pathlib import Path
from rankwise.home import Home
from rankwise.runners.lock import take_lock
lock = take_lock(Home(Path(sys.argv[1])), sys.argv[2] or None)
print("held" if lock else "refused", flush=True)
time.sleep(60)
"""

Hold = Callable[[str], tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def hold(home: Home) -> Iterator[Hold]:
    """Start a process that takes the lock and sleeps; gives it with what it said."""
    started: list[subprocess.Popen[str]] = []

    def start(study_id: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", HOLD, str(home.root), study_id]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_nobody_holds_a_new_home(home: Home) -> None:
    assert lock_holder(home) is None


def test_one_process_holds_it_and_says_who_it_is(home: Home, hold: Hold) -> None:
    process, answer = hold("01STUDY")
    assert answer == "held"
    assert take_lock(home, None) is None
    holder = lock_holder(home)
    assert holder is not None
    assert (holder.pid, holder.mode, holder.study_id) == (process.pid, "study", "01STUDY")


def test_serving_names_no_study(home: Home, hold: Hold) -> None:
    hold("")
    holder = lock_holder(home)
    assert holder is not None
    assert (holder.mode, holder.study_id) == ("serve", None)


def test_the_kernel_lets_go_when_the_holder_is_killed(home: Home, hold: Hold) -> None:
    process, _ = hold("01STUDY")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock_holder(home) is None
    lock = take_lock(home, None)
    assert lock is not None
    with lock:
        holder = lock_holder(home)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert lock_holder(home) is None


def test_readers_leave_nothing_locked(home: Home) -> None:
    home.supervisor_lock.touch()
    assert lock_holder(home) is None
    lock = take_lock(home, None)
    assert lock is not None
    lock.close()


def test_a_holder_that_has_not_written_its_name_is_nobody(home: Home) -> None:
    lock = take_lock(home, None)
    assert lock is not None
    with lock:
        lock.truncate(0)
        assert lock_holder(home) is None


def test_is_not_handed_to_children(home: Home) -> None:
    lock = take_lock(home, None)
    assert lock is not None
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        lock.close()
        try:
            assert lock_holder(home) is None
            again = take_lock(home, None)
            assert again is not None
            again.close()
        finally:
            child.kill()
