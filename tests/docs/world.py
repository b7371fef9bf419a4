"""The folder that pages' blocks are run in: the models and data that they name, but small."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe

from .pages import REPOSITORY, Block

BLOCK_S = 900
MOST_TRIALS = 2
_ULID = r"\b01[0-9A-HJKMNP-TV-Z]{24}\b"
_BUDGET = re.compile(r"--budget[ =]\S+")
_STUDY = """study() {
    rankwise studies list --json |
        python -c "import json, sys; print(json.load(sys.stdin)['studies'][$1]['id'])"
}"""
"""What stands in for ids on a page: the last study's is ``study 0``, the one's before it ``study 1``."""
_RECOMMEND = re.compile(r"\brankwise recommend\b(?! --resume)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What worlds are made of."""

    demo: Path
    reviews: Path
    causal: Path


@dataclass(frozen=True, slots=True)
class Ran:
    """How a block ended."""

    code: int
    output: str


class World:
    """A page's folder. Its blocks are run in it one after the other, and share ``RANKWISE_HOME``."""

    def __init__(self, folder: Path, home: Path, inputs: Inputs) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "RANKWISE_HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "100",
        }
        self._port = _free_port()
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in MAKERS.items():
            if "/" not in name:
                make(folder / name, inputs)
        (folder / "build" / "demo").mkdir(parents=True)
        for name in ("model", "reviews.csv"):
            (folder / "build" / "demo" / name).symlink_to(folder / name)

    def provide(self, names: str, inputs: Inputs) -> None:
        """Make what a block needs beyond what every page has."""
        for name in names.split():
            if not (self.folder / name).exists():
                NEEDS[name](self.folder / name, inputs)

    def run(self, block: Block) -> Ran:
        """Run a block as a person would, and end what it left running."""
        if block.language == "python":
            setup = block.directives.get("before", "")
            code = block.text
            if budget := block.directives.get("budget"):
                code = re.sub(r'budget="\w+"', f'budget="{budget}"', code)
            return self._run([sys.executable, "-c", f"{setup}\n{code}"])
        script = self.adapted(block)
        setup, after = block.directives.get("before", ""), block.directives.get("after", "")
        return self._run(["bash", "-eu", "-o", "pipefail", "-c", f"{_STUDY}\n{setup}\n{script}\n{after}"])

    def adapted(self, block: Block) -> str:
        """The block's script with this world's port, studies and budgets."""
        script = re.sub(r"\b8321\b", str(self._port), block.script)
        for index, word in enumerate((rf"ID\b|{_ULID}", r"OLDER\b")):
            script = re.sub(rf"(?<![$\w])(?:{word})", f'"$(study {index})"', script)
        if budget := block.directives.get("budget"):
            lines = script.replace("\\\n", " ").splitlines()
            script = "\n".join(_within(line, budget) for line in lines)
            short = f'"seconds": {budget.rstrip("s")}, "max_trials": {MOST_TRIALS}'
            script = re.sub(r'"seconds": *\d+', short, script)
        return script

    def _run(self, command: list[str]) -> Ran:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=BLOCK_S)
            except subprocess.TimeoutExpired:
                code = 124
            finally:  # a server that the block started, too
                _end(process)
            output.seek(0)
            return Ran(code, output.read())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the block's processes: as a terminal would, and what is left after ten seconds for good."""
    for number, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            process.poll()
            time.sleep(0.1)


def _within(line: str, budget: str) -> str:
    if not _RECOMMEND.search(line):
        return line
    shortened = f"rankwise recommend --budget {budget} --max-trials {MOST_TRIALS}"
    return _RECOMMEND.sub(shortened, _BUDGET.sub("", line), count=1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _link_encoder(path: Path, inputs: Inputs) -> None:
    path.symlink_to((inputs.demo / "model").resolve(), target_is_directory=True)


def _copy_reviews(path: Path, inputs: Inputs) -> None:
    shutil.copy(inputs.reviews, path)


def _copy_language_model(path: Path, inputs: Inputs) -> None:
    shutil.copytree(inputs.causal, path)
    _write_template(path / "chat_template.jinja", inputs)


def _texts(inputs: Inputs) -> list[str]:
    with inputs.reviews.open(newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def _write_notes(path: Path, inputs: Inputs) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in _texts(inputs)))


def _write_chats(path: Path, inputs: Inputs) -> None:
    def chat(text: str) -> Mapping[str, object]:
        words = text.split()
        asked, answer = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        return {
            "messages": [
                {"role": "user", "content": asked or "?"},
                {"role": "assistant", "content": answer or "."},
            ]
        }

    path.write_text("".join(json.dumps(chat(text)) + "\n" for text in _texts(inputs)))


def _write_series(path: Path, inputs: Inputs) -> None:
    lines = ["time,load,sun,wind\n"]
    for hour in range(480):
        day, clock = divmod(hour, 24)
        values = (math.sin(hour / 3.8), math.sin(hour / 1.1), math.cos(hour / 4.9))
        numbers = ",".join(f"{value + day / 40:.4f}" for value in values)
        lines.append(f"2026-01-{day + 1:02}T{clock:02}:00,{numbers}\n")
    path.write_text("".join(lines))


