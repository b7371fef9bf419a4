"""The ``estimate-trials`` job: what candidates of a study would need, with the batches that trials will make.

Runs in a child of the warm server. Knows nothing of which device is meant, but for bytes.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..optimizer.codec import from_json, to_json
from ..optimizer.domain import Candidate
from ..optimizer.estimates.prediction import Terms, TrialPrediction
from ..probes.profiles import ModelProfile, TaskProfile
from .array_files import open_rows
from .dry_run import ArrayOfBatch, Batch
from .dry_runner import DryRunner, Sizes
from .forward import TARGET
from .messages import Report
from .recipe import Example, count_tokens, step_rows
from .tokens import RowFile

STEPS_LOOKED_AT = 8
"""To see how much of a batch is padding."""


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of the job: reports one ``result`` with a prediction for each candidate that it came to.

    Goes through the candidates until one needs no more than ``enough_bytes``: those that follow need less.

    Raises:
        InputError: a candidate cannot be built or run; the warm server reports it.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = open_rows(Path(spec["tokens_path"]) / "train.arrow")
    predictions: list[TrialPrediction] = []
    with tempfile.TemporaryDirectory() as folder:
        runner = DryRunner(
            from_json(ModelProfile, spec["model"]),
            from_json(TaskProfile, spec["task"]),
            Path(folder),
            allow_remote_code=spec["allow_remote_code"],
            on_cuda=spec["on_cuda"],
        )
        for each in spec["candidates"]:
            predictions.append(
                predict(
                    runner,
                    from_json(Candidate, each),
                    from_json(Terms, spec["terms"]),
                    rows,
                    order_seed=spec["order_seed"],
                )
            )
            if predictions[-1].taken_bytes(on_cuda=spec["on_cuda"]) <= spec["enough_bytes"]:
                break
    report("result", predictions=[to_json(prediction) for prediction in predictions])


def predict(
    runner: DryRunner, candidate: Candidate, terms: Terms, rows: RowFile, *, order_seed: int
) -> TrialPrediction:
    """Run dry the step in which a trial measures memory."""
    started_s = time.perf_counter()
    batch = batch_of(rows.heaviest(candidate.micro_batch, micro_batch=candidate.micro_batch))
    sizes = Sizes(runner, candidate, batch, terms)
    need, work = sizes.asked_about()
    row_tokens = 1 if batch.arrays else batch.length + (batch.target_length or 0)
    step_tokens = candidate.micro_batch * candidate.accumulation * row_tokens
    return TrialPrediction(
        need=need,
        work=work,
        host_bytes=sizes.host_bytes,
        traffic=sizes.traffic,
        step_tokens=step_tokens * content_share(rows, candidate, order_seed=order_seed),
        seconds=time.perf_counter() - started_s,
    )


def batch_of(examples: Sequence[Example]) -> Batch:
    """The shape of the micro-batch that these rows make."""
    if examples[0].arrays is not None:
        return Batch(rows=len(examples), length=0, arrays=arrays_of(examples[0]))
    lengths = {len(example.input_ids) for example in examples}
    targets = [len(example.target_ids) for example in examples if example.target_ids is not None]
    return Batch(
        rows=len(examples),
        length=max(lengths),
        target_length=max(targets, default=None),
        padded=len(lengths) > 1,
        packed=examples[0].starts is not None,
        has_types=any(example.token_types is not None for example in examples),
    )


def arrays_of(example: Example) -> tuple[ArrayOfBatch, ...]:
    """What ``collate`` makes of rows like this one."""
    arrays = {name: (array.shape, str(array.dtype)) for name, array in (example.arrays or {}).items()}
    if example.label is not None:
        arrays[TARGET] = (), "int64"
    elif example.numbers is not None:
        arrays[TARGET] = example.numbers.shape, str(example.numbers.dtype)
    return tuple(ArrayOfBatch(name, shape, dtype) for name, (shape, dtype) in arrays.items())


def content_share(rows: RowFile, candidate: Candidate, *, order_seed: int) -> float:
    """Part of the tokens in a trial's first batches that is no padding; rows that are no text have none."""
    if rows[0].arrays is not None:
        return 1.0
    size, content, total = candidate.micro_batch, 0, 0
    orders = step_rows(len(rows), effective_batch=candidate.recipe.effective_batch, seed=order_seed)
    for order in islice(orders, STEPS_LOOKED_AT):
        examples = [rows[number] for number in order]
        for start in range(0, len(examples), size):
            batch = batch_of(part := examples[start : start + size])
            content += sum(map(count_tokens, part))
            total += len(part) * (batch.length + (batch.target_length or 0))
    return content / total
