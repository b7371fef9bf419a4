"""Published runs as rows of a table: what each measured, what of it can be estimated, and why not the rest.

Knows nothing of how an estimate is made.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.errors import InputError
from rankwise.optimizer.estimates.gpus import Gpu, find_gpu

MODELS = Path(__file__).parents[1] / "published_models"
GIB, GB, MIB = 2**30, 10**9, 2**20

ALLOCATED, RESERVED, DEVICE = "allocated", "reserved", "nvidia-smi"

PLAIN = "plain Hugging Face, one GPU"
SHARDED = "plain Hugging Face, FSDP"
FUSED = "fused kernels, estimated without"
OTHER_CODE = "litgpt's own model code, estimated with transformers'"
REMOTE_CODE = "the model's own code, estimated with transformers'; lengths as cut"
JUDGED = (PLAIN, SHARDED)
"""Groups whose settings and code are known; the others show an order of magnitude."""

CONFIGS = {
    "mistralai/mistral-7b-v0.1": "mistral-7b-v0.1",
    "unsloth/mistral-7b-v0.2": "mistral-7b-v0.2",
    "mistral-7b-v0.2": "mistral-7b-v0.2",
    "mistralai/mixtral-8x7b-instruct-v0.1": "mixtral-8x7b",
    "meta-llama/llama-2-7b-hf": "llama-2-7b",
    "llama-2-7b": "llama-2-7b",
    "llama 2 7 b": "llama-2-7b",
    "nousresearch/llama-2-70b-hf": "llama-2-70b",
    "meta-llama/meta-llama-3-8b": "llama-3-8b",
    "llama 3.1 8b": "llama-3-8b",
    "meta-llama/llama-3.2-1b": "llama-3.2-1b",
    "meta-llama/llama-3.2-3b": "llama-3.2-3b",
    "tinyllama/tinyllama-1.1b-intermediate-step-1431k-3t": "tinyllama-1.1b",
    "tiiuae/falcon-7b": "falcon-7b",
    "microsoft/phi-2": "phi-2",
    "phi-1.5 1.3 b": "phi-1.5",
    "stabilityai/stablelm-base-alpha-3b": "stablelm-alpha-3b",
    "stablelm alpha 3 b": "stablelm-alpha-3b",
    "yi-34b": "yi-34b",
    "ibm/powerlm-3b": "powerlm-3b",
    "bigcode/gpt_bigcode-santacoder": "santacoder",
    "qwen-7b-chat": "qwen-7b",
}
"""Name in the table, in small letters → file in ``published_models``."""

LITGPT_TARGETS = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "projection": "o_proj",
    "mlp": "gate_proj up_proj down_proj",
    "head": "lm_head",
}
MODULES = {
    # Configuration → its modules where they are not named as Llama's are.
    "falcon-7b": {"query": "query_key_value", "value": "query_key_value"},
    "stablelm-alpha-3b": {"query": "query_key_value", "value": "query_key_value"},
    "phi-2": {"projection": "dense", "mlp": "fc1 fc2"},
}
FSDP_QLORA_TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published run."""

    number: int
    """Line of the table, the header being line 1."""
    source: str
    label: str
    group: str
    measured: Mapping[str, int] = field(default_factory=dict)
    """Metric → bytes."""
    ran: bool = True
    """False where it ended out of memory."""
    gpu: Gpu | None = None
    gpus: int = 1
    transformers: str | None = None
    """The version that it names."""
    run: Mapping[str, Any] | None = None
    """What ``trace.py`` is to estimate; None where it cannot be compared."""
    reason: str = ""
    """Why it cannot be compared, or not quite."""


def read(path: Path) -> Iterator[Published]:
    """All runs of a table.

    Raises:
        KeyError, ValueError: it has not the columns, or values, of the table that this was written for.
    """
    with path.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            yield published(number, row)


