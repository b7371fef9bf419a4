"""Fit the speed model's start values on published runs, and show how far off it is on what it did not see.

    python benchmarks/fit_speed.py ../shared/data/published_runs.csv

Work is counted from the models' shapes, as an eager Hugging Face step does it. Fitted are two shares (of
the matmul rate that torch attains, of the bandwidth) by least squares on ln(measured / estimated), over the
runs on one A100-80GB whose length is fixed (fms_acceleration). Left out, by reason: runs on several GPUs;
runs whose tokens cannot be known; torchtune's, of which one needs more than its GPU attains.
ms_swift's lengths are known as a mean and a deviation only: its runs judge the fit and are not part of it.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankwise.optimizer.estimates.gpus import Gpu, find_gpu
from rankwise.optimizer.estimates.speed import START, Efficiency, Work, estimate_speed, step_seconds

MICROSECONDS = 1e-6
COMPUTE_SHARES = [share / 100 for share in range(40, 101)]
MEMORY_SHARES = [share / 50 for share in range(10, 56)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A decoder's sizes, from its published configuration."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads

    @property
    def attention_parameters(self) -> int:
        """Of one layer: query, key, value and output projection."""
        return 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_width

    @property
    def layer_parameters(self) -> int:
        return self.attention_parameters + 3 * self.hidden * self.mlp

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + 2 * self.head_parameters


SHAPES = {
    "mistralai/Mistral-7B-v0.1": Shapes(
        hidden=4096, layers=32, mlp=14336, heads=32, kv_heads=8, vocabulary=32000
    ),
    "qwen-7b-chat": Shapes(hidden=4096, layers=32, mlp=11008, heads=32, kv_heads=32, vocabulary=151936),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a run's settings changes its work."""

    full: bool
    rank: int
    adapts_all: bool
    quantized: bool
    checkpointed: bool
    fused: bool
    """Norms, rotary embedding, LoRA and loss in fused kernels."""
    accumulated: int
    """Micro-batches of an optimizer step."""
    upcast: bool
    """Activations between layers in float32, as prepare_model_for_kbit_training leaves them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A published run, as far as it can be compared."""

    label: str
    group: str
    gpu: Gpu
    work: Work
    tokens: float
    measured: float
    """Tokens a second."""


def work_of(shapes: Shapes, settings: Settings, sequences: float, length: float, square: float) -> Work:
    """One micro-batch with its part of the optimizer step.

    Args:
        sequences: in the batch.
        length: mean tokens of a sequence.
        square: mean of their squares; attention grows with it.
    """
    tokens = sequences * length
    layer_passes = 3 if settings.checkpointed else 2
    layers = shapes.layers * shapes.layer_parameters
    products = 2 * tokens * (layers * layer_passes + shapes.head_parameters * 2)
    if settings.full:
        products += 2 * tokens * (layers + shapes.head_parameters)
    else:
        products += 2 * tokens * _adapter_parameters(shapes, settings) * (layer_passes + 1)
    # A causal kernel computes half the square: 2 products forward, 5 backward (one is done again).
    attention = shapes.layers * 2 * sequences * square * shapes.hidden * (2 * (layer_passes - 1) + 5) / 2
    moved = tokens * (
        shapes.layers * _layer_bytes(shapes, settings) * (layer_passes + 1)
        + _loss_bytes(settings) * shapes.vocabulary
    )
    if settings.quantized:  # read 4.5 bits, write 2 bytes, in each pass
        moved += layer_passes * layers * (0.5625 + 2)
    if settings.full:  # clipping and foreach AdamW in bfloat16: about 15 reads and writes of a parameter
        moved += 15 * 2 * shapes.parameters / settings.accumulated
    kernels = shapes.layers * (25 if settings.fused else 60) * (layer_passes + 1)
    return Work(flops_by_dtype={"bfloat16": products + attention}, bytes_moved=moved, kernels=kernels)


def _adapter_parameters(shapes: Shapes, settings: Settings) -> int:
    width = 2 * (shapes.hidden + shapes.hidden) + 2 * (shapes.hidden + shapes.kv_width)
    if settings.adapts_all:
        width += 3 * (shapes.hidden + shapes.mlp)
    return shapes.layers * settings.rank * width


def _layer_bytes(shapes: Shapes, settings: Settings) -> float:
    """Bytes a token that one forward pass of a layer moves outside of matrix products and attention.

    Counted from the operations of transformers' eager decoder layer in 16 bits: an RMS norm casts, squares,
    averages, scales, casts back and weighs (36 bytes an element, 4 if fused); a rotary embedding multiplies,
    turns, multiplies and adds (22, or 4); silu and the product 10; a residual 6.
    """
    norm, rotary = (4, 4) if settings.fused else (36, 22)
    wide = 2 if settings.upcast else 1
    moved = (
        2 * shapes.hidden * (norm + 6 * wide) + rotary * (shapes.hidden + shapes.kv_width) + 10 * shapes.mlp
    )
    if not settings.full:  # cast and dropout of the input; scaling and adding the result
        adapted = 3 * shapes.hidden + 2 * (shapes.hidden + shapes.kv_width) / 2
        moved += (4 if settings.fused else 14) * adapted
        if settings.adapts_all:
            moved += 14 * 3 * shapes.mlp
    return moved


