r"""Hold estimates of a rank against two real processes that train together.

    python benchmarks/ranks.py --write docs/ranks.md    # everything, eight minutes on two cores
    python benchmarks/ranks.py --quick                  # LoRA in float32, one minute
    python benchmarks/ranks.py --only ZeRO-3 --method lora --precision bfloat16

For each of DDP, DeepSpeed's ZeRO 1 to 3 with and without offload, and both versions of FSDP, two processes
are forked that meet over gloo and train a small Llama for a few steps through accelerate, as users run
them. No GPU is needed: DeepSpeed runs on its CPU accelerator. Every byte that torch's allocator on the CPU
hands out is counted, in a library that is put around it; the most of a step is held against the estimate of
a rank on a CPU. What a bucket holds and nothing fills is left out of both: DeepSpeed's are 2 GB, and would
hide any error of the rest.

Prints peaks by part of a step, and what a rank holds before it updates beside what theory says. Exit code 1
if an estimate is off by more than 5 %. The first run compiles the counter (seconds) and DeepSpeed's two
extensions for CPUs (minutes), and keeps them in ``~/.cache``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rank_parts.counting import built
from rank_parts.estimating import Told, estimate, theory
from rank_parts.launch import launched
from rank_parts.page import ENDING, INTRODUCTION, METHODS, PRECISION_NAMES, TABLE_HEAD
from rank_parts.rank import run
from rank_parts.schemes import PRECISIONS, RANKS, SCHEMES, Scheme, deepspeed_config

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Candidate, Method
from rankwise.optimizer.estimates.settings import Settings, candidate_from
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.probes.model import inspect_model, natural_task
from rankwise.probes.profiles import ModelProfile, TaskProfile
from rankwise.runners.dry_run import Batch
from rankwise.runners.dry_runner import DryRunner
from rankwise.runners.extensions import own_tools_first

GOAL = 0.05
ROWS, LENGTH, ACCUMULATION, STEPS = 2, 64, 2, 6
MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 4000,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
QUICK = ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3, small buckets", "ZeRO-2, optimizer offloaded", "FSDP1", "FSDP2")
LIBRARIES = ("torch", "accelerate", "deepspeed", "transformers", "peft")
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A scheme that ran, with its estimate."""

    scheme: str
    method: str
    precision: str
    ranks: tuple[Mapping[str, Any], ...]
    told: Told
    theory: Mapping[str, int]

    def peak(self, part: str) -> int:
        """Most that the rank held which held most."""
        most = max(rank["peaks"][part] for rank in self.ranks)
        return most - self.told.unfilled_bytes if most > self.told.unfilled_bytes else most

    @property
    def measured(self) -> int:
        return max(map(self.peak, self.told.peaks))

    @property
    def estimated(self) -> int:
        return max(self.told.peaks.values())

    @property
    def error(self) -> float:
        """Estimated over measured, less 1."""
        return self.estimated / self.measured - 1

    @property
    def held(self) -> dict[str, int]:
        """Before the update, of the rank that holds most; the rest is buffers and what is gathered."""
        return max((rank["held"] for rank in self.ranks), key=lambda held: sum(held.values()))


class Bench:
    """One small model, its candidates, and the processes that train them."""

    def __init__(self, folder: Path, *, watched: str | None = None) -> None:
        self.folder, self.watched, self.counting = folder, watched, built()
        self.path = folder / "model"
        self.path.mkdir(parents=True)
        (self.path / "config.json").write_text(json.dumps(MODEL))
        self.task: TaskProfile = natural_task(self.path, allow_remote_code=False)
        self.model: ModelProfile = inspect_model(self.path, source="model", revision=None, task=self.task)
        self.runner = DryRunner(self.model, self.task, folder, on_cuda=False)

    def candidate(self, scheme: Scheme, method: str, precision: str) -> Candidate:
        """What is trained, at the scheme's level."""
        settings = Settings(
            method=Method(method),
            micro_batch=ROWS,
            accumulation=ACCUMULATION,
            length=LENGTH,
            targets="full",
            gpus=RANKS,
        )
        made = candidate_from(settings, self.model, self.task.kind)
        return replace(made, level=scheme.level(precision))

    def compare(self, scheme: Scheme, method: str, precision: str) -> Compared:
        """Estimate, then run."""
        candidate = self.candidate(scheme, method, precision)
        told = estimate(self.runner, candidate, scheme, Batch(rows=ROWS, length=LENGTH))
        spec = {
            "model": str(self.path),
            "task": to_json(self.task),
            "candidate": to_json(candidate),
            "adapter": adapter_config(
                candidate, task_kind=self.task.kind, base_model=str(self.path), total_steps=100
            ),
            "rows": ROWS,
            "length": LENGTH,
            "accumulation": ACCUMULATION,
            "steps": STEPS,
            "deepspeed": deepspeed_config(candidate, scheme),
            "watched": self.watched,
        }
        name = f"{scheme.name} {method} {precision}".replace(", ", "-").replace(" ", "-")
        ranks = launched(
            self.folder / name,
            lambda rank, port, listening: run(rank, port, listening, spec, candidate.level, self.counting),
        )
        return Compared(
            scheme=scheme.name,
            method=method,
            precision=precision,
            ranks=tuple(ranks),
            told=told,
            theory=theory(candidate, self.model),
        )


