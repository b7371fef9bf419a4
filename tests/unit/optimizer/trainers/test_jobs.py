"""Job files are what schedulers read: a shell script that shells accept, and objects of Kubernetes' API."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import yaml

from rankwise.optimizer.trainers import jobs
from rankwise.optimizer.trainers.formats import TRAIN

from ....conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from consumer_parts.cases import training

GIB = 2**30


def test_the_slurm_script_is_a_shell_script() -> None:
    script = jobs.slurm_script(training(), TRAIN, "trained")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_slurm_is_asked_for_what_was_measured() -> None:
    lines = jobs.slurm_script(replace(training(), host_memory_bytes=6 * GIB, finish_s=4_000.0), TRAIN, "out")
    assert "#SBATCH --mem=10240M" in lines
    assert "#SBATCH --time=0-01:55:00" in lines
    assert "#SBATCH --gpus-per-node=1" in lines
    assert 'srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"' in lines


def test_a_stopped_slurm_job_goes_on_from_its_checkpoint() -> None:
    assert "(--resume)" in jobs.slurm_script(training(), TRAIN, "trained")


def test_kubernetes_keeps_the_arguments_when_it_goes_on() -> None:
    claim, job = yaml.safe_load_all(jobs.kubernetes_job(training(), TRAIN))
    pod = job["spec"]["template"]["spec"]
    shell, option, text, zero = pod["containers"][0]["command"]
    assert (shell, option, zero) == ("/bin/sh", "-ec", "train")
    assert 'set -- "$@" --resume' in text
    subprocess.run([shell, "-n"], input=text, text=True, check=True)
    assert claim["metadata"]["name"] == pod["volumes"][1]["persistentVolumeClaim"]["claimName"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