def _loss_bytes(settings: Settings) -> float:
    """Bytes a logit: upcast, shifted copy, log-softmax, loss, and back again; or a fused pass each way."""
    return 8 if settings.fused else 46


def fms_run(row: Mapping[str, str]) -> Run:
    """Fixed length of 4096 tokens; tokens a second of the trainer."""
    framework = row["note"].split(";")[0].removeprefix("framework=")
    settings = Settings(
        full=row["method"] == "full",
        rank=int(float(row["rank"] or 0)),
        adapts_all=False,
        quantized=bool(row["quant"]),
        checkpointed=row["grad_ckpt"] == "True",
        fused="foak" in framework,
        accumulated=int(row["grad_accum"]),
        upcast=framework == "baseline-peft-bnb",
    )
    sequences, length = int(row["micro_bs"]), int(row["seq_len"])
    return Run(
        label=f"{framework} {row['method']} {row['dtype']} x{sequences}",
        group=f"fms {'fused' if settings.fused else 'bnb' if settings.quantized else 'plain'}",
        gpu=find_gpu(row["gpu"]),
        work=work_of(SHAPES[row["model"]], settings, sequences, length, length**2),
        tokens=sequences * length,
        measured=float(row["throughput"]),
    )


SWIFT_MEAN, SWIFT_DEVIATION, SWIFT_LEAST = 3234.4, 2547.5, 91
"""Tokens of a sample of ms_swift's data set, from its benchmark page."""


def swift_run(row: Mapping[str, str], shape: str) -> Run:
    """Samples a second; longer samples than the limit were dropped (``truncation_strategy``: delete)."""
    settings = Settings(
        full=row["method"] == "full",
        rank=int(float(row["rank"] or 0)),
        adapts_all=row["targets"].startswith("ALL"),
        quantized="bnb" in row["quant"],
        checkpointed=row["grad_ckpt"] == "True",
        fused=False,
        accumulated=int(row["grad_accum"]),
        upcast="bnb" in row["quant"],
    )
    length, square = moments_below(float(row["seq_len"]), shape)
    work = work_of(SHAPES[row["model"]], settings, 1, length, square)
    return Run(
        label=f"{row['method']} {row['quant']} {row['seq_len']} r{row['rank']} {row['targets'][:3]} "
        f"ckpt={row['grad_ckpt']}",
        group=f"ms_swift, {shape} lengths",
        gpu=find_gpu("A100 80GB"),
        work=work,
        tokens=length,
        measured=float(row["throughput"]) * length,
    )


def moments_below(limit: float, shape: str) -> tuple[float, float]:
    """Mean length, and mean of the squares, of the samples that are not longer than a limit."""
    variance = (SWIFT_DEVIATION / SWIFT_MEAN) ** 2
    sigma = math.sqrt(math.log1p(variance))
    mu = math.log(SWIFT_MEAN) - sigma**2 / 2

    def density(x: float) -> float:
        if shape == "gamma":
            return x ** (1 / variance - 1) * math.exp(-x / (SWIFT_MEAN * variance))
        return math.exp(-((math.log(x) - mu) ** 2) / (2 * sigma**2)) / x

    lengths = range(SWIFT_LEAST, int(limit) + 1)
    weights = [density(x) for x in lengths]
    total = sum(weights)
    mean = sum(x * w for x, w in zip(lengths, weights, strict=True)) / total
    return mean, sum(x * x * w for x, w in zip(lengths, weights, strict=True)) / total


def comparable(rows: Iterable[Mapping[str, str]], left_out: Counter[str]) -> Iterator[Run]:
    """The runs that can be compared; counts the others by reason."""
    for row in rows:
        if reason := why_not(row):
            left_out[f"{row['source']}: {reason}"] += 1
        elif row["source"] == "fms_acceleration":
            yield fms_run(row)
        else:
            yield from (swift_run(row, shape) for shape in ("gamma", "lognormal"))


def why_not(row: Mapping[str, str]) -> str:
    """Why a run cannot be compared; empty where it can."""
    if row["status"] != "ok" or row["throughput"] in ("", "-"):
        return "no throughput"
    if row["n_gpus"] != "1":
        return "several GPUs"
    if row["source"] == "torchtune_readme":
        return "the GPU is the smallest that can run it, not the one it was measured on (see below)"
    if row["source"].startswith("litgpt"):
        return "minutes over samples whose lengths are not given"
    if row["source"] == "ms_swift_benchmark":
        if not row["seq_len"] or row["micro_bs"] != "1":
            return "lengths not given, or padded batches of them"
        if "gptq" in row["quant"] or "no flash" in row["attn"]:
            return "kernels that the work is not counted for"
    return ""


