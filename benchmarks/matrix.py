"""Build and train what the level factory makes, to see that nothing it makes fails.

    python benchmarks/matrix.py            # everything, about half an hour on two cores
    python benchmarks/matrix.py --quick    # each value of each setting once, about two minutes

A real encoder (all-MiniLM-L6-v2, classification) and a real language model (SmolLM2-135M), both cut to
their first two layers, so that a cell takes seconds. A cell is a family of adapters at a level; the family's
adapters (ranks, target sets) take turns. Rows that several samples share are tried at a few levels in which
each value of each setting occurs. Each cell runs in a forked child: build, three optimizer steps, the very
checks of a trial, an evaluation, and a look at whether dtypes and quantization are those of the level.
Prints a table that ends with totals; exit code 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from rankwise.home import Home
from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Level,
    Method,
    Quantization,
    StudyFacts,
    StudyRequest,
)
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.levels import enumerate_candidates, explain_refusals
from rankwise.runners.jobs import prepare_once

REPOSITORY = Path(__file__).parents[1]
LAYERS = 2
MAX_LENGTH = 32
PACKED_LENGTH = 96
EFFECTIVE_BATCH = 2
STEPS = 3
ROWS = 8
PACKED = "packed"
"""In the name of a model whose rows are shared by several samples."""

CELL_LIMIT_S = 600.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """One adapter at one level on one model."""

    model: str
    facts: StudyFacts
    candidate: Candidate

    @property
    def place(self) -> tuple[str, str, Level]:
        """Where it stands in the matrix."""
        return self.model, family_of(self.candidate.adapter), self.candidate.level

    @property
    def values(self) -> frozenset[tuple[str, str]]:
        """What a covering subset has to meet: each setting's value, on each model."""
        level = dataclasses.asdict(self.candidate.level)
        return frozenset(
            {(f"{self.model} {name}", str(value)) for name, value in level.items()}
            | {(f"{self.model} adapter", family_of(self.candidate.adapter))}
        )


