"""What a study must know before its first trial where rows are no text, and these rows on disk.

A part of the ``prepare`` job. Knows nothing about trials or the database.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..optimizer.codec import digest, to_json
from ..optimizer.domain import StudyFacts, StudyRequest
from ..optimizer.recipe import choose_recipe
from ..probes.dataset_source import errors_about
from ..probes.profiles import DatasetProfile, HardwareProfile, ModelProfile, TaskKind, TaskProfile
from .array_files import array_layout, open_rows, row_bytes
from .array_samples import array_examples, array_keys
from .input_forms import with_images, with_windows
from .recipe import heldout_share
from .splits import EXACT_SPLIT_ROWS, choose_keys
from .text_splits import notes_on_classes
from .tokens import write_token_files

STORED_BYTES = 2**30
"""Of larger data every nth row is written, and met by trials."""
LEAST_EVERY_NTH = 5


def array_facts(
    dataset: DatasetProfile,
    model: ModelProfile,
    request: StudyRequest,
    hardware: HardwareProfile,
    *,
    root: Path,
) -> StudyFacts:
    """A study's facts; its rows are written below ``root``.

    Raises:
        InputError: data and model do not go together, or nothing can be learnt.
    """
    with errors_about(Path(dataset.path)):
        dataset, split = shaped(dataset, model, request)
        folder = root / rows_key(dataset, split)
        recipe = choose_recipe(dataset, model, request)
        write_rows(folder, dataset, split=split)
        notes = notes_on_classes(folder, dataset.task.labels)
        dataset = replace(dataset, notes=(*dataset.notes, *notes))
    train, heldout = (open_rows(folder / name) for name in ("train.arrow", "heldout.arrow"))
    if len(train) < 2 or len(heldout) < 1:
        raise DatasetError(
            f"{dataset.source} leaves {len(train)} rows to train on and {len(heldout)} to hold out",
            next_step="bring at least a few dozen different rows",
        )
    return StudyFacts(
        hardware=hardware,
        model=model,
        dataset=dataset,
        recipe=recipe,
        tokens_path=str(folder),
        pad_id=0,
        heldout_share=split["share"],
        train_rows=len(train) * dataset.every_nth_row,
        heldout_rows=len(heldout),
        truncated_rows=0,
        truncated_tokens_share=0.0,
        split=split,
    )


def shaped(
    dataset: DatasetProfile, model: ModelProfile, request: StudyRequest
) -> tuple[DatasetProfile, dict[str, Any]]:
    """The profile with rows as the model takes them, and which of these are held out."""
    path, task = Path(dataset.path), dataset.task
    if task.kind is TaskKind.FORECASTING:
        task, share = with_windows(task, model, request, path)
        windows = max(1, dataset.rows - 2 * (window_rows(task) - 1))
        dataset = replace(dataset, task=task, usable_rows=windows)
        return replace(dataset, every_nth_row=every_nth(dataset)), {"seed": request.seed, "share": share}
    if task.kind is TaskKind.IMAGE_CLASSIFICATION:
        dataset = replace(dataset, task=with_images(task, model, path))
    dataset = replace(dataset, every_nth_row=every_nth(dataset))
    return dataset, split_arrays(dataset, seed=request.seed)


def window_rows(task: TaskProfile) -> int:
    """Rows of a series in a window, those to be predicted included."""
    form = task.arrays
    assert form is not None  # noqa: S101 - asked of a series only
    assert form.target is not None  # noqa: S101 - it has the values that follow
    return form.inputs[0].shape[0] + form.target.shape[0]


def every_nth(dataset: DatasetProfile) -> int:
    """Which rows to write: 1 for all, n for one in n, a prime so that classes that take turns are all met."""
    assert dataset.task.arrays is not None  # noqa: S101 - asked of tasks on arrays only
    least = math.ceil(dataset.usable_rows * row_bytes(dataset.task.arrays) / STORED_BYTES)
    if least <= 1:
        return 1
    candidates = count(max(LEAST_EVERY_NTH, least))
    return next(n for n in candidates if all(n % divisor for divisor in range(2, math.isqrt(n) + 1)))


def split_arrays(dataset: DatasetProfile, *, seed: int) -> dict[str, Any]:
    """Which rows are held out: by a list where there are few, see :func:`.recipe.heldout_rule`."""
    rows = dataset.usable_rows // dataset.every_nth_row
    split = {"seed": seed, "share": heldout_share(rows)}
    if rows > EXACT_SPLIT_ROWS:
        return split
    keys = array_keys(Path(dataset.path), every=dataset.every_nth_row, task=to_json(dataset.task))
    return {**split, "hashes": choose_keys(keys, split["share"], seed=seed, source=dataset.source)}


def rows_key(dataset: DatasetProfile, split: Mapping[str, Any]) -> str:
    """Equal for equal rows on disk."""
    task = to_json(dataset.task) | {"reason": ""}
    return digest(
        {
            "v": 1,
            "data": dataset.sha256,
            "every_nth_row": dataset.every_nth_row,
            "task": task,
            "split": [split["seed"], split["share"], *split.get("hashes", ())],
        }
    )


def write_rows(folder: Path, dataset: DatasetProfile, *, split: Mapping[str, Any]) -> None:
    """Write the rows unless they are there."""
    if folder.is_dir():
        return
    task = dataset.task
    assert task.arrays is not None  # noqa: S101 - asked of tasks on arrays only
    rows = array_examples(
        Path(dataset.path),
        every=dataset.every_nth_row,
        task=to_json(task),
        split=split,
    )
    write_token_files(folder, rows, layout=array_layout(task.arrays, has_class=bool(task.labels)))
