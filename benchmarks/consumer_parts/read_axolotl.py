"""Axolotl reads axolotl.yaml: schema, validation, the adapter and the quantization that its loaders build.

Its package of loaders imports kernels for GPUs, so single modules are taken from it, and of ``model.py`` the
source of two methods. What it would tell its makers is kept from it.
"""

from __future__ import annotations

import ast
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
from axolotl.utils.config import resolve_dtype, validate_config  # noqa: E402
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


def read(path: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """What Axolotl makes of a file."""
    said = yaml.safe_load(path.read_text())
    plugins = PluginManager.get_instance()
    plugins.plugins.clear()
    for name in said.get("plugins", ()):
        plugins.register(name)
    cfg = validate_config(
        DictDefault(said), capabilities=DictDefault(GPU), env_capabilities=DictDefault(torch_version="2.9.0")
    )
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
    return answer


def differs(said: Any, understood: Any) -> bool:
    """Mappings and lists are filled up with defaults; nothing else may change."""
    return not isinstance(said, (dict, list)) and said != understood


read_all("axolotl.yaml", read)
