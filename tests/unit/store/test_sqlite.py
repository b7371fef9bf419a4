from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from rankwise.errors import StoreError
from rankwise.store.backends import database_url, trouble_reported
from rankwise.store.sqlite import before_upgrade, check, connect_engine, for_writes, upgrading


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some %41 name.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = connect_engine(database_url(path))
    before_upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def impatient(path: Path) -> Iterator[Engine]:
    """Another program's connection, which does not wait for locks."""
    engine = create_engine(database_url(path), connect_args={"timeout": 0, "isolation_level": None})
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 30_000)],
)
def test_settings_of_each_connection(engine: Engine, pragma: str, value: str | int) -> None:
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


def test_a_path_is_taken_literally(engine: Engine, path: Path) -> None:
    assert path.exists()


def test_a_write_transaction_locks_before_it_reads(engine: Engine, impatient: Engine) -> None:
    with for_writes(engine).connect() as writer, impatient.connect() as other:
        writer.execute(text("SELECT 1"))
        with pytest.raises(OperationalError, match="locked"):
            other.exec_driver_sql("BEGIN IMMEDIATE")
        writer.rollback()
        other.exec_driver_sql("BEGIN IMMEDIATE")


def test_a_read_transaction_locks_nothing_and_sees_one_state(engine: Engine, impatient: Engine) -> None:
    with engine.connect() as reader, impatient.connect() as writer:
        writer.exec_driver_sql("CREATE TABLE pair (n INTEGER)")
        count = text("SELECT count(*) FROM pair")
        assert reader.execute(count).scalar() == 0
        writer.exec_driver_sql("INSERT INTO pair VALUES (1)")
        assert reader.execute(count).scalar() == 0
        reader.rollback()
        assert reader.execute(count).scalar() == 1


def test_definitions_are_rolled_back_too(engine: Engine) -> None:
    with for_writes(engine).connect() as connection:
        connection.execute(text("CREATE TABLE short_lived (n INTEGER)"))
        connection.rollback()
        assert connection.execute(text("SELECT count(*) FROM sqlite_master")).scalar() == 0


class TestUpgrading:
    @pytest.fixture
    def family(self, engine: Engine) -> Engine:
        with for_writes(engine).begin() as connection:
            connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
            connection.execute(
                text("CREATE TABLE child (id INTEGER REFERENCES parent (id) ON DELETE CASCADE)")
            )
            connection.execute(text("INSERT INTO parent VALUES (1)"))
            connection.execute(text("INSERT INTO child VALUES (1)"))
        return for_writes(engine)

    def test_children_survive_a_rebuilt_parent(self, family: Engine) -> None:
        with family.connect() as connection, upgrading(connection):
            connection.execute(text("CREATE TABLE parent_2 (id INTEGER PRIMARY KEY, more TEXT)"))
            connection.execute(text("INSERT INTO parent_2 (id) SELECT id FROM parent"))
            connection.execute(text("DROP TABLE parent"))
            connection.execute(text("ALTER TABLE parent_2 RENAME TO parent"))
        with family.connect() as connection:
            assert connection.execute(text("SELECT id FROM child")).scalars().all() == [1]
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1

    def test_orphans_undo_everything(self, family: Engine) -> None:
        with family.connect() as connection:
            with (
                pytest.raises(StoreError, match="1 rows that refer to nothing, in child"),
                upgrading(connection),
            ):
                connection.execute(text("DELETE FROM parent"))
            assert connection.execute(text("SELECT count(*) FROM parent")).scalar() == 1
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_trouble_names_the_file_and_the_cause(tmp_path: Path) -> None:
    engine = connect_engine(database_url(tmp_path / "missing" / "x.db"))
    with (
        pytest.raises(StoreError, match=r"missing/x\.db cannot be used: unable to open"),
        trouble_reported(engine),
    ):
        engine.connect()


def test_a_check_names_rows_that_refer_to_nothing(engine: Engine) -> None:
    with engine.connect() as connection:
        assert check(connection) == []
    with for_writes(engine).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("CREATE TABLE child (id INTEGER REFERENCES parent (id))")
        connection.commit()
        connection.connection.dbapi_connection.execute("PRAGMA foreign_keys = OFF")  # type: ignore[union-attr]
        connection.exec_driver_sql("INSERT INTO child VALUES (1)")
        assert check(connection) == ["rows of child refer to nothing"]
