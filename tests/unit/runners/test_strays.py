"""Which processes are ended when a supervisor starts, and which are nobody's business."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from rankwise.home import Home
from rankwise.runners.strays import VARIABLE, Marker, end_strays, home_id, marker_of, start_ticks

Start = Callable[..., int]

ESCAPED = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); "
    "sys.stdout.write('ready'); sys.stdout.flush(); time.sleep(600)"
)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program in a session of its own, that ignores SIGTERM, with this marker."""
    with ExitStack() as stack:

        def start_program(marker: Marker | str | None, program: str = ESCAPED) -> int:
            environment = {**os.environ} | ({} if marker is None else {VARIABLE: str(marker)})
            process = subprocess.Popen(
                [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout
            stack.callback(process.stdout.close)
            process.stdout.read(5)
            return process.pid

        yield start_program


def lives(pid: int) -> bool:
    return start_ticks(pid) is not None


def dead_owner() -> tuple[int, int]:
    """Pid and start time of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = start_ticks(process.pid)
    assert start is not None
    process.communicate(b"\n")
    return process.pid, start


def test_what_a_dead_owner_left_is_ended(home: Home, start: Start) -> None:
    pid, began = dead_owner()
    marker = replace(Marker.of_mine(home, "s"), owner_pid=pid, owner_start=began)
    stray = start(marker)
    (ended,) = end_strays(home)
    assert ended.pid == stray
    assert "time.sleep(600)" in ended.command
    assert not lives(stray)


def test_a_forked_stray_carries_what_its_parent_was_started_with(home: Home, start: Start) -> None:
    pid, began = dead_owner()
    fork = (
        "import os, sys, time\nr, w = os.pipe()\n"
        "if os.fork() == 0:\n  os.environ.clear(); os.setsid(); os.write(w, b'.'); time.sleep(600)\n"
        "os.read(r, 1); sys.stdout.write('ready'); sys.stdout.flush(); time.sleep(600)"
    )
    start(replace(Marker.of_mine(home, "s"), owner_pid=pid, owner_start=began), fork)
    assert len(end_strays(home)) == 2
    assert end_strays(home) == []


def test_a_pid_that_was_given_again_is_not_the_owner(home: Home, start: Start) -> None:
    """The owner's pid belongs to a living process, which began at another time."""
    other = start(None)
    began = start_ticks(other)
    assert began is not None
    stray = start(replace(Marker.of_mine(home, "s"), owner_pid=other, owner_start=began - 1))
    assert [each.pid for each in end_strays(home)] == [stray]
    assert lives(other)


def test_others_are_left_alone(home: Home, start: Start, tmp_path: Path) -> None:
    owner = start(None)
    began = start_ticks(owner)
    assert began is not None
    pid, ended = dead_owner()
    dead = replace(Marker.of_mine(home, "s"), owner_pid=pid, owner_start=ended)
    bystanders = [
        owner,
        start(replace(dead, owner_pid=owner, owner_start=began)),
        start(replace(dead, home=home_id(Home(tmp_path)))),
        start(replace(dead, namespace=dead.namespace + 1)),
        start("no/marker/at/all"),
        start(f"{home_id(home)}/{dead.namespace}/x/y/s"),
    ]
    assert end_strays(home) == []
    assert all(map(lives, bystanders))


def test_own_servers_are_told_apart(home: Home, start: Start) -> None:
    kept, given_up = start(Marker.of_mine(home, "one")), start(Marker.of_mine(home, "two"))
    assert [each.pid for each in end_strays(home, ["one"])] == [given_up]
    assert lives(kept)


def test_a_home_has_one_identity_whatever_it_is_called(home: Home, tmp_path: Path) -> None:
    other_name = tmp_path / "link"
    other_name.symlink_to(home.root)
    assert home_id(Home(other_name)) == home_id(home)


def test_a_process_that_ended_has_no_marker(home: Home) -> None:
    marker = str(Marker.of_mine(home, "s"))
    process = subprocess.Popen([sys.executable, "-c", ""], env={**os.environ, VARIABLE: marker})
    while start_ticks(process.pid) is not None:
        time.sleep(0.01)
    assert marker_of(process.pid) is None
    process.wait()
