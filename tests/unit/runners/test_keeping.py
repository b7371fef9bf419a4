from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rankwise.errors import InputError
from rankwise.home import Home
from rankwise.runners.keeping import Keeping, put_aside, remove_old

DAY_S = 86_400.0
MIB = 2**20


def folder(home: Home, name: str, *, days: float, size_bytes: int = 0) -> Path:
    made = home.trial_folder(name)
    (made / "below").mkdir(parents=True)
    (made / "below" / "log").write_bytes(os.urandom(size_bytes))
    written_s = time.time() - days * DAY_S
    os.utime(made, (written_s, written_s))
    return made


def left(home: Home) -> set[str]:
    return {path.name for path in (home.root / "trials").iterdir()}


def test_age(home: Home) -> None:
    folder(home, "old", days=31)
    folder(home, "young", days=29)
    folder(home, "live", days=365)
    assert remove_old(home, Keeping(), lambda: {"live"}) == ["old"]
    assert left(home) == {"young", "live"}


def test_size_takes_the_oldest_first_and_never_the_living(home: Home) -> None:
    for number, name in enumerate(("live", "a", "b", "c")):
        folder(home, name, days=10 - number, size_bytes=MIB)
    assert remove_old(home, Keeping(size_bytes=int(2.5 * MIB)), lambda: {"live"}) == ["a", "b"]
    assert remove_old(home, Keeping(size_bytes=0), lambda: {"live"}) == ["c"]
    assert left(home) == {"live"}


def test_who_lives_is_asked_after_the_folders_are_listed(home: Home) -> None:
    folder(home, "old", days=31)

    def unfinished() -> set[str]:
        folder(home, "just-begun", days=31)  # whoever is not in the answer may be new
        return set()

    assert remove_old(home, Keeping(), unfinished) == ["old"]
    assert left(home) == {"just-begun"}


def test_a_link_is_neither_followed_nor_counted(home: Home, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(os.urandom(MIB))
    made = folder(home, "old", days=0)
    (made / "link").symlink_to(tmp_path)
    os.utime(made, (0, 0))
    assert remove_old(home, Keeping(days=None, size_bytes=MIB // 2), set) == []
    assert remove_old(home, Keeping(), set) == ["old"]
    assert (tmp_path / "precious").exists()


def test_the_environment_says_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Keeping.from_environment() == Keeping()
    monkeypatch.setenv("RANKWISE_KEEP_DAYS", "0.5")
    monkeypatch.setenv("RANKWISE_KEEP_GIB", "off")
    monkeypatch.setenv("RANKWISE_TRIAL_DISK_GIB", "2")
    assert Keeping.from_environment() == Keeping(days=0.5, size_bytes=None, trial_bytes=2 * 2**30)
    for nonsense in ("-1", "many", "nan", "inf"):
        monkeypatch.setenv("RANKWISE_KEEP_DAYS", nonsense)
        with pytest.raises(InputError, match="RANKWISE_KEEP_DAYS"):
            Keeping.from_environment()


def test_a_trial_may_write_more_of_a_larger_model() -> None:
    assert Keeping().trial_limit_bytes(0) == 10 * 2**30
    assert Keeping().trial_limit_bytes(14 * 2**30) == 122 * 2**30
    assert Keeping(trial_bytes=5).trial_limit_bytes(14 * 2**30) == 5


def test_a_log_that_grew_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "supervisor.log"
    put_aside(log)
    log.write_text("small")
    put_aside(log, limit_bytes=5)
    assert log.read_text() == "small"
    log.write_text("larger")
    put_aside(log, limit_bytes=5)
    assert not log.exists()
    assert (tmp_path / "supervisor.log.1").read_text() == "larger"
