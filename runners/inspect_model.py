"""The ``inspect`` job: a model's structure without any data. Runs in a child of the warm server.

Knows nothing of adapters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..optimizer.codec import to_json
from ..probes.model import inspect_model, natural_task, task_without_data
from ..probes.model_source import has_weights, weight_headers
from ..probes.profiles import TaskKind
from .messages import Report


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of the job: reports one ``result`` with the task, the model, and stored bytes by dtype.

    Raises:
        ModelError: the model is refused; the warm server reports it.
    """
    path = Path(spec["model_path"])
    allowed = spec["allow_remote_code"]
    if spec["task"] is None:
        task = natural_task(path, allow_remote_code=allowed)
    else:
        task = task_without_data(TaskKind(spec["task"]))
    model = inspect_model(
        path, source=spec["source"], revision=spec["revision"], task=task, allow_remote_code=allowed
    )
    stored: Counter[str] = Counter()
    if has_weights(path):
        for header in weight_headers(path).values():
            stored[header.dtype] += header.stored_bytes
    report("result", task=to_json(task), model=to_json(model), stored_bytes=dict(stored))
