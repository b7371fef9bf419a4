"""What tests of several rooms share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fake libnvidia-ml.so.1, for LD_LIBRARY_PATH."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "probes" / "fake_nvml.c"
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return folder
