"""What an estimate costs: seconds and memory, cold and warm, against depth.

    python benchmarks/dry_run_speed.py                     # an 8-billion-parameter Llama at 4 to 80 layers
    python benchmarks/dry_run_speed.py --config FOLDER     # another model's config.json, at its own depth

Cold: a fresh interpreter that imports, reads the configuration and runs one candidate dry (the page cache is
warm: it is started once before). Warm: further candidates in the same process, each another rank and so
nothing kept. Times are wall and processor seconds; run it on a machine that is idle.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
}
"""Llama-3-8B's published hyper-parameters, but for the number of layers."""

DEPTHS = (4, 8, 16, 32, 64, 80)
RANKS = (8, 16, 32)
SPEC = {"micro_batch": 4, "length": 2048}


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="What an estimate costs.")
    parser.add_argument("--config", type=Path, help="folder with another config.json")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child is not None:
        sys.stdout.write(json.dumps(measure(arguments.child)))
        return 0
    print(f"{'model':>12} {'cold wall s':>12} {'cpu s':>7} {'warm wall s':>12} {'cpu s':>7} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        models = list(configurations(arguments.config, Path(folder)))
        run_cold(models[0][1])
        for name, path in models:
            started_s = time.perf_counter()
            result = run_cold(path)
            cold_s = time.perf_counter() - started_s - len(RANKS) * result["warm_s"]
            print(
                f"{name:>12} {cold_s:12.2f} {result['cold_cpu_s']:7.2f} {result['warm_s']:12.2f} "
                f"{result['warm_cpu_s']:7.2f} {result['peak_bytes'] / 2**20:9.0f}"
            )
    return 0


def configurations(config: Path | None, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each model to be estimated."""
    if config is not None:
        yield config.name, config
        return
    for depth in DEPTHS:
        path = folder / str(depth)
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**LLAMA_8B, "num_hidden_layers": depth}))
        yield f"{depth} layers", path


def run_cold(path: Path) -> dict[str, Any]:
    """One fresh interpreter."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.rpartition("\n")[2])
    return result


def measure(path: Path) -> dict[str, float]:
    """In the fresh interpreter: the first estimate, and the mean of those after it."""
    from rankwise.runners import estimate

    def once(rank: int) -> None:
        spec = {
            "settings": {**SPEC, "rank": rank},
            "model_path": str(path),
            "source": str(path),
            "revision": None,
            "task": None,
            "allow_remote_code": False,
            "terms": [{}],
            "enough": None,
        }
        estimate.run(spec, lambda *_, **__: None)  # type: ignore[arg-type]

    once(4)
    cold_cpu_s = time.process_time()
    gc.collect()
    gc.freeze()  # as the warm server does before it forks a job
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    for rank in RANKS:
        once(rank)
    return {
        "cold_cpu_s": cold_cpu_s,
        "warm_s": (time.perf_counter() - started_s) / len(RANKS),
        "warm_cpu_s": (time.process_time() - started_cpu_s) / len(RANKS),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    sys.exit(main())
