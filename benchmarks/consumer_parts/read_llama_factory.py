"""LLaMA-Factory reads llamafactory.yaml: all arguments, and what its adapters' module trains.

Models are quantized as it quantizes them. Where there are prepared rows, its ``get_dataset`` loads them, and
if the file is for a CPU its own training runs (``run_sft``).

It wants older versions of its libraries than rankwise is tested with. One class that TRL has no more, for
reinforcement learning, is replaced by an empty one, and so is torchaudio, which it imports for sounds.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from models import as_on_a_gpu, plain, read_all, tiny_model, trained
from omegaconf import OmegaConf

trl.AutoModelForCausalLMWithValueHead = type("AutoModelForCausalLMWithValueHead", (), {})

import llamafactory.hparams.parser as parser  # noqa: E402

sys.modules["torchaudio"] = types.ModuleType("torchaudio")
from llamafactory.data.loader import get_dataset  # noqa: E402
from llamafactory.model.adapter import init_adapter  # noqa: E402
from llamafactory.model.model_utils.quantization import configure_quantization  # noqa: E402
from llamafactory.train.sft.workflow import run_sft  # noqa: E402

as_on_a_gpu()
parser.is_torch_bf16_gpu_available = lambda: True
parser._check_extra_dependencies = lambda *_: None


def read(path: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """What LLaMA-Factory makes of a file."""
    said: Any = OmegaConf.to_container(OmegaConf.load(path))
    with contextlib.redirect_stdout(io.StringIO()):
        model_args, data_args, training_args, tuning, _ = parser.get_train_args(dict(said))
    groups = (model_args, data_args, training_args, tuning)
    understood = {key: next(getattr(group, key) for group in groups if hasattr(group, key)) for key in said}
    loaded, quantization = load(case["family"], model_args)
    quantized = sorted(name for name, each in loaded.named_modules() if "bit" in type(each).__name__)
    model = init_adapter(None, loaded, model_args, tuning, is_trainable=True)
    answer = {
        "changed": {
            key: (value, understood[key])
            for key, value in said.items()
            if isinstance(value, (bool, int, float)) and value != understood[key]
        },
        "compute_dtype": str(model_args.compute_dtype),
        "tokenized_path": data_args.tokenized_path,
        "trained": trained(model),
        "trained_dtypes": sorted({str(each.dtype) for each in model.parameters() if each.requires_grad}),
        "quantization": quantization,
        "quantized": quantized,
    }
    if hasattr(model, "peft_config"):
        answer["adapter"] = plain(model.peft_config["default"])
    if (path.parent / "data").is_dir():
        with contextlib.chdir(path.parent), contextlib.redirect_stdout(io.StringIO()):
            answer["rows"] = rows_of(said)
            if training_args.use_cpu:
                answer["losses"] = losses_of(said)
    return answer


def load(family: str, model_args: Any) -> tuple[Any, Mapping[str, Any] | None]:
    """The tiny model as its loader would load it, with the settings of what is quantized."""
    model = tiny_model(family).to(model_args.compute_dtype or torch.float32)
    settings: dict[str, Any] = {}
    configure_quantization(model.config, None, model_args, True, settings)
    if not settings:
        return model.train(), None
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        settings |= {"dtype": model_args.compute_dtype}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **settings)
    return model.train(), settings["quantization_config"].to_dict()


def rows_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What it would learn and what it holds out, as its loader has them."""
    model_args, data_args, training_args, tuning, _ = parser.get_train_args(dict(said))
    found = get_dataset(None, model_args, data_args, training_args, tuning.stage, None)
    columns = ("input_ids", "labels")
    sides = {"train": found["train_dataset"], "validation": found["eval_dataset"]}
    return {side: [{name: row[name] for name in columns} for row in rows] for side, rows in sides.items()}


def losses_of(said: Mapping[str, Any]) -> list[float]:
    """Of its own training, step by step."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "output_dir": folder}
        kept = Losses()
        run_sft(*parser.get_train_args({**said, **quiet}), callbacks=[kept])
    return kept.seen


class Losses(transformers.TrainerCallback):
    """What a Trainer logs of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """Called by the Trainer."""
        if logs and "loss" in logs:
            self.seen.append(logs["loss"])


torch.manual_seed(0)
sys.stdout.flush()
read_all("llamafactory.yaml", read)
