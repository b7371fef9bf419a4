"""Keys and seeds: what makes two measurements the same, and two runs alike."""

from __future__ import annotations

from pathlib import PurePath

from ..probes.profiles import GpuProfile, HardwareProfile
from .codec import digest, to_json
from .domain import Candidate, Method, StudyFacts, TrialPlan
from .recipe import steps_for

TRAINING_VERSION = 2
"""Of what a trial does when it trains and judges, as MEASURING_VERSION of what it measures."""

MEASURING_VERSION = 3
"""Of what a trial does when it measures. Raised with every change of it that moves figures: older ones are
not used again."""


def derive_seed(study_seed: int, purpose: str, replicate: int = 0) -> int:
    """A seed below 2**31 from SHA-256 of (study seed, purpose, replicate)."""
    return int(digest([study_seed, purpose, replicate])[:8], 16) & 0x7FFFFFFF


def trial_device(hardware: HardwareProfile) -> GpuProfile | None:
    """The GPU that trials run on, the one with most free memory; None means the CPU."""
    return max(hardware.gpus, key=lambda gpu: gpu.free_bytes or 0, default=None)


def environment_key(hardware: HardwareProfile) -> str:
    """Equal where measurements may be shared: the model of the device that trials run on, host, libraries,
    and the environment variables that tell these how to compute.

    Which of several equal GPUs it is does not matter; what clocks and power it is allowed does. On a GPU
    the processor counts too: it may not keep the device busy.
    """
    gpu = trial_device(hardware)
    host = hardware.host
    return digest(
        {
            "gpu": gpu
            and {
                "name": gpu.name,
                "total_bytes": gpu.total_bytes,
                "mig": gpu.is_mig,
                "driver": gpu.driver_version,
                "power_limit_w": gpu.power_limit_w,
                "max_sm_clock_hz": gpu.max_sm_clock_hz,
            },
            "cpu": host.cpu_model,
            "cores": [host.physical_cores, host.logical_cores],
            "platform": host.platform,
            "python": host.python_version,
            "libraries": dict(host.libraries),
            "variables": dict(host.variables),
        }
    )


def measurement_key(
    facts: StudyFacts, candidate: Candidate, *, seed: int = 0, memory_limit_bytes: int | None = None
) -> str:
    """Identifies a measurement of speed and memory: structure + rows + shape + environment.

    Args:
        facts: model, data and machine.
        candidate: of which only the shape counts.
        seed: the study's. It decides which rows are trained on, hence the longest, and which are timed.
        memory_limit_bytes: the study's. On a GPU it is the allocator's, which is slower close to it and
            reserves less; on a CPU it ends a trial but changes none.
    """
    lengths, arrays = facts.dataset.lengths, facts.dataset.task.arrays
    adalora = candidate.adapter.method is Method.ADALORA
    return digest(
        {
            "v": MEASURING_VERSION,
            "structure": facts.model.structure_sha256,
            "random_weights": not facts.model.has_weights,
            "task": facts.dataset.task.kind,
            "lengths": to_json(lengths) if lengths else facts.dataset.sha256,
            **({} if arrays is None else {"arrays": to_json(arrays)}),
            "rows": [facts.train_rows, facts.tokens_estimated, seed],
            "shape": candidate.shape_key,
            # AdaLoRA masks ranks at steps that it counts from the training's length.
            "steps": steps_for(facts.train_rows, candidate.recipe) if adalora else None,
            "memory_limit_bytes": memory_limit_bytes if facts.hardware.gpus else None,
            "environment": environment_key(facts.hardware),
        }
    )


def training_key(
    facts: StudyFacts, plan: TrialPlan, *, seed: int = 0, memory_limit_bytes: int | None = None
) -> str | None:
    """Identifies what a training learns: weights + rows + split + candidate + length + seeds + machine.

    None where it cannot be told whether weights are the same.

    Args:
        facts: model, data and machine.
        plan: of which the candidate, the length and the replicate count.
        seed: the study's, which all others are derived from.
        memory_limit_bytes: as in :func:`measurement_key`.
    """
    if facts.model.weights_sha256 is None:
        return None
    return digest(
        {
            "v": TRAINING_VERSION,
            "measurement": measurement_key(
                facts, plan.candidate, seed=seed, memory_limit_bytes=memory_limit_bytes
            ),
            "weights": facts.model.weights_sha256,
            "data": facts.dataset.sha256,
            "tokens": PurePath(facts.tokens_path).name,
            "heldout": [facts.heldout_rows, facts.heldout_share],
            "candidate": plan.candidate.id,
            "steps": plan.train_steps,
            "replicate": plan.replicate,
        }
    )
