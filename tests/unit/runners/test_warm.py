from __future__ import annotations

import subprocess
import sys

CUDA_INITIALISED = 66

# The process leaves at once, because libraries swallow what initialising raises (bitsandbytes 0.50 does).
FAKE_CUDA = f"""
import os
import torch

torch.cuda._lazy_init = lambda *_: os._exit({CUDA_INITIALISED})
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.backends.cuda.is_built = lambda: True
torch.version.cuda = "12.8"
torch._C._cuda_getCurrentRawStream = lambda device: 0
"""


def run_with_fake_cuda(source: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FAKE_CUDA + source]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_preloading_never_touches_cuda() -> None:
    source = "from rankwise.runners import warm; print(*warm.preload(warm.JOBS, cuda_driver=True))"
    done = run_with_fake_cuda(source)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "transformers" in loaded
    assert "peft" not in loaded


def test_what_builders_need_comes_after_what_reads_the_data() -> None:
    source = """
import sys
from rankwise.runners import warm
warm.preload(("prepare", "trial"), cuda_driver=False)
before = "peft" in sys.modules
warm.preload_builders()
print(before, "peft" in sys.modules, "transformers.optimization" in sys.modules)
"""
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False True True\n"


def test_children_find_the_translations_of_weight_names_made() -> None:
    source = """
from rankwise.runners import warm
warm.preload(("trial",), cuda_driver=True)
from transformers import conversion_mapping
print(bool(conversion_mapping._checkpoint_conversion_mapping_cache))
"""
    done = run_with_fake_cuda(source)
    assert done.stdout == "True\n", done.stderr


def test_the_fake_catches_what_touches_cuda() -> None:
    """peft is why less is preloaded on a machine with CUDA."""
    assert run_with_fake_cuda("import peft").returncode == CUDA_INITIALISED