def _write_template(path: Path, inputs: Inputs) -> None:
    path.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}")


def _published(name: str) -> Callable[[Path, Inputs], None]:
    def make(path: Path, inputs: Inputs) -> None:
        path.mkdir()
        shutil.copy(REPOSITORY / "benchmarks" / "published_models" / f"{name}.json", path / "config.json")

    return make


def _write_axolotl(path: Path, inputs: Inputs) -> None:
    path.write_text(
        "base_model: ./my-llm\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true\n"
        "datasets:\n  - path: chats.jsonl\n    type: chat_template\nsequence_len: 128\n"
        "micro_batch_size: 4\ngradient_accumulation_steps: 4\nnum_epochs: 3\nlearning_rate: 0.0002\n"
        "optimizer: adamw_torch\nlr_scheduler: cosine\ngradient_checkpointing: true\nbf16: true\n"
        "output_dir: ./out\n"
    )


def _write_sft(path: Path, inputs: Inputs) -> None:
    path.write_text(
        "model_name_or_path: ./my-llm\ndtype: bfloat16\nuse_peft: true\nlora_r: 8\nlora_alpha: 16\n"
        "lora_target_modules: [q_proj, v_proj]\ndataset_name: chats.jsonl\nmax_length: 128\n"
        "per_device_train_batch_size: 16\nnum_train_epochs: 3\nlearning_rate: 0.005\nwarmup_steps: 0.06\n"
        "gradient_checkpointing: false\nbf16: true\neval_strategy: 'no'\nseed: 42\noutput_dir: ./out\n"
    )


def _write_configs(path: Path, inputs: Inputs) -> None:
    path.mkdir()
    _write_axolotl(path / "axolotl.yaml", inputs)
    _write_sft(path / "sft.yaml", inputs)


def _link_examples(path: Path, inputs: Inputs) -> None:
    path.symlink_to(REPOSITORY / "examples", target_is_directory=True)


MAKERS: Mapping[str, Callable[[Path, Inputs], None]] = {
    "model": _link_encoder,
    "my-model": _link_encoder,
    "bert": _link_encoder,
    "my-llm": _copy_language_model,
    "llama-3-8b": _published("llama-3-8b"),
    "mixtral-8x7b": _published("mixtral-8x7b"),
    "reviews.csv": _copy_reviews,
    "test.csv": _copy_reviews,
    "notes.jsonl": _write_notes,
    "chats.jsonl": _write_chats,
    "series.csv": _write_series,
    "chat.jinja": _write_template,
    "axolotl.yaml": _write_axolotl,
    "sft.yaml": _write_sft,
    "configs": _write_configs,
    "examples": _link_examples,
}
"""Name in the folder of every page → what makes it."""


def _train_adapter(path: Path, inputs: Inputs) -> None:
    """An adapter as a training leaves it, on the encoder that pages call demo/model."""
    program = (
        "import sys, torch\n"
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForSequenceClassification as Classifier\n"
        "model = Classifier.from_pretrained(sys.argv[1], num_labels=2)\n"
        "adapted = get_peft_model(model, LoraConfig(task_type='SEQ_CLS', target_modules=['query', 'value'],"
        " init_lora_weights=False))\n"
        "adapted.save_pretrained(sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, inputs.demo / "model", path],
        check=True,
        capture_output=True,
    )


def _rename_adapter(path: Path, inputs: Inputs) -> None:
    """The same with other names for the tensors, so that it fits no model."""
    _train_adapter(path, inputs)
    program = (
        "import sys\n"
        "from safetensors.torch import load_file, save_file\n"
        "tensors = load_file(sys.argv[1])\n"
        "renamed = {name.replace('.layer.', '.layers.'): tensor for name, tensor in tensors.items()}\n"
        "save_file(renamed, sys.argv[1])\n"
    )
    file = path / "adapter_model.safetensors"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, file], check=True, capture_output=True)


def _write_recommendation(path: Path, inputs: Inputs) -> None:
    """As much of what a study writes as is read by `rankwise.apply`."""
    _train_adapter(path, inputs)
    candidate = Candidate(
        adapter=Adapter(method=Method.LORA, rank=8, alpha=16, targets=("query", "value")),
        level=Level(),
        recipe=Recipe(max_length=64),
        micro_batch=4,
        learning_rate=1e-3,
    )
    document = {"schema_version": 1, "recommended": to_json(candidate)}
    (path / "recommendation.json").write_text(json.dumps(document))


NEEDS: Mapping[str, Callable[[Path, Inputs], None]] = {
    "trained": _train_adapter,
    "renamed": _rename_adapter,
    "tuned": _write_recommendation,
}
"""What blocks ask for with ``needs``, because it takes seconds to make."""
