"""The guard and the warm server leave nothing behind, whatever a job does and whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

import pytest

from rankwise.errors import RunnerError
from rankwise.runners.capped_log import HEAD_BYTES, TAIL_BYTES
from rankwise.runners.guard import Limits
from rankwise.runners.warm_client import Job, WarmServer, read_tail

TOY_JOBS = Path(__file__).with_name("toy_jobs.py")
MIB = 1024 * 1024
PATIENCE_S = 30.0

Start = Callable[..., tuple[Job, int]]


@pytest.fixture
def marker() -> Iterator[str]:
    """What all processes of this test carry; none may be left at its end."""
    marker = f"marker-{uuid4()}"
    yield marker
    left = alive(marker)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.fixture
def start(tmp_path: Path, marker: str) -> Iterator[Start]:
    """Start the guard of a toy job; gives the job as a supervisor sees it, and the guard's pid."""
    guards: list[subprocess.Popen[bytes]] = []

    def start_guard(name: str, **limits: float) -> tuple[Job, int]:
        ours, theirs = socket.socketpair()
        log_path = tmp_path / "job.log"
        form = json.dumps(asdict(Limits(**{"grace_s": 0.2, **limits})))
        command = [sys.executable, TOY_JOBS, "guard", str(theirs.fileno()), name, log_path, form, marker]
        with theirs:
            guards.append(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
        return Job(connection=ours, log_path=log_path), guards[-1].pid

    yield start_guard
    for guard in guards:
        guard.wait(PATIENCE_S)


@pytest.fixture
def toy_server(tmp_path: Path, marker: str) -> Iterator[WarmServer]:
    """The real warm server and its client, with toy jobs."""
    server = ToyServer(tmp_path / "warm.log", marker)
    yield server
    server.stop()
    eventually(lambda: alive(marker) == [])


class ToyServer(WarmServer):
    """Starts `toy_jobs.py warm` in the warm server's place."""

    def __init__(self, log_path: Path, marker: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, TOY_JOBS, "warm", str(theirs.fileno()), marker]
        with theirs, log_path.open("ab") as log:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=log, stderr=log)
        self._log_path = log_path
        self.modules = ()

    def wait_ready(self, timeout_s: float = PATIENCE_S) -> None:
        if not self.modules:
            assert b"ready" in self._control.recv(65536), self._log_path.read_text()
            self.modules = ("toy_jobs",)

    def start_toy(self, toy: str, folder: Path, **limits: float) -> Job:
        form = Limits(**{"grace_s": 0.2, **limits})
        return self.start("toy", {"toy": toy}, folder, form)


