from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from rankwise import migrations
from rankwise.errors import StoreError
from rankwise.optimizer.domain import Measurement, Outcome, StudyRequest, StudyState, TrialState
from rankwise.store import Store, Worker, schema, upgrade
from rankwise.store.backends import database_url
from rankwise.store.listing import StudyFilter, TrialFilter, TrialSort
from rankwise.store.sqlite import connect_engine, for_writes
from rankwise.store.tables import Row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rankwise.db"


def definitions(path: Path) -> dict[str, list[str]]:
    """Everything that the database is made of, by name: the lines of each definition in sorted order.

    A table that was changed has its constraints in another order than a new one, and its name in quotes.
    """
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {
        name: sorted(line.strip(" \t,") for line in sql.replace(f'"{name}"', name).splitlines())
        for name, sql in rows
        if name != "rankwise_version"
    }


def execute(path: Path, statement: str, *values: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def test_the_migrations_build_what_the_code_expects(path: Path, tmp_path: Path) -> None:
    upgrade(path)
    engine = connect_engine(database_url(tmp_path / "created.db"))
    Row.metadata.create_all(engine)
    engine.dispose()
    assert definitions(path) == definitions(tmp_path / "created.db")


def test_versions_are_numbered_files_in_one_line() -> None:
    revisions = [
        script.revision for script in ScriptDirectory.from_config(schema.alembic_config()).walk_revisions()
    ]
    assert tuple(reversed(revisions)) == schema.known_versions()


def test_upgrade_tells_before_and_after(path: Path) -> None:
    newest = schema.known_versions()[-1]
    assert upgrade(path) == (None, newest)
    assert upgrade(path) == (newest, newest)


def test_schema_version(path: Path) -> None:
    store = Store.open(path)
    assert store.schema_version() == schema.known_versions()[-1]
    store.close()


def test_nothing_is_imported_where_nothing_is_to_do(path: Path) -> None:
    upgrade(path)
    script = (
        "import sys; from rankwise.store import Store; Store.open(sys.argv[1]).close();"
        "sys.exit(' '.join({'alembic', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    upgrade(path)
    execute(path, "UPDATE rankwise_version SET version_num = '9999'")
    before = path.read_bytes()
    for use in (Store.open, upgrade):
        with pytest.raises(StoreError, match=r"9999.*pip install --upgrade rankwise"):
            use(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    execute(path, "CREATE TABLE invoice (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"not a database of rankwise.*invoice"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("text,label\n" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(path)
    assert path.read_text() == "text,label\n" * 1000


def upgrade_to(path: Path, version: str) -> None:
    engine = for_writes(connect_engine(database_url(path)))
    with engine.connect() as connection:
        config = schema.alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    engine.dispose()


def test_an_estimate_of_before_says_whether_it_fits(path: Path) -> None:
    upgrade_to(path, "0012")
    execute(
        path,
        "INSERT INTO study (id, ulid, request, state, cancel_requested, wall_s, last_event, fence, model,"
        " dataset, created_at, updated_at) VALUES (1, '01K5ZJ9V0M3Q8R7T6Y2X4W1N0A', '{}', 'queued', 0, 0, 0,"
        " 0, 'm', 'd', '2026-01-01 10:00:00', '2026-01-01 10:00:00')",
    )
    for rows, fits in ((1, "yes"), (2, "no")):
        candidate = {
            "adapter": {"method": "ia3", "targets": ["k", "v"]},
            "level": {},
            "recipe": {"max_length": 128},
            "micro_batch": rows,
            "learning_rate": 1e-4,
        }
        execute(
            path,
            "INSERT INTO estimate (study_id, shape_key, candidate, device, estimate) VALUES (1, ?, ?, ?, ?)",
            str(rows),
            json.dumps(candidate),
            "a GPU",
            json.dumps({"device": "a GPU", "fits": fits}),
        )
    upgrade(path)
    with closing(Store.open(path)) as store:
        ruled_out = store.list_ruled_out("01K5ZJ9V0M3Q8R7T6Y2X4W1N0A")
        assert len(store.list_estimates("01K5ZJ9V0M3Q8R7T6Y2X4W1N0A")) == 2
    assert [each.micro_batch for each in ruled_out] == [2]


def test_a_database_of_version_0001_keeps_its_rows(path: Path) -> None:
    upgrade_to(path, "0001")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript((Path(__file__).parent / "version_0001.sql").read_text(encoding="utf-8"))
    assert upgrade(path) == ("0001", schema.known_versions()[-1])

    store = Store.open(path)
    study = store.get_study("01K5ZJ9V0M3Q8R7T6Y2X4W1N0A")
    assert (study.request.model, study.state) == ("models/tiny", StudyState.RUNNING)
    first, second = store.list_trials(study.id)
    assert (first.outcome, first.attempts, first.wall_s) == (Outcome.OK, 2, 9.5)
    assert first.measurement == Measurement(tokens_per_s=100.0, measured_s=5.0)
    assert (first.reused_from, second.state) == (None, TrialState.QUEUED)
    page = store.page_trials(study.id, TrialFilter(), limit=1, sort=TrialSort.SPEED)
    assert (page.trials, page.next) == ((first,), (100.0, 1))
    assert len(store.page_studies(StudyFilter(model="models/tiny"), limit=2).marks) == 1
    assert store.attempts_wall_s(study.id) == 9.5
    assert [event.kind for event in store.events_after(study.id, 0)] == ["study.created", "trial.planned"]
    assert store.reap().studies == (study.id,)  # nobody is known to run it
    run = store.claim_study(Worker(name="w", place="here"))
    assert run is not None
    assert store.add_wall(run, 1.0) == 13.5
    claim = store.claim_trial(run, second.id, devices=["cpu"], worker="w", measurement_key="k")
    assert claim is not None
    assert claim.fence == 7  # grows on
    assert store.finish_attempt(claim, outcome=Outcome.DISTURBED).state is TrialState.QUEUED
    store.close()


class TestNextVersion:
    """The next version of the schema, as a developer would write it, on a database in use."""

    @pytest.fixture
    def config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
        """Migrations of our own: a copy of the real ones, to which a version can be added."""
        folder = tmp_path / "migrations"
        shutil.copytree(
            Path(migrations.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__")
        )
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.set_main_option("path_separator", "os")
        monkeypatch.setattr(schema, "alembic_config", lambda: config)
        return config

    def write_version(self, config: Config, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
        known = schema.known_versions()
        version = f"{len(known) + 1:04}"
        command.revision(config, "Note who asked", rev_id=version)
        file = next(Path(str(config.get_main_option("script_location")), "versions").glob(f"{version}_*.py"))
        text = file.read_text()
        assert text.endswith("    pass\n")
        file.write_text(text.removesuffix("    pass\n") + body)
        monkeypatch.setattr(schema, "known_versions", lambda: (*known, version))
        return version

    def test_data_is_kept(self, path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store.open(path)
        study = store.create_study(StudyRequest(model="m", dataset="d"))
        before = definitions(path)
        store.close()

        rebuild_the_parent = (
            "    with op.batch_alter_table('study', recreate='always') as batch:\n"
            "        batch.add_column(sa.Column('asked_by', sa.String(), nullable=True))\n"
        )
        version = self.write_version(config, monkeypatch, rebuild_the_parent)
        store = Store.open(path)
        assert store.schema_version() == version
        assert store.get_study(study.id) == study
        assert len(store.events_after(study.id, 0)) == 1
        store.close()

        after = definitions(path)
        assert "asked_by VARCHAR" in after["study"]
        assert {name: sql for name, sql in after.items() if name != "study"} == {
            name: sql for name, sql in before.items() if name != "study"
        }

    def test_a_version_that_fails_changes_nothing(
        self, path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = upgrade(path)[1]
        before = definitions(path)
        self.write_version(config, monkeypatch, "    op.drop_table('event')\n    op.drop_table('nowhere')\n")
        with pytest.raises(StoreError, match="nowhere"):
            upgrade(path)
        assert definitions(path) == before
        assert execute(path, "SELECT version_num FROM rankwise_version") == [(version,)]
