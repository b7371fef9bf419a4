"""A home that several nodes have mounted. Nodes are folders and names here; their processes are real."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from rankwise.api import homes
from rankwise.api.homes import folder_of, readable_home, working_home
from rankwise.errors import Conflict, InputError, StoreError
from rankwise.home import Home
from rankwise.optimizer.domain import StudyRequest
from rankwise.store import Store
from rankwise.store.copying import carry_out


@dataclass
class Cluster:
    """A home, and the node that this process is on."""

    home: Home
    enter: Callable[[str], None]


@pytest.fixture
def cluster(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    def enter(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setenv("RANKWISE_LOCAL", str(tmp_path / name))
        monkeypatch.setattr("socket.gethostname", lambda: name)

    monkeypatch.setattr(homes, "POLL_S", 0.02)
    enter("node-1")
    return Cluster(home, enter)


def ask(home: Home, seed: int = 0) -> str:
    with closing(Store.open(home.database)) as store:
        return store.create_study(StudyRequest(model="m", dataset="d", seed=seed)).id


def studies_of(home: Home) -> list[str]:
    with closing(Store.open(home.database)) as store:
        return [study.id for study in store.list_studies()]


def test_a_home_on_a_disk_of_this_machine_is_worked_in_itself(home: Home) -> None:
    assert folder_of(home) is None
    with working_home(home) as found:
        assert found == home


def test_a_shared_home_is_worked_on_here_and_saved(cluster: Cluster) -> None:
    said: list[str] = []
    with working_home(cluster.home, said.append) as here:
        assert here.root != cluster.home.root
        assert (here.root.stat().st_mode & 0o777, here.root.parent.name) == (0o700, "node-1")
        first = ask(here)
        assert (cluster.home.root / "in-use.json").exists()
    assert not (cluster.home.root / "in-use.json").exists()
    assert "working in" in said[0]
    saved = cluster.home.root / "rankwise.db"
    with closing(sqlite3.connect(saved)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sorted(path.name for path in cluster.home.root.glob("*rankwise.db*")) == ["rankwise.db"]
    cluster.enter("node-2")
    with working_home(cluster.home) as there:
        assert studies_of(there) == [first]
        second = ask(there)
    cluster.enter("node-1")
    assert studies_of(readable_home(cluster.home)) == [second, first]


def test_a_database_that_an_older_rankwise_left_open_is_brought_whole(cluster: Cluster) -> None:
    program = (
        "import os, sys; from rankwise.store import Store\n"
        "from rankwise.optimizer.domain import StudyRequest\n"
        "store = Store.open(sys.argv[1])\n"
        "print(store.create_study(StudyRequest(model='m', dataset='d')).id, flush=True); os._exit(9)"
    )
    saved = cluster.home.root / "rankwise.db"
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved)], capture_output=True, text=True, check=False
    )
    assert saved.with_name("rankwise.db-wal").stat().st_size > 0
    with working_home(cluster.home) as here:
        assert studies_of(here) == [done.stdout.strip()]
    assert not saved.with_name("rankwise.db-wal").exists()
    assert studies_of(Home(cluster.home.root)) == [done.stdout.strip()]


def test_one_node_at_a_time(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "STALE_S", 0.3)
    monkeypatch.setattr(homes, "BEAT_S", 0.05)
    said: list[str] = []
    with working_home(cluster.home) as here:
        ask(here)
        cluster.enter("node-2")
        with pytest.raises(Conflict, match="in use on node-1"), working_home(cluster.home, said.append):
            pass
        assert len(said) == 1
        assert studies_of(readable_home(cluster.home)) == []  # nothing was saved yet


def test_processes_of_one_node_share_the_copy_and_the_last_gives_it_back(cluster: Cluster) -> None:
    with working_home(cluster.home) as outer:
        with working_home(cluster.home) as inner:
            assert inner.root == outer.root
            ask(inner)
        assert (cluster.home.root / "in-use.json").exists()
        ask(outer, seed=1)
    assert not (cluster.home.root / "in-use.json").exists()
    assert len(studies_of(Home(cluster.home.root))) == 2


KILLED = """
import os, sys
from rankwise.api import homes
from rankwise.home import Home
from rankwise.store import Store
from rankwise.optimizer.domain import StudyRequest
copy = homes.working_home(Home.from_environment())
home = copy.__enter__()
print(Store.open(home.database).create_study(StudyRequest(model="m", dataset="d", seed=7)).id, flush=True)
os._exit(9)
"""


def killed_job() -> str:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    return done.stdout.strip()


def test_a_killed_job_is_taken_up_on_its_node_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_home(cluster.home) as here:
        first = ask(here)
    monkeypatch.undo()  # the name that a process of its own sees
    monkeypatch.setenv("RANKWISE_HOME", str(cluster.home.root))
    monkeypatch.setenv("RANKWISE_LOCAL", str(here.root.parent))
    second = killed_job()
    assert (cluster.home.root / "in-use.json").exists()
    assert studies_of(readable_home(cluster.home)) == [second, first]  # a reader loses nothing of it either
    with working_home(cluster.home) as again:
        assert studies_of(again) == [second, first]
    assert studies_of(Home(cluster.home.root)) == [second, first]


def test_what_a_killed_job_did_not_save_is_kept_when_another_node_went_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_home(cluster.home) as here:
        first = ask(here)
    monkeypatch.setenv("RANKWISE_HOME", str(cluster.home.root))
    lost = killed_job()
    monkeypatch.setattr(homes, "STALE_S", 0.2)
    cluster.enter("node-2")
    with working_home(cluster.home) as there:  # once the lease is stale
        assert studies_of(there) == [first]
        second = ask(there)
    cluster.enter("node-1")
    said: list[str] = []
    with working_home(cluster.home, said.append) as here:
        assert studies_of(here) == [second, first]
        (aside,) = here.root.glob("*.aside")
    assert str(aside) in said[0]
    with closing(Store.open(aside)) as store:
        assert [study.id for study in store.list_studies()] == [lost, first]


def test_a_node_that_was_taken_for_gone_overwrites_nothing(cluster: Cluster) -> None:
    said: list[str] = []
    with working_home(cluster.home, said.append) as here:
        mine = ask(here)
        lease = cluster.home.root / "in-use.json"
        lease.write_text(json.dumps({"token": "another", "place": {"host": "node-2", "folder": "/x"}}))
    assert not (cluster.home.root / "rankwise.db").exists()
    (aside,) = cluster.home.root.glob("rankwise.db.node-1-*.aside")
    assert str(aside) in said[-1]
    assert studies_of(Home(cluster.home.root, database_url=f"sqlite:///{aside}")) == [mine]
    assert json.loads(lease.read_text())["token"] == "another"


def test_work_is_saved_while_it_goes_on(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "BEAT_S", 0.02)
    monkeypatch.setattr(homes, "SAVE_EVERY_S", 0.0)
    with working_home(cluster.home) as here:
        first = ask(here)
        for _ in range(500):
            if (cluster.home.root / "rankwise.db").exists() and studies_of(Home(cluster.home.root)) == [
                first
            ]:
                break
        else:
            pytest.fail("nothing was saved")


def test_a_home_that_cannot_be_written_loses_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def full(_database: Path, target: Path) -> None:
        raise StoreError(f"no space for {target}")

    with monkeypatch.context() as patched:
        patched.setattr(homes, "carry_out", full)
        with working_home(cluster.home, said.append) as here:
            first = ask(here)
    assert "no space" in said[-1]
    with working_home(cluster.home) as here:
        assert studies_of(here) == [first]
    assert studies_of(Home(cluster.home.root)) == [first]


def test_a_folder_that_somebody_else_put_there_is_not_used(cluster: Cluster, tmp_path: Path) -> None:
    folder = folder_of(cluster.home)
    assert folder is not None
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="not a folder of yours alone"), working_home(cluster.home):
        pass
    folder.unlink()
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(InputError, match="not a folder of yours alone"), working_home(cluster.home):
        pass


def test_shared_homes_are_noticed(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr(homes, "is_shared", lambda path: path != disk)
    for name in ("TMPDIR", "SLURM_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="no disk of this node was found"):
        folder_of(home)
    monkeypatch.setenv("SLURM_TMPDIR", str(disk))
    found = folder_of(home)
    assert found is not None
    assert found.parent == disk
    monkeypatch.setenv("RANKWISE_LOCAL", str(tmp_path))
    with pytest.raises(InputError, match="is no folder on a disk of this node"):
        folder_of(home)
    monkeypatch.setenv("RANKWISE_LOCAL", "off")
    assert folder_of(home) is None
    monkeypatch.delenv("RANKWISE_LOCAL")
    assert folder_of(Home(home.root, database_url="postgresql://db/rankwise")) is None


def test_a_copy_is_whole_while_others_write(home: Home, tmp_path: Path) -> None:
    ask(home)
    with closing(Store.open(home.database)) as store:
        for seed in range(20):
            store.create_study(StudyRequest(model="m", dataset="d", seed=seed))
            carry_out(Path(str(home.database)), tmp_path / "copy.db")
    assert len(studies_of(Home(tmp_path, database_url=f"sqlite:///{tmp_path / 'copy.db'}"))) == 21
    assert [path.name for path in tmp_path.glob("*copy*")] == ["copy.db"]
