"""Do the exported programs train what was measured, as fast, in as much memory?

    make demo
    python examples/prepare_demo.py build/demo --causal-lm
    rankwise recommend --model build/demo/smollm2 --data build/demo/texts.jsonl --method lora \\
        --max-length 32 --effective-batch 4 --budget 40s --max-trials 1 --out build/demo/causal
    python benchmarks/exports.py build/demo/recommendation build/demo/causal

Takes recommendations as they were handed over. The training of each is begun by ``train.py``, whose loop is
the trial's, and by every program for another trainer that suits the task: 20 steps, each run a process of its
own, forked from one that has the libraries loaded. Programs take turns, and the turn is repeated. Memory is
the peak of live tensor bytes over two steps. Speed is compared by steps 8 to 20, turn by turn, in wall time
and, since others' work falls on one of two runs, in the process's own processor time; the medians are given.
Prints a table and writes it to ``docs/exports-parity.md``; exits 1 if a program is further off than promised.
About five minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

STEPS = 20
FOLLOWED = (4, 6)
"""Tensors are counted from the end of the one step to the end of the other, which slows them down."""
TIMED_FROM = 8
REFERENCE = "train.py"
ANY_TASK = ("train_transformers.py", "train_lightning.py", "train_pytorch.py")
CAUSAL_TASKS = ("causal-lm", "prompt-completion", "chat")
LOSS_TOLERANCE, MEMORY_TOLERANCE, SPEED_TOLERANCE = 1e-3, 0.05, 0.15
MEASURED = "the tensors that were measured"
REPORT = Path(__file__).resolve().parents[1] / "docs" / "exports-parity.md"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "lightning")


LOADED = [*PACKAGES, "datasets", "rankwise.runners.tensor_memory"]


@dataclass(frozen=True, slots=True)
class Run:
    """What one process told."""

    losses: list[float]
    wall_s: float
    """Of the steps from :data:`TIMED_FROM` on."""
    processor_s: float
    """Of the same, by all threads of the process."""
    trained: str
    """The program's own sentence: how many parameters, and whether they are those that were measured."""
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """A program beside ``train.py``, whose figures are 1."""

    case: str
    program: str
    trained: str
    first: float
    """Difference of the first losses."""
    worst: float
    """Largest difference of all losses."""
    memory: float
    turns: list[float]
    """Steps per second of each turn."""
    work: float
    """Steps per second of processor time, the median of the turns."""

    @property
    def speed(self) -> float:
        """The median of the turns."""
        return statistics.median(self.turns)

    @property
    def holds(self) -> bool:
        """Within what was promised; faster is no harm."""
        return (
            self.trained.endswith(f", {MEASURED}")
            and self.worst <= LOSS_TOLERANCE
            and abs(self.memory - 1) <= MEMORY_TOLERANCE
            and max(self.speed, self.work) >= 1 - SPEED_TOLERANCE
        )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recommendation", type=Path, nargs="+", help="folder of rankwise recommend --out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--report", type=Path, default=REPORT)
    given = parser.parse_args()
    # As in trials: OpenMP's spinning threads make anything else on the machine slow them down.
    os.environ |= {"HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "1000"}
    multiprocessing.set_forkserver_preload(LOADED)
    rows: list[Row] = []
    for folder in given.recommendation:
        rows += compare(folder, given.repeats)
        given.report.write_text(report(rows, given.repeats), encoding="utf-8")
    print(given.report.read_text(encoding="utf-8"))
    if not all(row.holds for row in rows):
        sys.exit("a program is further from the trial than promised")


def compare(recommendation: Path, repeats: int) -> Iterator[Row]:
    """All programs that suit the task, beside ``train.py``."""
    from rankwise.runners.ready_files import compose_program

    values = values_of(recommendation / REFERENCE)
    causal = values["task"]["kind"] in CAUSAL_TASKS
    programs = (REFERENCE, *ANY_TASK, *(("train_trl.py",) if causal else ()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in programs:
            (folder / name).write_text(compose_program(name, values), encoding="utf-8")
        settings = json.loads((recommendation / "training_args.json").read_text(encoding="utf-8"))
        (folder / "training_args.json").write_text(json.dumps({**settings, "seed": values["seed"]}))
        runs: dict[str, list[Run]] = {name: [] for name in programs}
        for turn in range(repeats):
            for name in programs if turn % 2 == 0 else reversed(programs):
                runs[name].append(start(folder, name))
    reference, described = runs.pop(REFERENCE), values["description"].partition(";")[0]
    for name, found in runs.items():
        pairs = list(zip(reference, found, strict=True))
        yield Row(
            case=f"{Path(values['model']).name}, {values['task']['kind']}: {described}",
            program=name,
            trained=found[0].trained,
            first=max(abs(run.losses[0] - base.losses[0]) for base, run in pairs),
            worst=max(
                abs(a - b) for base, run in pairs for a, b in zip(base.losses, run.losses, strict=True)
            ),
            memory=max(run.peak_bytes for run in found) / max(run.peak_bytes for run in reference),
            turns=[base.wall_s / run.wall_s for base, run in pairs],
            work=statistics.median(base.processor_s / run.processor_s for base, run in pairs),
        )


def values_of(script: Path) -> dict[str, Any]:
    """What is written into a ``train.py``."""
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VALUES":
            values: dict[str, Any] = ast.literal_eval(node.value)
            return values
    raise SystemExit(f"{script} has no VALUES")


def start(folder: Path, name: str) -> Run:
    """Run a program for :data:`STEPS` steps in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        told, output, log = (Path(scratch, file) for file in ("told.json", "output.txt", "log.jsonl"))
        own = ["--out", f"{scratch}/out", "--log", str(log), "--max-steps", str(STEPS)]
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=run_child, args=(folder / name, told, output, own))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"{name} failed:\n{output.read_text()}")
        found = json.loads(told.read_text())
        losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
        lines = output.read_text().splitlines()
    trained = next(line for line in lines if line.startswith("trained "))
    print(f"{name}: {found}, {trained}", file=sys.stderr)
    return Run(losses=losses, trained=trained, **found)


def run_child(program: Path, told: Path, output: Path, arguments: list[str]) -> None:
    """The program's text in this process, its steps watched; writes what was seen to ``told``."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    module = ModuleType("program")
    module.__file__ = str(program)
    sys.modules["program"] = module  # dataclasses look for it
    exec(compile(program.read_text(encoding="utf-8"), str(program), "exec"), module.__dict__)  # noqa: S102
    names: dict[str, Any] = module.__dict__
    watch, tell = Watch(), names["StepLog"].tell

    def tell_and_watch(log: Any, step: int, *rest: Any) -> None:
        tell(log, step, *rest)
        watch.step(step)

    names["StepLog"].tell = tell_and_watch
    sys.argv = [str(program), *arguments]
    if code := names["main"]():
        sys.exit(code)
    told.write_text(json.dumps(watch.seen()))


class Watch:
    """When steps end, and how much their tensors take."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.memory: Any = None

    def step(self, number: int) -> None:
        """A step has ended."""
        from rankwise.runners.tensor_memory import TensorMemory

        self.ends.append((time.perf_counter(), time.process_time()))
        if number == FOLLOWED[0]:
            self.memory = TensorMemory()
            self.memory.follow(all_tensors())
            self.memory.__enter__()
        elif number == FOLLOWED[1]:
            self.memory.__exit__(None, None, None)

    def seen(self) -> dict[str, float]:
        """Fields of :class:`Run`."""
        (wall, processor), (wall_end, processor_end) = self.ends[TIMED_FROM - 1], self.ends[-1]
        return {
            "wall_s": wall_end - wall,
            "processor_s": processor_end - processor,
            "peak_bytes": self.memory.peak_bytes,
        }


def all_tensors() -> list[Any]:
    """Every tensor of this process that has numbers, gradients included."""
    import torch

    found: list[Any] = []
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.layout is torch.strided and not thing.is_meta:
            found.append(thing)
            if thing.is_leaf and thing.grad is not None:
                found.append(thing.grad)
    return found


def report(rows: Iterable[Row], repeats: int) -> str:
    """The page."""
    rows = list(rows)
    lines = [
        "# Exported programs beside the trial",
        "",
        f"Each program took the first {STEPS} steps of the training that `train.py`, whose loop is the",
        f"trial's, takes. Every run was a process of its own; programs took {repeats} turns. Memory",
        f"is the peak of live tensor bytes in a step; speed is that of steps {TIMED_FROM} to {STEPS}, the",
        "median of the turns (their range in brackets), beside that by the processor time of the process,",
        "which others on the machine disturb less. Those of `train.py` are 1. Losses may differ by",
        f"{LOSS_TOLERANCE}, memory by {MEMORY_TOLERANCE:.0%}; a program may be {SPEED_TOLERANCE:.0%} slower",
        "in one of the two: wall times tell little where others work beside it.",
        "",
    ]
    for case in dict.fromkeys(row.case for row in rows):
        lines += [
            f"**{case}**",
            "",
            "| program | trained | first loss | worst of 20 | memory | speed | by processor time | |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        lines += [table_line(row) for row in rows if row.case == case]
        lines.append("")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines += [
        f"On {machine()}, load average {os.getloadavg()[1]:.1f}.",
        f"Python {platform.python_version()}, {versions}.",
        "Made by `benchmarks/exports.py`, whose first lines say how.",
        "",
    ]
    return "\n".join(lines)


def table_line(row: Row) -> str:
    """A row as Markdown."""
    trained = row.trained.removeprefix("trained ").removesuffix(f", {MEASURED}")
    speed = f"{row.speed:.2f} ({min(row.turns):.2f}–{max(row.turns):.2f})"
    verdict = "holds" if row.holds else "**off**"
    losses, memory = (f"{row.first:.1e}", f"{row.worst:.1e}"), f"{row.memory:.3f}"
    cells = (f"`{row.program}`", trained, *losses, memory, speed, f"{row.work:.2f}", verdict)
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """The processor, its cores that this process may use, and the memory."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {facts.get('model name', platform.machine())}, {memory_gib:.0f} GiB"


if __name__ == "__main__":
    main()
