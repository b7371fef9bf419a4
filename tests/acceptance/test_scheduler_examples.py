"""The examples for schedulers, run by real shells against a real server and real trials.

What only a cluster has is played: variables that Slurm sets, ``sbatch`` and ``scontrol`` that note how they
were called. One study serves all that ask a server.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rankwise.api.homes import folder_of
from rankwise.home import Home
from rankwise.store import Store

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples" / "schedulers"
BIN = Path(sys.executable).parent
OPTIONS: dict[str, Any] = {"budget": "5m", "max_trials": 2, "max_length": 32, "methods": ["lora"]}
KUBERNETES = "1.37"

pytestmark = pytest.mark.timeout(900)  # half a minute each where nothing else runs


def environment(**changes: str) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("RANKWISE_", "SLURM_"))}
    return ours | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | changes


def write_study(folder: Path, model: Path, data: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"model": str(model), "dataset": str(data), **OPTIONS, **changes}))
    return path


@dataclass(frozen=True)
class Server:
    """A server that demands a token of everybody."""

    url: str
    token: str

    @property
    def variables(self) -> dict[str, str]:
        """What its clients are told."""
        return {"RANKWISE_URL": self.url, "RANKWISE_TOKEN": self.token}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, reviews_csv: Path) -> Iterator[Server]:
    """It may read the test's data and installed packages."""
    home = tmp_path_factory.mktemp("home")
    given = environment(RANKWISE_HOME=str(home))
    make_token = [str(BIN / "rankwise"), "tokens", "create", "--role", "submitter"]
    token = subprocess.run(make_token, env=given, capture_output=True, text=True, check=True).stdout.strip()
    command = [str(BIN / "rankwise"), "serve", "--port", "0", "--require-token"]
    command += ["--allow-root", str(reviews_csv.parent)]
    command += ["--allow-root", sysconfig.get_path("purelib")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=given)
    assert process.stderr is not None
    with process.stderr:
        try:
            found = re.search(r"http://[\d.:]+", process.stderr.readline())
            assert found is not None
            yield Server(found[0], token)
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def asked(server: Server, minilm_path: Path, reviews_csv: Path) -> dict[str, Any]:
    """What the Python example answers; the others ask for the same study by its key."""
    spec = importlib.util.spec_from_file_location("airflow_task", EXAMPLES / "airflow_task.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in server.variables.items():
            patched.setenv(name, value)
        found: dict[str, Any] = example.recommended_settings(
            str(minilm_path), str(reviews_csv), key="the-same", timeout_s=250, **OPTIONS
        )
    return found


@pytest.fixture
def study_file(tmp_path: Path, minilm_path: Path, reviews_csv: Path) -> Path:
    return write_study(tmp_path, minilm_path, reviews_csv)


def test_a_python_task_gets_plain_data(asked: dict[str, Any]) -> None:
    assert json.loads(json.dumps(asked)) == asked
    assert asked["adapter_config"]["peft_type"] == "LORA"
    assert asked["training_args"]["learning_rate"] == asked["learning_rate"]
    assert (asked["gpus"], asked["gpu_bytes"]) == (0, None)
    assert 0 < asked["hours"] * 3600 < asked["limit_s"]


def test_cron_keeps_the_answer_and_says_what_is_new(
    server: Server,
    asked: dict[str, Any],
    study_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = study_file.parent
    command = ["sh", "-c", '"$0" "$@"', str(EXAMPLES / "nightly.sh"), str(folder)]
    # As cron has it: hardly any environment.
    secret = tmp_path_factory.mktemp("etc") / "token"
    secret.touch(0o600)
    secret.write_text(server.token)
    bare = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(folder), "KEY": "the-same"}
    bare |= {"RANKWISE_URL": server.url, "RANKWISE_TOKEN_FILE": str(secret)}
    first = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stderr) == (0, "")
    answer = json.loads((folder / "recommendation.json").read_text())
    assert first.stdout == f"recommended: {asked['description']}\n"
    assert answer["study_id"] == asked["study_id"], "the same key is the same study"
    second = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert {path.name for path in folder.iterdir()} == {"study.yaml", "recommendation.json", "nightly.lock"}
    failed = subprocess.run(command, env=bare | {"STUDY": "none.yaml"}, capture_output=True, check=False)
    assert failed.returncode == 2
    assert json.loads((folder / "recommendation.json").read_text()) == answer


