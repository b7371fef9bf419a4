r"""Judge memory estimates against runs that others measured and published.

    python benchmarks/published.py ../shared/data/published_runs.csv --stack build/stack

Prints by source and metric the median and the 95th percentile of the error, the share that was
under-predicted, and whether "fits" was right; then which runs cannot be compared, and why. Takes one to five
seconds a run: three minutes or more in all, one for the runs of known code and settings (``--plain``).
Metrics are never mixed: *allocated* and *reserved* are PyTorch's maxima, *nvidia-smi* is judged against
reserved and the CUDA context, at most the whole GPU.

**Stacks.** What a step keeps depends on the versions of transformers and PEFT: 4.48 keeps one copy of the
logits more than 4.45. A run is judged by the version that its row names; others are shown apart. To make an
environment with that version, beside this one, whose torch it borrows, with this one activated:

    python -m venv build/stack
    build/stack/bin/pip install --no-deps transformers==4.48.1 tokenizers==0.21.0 \
        huggingface_hub==0.27.1 peft==0.13.2 accelerate==1.0.1 requests urllib3 idna charset-normalizer
    python -c "import sysconfig as s; print('import site; site.addsitedir(%r)' % s.get_path('purelib'))" \
        > $(echo build/stack/lib/python3*/site-packages)/project.pth

(For transformers 4.45.2: tokenizers 0.20.3, huggingface_hub 0.26.2.) bitsandbytes is this environment's: its
4-bit layers keep the same since 0.43.

**What the trainers did** is taken from their repositories. fms_acceleration is Hugging Face's Trainer by way
of TRL 0.11 to 0.13: re-entrant checkpointing, foreach AdamW, float32 adapters, autocast only where the row
says "amp", masks without padding; 4-bit scales are quantized too. ``baseline-peft-bnb`` goes through PEFT's
``prepare_model_for_kbit_training`` and TRL's ``peft_module_casting_to_bf16``, which leaves norms in float32;
``accelerated-peft-bnb`` leaves all as it is. FSDP is accelerate's first version.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published_parts.rows import ALLOCATED, DEVICE, JUDGED, PLAIN, RESERVED, Published, read

from rankwise.optimizer.estimates.estimate import Target, fits, memory_of
from rankwise.optimizer.estimates.intervals import Fits, log_ratios
from rankwise.optimizer.estimates.need import Need

TRACE = Path(__file__).parent / "published_parts" / "trace.py"
GOALS = {ALLOCATED: (0.02, 0.10), RESERVED: (0.05, None)}
"""Metric → median and 95th percentile of the error that plain runs on their own stack may have."""
MOST_WRONG = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A published run with its estimate."""

    run: Published
    group: str
    need: Need
    target: Target

    @property
    def estimated(self) -> dict[str, int]:
        """Metric → bytes."""
        device = self.need.reserved_bytes + self.target.overhead.mid
        return {
            ALLOCATED: self.need.allocated_bytes,
            RESERVED: self.need.reserved_bytes,
            DEVICE: min(device, self.target.capacity_bytes or device),
        }

    @property
    def answer(self) -> Fits | None:
        return fits(memory_of(self.need, self.target), self.target)

    @property
    def is_right(self) -> bool | None:
        """None where it was too close to call."""
        if self.answer not in (Fits.YES, Fits.NO):
            return None
        return (self.answer is Fits.YES) == self.run.ran


