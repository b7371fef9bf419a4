"""What CUDA says of its devices, beside what rankwise's probes say, under several values of the environment.

    python cuda_facts.py '[{"CUDA_VISIBLE_DEVICES": "0"}, {}]'

Prints one JSON line for each environment, each tried in a fork of its own: CUDA reads its variables once.
The last line names torch's own versions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

import torch

from rankwise.probes.gpu import read_gpus

VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


def main() -> None:
    """Answer for each environment on the command line."""
    for environment in json.loads(sys.argv[1]):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            print(json.dumps(answer_under(environment), default=dataclasses.asdict), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "cuda_runtime": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
            }
        )
    )


def answer_under(environment: dict[str, str]) -> dict[str, Any]:
    """Both lists of devices under an environment. In a forked child: it initialises CUDA."""
    for name in VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(environment)
    gpus, note = read_gpus()
    try:
        cuda, problem = cuda_devices(), None
    except RuntimeError as error:
        cuda, problem = [], str(error).splitlines()[0]
    return {"nvml": gpus, "note": note, "cuda": cuda, "problem": problem}


def cuda_devices() -> list[dict[str, Any]]:
    """The devices in CUDA's order; RuntimeError where it cannot be initialised."""
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(
            {
                "uuid": str(device.uuid),
                "name": device.name,
                "total_bytes": device.total_memory,
                "compute_capability": [device.major, device.minor],
            }
        )
    return found


if __name__ == "__main__":
    main()
