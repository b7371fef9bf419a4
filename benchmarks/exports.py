"""Do the exported programs train what was measured, as fast, in as much memory?

    make demo
    python examples/prepare_demo.py build/demo --causal-lm
    rankwise recommend --model build/demo/smollm2 --data build/demo/texts.jsonl --method lora \\
        --max-length 32 --effective-batch 4 --budget 40s --max-trials 1 --out build/demo/causal
    python benchmarks/exports.py build/demo/recommendation build/demo/causal

Takes recommendations as they were handed over. The training of each is begun by ``train.py``, whose loop is
the trial's, and by every program for another trainer that suits the task: 20 steps, each run a process of its
own. Programs take turns, and the turn is repeated. Memory is counted in one more run of each, for counting
slows it down: the peak of live tensor bytes over two steps. Speed is compared by the seconds of steps 4 to
20, turn by turn, and the median is given. Prints a table and writes it to ``docs/exports-parity.md``; exits 1
if a program is further off than promised. About fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

STEPS = 20
FIRST_TIMED = 4
"""Kernels are loaded and caches filled in those before."""
FOLLOWED = (4, 6)
"""Tensors are counted from the end of the one step to the end of the other."""
REFERENCE = "train.py"
ANY_TASK = ("train_transformers.py", "train_lightning.py", "train_pytorch.py")
CAUSAL_TASKS = ("causal-lm", "prompt-completion", "chat")
LOSS_TOLERANCE, MEMORY_TOLERANCE, SPEED_TOLERANCE = 1e-3, 0.05, 0.15
MEASURED = "the tensors that were measured"
REPORT = Path(__file__).resolve().parents[1] / "docs" / "exports-parity.md"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "lightning")


@dataclass(frozen=True, slots=True)
class Run:
    """What one process told."""

    losses: list[float]
    seconds: float
    """Of the steps from :data:`FIRST_TIMED` on."""
    trained: str
    """The program's own sentence: how many parameters, and whether they are those that were measured."""
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Row:
    """A program beside ``train.py``."""

    case: str
    program: str
    trained: str
    first: float
    """Difference of the first losses."""
    worst: float
    """Largest difference of all losses."""
    memory: float
    """Peak, that of ``train.py`` being 1."""
    turns: list[float]
    """Steps per second of each turn, those of ``train.py`` being 1."""

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
            and self.speed >= 1 - SPEED_TOLERANCE
        )


