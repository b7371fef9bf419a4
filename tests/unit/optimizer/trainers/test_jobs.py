"""Job files are what schedulers read: a shell script that shells run, and objects of Kubernetes' API.

No scheduler is here: ``srun`` is a script that runs what it is given, with the signal that Slurm would send.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from rankwise.optimizer.trainers import jobs
from rankwise.optimizer.trainers.formats import TRAIN, Format, outline
from rankwise.optimizer.trainers.settings import Training

from ....conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from consumer_parts.cases import HALF, cases, training

GIB = 2**30
KUBERNETES = "1.37"
SHELLCHECK = Path(sys.prefix) / "bin" / "shellcheck"


TRAINING = """\
import json, pathlib, signal, sys, time
def stop(*_):
    pathlib.Path("trained/checkpoint").mkdir(parents=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print(json.dumps(sys.argv[1:]), flush=True)
if "--resume" not in sys.argv:
    time.sleep(60)
"""
"""Trains until it is asked to stop; takes up again what it left then."""


def slurm_script(one: Training) -> str:
    return outline(one, Format.SLURM).files["job.sbatch"]


def kubernetes_job(one: Training) -> str:
    return outline(one, Format.KUBERNETES).files["job.yaml"]


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for PATH: srun, which runs what it is given, and what installs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"'), ("pip", ":")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return folder


def check_with_shellcheck(script: str, shell: str) -> None:
    told = [SHELLCHECK, "--severity=style", f"--shell={shell}", "-"]
    ran = subprocess.run(told, input=script, text=True, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stdout


def run_until_asked_to_stop(command: list[str], folder: Path, path: Path) -> list[list[str]]:
    """Start it, stop it, start it again; returns what the program was given each time."""
    environment = {
        "PATH": f"{path}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_CPUS_PER_TASK": "3",
    }
    given = []
    with subprocess.Popen(command, env=environment, cwd=folder, text=True, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        given.append(json.loads(first.stdout.readline()))
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 143
    again = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True, check=True)
    return [*given, json.loads(again.stdout)]


TRAININGS = {
    **{case.name: case.training for case in [*cases()][::13]},
    "two processes": training(level=replace(HALF, processes=2)),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_job_files_are_what_their_readers_take(name: str) -> None:
    """shellcheck's rules, and the schemas that Kubernetes publishes, with no name that it does not know."""
    one = TRAININGS[name]
    check_with_shellcheck(slurm_script(one), "bash")
    documents = list(yaml.safe_load_all(kubernetes_job(one)))
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    check_with_shellcheck(documents[1]["spec"]["template"]["spec"]["containers"][0]["command"][2], "sh")


def test_the_schema_knows_a_wrong_name() -> None:
    _, job = yaml.safe_load_all(kubernetes_job(training()))
    job["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="'resource' was unexpected"):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_jobs_on_the_page_of_schedulers_are_valid() -> None:
    page = (REPOSITORY / "docs" / "schedulers.md").read_text(encoding="utf-8")
    found = re.findall(r"```(yaml|bash)\n(.*?)```", page, flags=re.DOTALL)
    manifests = [yaml.safe_load(text) for kind, text in found if kind == "yaml" and "apiVersion" in text]
    scripts = [text for kind, text in found if kind == "bash" and text.startswith("#!")]
    assert manifests
    assert scripts
    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for script in scripts:
        check_with_shellcheck(script, "bash")


def test_a_slurm_job_that_was_stopped_goes_on_from_its_checkpoint(tmp_path: Path, commands: Path) -> None:
    folder = tmp_path / "a submitted job"
    folder.mkdir()
    (folder / "job.sbatch").write_text(slurm_script(training()))
    (folder / TRAIN).write_text(TRAINING)
    given = run_until_asked_to_stop(["bash", "job.sbatch"], folder, commands)
    assert given == [["--out", "trained"], ["--out", "trained", "--resume"]]


def test_a_kubernetes_job_that_was_stopped_goes_on_with_its_arguments(tmp_path: Path, commands: Path) -> None:
    _, job = yaml.safe_load_all(kubernetes_job(training()))
    shell, option, text, zero = job["spec"]["template"]["spec"]["containers"][0]["command"]
    for name in (jobs.WORK_FOLDER, jobs.PROGRAM_FOLDER):
        (tmp_path / name[1:]).mkdir()
        text = text.replace(name, str(tmp_path / name[1:]))
    (tmp_path / jobs.PROGRAM_FOLDER[1:] / TRAIN).write_text(TRAINING)
    command = [shell, option, text, zero, "--data", "my rows.jsonl"]
    given = run_until_asked_to_stop(command, tmp_path, commands)
    assert given == [["--data", "my rows.jsonl"], ["--data", "my rows.jsonl", "--resume"]]


def test_slurm_is_asked_for_what_was_measured() -> None:
    asked = replace(
        training().resources, gpu_bytes=30 * GIB, gpu_card_gb=32, host_bytes=10 * GIB, limit_s=6_900
    )
    lines = slurm_script(replace(training(), resources=asked))
    assert "# Each GPU needs 30.0 GiB of memory: a card of 32 GB has it." in lines
    assert "#SBATCH --mem=10240M" in lines
    assert "#SBATCH --time=0-01:55:00" in lines
    assert "#SBATCH --gpus-per-node=1" in lines
    assert 'srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"' in lines


def test_kubernetes_is_asked_for_a_gpu_and_for_the_volume_that_it_is_given() -> None:
    claim, job = yaml.safe_load_all(kubernetes_job(training()))
    pod = job["spec"]["template"]["spec"]
    assert claim["metadata"]["name"] == pod["volumes"][1]["persistentVolumeClaim"]["claimName"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_several_processes_get_a_gpu_each_and_are_launched() -> None:
    alone = training().candidate
    candidate = replace(alone, level=replace(alone.level, processes=4))
    asked = replace(training().resources, gpus=4)
    spread = replace(training(), candidate=candidate, on_cpu=False, gpu_name="A100", resources=asked)
    script = slurm_script(spread)
    assert "#SBATCH --gpus-per-node=4\n" in script
    assert "accelerate launch --config_file accelerate.yaml train.py --out trained" in script
    assert "on 4 A100" in script
    _, job = yaml.safe_load_all(kubernetes_job(spread))
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    folder = jobs.PROGRAM_FOLDER
    told = f"accelerate launch --config_file {folder}/accelerate.yaml {folder}/train.py"
    assert told in container["command"][2]
    check_with_shellcheck(script, "bash")
