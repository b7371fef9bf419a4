"""Published runs: which are compared, in which unit and metric, and what is said of the others."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
COLUMNS = [
    "source",
    "ref",
    "model",
    "gpu",
    "n_gpus",
    "dist",
    "method",
    "quant",
    "rank",
    "targets",
    "seq_len",
    "seq_note",
    "micro_bs",
    "grad_accum",
    "grad_ckpt",
    "attn",
    "dtype",
    "optimizer",
    "mem",
    "mem_unit",
    "mem_metric",
    "throughput",
    "thr_unit",
    "status",
    "note",
]


@pytest.fixture
def rows() -> Iterator[Any]:
    """The module that reads the table."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from published_parts import rows

        yield rows
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def published() -> Iterator[Any]:
    """The benchmark."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import published

        yield published
    finally:
        sys.path.remove(str(BENCHMARKS))


def row(**values: str) -> dict[str, str]:
    """A plain run, with these values instead."""
    usual = {
        "source": "fms_acceleration",
        "model": "mistralai/Mistral-7B-v0.1",
        "gpu": "A100-80GB",
        "n_gpus": "1",
        "method": "lora",
        "rank": "16",
        "targets": "q_proj v_proj",
        "seq_len": "4096",
        "micro_bs": "4",
        "grad_accum": "1",
        "grad_ckpt": "True",
        "dtype": "bfloat16",
        "mem": "24.871",
        "mem_unit": "GiB",
        "mem_metric": "torch peak allocated (HF TrainerMemoryTracker)",
        "status": "ok",
        "note": "framework=none; nvidia-smi=29576 MiB; torch2.4.1/tf4.48.1/peft0.13.2",
    }
    return dict.fromkeys(COLUMNS, "") | usual | values


def test_a_plain_run_is_judged_by_the_stack_it_names(rows: Any) -> None:
    run = rows.published(2, row())
    assert (run.group, run.transformers, run.ran) == (rows.PLAIN, "4.48.1", True)
    assert run.measured == {rows.ALLOCATED: round(24.871 * 2**30), rows.DEVICE: 29576 * 2**20}
    assert (run.run["rank"], run.run["rows"], run.run["autocast"]) == (16, 4, False)


def test_units_and_metrics_are_kept_apart(rows: Any) -> None:
    assert rows.measured_of(row(mem="16.69", mem_unit="GB (1e9)", note="")) == {
        rows.ALLOCATED: 16_690_000_000
    }
    reserved = row(mem="20", mem_unit="GiB per GPU", mem_metric="peak reserved", note="")
    assert rows.measured_of(reserved) == {rows.RESERVED: 20 * 2**30}
    assert rows.measured_of(row(mem="61.34+73.00", note="")) == {}
    # What the driver shows of a run that failed says nothing of what it needed.
    assert rows.measured_of(row(mem="", status="OOM/failed")) == {}


def test_only_the_baseline_is_upcast(rows: Any) -> None:
    upcast = row(quant="bnb nf4", note="framework=baseline-peft-bnb; tf4.48.1", dtype="bfloat16+bf16 amp")
    run = rows.published(2, upcast).run
    assert (run["upcasts"], run["casts_to_bfloat16"], run["autocast"]) == (True, True, True)
    plain = rows.published(2, upcast | {"note": "framework=accelerated-peft-bnb; tf4.48.1"}).run
    assert (plain["upcasts"], plain["quantization"]) == (False, "nf4")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model": "nobody/new"}, "no configuration of nobody/new"),
        ({"gpu": "Abacus"}, "unknown GPU 'Abacus'"),
        ({"source": "torchtune_readme"}, "torch.compile"),
        ({"source": "ms_swift_benchmark", "method": "full galore"}, "GaLore"),
        ({"source": "ms_swift_benchmark", "seq_len": ""}, "lengths depend on the data"),
        ({"source": "litgpt_resource_tables", "method": "adapter_v2"}, "own kind of adapter"),
        ({"n_gpus": "2", "note": "framework=foak-fast-kernels"}, "fused kernels"),
    ],
)
def test_what_cannot_be_compared_says_why(rows: Any, values: dict[str, str], reason: str) -> None:
    run = rows.published(2, row(**values))
    assert run.run is None
    assert reason in run.reason


def test_reading_numbers_the_lines(rows: Any, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    with table.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows([row(), row(gpu="Abacus")])
    assert [(run.number, run.run is not None) for run in rows.read(table)] == [(2, True), (3, False)]


def test_every_configuration_is_there_and_used(rows: Any) -> None:
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in rows.MODELS.glob("*.json")}
    assert set(files) == set(rows.CONFIGS.values())
    assert all(config["model_type"] and config["architectures"] for config in files.values())


def judged(rows: Any, published: Any, allocated_bytes: int, transformers: str, **values: str) -> Any:
    """A run beside an estimate of so many bytes, made with that version."""
    need = {"allocated_bytes": allocated_bytes, "reserved_bytes": 10 * 2**30, "by_phase": {}, "breakdown": {}}
    return published.judge(rows.published(2, row(**values)), need, {"transformers": transformers})


def test_residuals_are_those_of_runs_on_their_own_stack(rows: Any, published: Any) -> None:
    estimate = round(24.871 * 2**30 / 1.1)
    own = judged(rows, published, estimate, "4.48.1")
    other = judged(rows, published, estimate, "5.0.0")
    fused = judged(rows, published, estimate, "4.48.1", note="framework=foak; tf4.48.1")
    found = published.residuals_of([own, other, fused])
    assert found == {f"{rows.PLAIN}: {rows.ALLOCATED}": [pytest.approx(math.log(1.1), abs=1e-4)]}


def test_runs_that_differ_in_the_gpu_alone_are_one_residual(rows: Any, published: Any) -> None:
    values = {
        "source": "answerai_fsdp_qlora",
        "mem": "11",
        "mem_metric": "peak reserved",
        "note": "",
        "n_gpus": "2",
    }
    runs = [
        judged(rows, published, 2**30, "4.48.1", **values, gpu=gpu) for gpu in ("2x RTX 3090", "2x RTX 4090")
    ]
    found = published.residuals_of(runs)
    assert found == {f"{rows.SHARDED}: {rows.RESERVED}": [pytest.approx(math.log(1.1), abs=1e-4)]}