def estimates(runs: Sequence[Published], python: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The versions that estimate, and an answer a run; equal ones are estimated once.

    Raises:
        SystemExit: the environment cannot run this package.
    """
    keys = [json.dumps(run.run, sort_keys=True) for run in runs]
    unique = list(dict.fromkeys(keys))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [python, TRACE],
        input=f"[{','.join(unique)}]",
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    if child.returncode or len(lines) != len(unique) + 1:
        raise SystemExit(f"{python} cannot estimate (exit code {child.returncode}): see its message above")
    answers = dict(zip(unique, lines[1:], strict=True))
    return lines[0], [answers[key] for key in keys]


def judge(run: Published, answer: Mapping[str, Any], versions: Mapping[str, str]) -> Judged:
    """The run beside its estimate, in its group: runs of another stack are apart."""
    group = run.group
    if run.group in JUDGED and run.transformers != versions["transformers"]:
        group += f", ran on {'transformers ' + run.transformers if run.transformers else 'a stack not named'}"
    need = Need(
        allocated_bytes=answer["allocated_bytes"],
        reserved_bytes=answer["reserved_bytes"],
        by_phase=answer["by_phase"],
        breakdown=answer["breakdown"],
    )
    return Judged(run=run, group=group, need=need, target=Target(gpu=run.gpu, gpus=run.gpus))


def residuals_of(judged: Sequence[Judged]) -> dict[str, list[float]]:
    """ln(measured / estimated) by kind of run and metric, in order: what intervals are made of.

    Of allocated only runs on the stack that estimates; of reserved all, as none names its stack. Runs that
    differ in nothing but the GPU, and measured the same, count once.
    """
    found: defaultdict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for row in judged:
        for metric in (ALLOCATED, RESERVED):
            measured = row.run.measured.get(metric)
            if measured is None or row.run.group not in JUDGED:
                continue
            if metric == ALLOCATED and row.group not in JUDGED:
                continue
            (residual,) = log_ratios([(row.estimated[metric], measured)])
            found[f"{row.run.group}: {metric}"][row.run.label, measured] = round(residual, 4) + 0.0
    return {kind: sorted(own.values()) for kind, own in found.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that this share of them does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def errors_of(rows: Sequence[Judged], metric: str) -> list[float]:
    """Estimated over measured, less 1."""
    return [
        row.estimated[metric] / row.run.measured[metric] - 1 for row in rows if metric in row.run.measured
    ]


def print_errors(rows: Sequence[Judged]) -> list[str]:
    """A line a metric; returns what misses a goal."""
    missed = []
    for metric in (ALLOCATED, RESERVED, DEVICE):
        errors = errors_of(rows, metric)
        if not errors:
            continue
        sizes = [abs(error) for error in errors]
        median, worst = statistics.median(sizes), percentile(sizes, 0.95)
        below = sum(error < 0 for error in errors) / len(errors)
        print(
            f"{'':<46} {metric:<10} {len(errors):>4} {median:>8.2%} {worst:>8.2%} {below:>7.0%}"
            f" {statistics.median(errors):>+9.2%}"
        )
        if rows[0].group == PLAIN and metric in GOALS:
            for value, goal in zip((median, worst), GOALS[metric], strict=True):
                if goal is not None and value > goal:
                    missed.append(f"{rows[0].group}: {metric} error {value:.1%} is over {goal:.0%}")
    return missed


def print_verdicts(rows: Sequence[Judged]) -> list[str]:
    """How often "fits" was right; returns what misses a goal."""
    called = [row for row in rows if row.is_right is not None]
    wrong = [row for row in called if not row.is_right]
    dangerous = [row for row in wrong if row.answer is Fits.YES]
    ended = sum(not row.run.ran for row in rows)
    print(
        f"{'':<46} {len(rows):>4} {ended:>5} {len(called) - len(wrong):>6} {len(wrong):>6}"
        f" {len(dangerous):>10} {len(rows) - len(called):>10}"
    )
    if rows[0].group not in JUDGED or not called:
        return []
    missed = [f"{row.run.label}: said to fit, and ran out of memory" for row in dangerous]
    if len(wrong) > MOST_WRONG * len(called):
        missed.append(f"{rows[0].group}: {len(wrong)} of {len(called)} verdicts are wrong")
    return missed


def print_rows(rows: Sequence[Judged]) -> None:
    for row in rows:
        figures = [
            f"{metric} {row.run.measured[metric] / 2**30:.2f} → {row.estimated[metric] / 2**30:.2f} GiB "
            f"({row.estimated[metric] / row.run.measured[metric] - 1:+.2%})"
            for metric in (ALLOCATED, RESERVED, DEVICE)
            if metric in row.run.measured
        ]
        outcome = "ran" if row.run.ran else "out of memory"
        print(
            f"  line {row.run.number:<4} {row.run.label:<58} {'; '.join(figures)} [{outcome}, {row.answer}]"
        )


def report(judged: Sequence[Judged], *, with_rows: bool) -> list[str]:
    """Print all tables; returns what misses a goal."""
    groups: defaultdict[tuple[str, str], list[Judged]] = defaultdict(list)
    for row in judged:
        groups[row.group, row.run.source].append(row)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] not in JUDGED, item[0]))
    missed = []
    print(f"\n{'error':<46} {'metric':<10} {'runs':>4} {'median':>8} {'95th':>8} {'below':>7} {'bias':>9}")
    for (group, source), rows in ordered:
        print(f" {group} ({source})")
        missed += print_errors(rows)
    columns = ("runs", 4), ("OOM", 5), ("right", 6), ("wrong", 6), ("dangerous", 10), ("too close", 10)
    print(f"\n{'does it fit?':<46} {' '.join(f'{name:>{width}}' for name, width in columns)}")
    for (group, source), rows in ordered:
        print(f" {group} ({source})")
        missed += print_verdicts(rows)
    if with_rows:
        for (group, source), rows in ordered:
            print(f"\n{group} ({source})")
            print_rows(rows)
    return missed


def as_json(judged: Sequence[Judged], versions: Mapping[str, str], left_out: Counter[str]) -> str:
    """All figures, for other programs."""
    return json.dumps(
        {
            "versions": versions,
            "runs": [
                {
                    "line": row.run.number,
                    "source": row.run.source,
                    "label": row.run.label,
                    "group": row.group,
                    "ran": row.run.ran,
                    "answer": row.answer,
                    "measured_bytes": row.run.measured,
                    "estimated_bytes": row.estimated,
                }
                for row in judged
            ],
            "residuals": residuals_of(judged),
            "left_out": left_out,
        },
        indent=2,
    )


def main() -> int:
    """Exit code 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the published runs (CSV)")
    parser.add_argument("--stack", type=Path, help="an environment with the runs' own transformers and PEFT")
    parser.add_argument(
        "--plain", action="store_true", help="leave out runs of other code than transformers'"
    )
    parser.add_argument("--rows", action="store_true", help="print each run")
    parser.add_argument("--json", action="store_true", help="print figures as JSON, and nothing else")
    arguments = parser.parse_args()
    python = Path(sys.executable) if arguments.stack is None else arguments.stack / "bin" / "python"
    if not python.exists():
        parser.error(f"{arguments.stack} is no virtual environment: the docstring says how to make one")
    table = list(read(arguments.runs))
    compared = [run for run in table if run.run is not None and (run.group in JUDGED or not arguments.plain)]
    versions, answers = estimates(compared, python)
    left_out = Counter(f"{run.source}: {run.reason}" for run in table if run.run is None)
    judged = []
    for run, answer in zip(compared, answers, strict=True):
        if "error" in answer:
            left_out[f"{run.source}: {run.label}: {answer['error']}"] += 1
        else:
            judged.append(judge(run, answer, versions))
    if arguments.json:
        print(as_json(judged, versions, left_out))
        return 0
    print("estimated with " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    missed = report(judged, with_rows=arguments.rows)
    print(f"\nnot comparable: {sum(left_out.values())} of {len(table)} runs")
    for reason, count in sorted(left_out.items()):
        print(f"  {count:>4} {reason}")
    if not any(row.group == PLAIN for row in judged):
        print("\nno plain run ran on this stack: --stack gives another")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
