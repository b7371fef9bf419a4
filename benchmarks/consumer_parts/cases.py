"""Trainings that differ from a plain LoRA in one thing each, as if a study had recommended them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.resources import Resources
from rankwise.optimizer.trainers.settings import Training
from rankwise.probes.profiles import TaskKind

GIB = 2**30
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
LORA = Adapter(method=Method.LORA, rank=8, alpha=16.0, targets=ATTENTION, target_set="balanced")
HALF = Level(weight_dtype="bfloat16", compute_dtype="bfloat16", optimizer="adamw_torch_fused")
NF4 = replace(HALF, quantization=Quantization.NF4)
RECIPE = Recipe(max_length=512, effective_batch=16)
ODD_PATH = '/models/it\'s "the" model: #1, ünï'
"""Spaces, quotes, a colon, a hash sign: what YAML would take for something else."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One training; ``family`` names the tiny model that its adapter fits (:mod:`.models`).

    With ``rows``, the folder of what ``prepare_data.py`` wrote, trainers load these too.
    """

    group: str
    name: str
    training: Training
    family: str = "llama"
    rows: Path | None = None

    @property
    def folder(self) -> str:
        """A name for files."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.name.lower())


def training(
    adapter: Adapter = LORA,
    level: Level = HALF,
    recipe: Recipe = RECIPE,
    *,
    micro_batch: int = 4,
    **changes: Any,
) -> Training:
    """What a study on one GPU hands over."""
    candidate = Candidate(
        adapter=adapter, level=level, recipe=recipe, micro_batch=micro_batch, learning_rate=3.1e-4
    )
    task, model, steps = (
        changes.get("task", TaskKind.CHAT),
        changes.get("model", "/models/tiny"),
        changes.get("total_steps", 338),
    )
    defaults: dict[str, Any] = {
        "candidate": candidate,
        "task": task,
        "model": model,
        "model_revision": None,
        "has_weights": True,
        "runs_remote_code": False,
        "factory": None,
        "adapter_config": adapter_config(candidate, task_kind=task, base_model=model, total_steps=steps),
        "classes": 0,
        "total_steps": steps,
        "seed": 7,
        "on_cpu": False,
        "gpu_name": "Some GPU",
        "resources": Resources(gpus=candidate.level.processes, cpus=8, host_bytes=10 * GIB, limit_s=8_400),
        "study_id": "01K5ZJ9V0M3Q8R7T6Y2X4W1N0B",
        "libraries": MappingProxyType({"torch": "2.13.0+cu130", "transformers": "5.23.0", "peft": "0.21.2"}),
    }
    return Training(**{**defaults, **changes})


def cases() -> Iterator[Case]:
    """All of them, in the order of the page."""
    for name, adapter in _methods().items():
        level = HALF if adapter.method.has_adapter else Level(compute_dtype="bfloat16")
        yield Case("method", name, training(adapter, level), _family(adapter))
    for name, adapter in _adapters().items():
        yield Case("adapter", name, training(adapter), _family(adapter))
    for name, level in _levels().items():
        adapter = next((other for start, other in BESIDE_LORA.items() if name.startswith(start)), LORA)
        yield Case("level", name, training(adapter, level))
    yield from _others()


BESIDE_LORA = {
    "full,": Adapter(method=Method.FULL),
    "last block,": Adapter(method=Method.LAST_BLOCKS, unfrozen=("model.layers.1",), last_blocks=1),
    "biases,": Adapter(method=Method.BITFIT, unfrozen=("bias",)),
}
"""How names of levels begin that are those of another method."""


def _methods() -> Mapping[str, Adapter]:
    blocks = ("model.layers.1",)
    return {
        "LoRA": LORA,
        "rsLoRA": replace(LORA, use_rslora=True),
        "DoRA": replace(LORA, use_dora=True),
        "AdaLoRA": replace(LORA, method=Method.ADALORA, rank=8, initial_rank=12, alpha=24.0),
        "IA3": Adapter(
            method=Method.IA3, targets=("down_proj", "k_proj", "v_proj"), feedforward=("down_proj",)
        ),
        "OFT": Adapter(method=Method.OFT, rank=16, targets=ATTENTION),
        "MiSS": Adapter(method=Method.MISS, rank=16, targets=ATTENTION),
        "head": Adapter(method=Method.HEAD, unfrozen=("lm_head",)),
        "last blocks": Adapter(method=Method.LAST_BLOCKS, unfrozen=blocks, last_blocks=1),
        "biases": Adapter(method=Method.BITFIT, unfrozen=("bias",)),
        "norms": Adapter(
            method=Method.NORMS, unfrozen=("input_layernorm", "post_attention_layernorm", "norm")
        ),
        "full": Adapter(method=Method.FULL),
    }