def test_a_kubernetes_job_does_what_it_says(server: Server, asked: dict[str, Any], study_file: Path) -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes-job.yaml").read_text(encoding="utf-8"))
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = {item["name"]: item.get("value") for item in container["env"]}
    assert "value" not in next(item for item in container["env"] if item["name"] == "RANKWISE_TOKEN")
    out = study_file.parent / "tuned"
    played = {**server.variables, "JOB_KEY": "the-same", "STUDY": str(study_file), "OUT": str(out)}
    assert set(played) == set(given)
    ran = subprocess.run(
        container["command"], env=environment(**played), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert {"train.py", "adapter_config.json", "settings.env"} <= {path.name for path in out.iterdir()}
    lines = (out / "settings.env").read_text().splitlines()
    assert f"RANKWISE_STUDY_ID={asked['study_id']}" in lines
    check_with_shellcheck(container["command"][2], "sh")


def test_a_prologue_sets_variables_and_never_keeps_a_job_from_running(
    server: Server, asked: dict[str, Any]
) -> None:
    def run(**changes: str) -> list[str]:
        done = subprocess.run(
            [str(EXAMPLES / "task_prolog.sh")],
            env=environment(**server.variables, **{"PROLOG_SECONDS": "200"} | changes),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, server.token in done.stdout) == (0, False), done.stderr
        return done.stdout.splitlines()

    assert run() == []
    lines = run(RANKWISE_STUDY_ID=asked["study_id"])
    assert all(line.startswith("export RANKWISE_") for line in lines)
    variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    assert variables["RANKWISE_DESCRIPTION"] == asked["description"]  # to the end of the line, and no quotes
    assert float(variables["RANKWISE_LEARNING_RATE"]) == asked["learning_rate"]
    assert not {"RANKWISE_URL", "RANKWISE_TOKEN"} & set(variables)
    (line,) = run(RANKWISE_STUDY_ID="01K5ZJ9V0M3Q8R7T6Y2X4W1N0B")
    assert line.startswith("print rankwise: no settings for study 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B: error:")
    (line,) = run(RANKWISE_STUDY_ID=asked["study_id"], PROLOG_SECONDS="0.01")
    assert line.endswith(": no answer in time")


def test_a_slurm_job_goes_on_at_another_node_without_network(
    tmp_path: Path, minilm_path: Path, reviews_csv: Path
) -> None:
    """Stopped after its first trial, started again with another disk: no finished trial is run again."""
    submitted = tmp_path / "submitted"
    submitted.mkdir()
    write_study(submitted, minilm_path, reviews_csv, budget="10m")
    shared = submitted / "rankwise-home"
    first, second = (play_slurm(tmp_path, submitted, node) for node in ("node-1", "node-2"))
    with subprocess.Popen(["bash", str(EXAMPLES / "recommend.sbatch")], env=first, text=True) as job:
        here = at_node(shared, first)
        trials = wait_for_a_finished_trial(here, job)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 143
    noted = tmp_path / "noted"
    assert noted.read_text() == "scontrol requeue 7\n"
    assert not (shared / "in-use.json").exists()
    offline = ["unshare", "--map-root-user", "--net"] if can_unshare() else []
    again = subprocess.run(
        [*offline, "bash", str(EXAMPLES / "recommend.sbatch")],
        env=second,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "going on with study" in again.stderr
    assert again.stdout.startswith("recommended: ")
    assert (submitted / "tuned" / "train.py").exists()
    with closing(Store.open(shared / "rankwise.db")) as store:
        (study,) = store.list_studies()
        finished = store.list_trials(study.id)
    assert {trial.id: trial.attempts for trial in finished if trial.id in trials} == trials
    asked = noted.read_text().splitlines()[-1]
    assert re.match(
        r"sbatch --cpus-per-task=\d+ --mem=\d+G --time=\d+ --job-name=train --wrap cd 'tuned'", asked
    )


def play_slurm(tmp_path: Path, submitted: Path, node: str) -> dict[str, str]:
    """What Slurm gives to a job, and its commands, which note how they were called."""
    commands, disk = tmp_path / "commands", tmp_path / node
    disk.mkdir()
    commands.mkdir(exist_ok=True)
    for name in ("sbatch", "scontrol"):
        (commands / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> {shlex.quote(str(tmp_path / "noted"))}\n'
        )
        (commands / name).chmod(0o755)
    given = environment(
        SLURM_SUBMIT_DIR=str(submitted),
        SLURM_JOB_ID="7",
        SLURM_JOB_END_TIME=str(int(time.time()) + 600),
        RANKWISE_LOCAL=str(disk),
    )
    return given | {"PATH": f"{commands}{os.pathsep}{given['PATH']}"}


def at_node(shared: Path, given: dict[str, str]) -> Path:
    """The database that a node works on."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RANKWISE_LOCAL", given["RANKWISE_LOCAL"])
        folder = folder_of(Home(shared))
    assert folder is not None
    return folder / "rankwise.db"


def wait_for_a_finished_trial(database: Path, job: subprocess.Popen[str]) -> dict[str, int]:
    """Finished trials with their attempts: one that was disturbed has two."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert job.poll() is None, "the job ended by itself"
        if database.exists():
            with closing(Store.open(database)) as store:
                for study in store.list_studies():
                    trials = store.list_trials(study.id)
                    found = {trial.id: trial.attempts for trial in trials if trial.outcome is not None}
                    if found:
                        return found
        time.sleep(0.2)
    raise AssertionError("no trial finished")


def can_unshare() -> bool:
    """A network namespace of one's own, with not even loopback up."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--map-root-user", "--net", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def check_with_shellcheck(script: str, shell: str) -> None:
    told = [BIN / "shellcheck", "--severity=style", f"--shell={shell}", "-"]
    ran = subprocess.run(told, input=script, text=True, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("name", ["recommend.sbatch", "task_prolog.sh", "nightly.sh"])
def test_scripts_are_clean(name: str) -> None:
    path = EXAMPLES / name
    check_with_shellcheck(path.read_text(encoding="utf-8"), "bash")
    assert os.access(path, os.X_OK)
