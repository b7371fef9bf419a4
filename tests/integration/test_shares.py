"""Libraries keep to the cores of the process that runs the tests."""

from __future__ import annotations

import math
import os

import pytest
import torch

WORKERS = os.environ.get("PYTEST_XDIST_WORKER_COUNT")


@pytest.mark.skipif(WORKERS is None, reason="one process runs all tests")
def test_torch_takes_no_more_threads_than_its_share() -> None:
    assert torch.get_num_threads() <= math.ceil((os.cpu_count() or 1) / int(WORKERS or 1))
