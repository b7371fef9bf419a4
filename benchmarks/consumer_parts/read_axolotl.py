"""Axolotl reads axolotl.yaml: schema, validation, the adapter and the quantization that its loaders build.

Prepared rows are loaded by its ``prepare_datasets``, and put into the order of its trainer's sampler. Its
package of loaders imports kernels for GPUs, so single modules are taken from it, and of ``model.py``, its
builders and its trainer the source of four methods. What it would tell its makers is kept from it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from models import adapted, plain, read_all, tiny_model, trained

GPU = {
    "bf16": True,
    "fp8": False,
    "tf32": True,
    "n_gpu": 1,
    "n_node": 1,
    "compute_capability": "sm_80",
}

sys.modules["posthog"] = types.ModuleType("posthog")
found = importlib.util.find_spec("axolotl")
ROOT = Path(next(iter((found and found.submodule_search_locations) or ())))
loaders = types.ModuleType("axolotl.loaders")
loaders.__path__ = [str(ROOT / "loaders")]
sys.modules["axolotl.loaders"] = loaders

from axolotl.integrations.base import PluginManager  # noqa: E402
from axolotl.loaders.adapter import _build_peft_lora_config  # noqa: E402
from axolotl.loaders.tokenizer import load_tokenizer  # noqa: E402

loaders.load_tokenizer = load_tokenizer
from axolotl.utils.config import (  # noqa: E402
    normalize_cfg_datasets,
    normalize_config,
    resolve_dtype,
    validate_config,
)
from axolotl.utils.data.sft import prepare_datasets  # noqa: E402
from axolotl.utils.dict import DictDefault  # noqa: E402
from axolotl.utils.freeze import freeze_layers_except  # noqa: E402


def method_of(path: Path, name: str, names: Mapping[str, Any]) -> Any:
    """A method's function, compiled by itself."""
    tree = ast.parse(path.read_text())
    wanted = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    wanted.decorator_list = []
    wanted.args.args = [*wanted.args.args]
    for argument in (*wanted.args.args, *wanted.args.kwonlyargs):
        argument.annotation = None
    wanted.returns = None
    space = dict(names)
    code = compile(ast.Module([wanted], []), str(path), "exec")
    exec(code, space)  # noqa: S102 - the trainer's own source
    return space[name]


set_quantization = method_of(
    ROOT / "loaders" / "model.py",
    "_set_quantization_config",
    {"torch": torch, "BitsAndBytesConfig": transformers.BitsAndBytesConfig, "Any": Any},
)
configure_warmup = method_of(
    ROOT / "core" / "builders" / "base.py", "_configure_warmup_and_logging", {"Any": Any}
)
configure_precision = method_of(
    ROOT / "core" / "builders" / "base.py", "_configure_precision_settings", {"Any": Any}
)
sampler_of = method_of(
    ROOT / "core" / "trainers" / "base.py",
    "_get_train_sampler",
    {"SequentialSampler": torch.utils.data.SequentialSampler, "has_length": lambda rows: bool(len(rows))},
)


def validated(said: Mapping[str, Any]) -> Any:
    """As its command line does on a machine with a GPU."""
    return validate_config(
        DictDefault(said), capabilities=DictDefault(GPU), env_capabilities=DictDefault(torch_version="2.9.0")
    )


def rows_of(path: Path) -> dict[str, Any]:
    """What it would learn, in the order in which it would, and what it holds out."""
    with contextlib.chdir(path.parent):
        cfg = validated(yaml.safe_load(path.read_text()))
        normalize_config(cfg)
        normalize_cfg_datasets(cfg)
        train, heldout, _, _ = prepare_datasets(cfg, load_tokenizer(cfg))
    packed = bool(cfg.sample_packing)
    # Packing is its own: of that only which samples there are can be said.
    arguments = DictDefault(curriculum_sampling=cfg.curriculum_sampling, pretraining=False)
    order = range(len(train)) if packed else sampler_of(DictDefault(args=arguments), train)
    columns = ("input_ids", "labels")
    return {
        "train": [{name: train[at][name] for name in columns} for at in order],
        "validation": [{name: row[name] for name in columns} for row in heldout],
    }


def read(path: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """What Axolotl makes of a file."""
    said = yaml.safe_load(path.read_text())
    plugins = PluginManager.get_instance()
    plugins.plugins.clear()
    for name in said.get("plugins", ()):
        plugins.register(name)
    cfg = validated(said)
    cfg.device = "cuda:0"
    resolve_dtype(cfg)
    answer: dict[str, Any] = {
        "changed": {
            key: (value, cfg.get(key)) for key, value in said.items() if differs(value, cfg.get(key))
        },
        "kernels": [key for key in cfg if key.startswith("lora_") and key.endswith("_kernel") and cfg[key]],
        "dtype": str(cfg.torch_dtype),
    }
    arguments: dict[str, Any] = {}
    configure_warmup(types.SimpleNamespace(cfg=cfg), cfg.max_steps, arguments)
    configure_precision(types.SimpleNamespace(cfg=cfg), arguments)
    answer["arguments"] = arguments
    holder = types.SimpleNamespace(
        cfg=cfg, model_config=types.SimpleNamespace(), model_kwargs={}, is_fsdp_enabled=False
    )
    set_quantization(holder)
    if "quantization_config" in holder.model_kwargs:
        answer["quantization"] = holder.model_kwargs["quantization_config"].to_dict()
    model = tiny_model(case["family"])
    if cfg.adapter:
        config = _build_peft_lora_config(model, cfg)
        answer |= {"adapter": plain(config), "trained": adapted(case["family"], config)}
    else:
        if cfg.unfrozen_parameters:
            freeze_layers_except(model, cfg.unfrozen_parameters)
        answer["trained"] = trained(model)
    if (path.parent / "data").is_dir():
        answer["rows"] = rows_of(path)
    return answer


def differs(said: Any, understood: Any) -> bool:
    """Mappings and lists are filled up with defaults; nothing else may change."""
    return not isinstance(said, (dict, list)) and said != understood


read_all("axolotl.yaml", read)
