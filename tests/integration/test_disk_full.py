"""A database on a disk that runs full: said, gone on with once there is room, and nothing damaged.

On a file system of 16 MiB in memory, which only root may mount.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from rankwise.errors import StoreError
from rankwise.optimizer.domain import StudyRequest
from rankwise.store import Store, Worker, check, snapshot

REQUEST = StudyRequest(model="m", dataset="d")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no `mount` here: a full disk is not tried")
    if done.returncode:
        pytest.skip(f"a full disk is not tried, since none can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is left."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return ballast


def trouble_of(write: Callable[[], object]) -> StoreError:
    """What is said when there is no room for one more."""
    for _ in range(20_000):
        try:
            write()
        except StoreError as error:
            return error
    raise AssertionError("the disk does not run full")


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    database = small_disk / "rankwise.db"
    with closing(Store.open(database)) as store:
        kept = [store.create_study(REQUEST)]
        claim = store.claim_study(Worker(name="w", place="here"))
        assert claim is not None
        ballast = fill(small_disk)
        trouble = trouble_of(lambda: store.append_event(claim, "note", {"text": "x" * 1000}))
        written = store.events_after(claim.id, 0, limit=10_000)
        assert str(database) in trouble.message
        assert "full" in trouble.message
        assert "space" in trouble.next_step

        # Again and again, and reading goes on meanwhile.
        trouble_of(lambda: kept.append(store.create_study(REQUEST)))
        assert [study.id for study in store.list_studies(limit=20_000)] == [study.id for study in kept[::-1]]
        assert store.events_after(claim.id, 0, limit=10_000) == written

        snapshot_path = tmp_path / "saved.db"
        with suppress(StoreError):  # it needs room beside the database
            snapshot(database, snapshot_path)

        ballast.unlink()
        store.append_event(claim, "note", {"text": "there is room again"})
        assert [event.seq for event in store.events_after(claim.id, len(written))] == [len(written) + 1]
    assert check(database)[1] == []


def test_a_disk_that_was_full_from_the_start(small_disk: Path) -> None:
    ballast = fill(small_disk)
    with pytest.raises(StoreError):
        Store.open(small_disk / "rankwise.db")
    ballast.unlink()
    with closing(Store.open(small_disk / "rankwise.db")) as store:
        store.create_study(REQUEST)
    with closing(sqlite3.connect(small_disk / "rankwise.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
