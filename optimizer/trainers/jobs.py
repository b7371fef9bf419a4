"""Job files for schedulers: what a training asks of a cluster, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml

from .settings import Training

GIB = 2**30
STOP_S = 120
"""Before a job is killed it is asked to stop, and train.py then writes a checkpoint."""

WORK_FOLDER = "/training"
PROGRAM_FOLDER = "/program"


def name_of(training: Training) -> str:
    """A name that schedulers allow."""
    return f"rankwise-{training.study_id.lower()}"


def slurm_script(training: Training, command: tuple[str, ...], output: str) -> str:
    """A batch script that goes on where it was stopped, when Slurm starts it again.

    Args:
        command: what starts the program, as arguments.
        output: the folder of its results.
    """
    asked_for = training.resources
    asked = [
        f"--job-name={name_of(training)}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={asked_for.cpus}",
        f"--mem={math.ceil(asked_for.host_bytes / 2**20)}M",
        f"--time={_slurm_time(asked_for.limit_s)}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.log",
        f"--signal=TERM@{STOP_S}",
    ]
    if not training.on_cpu:
        asked.insert(3, f"--gpus-per-node={asked_for.gpus}")
    lines = [
        "#!/usr/bin/env bash",
        f"# {training.candidate.describe()}",
        f"# Measured by rankwise{_where(training)} (study {training.study_id}).",
        *(line.rstrip() for line in _card(training)),
        "#",
        *(f"#SBATCH {option}" for option in asked),
        "",
        "set -euo pipefail",
        'cd "${SLURM_SUBMIT_DIR:-.}"',
        "",
        "# Stopped by Slurm, the program leaves a checkpoint; started again, it goes on from there.",
        "resume=()",
        f"[ -d {output}/checkpoint ] && resume=(--resume)",
        # Since Slurm 22.05 srun takes no number of processors over by itself; and bash before 4.4 takes an
        # empty list for an unset name.
        'exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \\',
        f'  {" ".join(command)} --out {output} ${{resume[@]+"${{resume[@]}}"}}',
        "",
    ]
    return "\n".join(lines)


def kubernetes_job(training: Training, command: tuple[str, ...]) -> str:
    """A Job with a volume for its results, which goes on from its checkpoint after a restart.

    Args:
        command: what starts the program, as arguments; files in it are those beside the program.
    """
    name, asked_for = name_of(training), training.resources
    memory = f"{math.ceil(asked_for.host_bytes / GIB)}Gi"
    resources: dict[str, dict[str, Any]] = {
        "requests": {"cpu": str(asked_for.cpus), "memory": memory},
        "limits": {"memory": memory},
    }
    if not training.on_cpu:
        resources["limits"]["nvidia.com/gpu"] = asked_for.gpus
    steps = [
        f"pip install --quiet {' '.join(_requirements(training))}",
        f"cd {WORK_FOLDER} || exit",
        'if [ -d trained/checkpoint ]; then set -- "$@" --resume; fi',
        f'exec {" ".join(_below(PROGRAM_FOLDER, command))} "$@"',
    ]
    container = {
        "name": "train",
        "image": "python:3.11",
        "command": ["/bin/sh", "-ec", "\n".join(steps), "train"],
        "workingDir": WORK_FOLDER,
        "resources": resources,
        "volumeMounts": [
            {"name": "program", "mountPath": PROGRAM_FOLDER},
            {"name": "work", "mountPath": WORK_FOLDER},
        ],
    }
    pod = {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": STOP_S,
        "containers": [container],
        "volumes": [
            {"name": "program", "configMap": {"name": name}},
            {"name": "work", "persistentVolumeClaim": {"claimName": name}},
        ],
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": asked_for.limit_s,
            "template": {"spec": pod},
        },
    }
    head = (
        f"# {training.candidate.describe()}\n"
        f"# Measured by rankwise{_where(training)} (study {training.study_id}).\n"
        f"{''.join(_card(training))}"
        f"# Model and data are read below {WORK_FOLDER}: put them into the volume, or name others in args.\n"
    )
    body: str = yaml.safe_dump_all([claim, job], sort_keys=False, allow_unicode=True, width=100)
    return head + body


def _below(folder: str, command: tuple[str, ...]) -> Iterator[str]:
    """The command with its files, which are the words with a dot, in this folder."""
    return (f"{folder}/{word}" if "." in word else word for word in command)


def _requirements(training: Training) -> list[str]:
    """The versions that were measured with."""
    wanted = ["torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "pillow"]
    if training.candidate.level.uses_deepspeed:
        wanted.append("deepspeed")
    return [
        f"{name}=={training.libraries[name].partition('+')[0]}"
        for name in wanted
        if name in training.libraries
    ]


def _where(training: Training) -> str:
    count = training.candidate.level.processes
    return " on a CPU" if training.on_cpu else f" on {'one' if count == 1 else count} {training.gpu_name}"


def _card(training: Training) -> Iterator[str]:
    """Schedulers are asked for memory of GPUs in as many ways as there are clusters."""
    needed = training.resources.gpu_bytes
    if needed is not None:
        card = training.resources.gpu_card_gb
        enough = "no card is known to have so much" if card is None else f"a card of {card} GB has it"
        yield f"# Each GPU needs {needed / GIB:.1f} GiB of memory: {enough}.\n"


def _slurm_time(duration_s: int) -> str:
    """Days-hours:minutes:seconds."""
    days, rest = divmod(duration_s, 86_400)
    return f"{days}-{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