def alive(marker: str) -> list[int]:
    """Pids of living processes that carry the marker (a zombie's command line is empty)."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                carries = marker.encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if carries:
                pids.append(int(entry.name))
    return pids


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.02)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait_for(job: Job, kind: str) -> dict[str, object]:
    eventually(lambda: any(message["type"] == kind for message in job.poll(0.1)) or job.closed)
    message = job.last(kind)
    assert message is not None, read_tail(job.log_path)
    return message


def finish(job: Job) -> dict[str, object]:
    """Read to the end; gives the exit message, which must be the last."""
    job.wait(PATIENCE_S)
    assert job.closed
    assert job.messages[-1]["type"] == "exit"
    return job.messages[-1]


@pytest.mark.parametrize("toy", ["leave_stray", "leave_hare"])
def test_strays_do_not_outlive_a_job_that_ends(start: Start, marker: str, toy: str) -> None:
    job, guard_pid = start(toy)
    end = finish(job)
    assert (end["cause"], end["exit_code"], end["signal"]) == ("finished", 0, None)
    assert job.last("progress"), "there was no stray"
    assert set(alive(marker)) <= {guard_pid}


@pytest.mark.parametrize("toy", ["stray_and_stay", "stay_in_spite_of_sigterm"])
def test_cancelling_ends_everything(start: Start, marker: str, toy: str) -> None:
    job, guard_pid = start(toy)
    wait_for(job, "progress")
    job.cancel()
    end = finish(job)
    ended_by = signal.SIGTERM if toy == "stray_and_stay" else signal.SIGKILL
    assert (end["cause"], end["exit_code"], end["signal"]) == ("cancelled", None, ended_by)
    assert set(alive(marker)) <= {guard_pid}


def test_a_client_that_vanishes_ends_everything(start: Start, marker: str) -> None:
    job, _ = start("stay_in_spite_of_sigterm")
    wait_for(job, "progress")
    job.connection.close()
    eventually(lambda: alive(marker) == [])


def test_sigterm_to_the_guard_ends_everything(start: Start, marker: str) -> None:
    job, guard_pid = start("stray_and_stay")
    wait_for(job, "progress")
    os.kill(guard_pid, signal.SIGTERM)
    assert finish(job)["cause"] == "cancelled"


def test_a_job_dies_with_its_guard(start: Start, marker: str) -> None:
    job, guard_pid = start("say_goodbye")
    wait_for(job, "progress")
    os.kill(guard_pid, signal.SIGKILL)
    eventually(lambda: alive(marker) == [])
    job.wait(PATIENCE_S)
    assert [message["type"] for message in job.messages] == ["started", "progress"]


def test_time_limit(start: Start, marker: str) -> None:
    job, guard_pid = start("stay_in_spite_of_sigterm", time_s=1.0)
    end = finish(job)
    assert (end["cause"], end["signal"]) == ("timeout", signal.SIGKILL)
    assert job.last("progress"), "there was no stray"
    assert set(alive(marker)) <= {guard_pid}


def test_memory_limit(start: Start) -> None:
    job, _ = start("grow", host_memory_bytes=80 * MIB)
    assert finish(job)["cause"] == "memory-limit"


def test_inherited_memory_does_not_count(start: Start) -> None:
    job, _ = start("grow", host_memory_bytes=250 * MIB)
    wait_for(job, "progress")
    time.sleep(0.3)  # three looks of the guard
    job.cancel()
    assert finish(job)["cause"] == "cancelled"


def test_a_job_may_use_its_grace_time(start: Start) -> None:
    job, _ = start("say_goodbye", grace_s=PATIENCE_S)
    wait_for(job, "progress")
    job.cancel()
    end = finish(job)
    assert job.last("progress")["goodbye"]
    assert (end["cause"], end["exit_code"], end["signal"]) == ("cancelled", 7, None)


def test_the_end_can_be_read_after_a_half_written_line(start: Start) -> None:
    job, _ = start("die_in_mid_line")
    end = finish(job)
    assert (end["cause"], end["exit_code"], end["signal"]) == ("finished", None, signal.SIGKILL)
    assert [message["type"] for message in job.messages] == ["started", "exit"]


def test_the_log_keeps_both_outputs_and_the_traceback(start: Start) -> None:
    job, _ = start("complain")
    assert finish(job)["exit_code"] == 1
    assert "to standard output" in job.log_path.read_text()
    tail = read_tail(job.log_path)
    assert len(tail) == 4096
    assert tail.endswith("OSError: no config.json in this folder\n")
    assert job.log_path.stat().st_mode & 0o777 == 0o600


def test_a_job_that_prints_without_end_has_a_small_log(start: Start) -> None:
    job, _ = start("chatter")
    end = finish(job)
    assert (end["cause"], end["exit_code"]) == ("finished", 0)
    log = job.log_path.read_bytes()
    assert len(log) < HEAD_BYTES + TAIL_BYTES + 100
    head, notice, tail = log.partition(b"\n[")
    assert head.startswith(b"000000000\n000000000\n")
    assert tail.endswith(b"000000199\nthe last word\n")
    written = 200 * 100_000 * 10 + len(b"the last word\n")
    dropped = written - HEAD_BYTES - TAIL_BYTES
    assert f"… {dropped:,} bytes of output are left out".encode() in notice + tail


def test_disk_limit(start: Start) -> None:
    job, _ = start("write_without_end", disk_bytes=20 * MIB)
    assert finish(job)["cause"] == "disk-limit"
    assert job.last("progress")


def test_exit_code(start: Start) -> None:
    job, _ = start("leave_with_3")
    assert finish(job)["exit_code"] == 3


def test_started_comes_first_and_exit_last(toy_server: ToyServer, tmp_path: Path) -> None:
    for number in range(30):
        job = toy_server.start_toy("speak_at_once", tmp_path / str(number))
        finish(job)
        assert [message["type"] for message in job.messages] == ["started", "result", "exit"]


def test_a_job_holds_no_socket_but_its_own(toy_server: ToyServer, tmp_path: Path) -> None:
    """With the server's it could outlive the server unnoticed, with another job's it would keep that open."""
    jobs = [toy_server.start_toy("say_goodbye", tmp_path / str(number)) for number in range(2)]
    for job in jobs:
        wait_for(job, "progress")
        started = job.last("started")
        assert started
        files = [entry.readlink() for entry in Path(f"/proc/{started['pid']}/fd").iterdir()]
        assert sum(file.name.startswith("socket:") for file in files) == 1
    for job in jobs:
        job.cancel()
        finish(job)


def test_a_killed_guard_leaves_nothing_and_the_server_goes_on(
    toy_server: ToyServer, tmp_path: Path, marker: str
) -> None:
    job = toy_server.start_toy("stay_in_spite_of_sigterm", tmp_path / "first")
    wait_for(job, "progress")
    started = job.last("started")
    assert started
    guard_pid = parent_of(started["pid"])
    assert parent_of(guard_pid) == toy_server.pid
    os.kill(guard_pid, signal.SIGKILL)
    job.wait(PATIENCE_S)
    assert job.closed
    assert job.last("exit") is None
    eventually(lambda: alive(marker) == [toy_server.pid])
    assert finish(toy_server.start_toy("speak_at_once", tmp_path / "second"))["exit_code"] == 0


def test_a_killed_server_takes_its_jobs_along(toy_server: ToyServer, tmp_path: Path, marker: str) -> None:
    job = toy_server.start_toy("stay_in_spite_of_sigterm", tmp_path / "job")
    wait_for(job, "progress")
    os.kill(toy_server.pid, signal.SIGKILL)
    assert finish(job)["cause"] == "cancelled"
    eventually(lambda: alive(marker) == [])
    assert not toy_server.is_alive()
    with pytest.raises(RunnerError, match="warm server is gone"):
        toy_server.start_toy("speak_at_once", tmp_path / "another")


def test_the_server_keeps_neither_files_nor_zombies(
    toy_server: ToyServer, tmp_path: Path, marker: str
) -> None:
    def open_files(pid: int | str) -> int:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())

    def children() -> str:
        return Path(f"/proc/{toy_server.pid}/task/{toy_server.pid}/children").read_text()

    finish(toy_server.start_toy("speak_at_once", tmp_path / "warm-up"))
    before = open_files(toy_server.pid), open_files("self")
    for number in range(5):
        finish(toy_server.start_toy("leave_stray", tmp_path / str(number)))
    eventually(lambda: children() == "")
    assert (open_files(toy_server.pid), open_files("self")) == before


def test_jobs_run_side_by_side_and_end_alone(toy_server: ToyServer, tmp_path: Path) -> None:
    first = toy_server.start_toy("say_goodbye", tmp_path / "first", grace_s=PATIENCE_S)
    second = toy_server.start_toy("say_goodbye", tmp_path / "second", grace_s=PATIENCE_S)
    for job in (first, second):
        wait_for(job, "progress")
    first.cancel()
    assert finish(first)["exit_code"] == 7
    assert list(second.poll(0.2)) == []
    assert not second.closed
    second.cancel()
    assert finish(second)["exit_code"] == 7


def test_a_stopped_server_takes_its_jobs_along(tmp_path: Path, marker: str) -> None:
    server = ToyServer(tmp_path / "warm.log", marker)
    job = server.start_toy("stay_in_spite_of_sigterm", tmp_path / "job")
    wait_for(job, "progress")
    server.stop()
    assert finish(job)["cause"] == "cancelled"
    eventually(lambda: alive(marker) == [])


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "torch.py").write_text("raise ImportError('no torch for you')")
    monkeypatch.setenv("PYTHONPATH", str(shadow))
    server = WarmServer(tmp_path / "warm.log", ["trial"])
    with pytest.raises(RunnerError, match="no torch for you"):
        server.wait_ready()
    assert not server.is_alive()


def test_a_server_whose_parent_died_while_it_started_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('nobody waits for this')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        command = [sys.executable, "-m", "rankwise.runners.warm", str(theirs.fileno()), "trial"]
        ended = subprocess.run(command, pass_fds=[theirs.fileno()], check=False, timeout=PATIENCE_S)
    assert ended.returncode == 0
