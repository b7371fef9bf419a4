"""What only PostgreSQL does; what it shares with SQLite stands in ``tests/contract``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from alembic import command
from sqlalchemy import Engine, make_url, text

from rankwise.errors import StoreError
from rankwise.optimizer.domain import Measurement, Outcome, StudyRequest, StudyState, TrialState
from rankwise.store import Store, Worker, schema, upgrade
from rankwise.store.backends import database_url, trouble_reported
from rankwise.store.postgresql import connect_engine, for_reads, for_writes
from rankwise.store.tables import Row

REQUEST = StudyRequest(model="m", dataset="d")
WORKER = Worker(name="w", place="here")

DEFINITIONS = """
    SELECT c.relname, 'column ' || a.attname,
        format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' '
        || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
UNION ALL
    SELECT c.relname, 'constraint ' || k.conname, pg_get_constraintdef(k.oid)
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
    WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
    SELECT tablename, 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
"""


@dataclass(frozen=True)
class Sql:
    """A connection of another program."""

    connection: psycopg.Connection[tuple[object, ...]]

    def __call__(self, statement: str) -> list[tuple[object, ...]]:
        cursor = self.connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def definitions(self) -> set[tuple[object, ...]]:
        """Everything that our part of the database is made of."""
        return {row for row in self(DEFINITIONS) if row[0] != schema.VERSION_TABLE}


@pytest.fixture
def url(empty_postgres_url: str) -> str:
    return empty_postgres_url


@pytest.fixture
def sql(url: str) -> Iterator[Sql]:
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        yield Sql(connection)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = connect_engine(database_url(url))
    yield engine
    engine.dispose()


def upgrade_to(engine: Engine, version: str) -> None:
    with for_writes(engine).connect() as connection:
        config = schema.alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, version)


class TestSchema:
    def test_the_migrations_build_what_the_code_expects(self, url: str, sql: Sql, engine: Engine) -> None:
        newest = schema.known_versions()[-1]
        assert upgrade(url) == (None, newest)
        assert upgrade(url) == (newest, newest)
        migrated = sql.definitions()
        Row.metadata.drop_all(engine)
        assert sql.definitions() == set()
        Row.metadata.create_all(engine)
        assert sql.definitions() == migrated

    def test_a_database_of_version_0001_keeps_its_rows(self, url: str, sql: Sql, engine: Engine) -> None:
        upgrade_to(engine, "0001")
        rows = Path(__file__).with_name("version_0001.sql").read_text(encoding="utf-8")
        sql("SET timezone = 'UTC'")
        sql(rows.replace("'running', 0,", "'running', false,"))
        for table, key in (("study", "id"), ("trial", "id"), ("attempt", "fence")):
            sql(f"SELECT setval('{table}_{key}_seq', max({key})) FROM {table}")  # noqa: S608
        assert upgrade(url) == ("0001", schema.known_versions()[-1])
        with closing(Store.open(url)) as store:
            study = store.get_study("01K5ZJ9V0M3Q8R7T6Y2X4W1N0A")
            assert (study.request.model, study.created_at.hour) == ("models/tiny", 10)
            first, second = store.list_trials(study.id)
            assert (first.outcome, first.attempts, first.wall_s) == (Outcome.OK, 2, 9.5)
            assert first.measurement == Measurement(tokens_per_s=100.0, measured_s=5.0)
            assert (first.reused_from, second.state) == (None, TrialState.QUEUED)
            assert store.attempts_wall_s(study.id) == 9.5
        assert sql("SELECT nextval('attempt_fence_seq')") == [(7,)]  # grows on

    def test_a_version_that_fails_changes_nothing(
        self, url: str, sql: Sql, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upgrade_to(engine, "0001")
        before = sql.definitions()
        sql("ALTER TABLE trial ADD COLUMN reused_from integer")  # what 0002 is about to add
        with pytest.raises(Exception, match="reused_from"):
            upgrade(url)
        sql("ALTER TABLE trial DROP COLUMN reused_from")
        assert sql.definitions() == before
        assert sql("SELECT version_num FROM rankwise_version") == [("0001",)]

    def test_a_newer_database_is_refused_and_left_alone(self, url: str, sql: Sql) -> None:
        upgrade(url)
        sql("UPDATE rankwise_version SET version_num = '9999'")
        for use in (Store.open, upgrade):
            with pytest.raises(StoreError, match=r"9999.*pip install --upgrade rankwise"):
                use(url)
        assert sql("SELECT version_num FROM rankwise_version") == [("9999",)]

    def test_another_programs_database_is_refused_and_left_alone(self, url: str, sql: Sql) -> None:
        sql("CREATE TABLE invoice (id integer)")
        with pytest.raises(StoreError, match=r"not a database of rankwise.*invoice"):
            Store.open(url)
        assert [row[:2] for row in sql.definitions()] == [("invoice", "column id")]


class TestTransactions:
    def test_reads_see_one_state_and_write_nothing(self, sql: Sql, engine: Engine) -> None:
        sql("CREATE TABLE pair (n integer)")
        with for_reads(engine).connect() as reader:
            assert reader.exec_driver_sql("SELECT count(*) FROM pair").scalar() == 0
            sql("INSERT INTO pair VALUES (1)")
            assert reader.exec_driver_sql("SELECT count(*) FROM pair").scalar() == 0
            with pytest.raises(Exception, match="read-only"):
                reader.exec_driver_sql("INSERT INTO pair VALUES (2)")
        with for_writes(engine).connect() as writer:
            assert writer.exec_driver_sql("SELECT count(*) FROM pair").scalar() == 1
            sql("INSERT INTO pair VALUES (2)")
            assert writer.exec_driver_sql("SELECT count(*) FROM pair").scalar() == 2

    def test_nobody_waits_for_ever(self, engine: Engine) -> None:
        with engine.connect() as connection:
            for setting in ("lock_timeout", "idle_in_transaction_session_timeout"):
                assert connection.exec_driver_sql(f"SHOW {setting}").scalar() == "30s"

    def test_a_text_without_its_nul_is_better_than_none(self, url: str) -> None:
        with closing(Store.open(url)) as store:
            study = store.create_study(StudyRequest(model="a\0b", dataset="d"))
            assert store.get_study(study.id).request.model == "a\0b"  # in a document it is kept
            claim = store.claim_study(WORKER)
            assert claim is not None
            store.append_event(claim, "say\0", {})
            assert store.events_after(study.id, 0)[-1].kind == "say\N{REPLACEMENT CHARACTER}"


def drop_connections(sql: Sql) -> None:
    ours = "application_name = 'rankwise' AND datname = current_database()"
    assert sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")  # noqa: S608


class TestTrouble:
    def test_connections_that_the_server_dropped_are_replaced(self, url: str, sql: Sql) -> None:
        with closing(Store.open(url)) as store:
            study = store.create_study(REQUEST)
            drop_connections(sql)
            assert store.get_study(study.id) == study

    def test_one_that_breaks_in_the_middle_is_said_and_nothing_is_kept(self, url: str, sql: Sql) -> None:
        def break_in_the_middle() -> None:
            with store._write() as transaction:
                transaction.session.execute(text("UPDATE study SET wall_s = 1"))
                drop_connections(sql)
                transaction.session.execute(text("UPDATE study SET wall_s = 2"))

        with closing(Store.open(url)) as store:
            store.create_study(REQUEST)
            claim = store.claim_study(WORKER)
            assert claim is not None
            with pytest.raises(StoreError, match="cannot be used: terminating connection"):
                break_in_the_middle()
            assert store.add_wall(claim, 0.0) == 0.0

    @pytest.mark.parametrize(
        ("changes", "said", "step"),
        [
            ({"port": 1}, "refused", "check that the server runs"),
            ({"database": "no_such"}, "does not exist", "createdb"),
        ],
        ids=["no server", "no database"],
    )
    def test_a_place_without_one(self, url: str, changes: dict[str, object], said: str, step: str) -> None:
        address = make_url(url).set(password="secret", **changes)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match=said) as caught:
            Store.open(address.render_as_string(hide_password=False))
        assert step in caught.value.next_step
        assert "secret" not in str(caught.value)
        assert f"{address.host}" in caught.value.message

    def test_rights_that_are_missing(self, url: str, sql: Sql, engine: Engine) -> None:
        upgrade(url)

        def look_as(role: str) -> None:
            with trouble_reported(engine), engine.connect() as connection:
                connection.exec_driver_sql(f"SET ROLE {role}")
                connection.exec_driver_sql("SELECT 1 FROM study")

        sql("DROP ROLE IF EXISTS rankwise_test_nobody")
        sql("CREATE ROLE rankwise_test_nobody")
        try:
            with pytest.raises(StoreError, match="permission denied") as caught:
                look_as("rankwise_test_nobody")
        finally:
            sql("DROP ROLE rankwise_test_nobody")
        assert "grant" in caught.value.next_step

    def test_a_mistake_of_ours_is_none_of_the_users(self, engine: Engine) -> None:
        with pytest.raises(Exception, match="no_such") as caught, trouble_reported(engine):
            engine.connect().exec_driver_sql("SELECT 1 FROM no_such")
        assert not isinstance(caught.value, StoreError)

    def test_without_the_driver(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(StoreError, match="psycopg is not installed") as caught:
            Store.open("postgresql://me:secret@localhost/x")
        assert "rankwise[postgres]" in caught.value.next_step
        assert "secret" not in str(caught.value)


def test_a_studys_state_is_kept(url: str) -> None:
    with closing(Store.open(url)) as store:
        study = store.create_study(REQUEST)
    with closing(Store.open(url)) as store:
        assert store.get_study(study.id).state is StudyState.QUEUED
        assert store.schema_version() == schema.known_versions()[-1]
