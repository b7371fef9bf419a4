"""LLaMA-Factory reads llamafactory.yaml: all arguments, and what its adapters' module trains.

It wants older versions of its libraries than rankwise is tested with. One class that TRL has no more, for
reinforcement learning, is replaced by an empty one.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import trl
from models import as_on_a_gpu, plain, read_all, tiny_model, trained
from omegaconf import OmegaConf

trl.AutoModelForCausalLMWithValueHead = type("AutoModelForCausalLMWithValueHead", (), {})

import llamafactory.hparams.parser as parser  # noqa: E402
from llamafactory.model.adapter import init_adapter  # noqa: E402

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
    loaded = tiny_model(case["family"]).to(model_args.compute_dtype or torch.float32).train()
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
    }
    if hasattr(model, "peft_config"):
        answer["adapter"] = plain(model.peft_config["default"])
    return answer


torch.manual_seed(0)
sys.stdout.flush()
read_all("llamafactory.yaml", read)
