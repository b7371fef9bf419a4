"""Estimates of runs that others published, by this package's dry run on whichever libraries are installed.

Reads a JSON list of runs from standard input, writes one line of JSON for each, in order. Works with
transformers from 4.45 on: what the package's own builder does through newer interfaces is done here by hand,
and as trainers of that time did it (see :class:`Run`). Knows nothing of what was published.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import bitsandbytes
import torch
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

from rankwise.optimizer.estimates.need import Need, need_of
from rankwise.optimizer.estimates.overheads import TRAINING_THREADS, cublas_workspace_bytes
from rankwise.optimizer.estimates.shard_plan import Offload, Scheme, ShardPlan
from rankwise.optimizer.estimates.sharding import sharded
from rankwise.optimizer.estimates.tape import TRACED_LAYERS, Place, Tape, stretch
from rankwise.runners.cuda_semantics import FlashAttention
from rankwise.runners.dry_run import Batch, record
from rankwise.runners.fakes import fake_tensors, materialise

FLASH = "flash_attention_2"
SDPA = "sdpa"
MISSING = object()
CHECK = "_check_and_enable_flash_attn_2"
"""Of transformers 4, which refuses flash attention where its package is not."""
DTYPE = "dtype" if transformers.__version__ > "5" else "torch_dtype"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


def build(run: Mapping[str, Any], config: Any, mode: Any) -> torch.nn.Module:
    """The model on tensors of this mode for fakes, cut to a few layers, as the run's trainer prepares it."""
    attention = run["attention"]
    if not hasattr(transformers.PreTrainedModel, CHECK):
        attention = SDPA  # it keeps what flash attention keeps, and needs no package
    dtype = {DTYPE: getattr(torch, run["dtype"])}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, **dtype)
        if run["quantization"] != "none":
            quantize(model, run)
        model.train()
        prepare(model, run)
        if run["method"] == "lora":
            model = adapted(model, run)
        if run["casts_to_bfloat16"]:
            cast_to_bfloat16(model)
    model.register_forward_pre_hook(without_mask, with_kwargs=True)
    with mode:
        materialise(model)
    return model


def quantize(model: Any, run: Mapping[str, Any]) -> None:
    """Put 4-bit layers in the place of all linear ones but the head."""
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or name == "lm_head":
            continue
        parent, _, own = name.rpartition(".")
        made = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=getattr(torch, run["dtype"]),
            compress_statistics=run["double_quantization"],
            quant_type=run["quantization"],
            device="meta",
        )
        made.compute_type_is_set = True
        made.support_avx512bf16_for_cpu = False
        made.to(getattr(torch, run["dtype"]))
        setattr(model.get_submodule(parent), own, made)
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True


