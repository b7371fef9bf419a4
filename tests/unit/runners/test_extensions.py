"""A build that was killed is in nobody's way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rankwise.runners.extensions import remove_abandoned_lock


def test_a_lock_that_nobody_holds_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    remove_abandoned_lock(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_a_lock_that_somebody_holds_stays(tmp_path: Path) -> None:
    held = os.open(tmp_path / "lock", os.O_CREAT | os.O_EXCL)
    try:
        remove_abandoned_lock(tmp_path)
        assert (tmp_path / "lock").exists()
    finally:
        os.close(held)


@pytest.mark.parametrize("makes_folder", [True, False])
def test_without_a_lock_nothing_happens(tmp_path: Path, makes_folder: bool) -> None:
    folder = tmp_path / "build"
    if makes_folder:
        folder.mkdir()
    remove_abandoned_lock(folder)
    assert folder.exists() == makes_folder