def published(number: int, row: Mapping[str, str]) -> Published:
    """The run of one row."""
    note = row["note"]
    version = re.search(r"tf(\d[\d.]*)", note)
    common: dict[str, Any] = {
        "number": number,
        "source": row["source"],
        "label": label_of(row),
        "measured": measured_of(row),
        "ran": row["status"] == "ok",
        "gpu": gpu_of(row["gpu"]),
        "gpus": int(row["n_gpus"]),
        "transformers": version and version[1],
    }
    group, reason = group_of(row)
    run = None
    if group:
        config = CONFIGS.get(row["model"].lower())
        if config is None:
            group, reason = "", f"no configuration of {row['model']} in published_models"
        elif common["gpu"] is None:
            group, reason = "", f"unknown GPU {row['gpu']!r}"
        else:
            run = run_of(row, config, common["gpu"])
    return Published(group=group, reason=reason, run=run, **common)


def label_of(row: Mapping[str, str]) -> str:
    """A run in a few words."""
    framework = re.search(r"framework=([^;]+)", row["note"])
    parts = [row["model"].rpartition("/")[2], row["method"], row["quant"], framework and framework[1]]
    if row["rank"]:
        parts.append(f"r{int(float(row['rank']))}")
    parts.append(f"{row['micro_bs'] or '?'}x{row['seq_len'] or '?'}")
    return " ".join(part for part in parts if part)


def measured_of(row: Mapping[str, str]) -> dict[str, int]:
    """Metric → bytes. Of "73.0+61.3", a figure for each GPU, none is taken."""
    found = {}
    unit = GB if row["mem_unit"].startswith("GB") else GIB
    metric = RESERVED if "reserved" in row["mem_metric"] else ALLOCATED
    if re.fullmatch(r"[\d.]+", row["mem"]):
        found[metric] = round(float(row["mem"]) * unit)
    if row["status"] == "ok" and (seen := re.search(r"nvidia-smi=([\d.]+) MiB", row["note"])):
        found[DEVICE] = round(float(seen[1]) * MIB)
    return found


def gpu_of(text: str) -> Gpu | None:
    """The catalogue's entry for one of the devices; None where it has none."""
    name = re.sub(r"^\d+x ", "", text).replace("(80GB class)", "80GB").replace("(PCIe)", "").strip()
    try:
        return find_gpu(name)
    except InputError:
        return None


def group_of(row: Mapping[str, str]) -> tuple[str, str]:
    """What a run is judged with, and why not with the plain ones; no group where it cannot be estimated."""
    return GROUPS[row["source"]](row)


def _fms(row: Mapping[str, str]) -> tuple[str, str]:
    if "foak" in row["note"]:
        if row["n_gpus"] != "1":
            return "", "fused kernels (foak) that transformers does not have"
        return FUSED, "fused kernels (foak) that transformers does not have"
    return (PLAIN, "") if row["n_gpus"] == "1" else (SHARDED, "")


def _litgpt(row: Mapping[str, str]) -> tuple[str, str]:
    if row["method"] != "lora":
        return "", "litgpt's own kind of adapter"
    if row["n_gpus"] != "1":
        return "", "litgpt's own model code on several GPUs"
    return OTHER_CODE, "litgpt's own model code and chunked loss"


def _swift(row: Mapping[str, str]) -> tuple[str, str]:
    for part, reason in (
        ("gptq", "GPTQ layers"),
        ("galore", "GaLore"),
        ("lisa", "LISA"),
        ("llamapro", "LLaMA-Pro"),
        ("adapter", "ms-swift's own kind of adapter"),
        ("no flash", "the model's own code without flash attention"),
    ):
        if part in f"{row['quant']} {row['method']} {row['attn']}".split("adalora")[0]:
            return "", reason
    if row["n_gpus"] != "1":
        return "", "layers spread over GPUs (device_map)"
    if not row["seq_len"] or row["micro_bs"] != "1":
        return "", "lengths depend on the data"
    return REMOTE_CODE, "the model's own code"


