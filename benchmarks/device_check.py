"""Prove rankwise's GPU parts on the GPU of this machine, and measure memory and speed of typical trials.

    python benchmarks/device_check.py                      # where no GPU is it says so and exits 0
    python benchmarks/device_check.py --dry-cpu            # the script itself, tried on the CPU

Probes against CUDA, warm start, trials of each method and setting, killed and out-of-memory trials, random
weights of 0.1 to 8 billion parameters: everything is made here, nothing is fetched. Trials go the way of a
study's: each is run dry first, and fails its check where the estimate is further off than it may be. Prints a
line for each check and a table of estimates and measurements, and writes all figures to
``benchmarks/results/<gpu>.json``; exits 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_checks.bench import Bench, Failed, Skipped
from device_checks.checks import Check, all_checks
from device_checks.estimates import table_of

import rankwise
from rankwise.optimizer.domain import SCHEMA_VERSION
from rankwise.optimizer.keys import trial_device
from rankwise.probes.host import read_hardware
from rankwise.probes.profiles import HardwareProfile

RESULTS = Path(__file__).parent / "results"
SHOWN_BYTES = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_device_bytes", "peak_process_bytes")
SHOWN_SECONDS = ("server_ready_s", "child_started_s", "child_built_model_s", "memory_back_s")


@dataclass(frozen=True, slots=True)
class Result:
    """How one check ended."""

    name: str
    status: str
    """``ok``, ``failed`` or ``skipped``."""
    reason: str | None
    seconds: float
    figures: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; returns the exit code."""
    checks = all_checks()
    arguments = parse_arguments(argv, checks)
    hardware = read_hardware(Path(tempfile.gettempdir()))
    if not arguments.dry_cpu and not hardware.gpus:
        print(f"no CUDA GPU, nothing was checked: {hardware.gpu_note}")
        return 0
    chosen = [check for check in checks if not arguments.only or check.name in arguments.only]
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rankwise-check-") as folder:
        results = run_all(chosen, Path(folder), hardware, arguments)
    seconds = time.monotonic() - started_s
    counts = Counter(result.status for result in results)
    summary = ", ".join(f"{counts[status]} {status}" for status in ("ok", "failed", "skipped"))
    if table := table_of((result.name, result.figures) for result in results):
        print("", *table, sep="\n")
    print(f"\n{summary}, in {seconds:.0f} s")
    if out := out_of(arguments, hardware):
        out.parent.mkdir(parents=True, exist_ok=True)
        report = report_of(hardware, results, seconds, on_cpu=arguments.dry_cpu)
        out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        print(f"figures: {out}")
    return 1 if counts["failed"] else 0


def parse_arguments(argv: Sequence[str] | None, checks: Sequence[Check]) -> argparse.Namespace:
    """What may be chosen on the command line."""
    names = [check.name for check in checks]
    parser = argparse.ArgumentParser(
        description="Prove rankwise's GPU parts on this machine's GPU.",
        epilog="checks: " + ", ".join(names),
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="write the figures here (default: benchmarks/results/<gpu>.json for all checks)",
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="only these checks")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=25.0,
        metavar="MINUTES",
        help="checks that would start later are skipped (default: %(default)g)",
    )
    parser.add_argument("--dry-cpu", action="store_true", help="try the script on the CPU with a tiny model")
    return parser.parse_args(argv)


def run_all(
    checks: Sequence[Check], folder: Path, hardware: HardwareProfile, arguments: argparse.Namespace
) -> list[Result]:
    """Run checks on a bench of their own, printing a line for each."""
    device = None if arguments.dry_cpu else trial_device(hardware)
    # Studies look for GPUs by themselves: they are to find this one, or none.
    os.environ["CUDA_VISIBLE_DEVICES"] = device.uuid if device else "-1"
    bench = Bench(folder, hardware.gpus, device, deadline_s=time.monotonic() + 60 * arguments.time_limit)
    results = []
    try:
        for check in checks:
            result = run_check(check, bench)
            results.append(result)
            print(line_of(result), flush=True)
    finally:
        bench.close()
    return results


def run_check(check: Check, bench: Bench) -> Result:
    """Run one check, and say how it ended whatever happens in it."""
    figures: dict[str, Any] = {}
    started_s = time.monotonic()
    status, reason = "ok", None
    try:
        if check.needs_gpu and not bench.is_on_gpu:
            raise Skipped("needs a GPU")
        if bench.is_over:
            raise Skipped("the time limit was reached before")
        check.run(bench, figures)
    except Skipped as error:
        status, reason = "skipped", str(error)
    except Failed as error:
        status, reason = "failed", str(error)
    except Exception as error:  # noqa: BLE001 - one broken check must not hide what the others say
        status, reason = "failed", f"{type(error).__name__}: {error}"
    reason = reason and reason.replace(str(bench.folder), "…")
    return Result(check.name, status, reason, time.monotonic() - started_s, without_folder(figures, bench))


def without_folder(figures: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """The figures without the name of the folder that they were taken in, which is gone afterwards."""
    text = json.dumps(figures).replace(str(bench.folder), "…")
    found: dict[str, Any] = json.loads(text)
    return found


def line_of(result: Result) -> str:
    """A row for people."""
    figures = result.figures
    parts = []
    if speed := figures.get("tokens_per_s"):
        parts.append(f"{speed:,.0f} tokens/s")
    sizes = ((name, figures.get(name)) for name in SHOWN_BYTES)
    parts += [f"{name.split('_')[1]} {size / 2**30:.2f} GiB" for name, size in sizes if size is not None]
    parts += [f"{name[:-2]} {figures[name]:.3f} s" for name in SHOWN_SECONDS if name in figures]
    if result.reason:
        parts.append(result.reason)
    return f"{result.status:8s}{result.name:28s}{result.seconds:6.1f} s  {', '.join(parts)}"


def out_of(arguments: argparse.Namespace, hardware: HardwareProfile) -> Path | None:
    """Where figures go: what was asked for; else, for all checks on a GPU, a file named after it."""
    device = trial_device(hardware)
    if arguments.out or arguments.dry_cpu or arguments.only or device is None:
        asked: Path | None = arguments.out
        return asked
    return RESULTS / f"{slug_of(device.name)}.json"


def slug_of(name: str) -> str:
    """A device's name as a file's: ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def report_of(
    hardware: HardwareProfile, results: Sequence[Result], seconds: float, *, on_cpu: bool
) -> dict[str, Any]:
    """All figures with what they were taken on, as JSON data; no names of machines, devices or folders."""
    host = hardware.host
    device = None if on_cpu else trial_device(hardware)
    return {
        "schema_version": SCHEMA_VERSION,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rankwise": rankwise.__version__,
        "device": device
        and {
            "name": device.name,
            "total_bytes": device.total_bytes,
            "compute_capability": device.compute_capability,
            "driver_version": device.driver_version,
            "is_mig": device.is_mig,
            "power_limit_w": device.power_limit_w,
            "max_sm_clock_hz": device.max_sm_clock_hz,
        },
        "host": {
            "cpu_model": host.cpu_model,
            "physical_cores": host.physical_cores,
            "logical_cores": host.logical_cores,
            "ram_total_bytes": host.ram_total_bytes,
            "platform": host.platform,
            "python_version": host.python_version,
        },
        "libraries": dict(host.libraries),
        "seconds": seconds,
        "checks": [
            {
                "name": result.name,
                "status": result.status,
                "reason": result.reason,
                "seconds": result.seconds,
                "figures": result.figures,
            }
            for result in results
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