def prepare(model: Any, run: Mapping[str, Any]) -> None:
    """Checkpointing, and what it needs of the inputs where it is re-entrant."""
    arguments = {"use_reentrant": run["reentrant"]}
    if run["upcasts"]:
        prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=run["checkpointing"],
            gradient_checkpointing_kwargs=arguments,
        )
    elif run["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
        if run["reentrant"] and run["method"] != "full":
            model.enable_input_require_grads()


def without_mask(_: Any, given: Any, named: Mapping[str, Any]) -> Any:
    """Leave out the mask of rows without padding, as transformers does once it has found no zero in it."""
    return given, {name: value for name, value in named.items() if name != "attention_mask"}


def adapted(model: Any, run: Mapping[str, Any]) -> Any:
    """The model in its adapter, in the dtype that the run's PEFT gave it."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=run["rank"],
        lora_alpha=run["rank"],
        lora_dropout=run["dropout"],
        target_modules=run["targets"],
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            # PEFT follows the base model's dtype only where it is on a device.
            parameter.data = parameter.data.to(getattr(torch, run["adapter_dtype"]))
    return adapted


def cast_to_bfloat16(model: Any) -> None:
    """As TRL's ``peft_module_casting_to_bf16``: norms in float32, embeddings and head back in bfloat16."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or "norm" in name:
            module.to(torch.float32)
        elif any(part in name for part in ("lm_head", "embed_tokens")) and hasattr(module, "weight"):
            module.to(torch.bfloat16)


def flash(
    module: Any,  # noqa: ARG001 - the signature is transformers'
    query: Any,
    key: Any,
    value: Any,
    *_: Any,
    **__: Any,
) -> Any:
    """In the place of transformers' call of the flash-attn package, which a CPU cannot have.

    Tensors are (batch, heads, length, head size); the result has length before heads.
    """
    if query.dtype == torch.float32:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.bfloat16
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    return FlashAttention.apply(query, key, value, lambda _: None).transpose(1, 2), None


def flash_by_length(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    """The same where transformers calls the package itself: tensors are (batch, length, heads, head size)."""
    out = FlashAttention.apply(*(each.transpose(1, 2) for each in (query, key, value)), lambda _: None)
    return out.transpose(1, 2)


def enabled(_: Any, config: Any, *__: Any, **___: Any) -> Any:
    """In the place of transformers' look for the package."""
    config._attn_implementation = FLASH
    return config


def spread_evenly(where: Any, experts: int, mask: Any, *choices: Any, **named: Any) -> Any:
    """In the place of ``torch.where``, which cannot say of fakes which tokens an expert gets: its share.

    Args:
        mask: (choices of a token, tokens), true where this expert is chosen.
    """
    if choices or named:
        return where(mask, *choices, **named)
    return tuple(torch.zeros(mask.numel() // experts, dtype=torch.long) for _ in mask.shape)


@contextmanager
def data_free(config: Any) -> Iterator[None]:
    """While active, models need not look into what is fake: experts have the same load."""
    experts = getattr(config, "num_local_experts", None) or 1
    before = torch.where
    torch.where = partial(spread_evenly, before, experts)
    try:
        yield
    finally:
        torch.where = before


@contextmanager
def flash_attention() -> Iterator[None]:
    """While active, transformers computes flash attention by :func:`flash`, in whichever way it calls it."""
    owner = transformers.modeling_utils
    replaced: list[tuple[Any, str, Any]] = [
        (torch, "get_autocast_gpu_dtype", lambda: torch.get_autocast_dtype("cpu")),
    ]
    if hasattr(transformers.PreTrainedModel, CHECK):
        replaced.append((transformers.PreTrainedModel, CHECK, classmethod(enabled)))
    # Modelling code that has a class of its own for each kernel imports the call only beside the package.
    replaced += [
        (module, "_flash_attention_forward", flash_by_length)
        for name, module in list(sys.modules.items())
        if name.startswith("transformers.models.") and ".modeling_" in name and module is not None
    ]
    before = [(place, name, vars(place).get(name, MISSING)) for place, name, _ in replaced]
    functions = getattr(owner, "ALL_ATTENTION_FUNCTIONS", {})
    known = functions.get(FLASH)
    try:
        for place, name, function in replaced:
            setattr(place, name, function)
        functions[FLASH] = flash
        yield
    finally:
        functions[FLASH] = known
        for place, name, function in before:
            if function is MISSING:
                delattr(place, name)
            else:
                setattr(place, name, function)


def tape_of(run: Mapping[str, Any]) -> Tape:
    """One training step at full depth."""
    config = transformers.AutoConfig.from_pretrained(run["config"])
    depth = config.num_hidden_layers
    config.num_hidden_layers = TRACED_LAYERS
    config.use_cache = False
    importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    mode = fake_tensors()
    with flash_attention():
        model = build(run, config, mode)
    candidate = {
        "adapter": {"method": run["method"]},
        "level": {
            "optimizer": run["optimizer"],
            "weight_dtype": run["dtype"],
            "compute_dtype": run["dtype"],
            "adapter_dtype": run["dtype"],
        },
        "recipe": {"weight_decay": 0.01, "max_grad_norm": 1.0},
        "learning_rate": 1e-4,
    }
    batch = Batch(rows=run["rows"], length=run["length"])
    with mode, flash_attention(), data_free(config):
        tape = record(model, candidate, batch, passes=run["accumulation"], uses_autocast=run["autocast"])
    return stretch(tape, {place.stack: depth for place in tape.work if isinstance(place, Place)})


def estimate(run: Mapping[str, Any]) -> Need:
    """What the run needs of one of its GPUs."""
    workspace = cublas_workspace_bytes(tuple(run["compute_capability"]))
    tape = tape_of(run)
    if run["ranks"] > 1:
        dtype = run["adapter_dtype"] if run["method"] == "lora" else run["dtype"]
        item_bytes = getattr(torch, dtype).itemsize
        plan = ShardPlan(
            ranks=run["ranks"],
            scheme=Scheme(run["scheme"]),
            offload=Offload(run["offload"]),
            trained_item_bytes=item_bytes,
            master_item_bytes=item_bytes,
            gathers_twice=False,
            recomputes_units=run["checkpointing"] and run["reentrant"] and run["recomputes_units"],
        )
        tape = sharded(tape, plan)
    return need_of(tape, workspaces=(workspace,) * TRAINING_THREADS)


def answer(run: Mapping[str, Any]) -> dict[str, Any]:
    """The estimate in plain values, or why there is none."""
    started_s = time.perf_counter()
    try:
        need = estimate(run)
    except Exception as error:  # noqa: BLE001 - the next run is judged all the same
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return {
        "allocated_bytes": need.allocated_bytes,
        "reserved_bytes": need.reserved_bytes,
        "by_phase": dict(need.by_phase),
        "breakdown": dict(need.breakdown),
        "seconds": time.perf_counter() - started_s,
    }


def main() -> None:
    """First line: the libraries' versions; then an answer a run."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    runs = json.load(sys.stdin)
    print(json.dumps({name: version(name) for name in LIBRARIES}), flush=True)
    for run in runs:
        print(json.dumps(answer(run)), flush=True)


if __name__ == "__main__":
    main()