def _torchtune(_: Mapping[str, str]) -> tuple[str, str]:
    return "", "torch.compile, and torchtune's own model code"


def _fsdp_qlora(_: Mapping[str, str]) -> tuple[str, str]:
    return SHARDED, "names no version of transformers"


GROUPS = {
    "fms_acceleration": _fms,
    "litgpt_config_hub": _litgpt,
    "litgpt_resource_tables": _litgpt,
    "ms_swift_benchmark": _swift,
    "torchtune_readme": _torchtune,
    "answerai_fsdp_qlora": _fsdp_qlora,
}


def run_of(row: Mapping[str, str], config: str, gpu: Gpu) -> dict[str, Any]:
    """What the run's trainer did, from the row and from what its repository says (see ``published.py``)."""
    is_litgpt = row["source"].startswith("litgpt")
    is_fsdp_qlora = row["source"] == "answerai_fsdp_qlora"
    quantized = "nf4" in row["quant"] or "bnb" in row["quant"]
    upcasts = "baseline-peft-bnb" in row["note"] and row["n_gpus"] == "1"
    offloads = "CPU offload" in row["dist"]
    return {
        "config": str(MODELS / f"{config}.json"),
        "method": row["method"],
        "quantization": "nf4" if quantized else "none",
        # fms-acceleration's plug-in quantizes the scales too; so does bitsandbytes' layer if nothing is said.
        "double_quantization": row["source"] == "fms_acceleration" or is_fsdp_qlora or "dq" in row["quant"],
        "dtype": "bfloat16",
        # PEFT casts adapters to float32 since 0.11; fsdp_qlora's runs are older.
        "adapter_dtype": "bfloat16" if is_litgpt or is_fsdp_qlora else "float32",
        "autocast": "amp" in row["dtype"] or row["source"] == "ms_swift_benchmark",
        "upcasts": upcasts or (quantized and row["source"] == "ms_swift_benchmark"),
        "casts_to_bfloat16": upcasts,
        "attention": "sdpa" if is_litgpt or is_fsdp_qlora else "flash_attention_2",
        "checkpointing": row["grad_ckpt"] in ("True", "reentrant"),
        "reentrant": True,
        # fsdp_qlora's checkpointing is within FSDP's units.
        "recomputes_units": not is_fsdp_qlora,
        "rank": int(float(row["rank"] or 0)),
        "dropout": 0.05 if is_litgpt or row["source"] == "ms_swift_benchmark" else 0.1,
        "targets": targets_of(row, config),
        "optimizer": "adamw_torch",
        "rows": int(row["micro_bs"]),
        "length": int(row["seq_len"]),
        "accumulation": int((row["grad_accum"] or "1").partition("/")[0]),
        "compute_capability": list(gpu.compute_capability or (8, 0)),
        "ranks": int(row["n_gpus"]),
        # What fsdp_qlora calls "ddp" is FSDP's NO_SHARD: whole weights, gradients reduced where they are.
        "scheme": "none" if row["dist"] == "DDP" else "fsdp",
        "offload": "all" if offloads else "none",
    }


def targets_of(row: Mapping[str, str], config: str) -> list[str]:
    """Names of the modules that get an adapter."""
    if row["source"] == "answerai_fsdp_qlora":
        return FSDP_QLORA_TARGETS
    if row["source"] == "ms_swift_benchmark":
        # c_attn is one matrix for all three.
        every = ["q_proj", "k_proj", "v_proj"]
        return [*every, "o_proj", "gate_proj", "up_proj", "down_proj"] if "ALL" in row["targets"] else every
    if row["source"].startswith("litgpt"):
        names = {**LITGPT_TARGETS, **MODULES.get(config, {})}
        return sorted({part for word in row["targets"].split() for part in names[word].split()})
    return row["targets"].split()