def show(row: Compared) -> None:
    """Two lines: peaks measured → estimated, and what is held before the update beside theory."""
    parts = "  ".join(
        f"{part} {row.peak(part) / MIB:7.1f} → {told / MIB:7.1f}" for part, told in row.told.peaks.items()
    )
    print(f"{row.scheme:<30} {row.method:<5} {row.precision:<9} {row.error:+7.2%}   {parts}", flush=True)
    held = "  ".join(
        f"{name} {row.held[name] / MIB:.1f} ({row.theory[name] / MIB:.1f})" for name in row.theory
    )
    print(f"{'':<30} held (theory): {held}", flush=True)


def as_page(rows: Sequence[Compared], versions: str) -> str:
    """The page of the documentation."""
    lines = [INTRODUCTION.format(versions=versions)]
    for method, precision in dict.fromkeys((row.method, row.precision) for row in rows):
        lines += [f"\n## {METHODS[method]}, {PRECISION_NAMES[precision]}\n", *TABLE_HEAD]
        for row in rows:
            if (row.method, row.precision) == (method, precision):
                held = [f"{row.held[name] / MIB:.1f} ({row.theory[name] / MIB:.1f})" for name in row.theory]
                figures = [f"{row.measured / MIB:.1f}", f"{row.estimated / MIB:.1f}", f"{row.error:+.1%}"]
                lines.append(f"| {row.scheme} | {' | '.join((*held, *figures))} |")
    return "\n".join((*lines, ENDING))


def as_json(rows: Sequence[Compared]) -> str:
    """All figures, in bytes, for other programs."""
    return json.dumps(
        [
            {
                "scheme": row.scheme,
                "method": row.method,
                "precision": row.precision,
                "measured_bytes": row.measured,
                "estimated_bytes": row.estimated,
                "error": row.error,
                "held_bytes": row.held,
                "theory_bytes": row.theory,
                "host_bytes": row.told.host_bytes,
            }
            for row in rows
        ],
        indent=2,
    )


def main() -> int:
    """Exit code 1 if an estimate misses the goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAME", action="append", help="schemes of this name")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--quick", action="store_true", help="LoRA in float32, each kind of scheme once")
    parser.add_argument("--json", action="store_true", help="print figures as JSON, and nothing else")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page of the documentation")
    arguments = parser.parse_args()
    schemes = [s for s in SCHEMES if s.name in (arguments.only or (QUICK if arguments.quick else [s.name]))]
    methods = arguments.method or (("lora",) if arguments.quick else tuple(METHODS))
    precisions = arguments.precision or (("float32",) if arguments.quick else tuple(PRECISIONS))
    os.environ["PATH"] = own_tools_first(os.environ.get("PATH"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for method, precision, scheme in itertools.product(methods, precisions, schemes):
            rows.append(bench.compare(scheme, method, precision))
            if not arguments.json:
                show(rows[-1])
    if arguments.json:
        print(as_json(rows))
    if arguments.write:
        versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        arguments.write.write_text(as_page(rows, versions), encoding="utf-8")
    missed = [row for row in rows if abs(row.error) > GOAL]
    for row in missed:
        print(f"missed: {row.scheme}, {row.method}, {row.precision}: {row.error:+.1%}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
