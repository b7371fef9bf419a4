from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rankwise.home import Home
from rankwise.optimizer.domain import StudyRequest
from rankwise.store import Store, schema

from .conftest import Result

Run = Callable[..., Result]


def test_a_sound_database_is_said_to_be(run: Run, store: Store, home: Home) -> None:
    store.create_study(StudyRequest(model="m", dataset="d"))
    assert run("db", "check", "--json").document == {
        "schema_version": 1,
        "database": str(home.database),
        "version": schema.known_versions()[-1],
        "problems": [],
    }


def test_what_is_damaged_is_said_and_the_code_is_2(run: Run, store: Store, home: Home) -> None:
    for seed in range(40):
        store.create_study(StudyRequest(model="m" * 500, dataset="d", seed=seed))
    store.close()
    with closing(sqlite3.connect(home.database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'event'"
        (page,) = connection.execute(query).fetchone()
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with Path(home.database).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\x5a" * 200)
    damaged = run("db", "check")
    assert damaged.code == 2
    assert str(home.database) in damaged.err


def test_a_server_that_is_reached_is_sound(
    run: Run, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.setenv("RANKWISE_DATABASE_URL", postgres_url)
    assert run("db", "check", "--json").document["problems"] == []


def test_an_older_schema_is_a_problem_and_stays(run: Run, store: Store, home: Home) -> None:
    store.close()
    with closing(sqlite3.connect(home.database)) as connection, connection:
        connection.execute("UPDATE rankwise_version SET version_num = '0001'")
    older = run("db", "check")
    assert older.code == 2
    assert "rankwise db upgrade" in older.err


@pytest.mark.parametrize("command", [("db", "upgrade"), ("db", "check"), ("studies", "list")])
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_an_old_program_says_what_to_run_for_a_newer_database(
    run: Run,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    backend: str,
    command: tuple[str, ...],
) -> None:
    address: Path | str = home.database
    if backend == "postgresql":
        address = request.getfixturevalue("empty_postgres_url")
        monkeypatch.setenv("RANKWISE_DATABASE_URL", str(address))
    Store.open(address).close()
    known = schema.known_versions()
    monkeypatch.setattr(schema, "known_versions", lambda: known[:-1])
    refused = run(*command)
    assert refused.code == 2
    assert "pip install --upgrade rankwise" in refused.err
    assert known[-1] in refused.err


def test_a_snapshot_has_everything_and_can_take_the_databases_place(
    run: Run, store: Store, home: Home, tmp_path: Path
) -> None:
    study = store.create_study(StudyRequest(model="m", dataset="d"))
    saved = run("db", "snapshot", str(tmp_path / "saved.db"), "--json").document
    later = store.create_study(StudyRequest(model="m", dataset="d"))
    store.close()
    assert saved["size_bytes"] == (tmp_path / "saved.db").stat().st_size
    database = Path(home.database)
    database.write_bytes((tmp_path / "saved.db").read_bytes())
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    assert run("db", "check").code == 0
    listed = run("studies", "list", "--json").document["studies"]
    assert [each["id"] for each in listed] == [study.id]
    assert later.id not in {each["id"] for each in listed}


def test_a_server_is_saved_by_its_own_program(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANKWISE_DATABASE_URL", "postgresql://me:secret@db/runs")
    refused = run("db", "snapshot", str(tmp_path / "saved.dump"))
    assert refused.code == 2
    assert "pg_dump" in refused.err
    assert "secret" not in refused.err