def _adapters() -> Mapping[str, Adapter]:
    return {
        "one target": replace(LORA, targets=("q_proj",)),
        "targets with points": replace(LORA, targets=("mlp.down_proj", "self_attn.q_proj")),
        "target pattern": replace(LORA, targets=(), target_pattern=r".*layers\.[01]\.self_attn\.(q|v)_proj"),
        "ranks by module": replace(LORA, rank_pattern=((r"layers\.1\.self_attn\.q_proj", 16),)),
        "ranks and alphas by module": replace(
            LORA, rank_pattern=((r"layers\.1\..*", 16),), alpha_pattern=((r"layers\.1\..*", 32.0),)
        ),
        "PiSSA": replace(LORA, init_weights="pissa"),
        "dropout": replace(LORA, dropout=0.1),
        "alpha of a half": replace(LORA, alpha=8.5),
        "GPT-2's Conv1D": replace(LORA, targets=("c_attn",)),
        "experts": replace(LORA, target_parameters=("experts.down_proj", "experts.gate_up_proj")),
        "a head beside the adapter": replace(LORA, trained_modules=("lm_head",)),
    }


def _levels() -> Mapping[str, Level]:
    pure = replace(HALF, adapter_dtype="bfloat16")
    return {
        "float32": Level(),
        "AMP bfloat16 over float32": Level(compute_dtype="bfloat16"),
        "AMP float16 over float16": Level(weight_dtype="float16", compute_dtype="float16"),
        "AMP float16 over float32": Level(compute_dtype="float16"),
        "pure bfloat16": pure,
        "full, float32": Level(),
        "full, AMP bfloat16 over float32": Level(compute_dtype="bfloat16"),
        "full, pure bfloat16": pure,
        "last block, pure bfloat16": pure,
        "last block, AMP over bfloat16": HALF,
        "biases, float32": Level(),
        "last block, nf4": replace(NF4, adapter_dtype="bfloat16"),
        "int8": replace(HALF, quantization=Quantization.INT8),
        "nf4": NF4,
        "fp4": replace(HALF, quantization=Quantization.FP4),
        "nf4, double": replace(NF4, double_quantization=True),
        "nf4 in bfloat16 over float32": Level(compute_dtype="bfloat16", quantization=Quantization.NF4),
        "nf4 but some modules": replace(NF4, skip_modules=("o_proj",)),
        "int8 but some modules": replace(HALF, quantization=Quantization.INT8, skip_modules=("o_proj",)),
        "checkpointing": replace(HALF, gradient_checkpointing=True),
        "eager attention": replace(HALF, attention="eager"),
        "flash attention": replace(HALF, attention="flash_attention_2"),
        "chunked loss": replace(HALF, loss="chunked"),
        "Liger's loss": replace(HALF, loss="liger"),
        "8-bit AdamW": replace(HALF, optimizer="adamw_8bit"),
        "paged 8-bit AdamW": replace(HALF, optimizer="paged_adamw_8bit"),
        "compiled": replace(HALF, compile=True),
        "ZeRO 2, optimizer offloaded": replace(HALF, zero_stage=2, offload="optimizer"),
        "ZeRO 3, all offloaded": replace(HALF, zero_stage=3, offload="all"),
    }


def _others() -> Iterator[Case]:
    packed = replace(RECIPE, packing=True)
    classifier = replace(LORA, trained_modules=("score",))
    for name, one in {
        "packing": training(recipe=packed),
        "half an epoch": training(recipe=replace(RECIPE, epochs=0.5), total_steps=56),
        "constant rate, no warm-up": training(recipe=replace(RECIPE, schedule="constant", warmup_ratio=0.0)),
        "one step of warm-up": training(total_steps=10),
        "weight decay with DoRA": training(
            replace(LORA, use_dora=True), recipe=replace(RECIPE, weight_decay=0.01)
        ),
        "10 rows in micro-batches of 4": training(recipe=replace(RECIPE, effective_batch=10)),
        "nf4 beside trained embeddings": training(replace(LORA, trained_modules=("embed_tokens",)), NF4),
        "nf4 beside trained embeddings and head": training(
            replace(LORA, trained_modules=("embed_tokens", "lm_head")), NF4
        ),
        "int8 beside a trained projection": training(
            replace(LORA, targets=("q_proj", "v_proj"), trained_modules=("o_proj",)),
            replace(HALF, quantization=Quantization.INT8),
        ),
        "a path with quotes": training(model=ODD_PATH),
        "a commit on the hub": training(
            model="lab/tiny", model_revision="5d602fdbf1e0c2a4b6d8e0f1a2b3c4d5e6f70819"
        ),
        "the model's own code": training(runs_remote_code=True),
        "measured on a CPU": training(level=Level(), on_cpu=True, gpu_name=None),
        "without weights": training(has_weights=False),
        "a factory's model": training(factory="models:make"),
        "classification": training(classifier, task=TaskKind.TEXT_CLASSIFICATION, classes=3),
        "regression": training(classifier, task=TaskKind.REGRESSION),
        "sequence to sequence": training(replace(LORA, targets=("q", "v")), task=TaskKind.SEQ2SEQ),
    }.items():
        yield Case("training", name, one)


def _family(adapter: Adapter) -> str:
    if adapter.target_parameters:
        return "mixtral"
    return "gpt2" if "c_attn" in adapter.targets else "llama"
