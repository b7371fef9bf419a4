"""How long two processes take to their first optimizer step: forked from the warm server, and by torchrun.

    python benchmarks/rank_start.py --repeats 3

Both train the same candidate on the same rows: DDP over gloo on the CPU. Of torchrun it is told, too, how
long it takes once both of its processes have imported everything: the ratio is to that. Only ratios mean
something, and only on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rankwise.home import Home
from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe, StudyFacts, StudyRequest
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.keys import derive_seed
from rankwise.runners.guard import Limits
from rankwise.runners.jobs import read_facts, start_prepare
from rankwise.runners.messages import TrialSpec
from rankwise.runners.ready_files import compose_program
from rankwise.runners.warm_client import WarmServer

STEPS = 2
PATIENCE_S = 300.0
IMPORTED = "everything is imported"
WRAPPER = f"""import runpy
import accelerate, bitsandbytes, peft, pyarrow, safetensors.torch, torch, transformers
import transformers.modeling_utils
print("{IMPORTED}", flush=True)
runpy.run_path("train.py", run_name="__main__")
"""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("build/demo/model"))
    parser.add_argument("--data", type=Path, default=Path("build/demo/reviews.csv"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = WarmServer(folder / "warm.log", ["prepare", "trial"])
        try:
            facts = prepared(server, folder, arguments.model, arguments.data)
            forked = [
                seconds_forked(server, folder / f"trial-{n}", facts) for n in range(arguments.repeats + 1)
            ]
        finally:
            server.stop()
        launched = [seconds_launched(folder, facts) for _ in range(arguments.repeats)]
    # The first trial waits for peft, which the server imports once.
    found = {
        "forked_s": statistics.median(forked[1:]),
        "torchrun_s": statistics.median(whole for whole, _ in launched),
        "torchrun_imported_s": statistics.median(imported for _, imported in launched),
    }
    ratio = found["forked_s"] / found["torchrun_imported_s"]
    print(json.dumps(found | {"ratio": ratio, "load": os.getloadavg()[0]}, indent=2))
    return 0


def prepared(server: WarmServer, folder: Path, model: Path, data: Path) -> StudyFacts:
    """Rows as a study has them."""
    home = Home(folder / "home").create()
    request = StudyRequest(model=str(model.resolve()), dataset=str(data.resolve()), max_length=64)
    job = start_prepare(server, home, request, home.root / "prepare", allow_remote_code=False)
    job.wait(PATIENCE_S)
    return read_facts(job)


def candidate() -> Candidate:
    """A small LoRA over two processes."""
    adapter = Adapter(
        method=Method.LORA, rank=8, alpha=16, targets=("query", "value"), trained_modules=("classifier",)
    )
    recipe = Recipe(max_length=64, effective_batch=8)
    return Candidate(
        adapter=adapter, level=Level(processes=2), recipe=recipe, micro_batch=4, learning_rate=1e-3
    )


def config(facts: StudyFacts) -> dict[str, object] | None:
    """The adapter as PEFT wants it."""
    return adapter_config(
        candidate(),
        task_kind=facts.dataset.task.kind,
        base_model=facts.model.source,
        total_steps=STEPS,
    )


def seconds_forked(server: WarmServer, folder: Path, facts: StudyFacts) -> float:
    """From the request to the end of the first step."""
    spec = TrialSpec(
        model_path=facts.model.path,
        tokens_path=facts.tokens_path,
        task=to_json(facts.dataset.task),
        candidate=to_json(candidate()),
        adapter_config=config(facts),
        rung="train",
        total_steps=STEPS,
        pad_id=facts.pad_id,
        seed=derive_seed(0, "model"),
        order_seed=derive_seed(0, "order"),
        threads=2,
    )
    started_s = time.monotonic()
    job = server.start("trial", spec.to_mapping(), folder, Limits(time_s=PATIENCE_S))
    took_s = None
    while not job.closed:
        for message in job.poll(0.01):
            if took_s is None and message.get("phase") == "train":
                took_s = time.monotonic() - started_s
    if took_s is None:
        sys.exit(job.log_path.read_text())
    return took_s


def seconds_launched(folder: Path, facts: StudyFacts) -> tuple[float, float]:
    """To the end of the exported program's first step: from torchrun's start, and once all is imported."""
    values = {
        "description": "a benchmark",
        "model": facts.model.path,
        "dataset": facts.dataset.path,
        "task": {**to_json(facts.dataset.task), "reason": ""},
        "candidate": to_json(candidate()),
        "adapter_config": config(facts),
        "chat_template": None,
        "every_nth_row": facts.dataset.every_nth_row,
        "has_weights": True,
        "seed": derive_seed(0, "model"),
        "order_seed": derive_seed(0, "order"),
        "split": dict(facts.split),
        "trust_remote_code": False,
        "factory": None,
        "on_cpu": True,
        "checkpoint_every": 1000,
        "deepspeed": None,
        "trial": {"steps": 0, "adapter_config": None, "first_losses": [], "trainable_sha256": None},
    }
    (folder / "train.py").write_text(compose_program("train.py", values), encoding="utf-8")
    (folder / "wrapper.py").write_text(WRAPPER, encoding="utf-8")
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", "2"]
    started_s = time.monotonic()
    with subprocess.Popen(
        [*torchrun, "wrapper.py", "--max-steps", str(STEPS)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    ) as process:
        imported_s, step_s = started_s, None
        for line in process.stdout or ():
            if line.startswith(IMPORTED):
                imported_s = time.monotonic()
            if step_s is None and line.startswith("step 1/"):
                step_s = time.monotonic()
    if step_s is None:
        sys.exit("torchrun's program took no step")
    return step_s - started_s, step_s - imported_s


if __name__ == "__main__":
    sys.exit(main())