def main() -> None:
    """Run everything; or, in a process that this one started, one program."""
    if sys.argv[1:2] == ["--child"]:
        run_child(Path(sys.argv[2]), counts=sys.argv[3] == "counts", arguments=sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recommendation", type=Path, nargs="+", help="folder of rankwise recommend --out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--report", type=Path, default=REPORT)
    given = parser.parse_args()
    rows: list[Row] = []
    for folder in given.recommendation:
        rows += compare(folder, given.repeats)
    text = report(rows, given.repeats)
    print(text)
    given.report.write_text(text, encoding="utf-8")
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
        counted = {name: start(folder, name, counts=True) for name in programs}
        timed: dict[str, list[Run]] = {name: [] for name in programs}
        for turn in range(repeats):
            for name in programs if turn % 2 == 0 else reversed(programs):
                timed[name].append(start(folder, name, counts=False))
    reference, described = timed[REFERENCE], values["description"].partition(";")[0]
    for name in programs[1:]:
        runs = timed[name]
        apart = [abs(a - b) for run in runs for a, b in zip(run.losses, reference[0].losses, strict=True)]
        yield Row(
            case=f"{Path(values['model']).name}, {values['task']['kind']}: {described}",
            program=name,
            trained=runs[0].trained,
            first=max(abs(run.losses[0] - reference[0].losses[0]) for run in runs),
            worst=max(apart),
            memory=(counted[name].peak_bytes or 0) / (counted[REFERENCE].peak_bytes or 1),
            turns=[base.seconds / run.seconds for base, run in zip(reference, runs, strict=True)],
        )


def values_of(script: Path) -> dict[str, Any]:
    """What is written into a ``train.py``."""
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VALUES":
            values: dict[str, Any] = ast.literal_eval(node.value)
            return values
    raise SystemExit(f"{script} has no VALUES")


def start(folder: Path, name: str, *, counts: bool) -> Run:
    """Run a program for :data:`STEPS` steps in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        told, log = Path(scratch, "told.json"), Path(scratch, "log.jsonl")
        command = [sys.executable, __file__, "--child", folder / name, "counts" if counts else "times", told]
        command += ["--out", Path(scratch, "out"), "--log", log, "--max-steps", str(STEPS)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "1000"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
        found = json.loads(told.read_text())
        losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    trained = next(line for line in done.stdout.splitlines() if line.startswith("trained "))
    print(f"{name}: {found['seconds']:.2f} s, {trained}, peak {found['peak_bytes']}", file=sys.stderr)
    return Run(losses, found["seconds"], trained, found["peak_bytes"])


def run_child(program: Path, *, counts: bool, arguments: list[str]) -> None:
    """The program's text in this process, its steps watched; writes what was seen to the first argument."""
    told, *own = arguments
    module = ModuleType("program")
    module.__file__ = str(program)
    sys.modules["program"] = module  # dataclasses look for it
    exec(compile(program.read_text(encoding="utf-8"), str(program), "exec"), module.__dict__)  # noqa: S102
    watch = Watch(counts=counts)
    tell = module.StepLog.tell  # type: ignore[attr-defined]

    def tell_and_watch(log: Any, step: int, *rest: Any) -> None:
        tell(log, step, *rest)
        watch.step(step)

    module.StepLog.tell = tell_and_watch  # type: ignore[attr-defined]
    sys.argv = [str(program), *own]
    if code := module.main():  # type: ignore[attr-defined]
        sys.exit(code)
    seconds = sum(after - before for before, after in pairwise(watch.ends[FIRST_TIMED - 1 :]))
    Path(told).write_text(json.dumps({"seconds": seconds, "peak_bytes": watch.peak_bytes}))


class Watch:
    """When steps end, and, if asked, how much their tensors take."""

    def __init__(self, *, counts: bool) -> None:
        self.counts = counts
        self.ends: list[float] = []
        self.peak_bytes: int | None = None

    def step(self, number: int) -> None:
        """A step has ended."""
        from rankwise.runners.tensor_memory import TensorMemory

        self.ends.append(time.perf_counter())
        if self.counts and number == FOLLOWED[0]:
            self.memory = TensorMemory()
            self.memory.follow(all_tensors())
            self.memory.__enter__()
        elif self.counts and number == FOLLOWED[1]:
            self.memory.__exit__(None, None, None)
            self.peak_bytes = self.memory.peak_bytes


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
        f"trial's, takes. Every run was a process of its own; programs took turns, {repeats} times. Memory",
        "is the peak of live tensor bytes in a step; speed is that of steps 4 to 20, the median of the turns",
        f"(their range in brackets). Those of `train.py` are 1. Losses may differ by {LOSS_TOLERANCE},",
        f"memory by {MEMORY_TOLERANCE:.0%}; a program may be {SPEED_TOLERANCE:.0%} slower.",
        "",
    ]
    for case in dict.fromkeys(row.case for row in rows):
        lines += [f"**{case}**", "", "| program | trained | first loss | worst of 20 | memory | speed | |"]
        lines.append("|---|---|---|---|---|---|---|")
        lines += [table_line(row) for row in rows if row.case == case]
        lines.append("")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines += [
        f"On {machine()}; Python {platform.python_version()}, {versions}.",
        "Made by `benchmarks/exports.py`, whose first lines say how.",
        "",
    ]
    return "\n".join(lines)


def table_line(row: Row) -> str:
    """A row as Markdown."""
    trained = row.trained.removeprefix("trained ").removesuffix(f", {MEASURED}")
    speed = f"{row.speed:.2f} ({min(row.turns):.2f}–{max(row.turns):.2f})"
    verdict = "holds" if row.holds else "**off**"
    cells = (
        f"`{row.program}`",
        trained,
        f"{row.first:.1e}",
        f"{row.worst:.1e}",
        f"{row.memory:.3f}",
        speed,
        verdict,
    )
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