@dataclass(frozen=True, slots=True)
class Result:
    """How a cell ended; ``problem`` is None where all is well."""

    cell: Cell
    seconds: float
    weight_bytes: int | None
    problem: str | None
    refused: bool = False
    """The problem is that a library refused to build what the factory made."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells and print the table; returns the exit code."""
    arguments = parse_arguments(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    named = {Path(model).name: (model, data) for model, data in arguments.model}
    sources = named or run_alone(lambda: prepare_models(arguments.folder))
    cells, refusals = prepare_cells(arguments.folder, sources)
    few = covering(cells)
    if arguments.quick:
        cells = few
    print(f"{len(cells)} cells, {arguments.jobs} at a time", flush=True)
    preload(few)
    results = []
    for result in run_cells(cells, arguments.jobs):
        results.append(result)
        print(line_of(result), flush=True)
    return summarise(results, refusals)


Refusals = dict[str, tuple[str, int]]
"""Name of a rule → its reason, and how many adapters at levels it kept out."""


def prepare_cells(folder: Path, sources: Mapping[str, tuple[str, str]]) -> tuple[list[Cell], Refusals]:
    """What the factory makes for models and their data, and what its rules refuse.

    Args:
        folder: where tokens are kept.
        sources: name → (model, data).
    """
    home = Home(folder / "home").create()
    cells: dict[tuple[str, str, Level], Cell] = {}
    refusals: Refusals = {}
    for name, (model, data) in sources.items():
        request = StudyRequest(
            model=model,
            dataset=data,
            methods=tuple(Method),
            effective_batch=EFFECTIVE_BATCH,
            max_length=MAX_LENGTH,
        )
        facts = prepare_once(home, request)
        for variant in variants_of(facts):
            cells.update((cell.place, cell) for cell in cells_of(name, variant, request))
            for left_out in explain_refusals(variant, request):
                _, before = refusals.get(left_out.rule.name, ("", 0))
                refusals[left_out.rule.name] = (left_out.rule.reason, before + left_out.count)
        if facts.dataset.task.kind.is_causal:
            packed_request = dataclasses.replace(request, packing=True, max_length=PACKED_LENGTH)
            packed = next(variants_of(prepare_once(home, packed_request)))
            few = covering(list(cells_of(f"{name} {PACKED}", packed, packed_request)))
            cells.update((cell.place, cell) for cell in few)
    return list(cells.values()), refusals


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What may be chosen on the command line."""
    parser = argparse.ArgumentParser(description="Build and train what the level factory makes.")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "matrix", help="models go here")
    parser.add_argument(
        "--model",
        nargs=2,
        action="append",
        default=[],
        metavar=("FOLDER", "DATA"),
        help="try this model with these data instead; may be given again",
    )
    parser.add_argument("--quick", action="store_true", help="each value of each setting once")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time")
    return parser.parse_args(argv)


def prepare_models(folder: Path) -> dict[str, tuple[str, str]]:
    """Lay out both models, cut, and their data; name → (model, data). Imports torch."""
    import torch
    import transformers

    spec = importlib.util.spec_from_file_location("prepare_demo", REPOSITORY / "examples" / "prepare_demo.py")
    demo: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.link_encoder(folder / "minilm")
    demo.convert_language_model(folder / "smollm2")
    demo.write_reviews(folder / "reviews.csv")
    demo.write_texts(folder / "texts.jsonl")
    cut = {"minilm": transformers.AutoModel, "smollm2": transformers.AutoModelForCausalLM}
    for name, auto_class in cut.items():
        target = folder / f"{name}-{LAYERS}-layers"
        if not target.exists():
            config = transformers.AutoConfig.from_pretrained(folder / name, num_hidden_layers=LAYERS)
            model = auto_class.from_pretrained(folder / name, config=config, dtype=torch.float32)
            unfinished = target.with_suffix(".partial")
            model.save_pretrained(unfinished)
            transformers.AutoTokenizer.from_pretrained(folder / name).save_pretrained(unfinished)
            unfinished.rename(target)
    return {
        "MiniLM": (str(folder / f"minilm-{LAYERS}-layers"), str(folder / "reviews.csv")),
        "SmolLM2": (str(folder / f"smollm2-{LAYERS}-layers"), str(folder / "texts.jsonl")),
    }


def variants_of(facts: StudyFacts) -> Iterator[StudyFacts]:
    """The facts of this machine as if its CPU had bfloat16 (emulated, it computes the same), and had not."""
    for native in (True, False):
        host = dataclasses.replace(facts.hardware.host, native_bf16=native)
        yield dataclasses.replace(facts, hardware=dataclasses.replace(facts.hardware, host=host, gpus=()))


def preload(cells: Collection[Cell]) -> None:
    """Import what these cells import, so that children share it and start in milliseconds."""
    importlib.import_module("rankwise.runners.trial.job")

    def modules_imported() -> list[str]:
        before = set(sys.modules)
        for cell in cells:
            with suppress(Exception):  # it is reported once the cell has its turn
                try_cell(cell)
        return [name for name in sys.modules if name not in before]

    for name in run_alone(modules_imported):
        with suppress(Exception):  # some stand in sys.modules under a name that cannot be imported
            importlib.import_module(name)


def cells_of(name: str, facts: StudyFacts, request: StudyRequest) -> Iterator[Cell]:
    """One cell for each family of adapters and each level that any of them is made at."""
    made: dict[tuple[str, Level], list[Candidate]] = {}
    for asked in ((), tuple(Quantization)):
        for candidate in enumerate_candidates(facts, dataclasses.replace(request, quantizations=asked)):
            if candidate.micro_batch == 1:
                made.setdefault((family_of(candidate.adapter), candidate.level), []).append(candidate)
    turns: dict[str, Iterator[int]] = {}
    for (family, _), candidates in made.items():
        turn = next(turns.setdefault(family, cycle(range(len(candidates)))))
        yield Cell(name, facts, candidates[turn % len(candidates)])


def family_of(adapter: Adapter) -> str:
    """Name of what PEFT builds in the same way."""
    variants = {"rslora": adapter.use_rslora, "dora": adapter.use_dora, adapter.init_weights: True}
    return next((name for name, on in variants.items() if on and name), adapter.method.value)


def covering(cells: Sequence[Cell]) -> list[Cell]:
    """A few cells in which every value of every setting occurs: greedily, the cell with most new ones."""
    missing = frozenset().union(*(cell.values for cell in cells))
    chosen = []
    while missing:
        best = max(cells, key=lambda cell: len(cell.values & missing))
        chosen.append(best)
        missing -= best.values
    return chosen


class CellFailed(Exception):
    """What a child said, or how it died."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


class Refused(Exception):
    """A library, or the builder, refused to make what the factory made."""


class Child:
    """A function at work in a forked child; its result, JSON data, comes through a pipe."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.started_s = time.monotonic()
        self.data = b""
        self.reader, writer = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.write(writer, json.dumps(answer_of(work)).encode())
            finally:
                os._exit(0)
        os.close(writer)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started_s

    def is_done(self) -> bool:
        """Read what is there; True at the end, or once the child has taken too long and is killed."""
        if self.seconds > CELL_LIMIT_S:
            os.kill(self.pid, signal.SIGKILL)
        while select.select([self.reader], [], [], 0)[0]:
            if not (piece := os.read(self.reader, 65536)):
                return True
            self.data += piece
        return False

    def result(self) -> Any:
        """What the function returned, once it is done; CellFailed if it did not return."""
        os.close(self.reader)
        _, status = os.waitpid(self.pid, 0)
        if not self.data:
            raise CellFailed(f"the process died after {self.seconds:.0f} s: wait status {status}")
        answer = json.loads(self.data)
        if "problem" in answer:
            raise CellFailed(answer["problem"], refused=answer["refused"])
        return answer["result"]


def answer_of(work: Callable[[], Any]) -> dict[str, Any]:
    """The function's result or, in a line, its error; what it prints is lost."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        return {"result": work()}
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
        cause = error.__cause__ or error if isinstance(error, Refused) else error
        last = traceback.extract_tb(cause.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        text = f"{type(cause).__name__}: {str(cause)[:500]} ({place})"
        return {"problem": text, "refused": isinstance(error, Refused)}


def run_cells(cells: Sequence[Cell], jobs: int) -> Iterator[Result]:
    """Run each cell in a child of its own, some at a time."""
    waiting, running = list(cells)[::-1], dict[int, tuple[Cell, Child]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            cell = waiting.pop()
            child = Child(partial(try_cell, cell))
            running[child.pid] = cell, child
        time.sleep(POLL_S)
        for cell, child in list(running.values()):
            if child.is_done():
                del running[child.pid]
                try:
                    yield Result(cell, child.seconds, child.result(), None)
                except CellFailed as error:
                    yield Result(cell, child.seconds, None, str(error), error.refused)


def run_alone(work: Callable[[], Any]) -> Any:
    """Run one function in a child and wait for its result."""
    child = Child(work)
    while not child.is_done():
        time.sleep(POLL_S)
    return child.result()


def try_cell(cell: Cell) -> int:
    """Three checked steps and an evaluation, in the child; returns the bytes of all weights.

    AdaLoRA's pruning is planned for these three steps: it happens in the second.
    """
    import torch

    from rankwise.runners.recipe import step_rows
    from rankwise.runners.tokens import TokenFile
    from rankwise.runners.trial.evaluation import evaluate
    from rankwise.runners.trial.job import check_packing, checked
    from rankwise.runners.trial.loop import run_steps
    from rankwise.runners.trial.measure import weight_bytes

    torch.set_num_threads(1)
    tokens = Path(cell.facts.tokens_path)
    rows = TokenFile(tokens / "train.arrow")
    session = open_cell(cell)
    require_level(session.model, cell.candidate)
    if cell.candidate.recipe.packing:
        check_packing(session, rows)
    chosen = [rows[number] for number in range(ROWS)]
    order = step_rows(ROWS, effective_batch=EFFECTIVE_BATCH, seed=0)
    if len(list(checked(session, run_steps(session, chosen, order), STEPS, most=STEPS))) < STEPS:
        raise CellFailed("fewer steps than asked for")
    heldout = TokenFile(tokens / "heldout.arrow")
    if not math.isfinite(evaluate(session, [heldout[number] for number in range(EFFECTIVE_BATCH)]).loss):
        raise CellFailed("the held-out loss is no number")
    return weight_bytes(session.model)


def open_cell(cell: Cell) -> Any:
    """The session of a cell.

    Raises:
        Refused: it cannot be built.
    """
    from rankwise.runners.trial.job import constant_rate
    from rankwise.runners.trial.loop import open_session

    facts, candidate = cell.facts, cell.candidate
    config = adapter_config(
        candidate, task_kind=facts.dataset.task.kind, base_model=facts.model.source, total_steps=STEPS
    )
    try:
        return open_session(
            facts.model.path,
            task=to_json(facts.dataset.task),
            candidate=constant_rate(to_json(candidate)),
            adapter_config=config,
            pad_id=facts.pad_id,
            seed=0,
            total_steps=STEPS,
            on_cpu=True,
        )
    except Exception as error:
        raise Refused from error


def require_level(model: Any, candidate: Candidate) -> None:
    """Raise :class:`CellFailed` unless dtypes and quantization are those of the level.

    What is trained is in the adapter's dtype; the layers that the sizes count as quantized are, in the
    level's way; all other matrices are in the weights' dtype.
    """
    import torch

    level = candidate.level
    stored = {"int8": "Int8Params", "nf4": "Params4bit", "fp4": "Params4bit"}.get(level.quantization)
    quantized = 0
    for name, parameter in model.named_parameters():
        kind, state = type(parameter).__name__, getattr(parameter, "quant_state", None)
        if kind in ("Int8Params", "Params4bit"):
            quantized += 1
            if kind != stored or parameter.requires_grad:
                raise CellFailed(f"{name} is {kind}")
            if state and (state.quant_type, state.nested) != (level.quantization, level.double_quantization):
                raise CellFailed(f"{name} is {state.quant_type}, nested {state.nested}")
        elif parameter.requires_grad or parameter.dim() > 1:
            wanted = level.adapter_dtype if parameter.requires_grad else level.weight_dtype
            if parameter.dtype != getattr(torch, wanted):
                raise CellFailed(f"{name} is {parameter.dtype}, and the level says {wanted}")
    if bool(quantized) != bool(stored):
        raise CellFailed(f"{quantized} weights are quantized")


def line_of(result: Result) -> str:
    """A row of the table."""
    candidate = result.cell.candidate
    level = candidate.level
    settings = [
        level.quantization + ("+double" if level.double_quantization else ""),
        f"{level.weight_dtype}/{level.compute_dtype}",
        "checkpointing" if level.gradient_checkpointing else "-",
        level.attention,
        level.loss,
        level.optimizer,
    ]
    size = "" if result.weight_bytes is None else f"{result.weight_bytes / 2**20:6.1f} MiB"
    verdict = "REFUSED" if result.refused else "FAILED"
    outcome = "ok" if result.problem is None else f"{verdict} {result.problem}"
    family = family_of(candidate.adapter)
    where = f"{family} r={candidate.adapter.rank or '-'} {candidate.adapter.target_set}"
    what = f"{result.cell.model:14s} {where:26s} {' '.join(settings):75s}"
    return f"{what} {result.seconds:5.1f} s {size:11s} {outcome}"


def summarise(results: Sequence[Result], refusals: Refusals) -> int:
    """Print what the factory's rules left out, and the totals; returns the exit code."""
    print("\nrefused by rules (adapters at levels):")
    for name, (reason, count) in sorted(refusals.items(), key=lambda item: -item[1][1]):
        print(f"{count:6d}  {name}: {reason}")
    refused = sum(result.refused for result in results)
    failed = sum(result.problem is not None for result in results) - refused
    print(f"\n{len(results):6d}  cells")
    print(f"{len(results) - refused - failed:6d}  ok")
    print(f"{sum(count for _, count in refusals.values()):6d}  refused by {len(refusals)} rules, see above")
    print(f"{refused:6d}  made by the factory, then refused by a library")
    print(f"{failed:6d}  failed in a step, a check or the evaluation")
    return 1 if refused or failed else 0


if __name__ == "__main__":
    sys.exit(main())