def log_errors(runs: Sequence[Run], efficiency: Efficiency) -> list[float]:
    """ln(measured / estimated tokens a second); above 0 where a run was faster than estimated."""
    return [math.log(run.measured * step_seconds(run.work, run.gpu, efficiency) / run.tokens) for run in runs]


def fit(runs: Sequence[Run]) -> Efficiency:
    """Least squares over a grid. Every group counts the same, however many runs it has."""
    sizes = Counter(run.group for run in runs)

    def loss(efficiency: Efficiency) -> float:
        errors = log_errors(runs, efficiency)
        return sum(error**2 / sizes[run.group] for error, run in zip(errors, runs, strict=True))

    grid = (replace(START, compute=c, memory=m) for c in COMPUTE_SHARES for m in MEMORY_SHARES)
    return min(grid, key=loss)


def show(title: str, runs: Sequence[Run], efficiency: Efficiency) -> None:
    print(f"\n{title}")
    for run, error in zip(runs, log_errors(runs, efficiency), strict=True):
        estimate = estimate_speed(run.work, run.tokens, run.gpu, efficiency)
        inside = estimate.tokens_per_s_low <= run.measured <= estimate.tokens_per_s_high
        print(
            f"  {run.label:<52} measured {run.measured:6.0f}  estimated {estimate.tokens_per_s_mid:6.0f} "
            f"({estimate.tokens_per_s_low:.0f} to {estimate.tokens_per_s_high:.0f})  "
            f"{100 * math.expm1(-error):+5.1f} %{'' if inside else '  outside'}"
        )


def summary(errors: Sequence[float]) -> str:
    absolute = sorted(abs(math.expm1(-error)) for error in errors)
    worst = absolute[math.ceil(0.95 * len(absolute)) - 1]
    return (
        f"{len(errors):>3} runs, mean log error {statistics.fmean(errors):+.3f}, "
        f"median error {100 * statistics.median(absolute):.1f} %, 95th percentile {100 * worst:.1f} %"
    )


def print_impossible(rows: Iterable[Mapping[str, str]]) -> None:
    """Shows why torchtune's table does not say on which GPU its runs were measured."""
    llama = Shapes(hidden=4096, layers=32, mlp=14336, heads=32, kv_heads=8, vocabulary=128256)
    for row in rows:
        if row["source"] == "torchtune_readme" and row["method"] == "full" and row["gpu"] == "A6000":
            gpu = find_gpu(row["gpu"])
            products = 2 * (4 * llama.layers * llama.layer_parameters + 3 * llama.head_parameters)
            rate = products * float(row["throughput"])
            attained = (gpu.bf16_flops or 0) * (gpu.matmul_share or 1)
            print(
                f"\ntorchtune: {row['throughput']} tokens/s of {row['model']} are {rate / 1e12:.0f} TFLOPS, "
                f"more than the {attained / 1e12:.0f} that large matrix products attain on {gpu.name}"
            )


def main() -> int:
    """Prints the fit and how it does on what it did not see; exit code 1 if no run can be compared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the published runs (CSV)")
    arguments = parser.parse_args()
    left_out: Counter[str] = Counter()
    with arguments.runs.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in comparable(rows, left_out):
        if (run.label, run.measured) not in ((known.label, known.measured) for known in groups[run.group]):
            groups[run.group].append(run)
    fitted_on = [group for group in groups if group.startswith("fms")]
    if not fitted_on:
        print("no run can be compared", file=sys.stderr)
        return 1
    print("left out:")
    for reason, count in sorted(left_out.items()):
        print(f"  {count:>3} {reason}")
    print_impossible(rows)
    fitted = fit([run for group in fitted_on for run in groups[group]])
    print(
        f"\nfit: compute {fitted.compute}, memory {fitted.memory} (in use: {START.compute}, {START.memory})"
    )
    for name, runs in groups.items():
        show(name, runs, fitted)
    print("\nwith the fit:")
    for name, runs in groups.items():
        print(f"  {name:<30} {summary(log_errors(runs, fitted))}")
    print("\neach group by a fit on the other groups of fms:")
    unseen = []
    for name, runs in groups.items():
        others = fit([run for group in fitted_on if group != name for run in groups[group]])
        errors = log_errors(runs, others)
        unseen.append(statistics.fmean(errors))
        print(f"  {name:<30} {summary(errors)}  (compute {others.compute}, memory {others.memory})")
    scatter = [
        error - statistics.fmean(errors)
        for errors in (log_errors(groups[name], fitted) for name in fitted_on)
        for error in errors
    ]
    within = math.sqrt(sum(error**2 for error in scatter) / (len(scatter) - len(fitted_on)))
    print(f"\nwithin a group of fms: log deviation {within:.3f} (in use: {START.within_log_sd})")
    between = math.sqrt(statistics.fmean(error**2 for error in unseen))
    print(f"between unseen groups: root mean square of mean log errors {between:.3f} ", end="")
    print(f"(in use: {START.between_log_sd})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
