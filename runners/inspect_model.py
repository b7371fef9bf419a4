"""The ``inspect`` job: a model's structure and which methods it takes, without any data.

Runs in a child of the warm server. Knows nothing of who asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..optimizer.codec import from_json, to_json
from ..optimizer.targets import is_adaptable
from ..probes.model import inspect_model, inspect_module, natural_task, random_model, task_without_data
from ..probes.model_source import has_weights, weight_headers
from ..probes.profiles import Factory, ModelProfile, TaskKind, TaskProfile
from .example_inputs import Inputs
from .factories import made_by
from .messages import Report
from .own_module import MOST_NUMBERS, OwnModule, observe
from .transformers_model import TransformersModel
from .verdicts import Subject, verdicts_of

OF_TRANSFORMERS = Inputs(origin="its configuration")


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of the job: reports one ``result`` with the task (of a factory's module, none), the model, stored
    bytes by dtype, where the inputs that it was tried with are from, and a verdict for each method.

    Raises:
        ModelError: the model is refused; the warm server reports it.
    """
    if spec["factory"] is not None:
        report("result", **_of_factory(spec))
    else:
        report("result", **_of_library(spec))


def _of_factory(spec: Mapping[str, Any]) -> dict[str, Any]:
    factory = from_json(Factory, spec["factory"])
    module = made_by(factory)
    inputs, calls = observe(module)
    model = inspect_module(module, factory, calls)
    return _answer(None, model, {}, OwnModule(module, model, inputs), spec, tried_with=inputs)


def _of_library(spec: Mapping[str, Any]) -> dict[str, Any]:
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
    subject, inputs = subject_of(model, task, Path(spec["folder"]), allow_remote_code=allowed)
    return _answer(task, model, stored, subject, spec, tried_with=inputs)


def subject_of(
    model: ModelProfile, task: TaskProfile, folder: Path, *, allow_remote_code: bool = False
) -> tuple[Subject, Inputs | None]:
    """What methods are tried on, of a model of transformers, and with which inputs.

    Models of a class that only their configuration names, and those without a linear layer in their body, are
    tried like modules of anybody's.
    """
    has_linear = any(is_adaptable(module, model.new_modules) for module in model.modules)
    is_named = task.kind.reads_arrays and not task.kind.reads_images
    if not is_named and (has_linear or model.runs_remote_code):
        return TransformersModel(model, task, folder, allow_remote_code=allow_remote_code), OF_TRANSFORMERS
    module = random_model(Path(model.path), task, device="meta" if model.parameters > MOST_NUMBERS else "cpu")
    inputs, _ = observe(module)
    return OwnModule(module, model, inputs), inputs


def _answer(
    task: TaskProfile | None,
    model: ModelProfile,
    stored: Mapping[str, int],
    subject: Subject,
    spec: Mapping[str, Any],
    *,
    tried_with: Inputs | None,
) -> dict[str, Any]:
    verdicts = verdicts_of(subject, libraries=spec["libraries"])
    return {
        "task": task and to_json(task),
        "model": to_json(model),
        "stored_bytes": dict(stored),
        "tried_with": tried_with and tried_with.origin,
        "verdicts": [to_json(verdict) for verdict in verdicts],
    }
