"""Build and train what the level factory makes, to see that nothing it makes fails.

    python benchmarks/matrix.py            # everything, about half an hour on two cores
    python benchmarks/matrix.py --quick    # each value of each setting once, about two minutes

A real encoder (all-MiniLM-L6-v2, classification) and a real language model (SmolLM2-135M), both cut to
their first two layers, so that a cell takes seconds. A cell is a family of adapters at a level; the family's
adapters (ranks, target sets) take turns. Each cell runs in a forked child: build, three optimizer steps,
and the very checks of a trial. Prints a table; exit code 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
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
EFFECTIVE_BATCH = 2
STEPS = 3
ROWS = 8
TOTAL_STEPS = 100
"""Of the training that AdaLoRA's pruning is planned for."""

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells and print the table; returns the exit code."""
    arguments = parse_arguments(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sources = run_alone(lambda: prepare_models(arguments.folder))
    home = Home(arguments.folder / "home").create()
    cells: list[Cell] = []
    refusals: dict[str, tuple[str, int]] = {}
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
            cells += cells_of(name, variant, request)
            for left_out in explain_refusals(variant, request):
                _, before = refusals.get(left_out.rule.name, ("", 0))
                refusals[left_out.rule.name] = (left_out.rule.reason, before + left_out.count)
    cells = list(
        {
            (cell.model, cell.candidate.level, family_of(cell.candidate.adapter)): cell for cell in cells
        }.values()
    )
    if arguments.quick:
        cells = covering(cells)
    print(f"{len(cells)} cells, {arguments.jobs} at a time", flush=True)
    importlib.import_module("rankwise.runners.trial.job")  # torch and all: children start in milliseconds
    results = []
    for result in run_cells(cells, arguments.jobs):
        results.append(result)
        print(line_of(result), flush=True)
    return summarise(results, refusals)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What may be chosen on the command line."""
    parser = argparse.ArgumentParser(description="Build and train what the level factory makes.")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "matrix", help="models go here")
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
            raise CellFailed(answer["problem"])
        return answer["result"]


def answer_of(work: Callable[[], Any]) -> dict[str, Any]:
    """The function's result or, in a line, its error; what it prints is lost."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        return {"result": work()}
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return {"problem": f"{type(error).__name__}: {str(error)[:500]} ({place})"}


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
                    yield Result(cell, child.seconds, None, str(error))


def run_alone(work: Callable[[], Any]) -> Any:
    """Run one function in a child and wait for its result."""
    child = Child(work)
    while not child.is_done():
        time.sleep(POLL_S)
    return child.result()


def try_cell(cell: Cell) -> int:
    """Three checked steps, in the child; returns the bytes of all weights."""
    import torch

    from rankwise.runners.recipe import step_rows
    from rankwise.runners.tokens import TokenFile
    from rankwise.runners.trial.job import checked, constant_rate
    from rankwise.runners.trial.loop import open_session, run_steps
    from rankwise.runners.trial.measure import weight_bytes

    torch.set_num_threads(1)
    facts, candidate = cell.facts, cell.candidate
    config = adapter_config(
        candidate, task_kind=facts.dataset.task.kind, base_model=facts.model.source, total_steps=TOTAL_STEPS
    )
    session = open_session(
        facts.model.path,
        task=to_json(facts.dataset.task),
        candidate=constant_rate(to_json(candidate)),
        adapter_config=config,
        pad_id=facts.pad_id,
        seed=0,
        total_steps=TOTAL_STEPS,
        on_cpu=True,
    )
    tokens = TokenFile(Path(facts.tokens_path) / "train.arrow")
    rows = [tokens[number] for number in range(ROWS)]
    order = step_rows(ROWS, effective_batch=EFFECTIVE_BATCH, seed=0)
    if len(list(checked(session, run_steps(session, rows, order), STEPS, most=STEPS))) < STEPS:
        raise CellFailed("fewer steps than asked for")
    return weight_bytes(session.model)


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
    outcome = "ok" if result.problem is None else f"FAILED {result.problem}"
    family = family_of(candidate.adapter)
    where = f"{family} r={candidate.adapter.rank or '-'} {candidate.adapter.target_set}"
    what = f"{result.cell.model:8s} {where:26s} {' '.join(settings):75s}"
    return f"{what} {result.seconds:5.1f} s {size:11s} {outcome}"


def summarise(results: Sequence[Result], refusals: dict[str, tuple[str, int]]) -> int:
    """Print what the factory left out and the counts; returns the exit code."""
    print("\nleft out by the factory (adapters at levels):")
    for name, (reason, count) in sorted(refusals.items(), key=lambda item: -item[1][1]):
        print(f"{count:6d}  {name}: {reason}")
    failed = sum(result.problem is not None for result in results)
    print(f"\n{len(results) - failed} ok, {failed} FAILED, of {len(results)} cells")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
