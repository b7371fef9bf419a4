"""Keys and seeds: what makes two measurements the same, and two runs alike."""

from __future__ import annotations

from ..probes.profiles import HardwareProfile
from .codec import digest, to_json
from .domain import Candidate, StudyFacts


def derive_seed(study_seed: int, purpose: str, replicate: int = 0) -> int:
    """A seed below 2**31 from SHA-256 of (study seed, purpose, replicate)."""
    return int(digest([study_seed, purpose, replicate])[:8], 16) & 0x7FFFFFFF


def environment_key(hardware: HardwareProfile) -> str:
    """Equal where measurements may be shared: device models, driver, CPU and library versions."""
    return digest(
        {
            "gpus": sorted(f"{gpu.name}|{gpu.total_bytes}|{gpu.driver_version}" for gpu in hardware.gpus),
            "cpu": hardware.host.cpu_model,
            "cores": hardware.host.logical_cores,
            "platform": hardware.host.platform,
            "python": hardware.host.python_version,
            "libraries": dict(hardware.host.libraries),
        }
    )


def measurement_key(facts: StudyFacts, candidate: Candidate) -> str:
    """Identifies a measurement of speed and memory: structure + lengths + shape + environment."""
    return digest(
        {
            "structure": facts.model.structure_sha256,
            "lengths": to_json(facts.dataset.lengths) if facts.dataset.lengths else None,
            "shape": candidate.shape_key,
            "environment": environment_key(facts.hardware),
        }
    )
