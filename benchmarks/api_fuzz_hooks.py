"""What schemathesis is told beside the schema: ids that exist, so that not everything is 404.

Loaded by ``benchmarks/api_fuzz.py``, which names them in the environment.
"""

from __future__ import annotations

import json
import os
from typing import Any

import schemathesis

KNOWN: dict[str, list[str]] = json.loads(os.environ.get("RANKWISE_FUZZ_IDS", "{}"))
"""Parameters of paths, and values that are there."""


@schemathesis.hook
def map_path_parameters(_context: schemathesis.HookContext, path_parameters: Any) -> Any:
    """Two of three times, what exists."""
    for name, values in KNOWN.items():
        if path_parameters and name in path_parameters and hash(str(path_parameters[name])) % 3:
            path_parameters[name] = values[hash(str(path_parameters[name])) % len(values)]
    return path_parameters
