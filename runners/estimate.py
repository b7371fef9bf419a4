"""The ``estimate`` job: what candidates would need and compute, told without weights and without a GPU.

Runs in a child of the warm server. Knows nothing of which device is meant, but for limits in bytes.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError
from ..optimizer.codec import from_json, to_json
from ..optimizer.estimates.need import largest
from ..optimizer.estimates.prediction import Prediction, Terms
from ..optimizer.estimates.settings import MOST_ROWS, Settings, candidate_from
from ..optimizer.estimates.tape import Tape
from ..probes.model import inspect_model, natural_task, task_without_data
from ..probes.profiles import TaskKind
from .dry_run import Batch, arrays_for
from .dry_runner import LENGTH_STEP, DryRunner, Sizes
from .messages import Report

LONGEST_ROW = 1_048_576
"""Where neither the memory nor the model sets an end."""


def predict(
    sizes: Sizes,
    limit_bytes: int | None,
    *,
    most_positions: int | None = None,
    with_length: bool = False,
    only_if_it_fits: bool = False,
) -> Prediction:
    """What is needed at the micro-batch itself and, if there is a limit, what else is within it.

    Args:
        limit_bytes: what the allocator may take; None looks for nothing.
        most_positions: longest row that the model can read; None is unknown.
        with_length: look for the longest row too.
        only_if_it_fits: do not look for anything else where the micro-batch itself is beyond the limit.

    Raises:
        InputError: the model cannot be built or run as the candidate says.
    """
    started_s = time.perf_counter()
    need, work = sizes.asked_about()
    rows = length = None
    if limit_bytes is not None and not (only_if_it_fits and need.reserved_bytes > limit_bytes):
        rows = largest(
            lambda number: sizes.reserved_bytes(rows=number),
            limit_bytes,
            most=MOST_ROWS,
            start=sizes.batch.rows,
        )
        if with_length:
            most = (most_positions or LONGEST_ROW) // LENGTH_STEP
            units = most and largest(
                lambda number: sizes.reserved_bytes(length=number * LENGTH_STEP),
                limit_bytes,
                most=most,
                start=max(1, sizes.batch.length // LENGTH_STEP),
            )
            length = units * LENGTH_STEP if units else None
    return Prediction(
        candidate=sizes.candidate,
        need=need,
        work=work,
        host_bytes=sizes.host_bytes,
        traffic=sizes.traffic,
        max_micro_batch=rows,
        max_length=length,
        seconds=time.perf_counter() - started_s,
    )


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of the job: reports one ``result`` with model, task, and a prediction for each of the terms.

    With ``enough``, terms are gone through until so many were met that the candidate fits: the rest is left
    out, and for those that it does not fit nothing is looked for beyond its need.

    Raises:
        InputError, ModelError: what was asked makes no sense for the model; the warm server reports it.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    settings = from_json(Settings, spec["settings"])
    path, allowed = Path(spec["model_path"]), spec["allow_remote_code"]
    if spec["task"] is None:
        task = natural_task(path, allow_remote_code=allowed)
    else:
        task = task_without_data(TaskKind(spec["task"]))
    model = inspect_model(
        path,
        source=spec["source"],
        revision=spec["revision"],
        task=task,
        allow_remote_code=allowed,
        try_packing=settings.packed,
    )
    if task.kind.reads_arrays and not task.kind.reads_images and model.window is None:
        raise InputError(
            f"without data nobody knows the shapes of what a model for the task {task.kind} reads",
            next_step="start a study on the data: its candidates are estimated before they are tried",
        )
    if task.kind.reads_images and model.image_shape is None:
        raise ModelError(
            f"config.json of the {model.model_type} model does not say what images it reads",
            next_step="add image_size (pixels) and num_channels to it",
        )
    candidate = candidate_from(settings, model, task.kind)
    batch = Batch(
        rows=candidate.micro_batch,
        length=candidate.recipe.max_length or 0,
        target_length=candidate.recipe.max_length if task.kind is TaskKind.SEQ2SEQ else None,
        padded=settings.padded,
        packed=settings.packed,
        arrays=arrays_for(model),
    )
    enough = spec["enough"]
    predictions: list[Prediction] = []
    tapes: dict[Batch, Tape] = {}
    sizes: dict[Terms, Sizes] = {}
    with tempfile.TemporaryDirectory() as folder:
        runner = DryRunner(model, task, Path(folder), allow_remote_code=allowed)
        for each in spec["terms"]:
            if enough is not None and sum(done.max_micro_batch is not None for done in predictions) >= enough:
                break
            terms = from_json(Terms, each)
            own = sizes.setdefault(
                replace(terms, limit_bytes=None), Sizes(runner, candidate, batch, terms, tapes)
            )
            predictions.append(
                predict(
                    own,
                    terms.limit_bytes,
                    most_positions=model.max_positions,
                    with_length=enough is None and not batch.arrays,
                    only_if_it_fits=enough is not None,
                )
            )
    report(
        "result",
        task=to_json(task),
        model=to_json(model),
        predictions=[to_json(prediction) for prediction in predictions],
    )
