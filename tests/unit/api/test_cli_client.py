"""Commands for a server, with a real one behind them, in a thread and without a supervisor."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from rankwise.api.app import create_app
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.optimizer.domain import StudyState

Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 8)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def server(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server of `home`, which `RANKWISE_URL` names."""
    app = create_app(ServerSettings(home=home, allowed_roots=(tmp_path,)), supervise=False)
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    monkeypatch.setenv("RANKWISE_URL", url)
    yield url
    running.should_exit = True
    thread.join(10)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands' own home is a folder that cannot be made: nothing is to be kept here."""
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("RANKWISE_HOME", str(tmp_path / "a-file" / "home"))


@pytest.fixture
def played(script: Any, server: str, elsewhere: None) -> str:
    """A finished study's id."""
    script.play()
    return str(script.id)


def test_a_study_is_asked_for_and_awaited_elsewhere(
    run: Run, server: str, elsewhere: None, model: Path, data: Path
) -> None:
    ask = ("recommend", "--remote", "--model", str(model), "--data", str(data), "--budget", "1h")
    asked = run(*ask, "--format", "env", "--key", "nightly")
    assert asked.code == 0, asked.err
    lines = dict(line.split("=") for line in asked.out.splitlines())
    study_id = lines["RANKWISE_STUDY_ID"]
    assert lines == {"RANKWISE_STUDY_ID": study_id, "RANKWISE_STATE": "queued"}
    assert f"rankwise client recommend {study_id} --wait --format env" in asked.err
    listed = run("client", "studies", "list", "--json").document["studies"]
    assert [study["id"] for study in listed] == [study_id]
    assert listed[0]["request"]["budget"]["seconds"] == 3600
    waiting = run("client", "recommend", study_id, "--format", "yaml")
    assert yaml.safe_load(waiting.out)["state"] == "queued"
    assert "queued" in run("client", "studies", "show", study_id).out
    assert run("client", "studies", "cancel", study_id).code == 0
    cancelled = run("client", "recommend", study_id, "--wait", "--format", "env", "--quiet")
    assert (cancelled.code, cancelled.out) == (1, "")
    assert "was cancelled" in cancelled.err
    assert run("client", "studies", "watch", study_id).code == 1


def test_a_recommendation_is_printed_in_every_form(run: Run, played: str, tmp_path: Path) -> None:
    text = run("client", "recommend", played)
    assert text.code == 0
    assert "Recommended: LORA" in text.out
    assert "To ask of a scheduler: 2 cores" in text.out
    as_json = run("client", "recommend", played, "--format", "json").document
    assert yaml.safe_load(run("client", "recommend", played, "--format", "yaml").out) == as_json
    assert as_json["resources"]["cpus"] == 2
    report = run("client", "recommend", played, "--json").document
    assert report["recommendation"] == as_json
    assert [trial["outcome"] for trial in report["trials"]] == ["ok", "oom", "ok"]
    lines = run("client", "recommend", played, "--wait", "--format", "env")
    shown = subprocess.run(
        ["sh", "-euc", 'eval "$1"; echo "$RANKWISE_METHOD $RANKWISE_RANK $RANKWISE_STATE"', "sh", lines.out],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "lora 16 succeeded\n"
    assert "trial 3 (train)" in lines.err


def test_forms_are_the_same_without_a_server(run: Run, script: Any, server: str) -> None:
    script.play()
    for form in ("env", "json", "yaml"):
        here = run("recommend", "--resume", script.id, "--quiet", "--format", form)
        assert here.code == 0, here.err
        assert here.out == run("client", "recommend", script.id, "--format", form).out


def test_files_are_those_that_are_written_on_the_server(
    run: Run, script: Any, server: str, tmp_path: Path
) -> None:
    script.play()
    assert run("recommend", "--resume", script.id, "--quiet", "--out", str(tmp_path / "here")).code == 0
    assert run("client", "recommend", script.id, "--out", str(tmp_path / "there")).code == 0
    here, there = (
        {path.name: path.read_text() for path in (tmp_path / name).iterdir()} for name in ("here", "there")
    )
    assert here == there
    assert {"train.py", "report.html", "recommendation.json"} <= set(there)


def test_a_training_is_exported(run: Run, played: str, tmp_path: Path) -> None:
    assert run("client", "export", played, "--format", "slurm", "--out", str(tmp_path / "job")).code == 0
    assert "#SBATCH" in (tmp_path / "job" / "job.sbatch").read_text()
    refused = run("client", "export", played, "--format", "word")
    assert refused.code == 2


def test_events_are_lines_of_json(run: Run, played: str) -> None:
    watched = run("client", "studies", "watch", played, "--json")
    events = [json.loads(line) for line in watched.out.splitlines()]
    assert watched.code == 0
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["kind"] == "study.finished"


def test_exit_codes_are_those_of_recommend(run: Run, script: Any, server: str, elsewhere: None) -> None:
    script.begin()
    script.store.finish_study(script.claim, StudyState.FAILED, "NothingFits: nothing fits — raise the limit")
    failed = run("client", "recommend", script.id, "--wait", "--quiet", "--format", "env")
    assert (failed.code, failed.out) == (3, "")
    assert "raise the limit" in failed.err
    assert run("client", "studies", "show", "01K5ZJ9V0M3Q8R7T6Y2X4W1N0B").code == 2
    refused = run("recommend", "--remote", "--wait", "--model", "/etc", "--data", "/etc/passwd")
    assert (refused.code, refused.out) == (2, "")


def test_a_server_that_is_not_there_is_a_failure(
    run: Run, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.api.client.connection.FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("RANKWISE_URL", "http://127.0.0.1:9")
    failed = run("client", "devices")
    assert failed.code == 1
    assert "cannot be reached" in failed.err


def test_data_are_sent_before_they_are_asked_about(
    run: Run, server: str, elsewhere: None, model: Path, data: Path
) -> None:
    sent = run("client", "upload", str(data))
    assert sent.code == 0, sent.err
    assert run("client", "upload", str(data), "--json").document["dataset"] == sent.out.strip()
    asked = run("recommend", "--remote", "--upload", "--model", str(model), "--data", str(data), "--json")
    assert asked.code == 0, asked.err
    listed = run("client", "studies", "list", "--json").document["studies"]
    named = run("recommend", "--remote", "--model", str(model), "--data", sent.out.strip(), "--json")
    assert named.code == 0, named.err
    first, second = (study["request"]["dataset"] for study in (listed[0], named.document["study"]))
    assert first == second
    assert first != str(data)
    missing = run("client", "upload", str(data.with_name("none.csv")))
    assert (missing.code, "cannot be read" in missing.err) == (2, True)
    wrong = data.with_name("wrong.parquet")
    wrong.write_bytes(b"no parquet")
    assert run("client", "upload", str(wrong)).code == 2


def test_devices_are_listed(run: Run, server: str) -> None:
    assert "cores" in run("client", "devices").out
    assert run("client", "devices", "--json").document["host"]["logical_cores"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--remote", "--plan"), "--plan cannot be asked of a server"),
        (("--remote", "--resume", "01"), "--resume cannot be asked of a server"),
        (("--wait",), "--wait is for a server"),
        (("--key", "x"), "--key is for a server"),
        (("--upload",), "--upload is for a server"),
        (("--json", "--format", "env"), "--json and --format both say how to print"),
        (("--remote", "--eval-command", "python judge.py"), "no server runs an evaluation command"),
    ],
)
def test_what_contradicts_is_refused(
    run: Run, elsewhere: None, options: tuple[str, ...], message: str
) -> None:
    refused = run("recommend", "--model", "m", "--data", "d.csv", *options)
    assert refused.code == 2
    assert message in refused.err
