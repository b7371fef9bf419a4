"""Each rule forbids what it is named for, and nothing next to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.domain import Adapter, Level, Method, Quantization
from rankwise.optimizer.rules import BATCH_RULES, RULES, first_refusal, refusal, setting_of
from rankwise.probes.profiles import Factory, TaskKind

LORA = Adapter(method=Method.LORA, rank=8, alpha=16.0, targets=("query", "value"))
EXPERTS = Adapter(
    method=Method.LORA, rank=8, alpha=16.0, targets=("q_proj",), target_parameters=("down_proj",)
)
WHOLE = Adapter(method=Method.LORA, rank=8, alpha=16.0, targets=("self_attn",))
GPT2 = Adapter(method=Method.LORA, rank=8, alpha=16.0, targets=("c_attn",))
ADALORA = Adapter(method=Method.ADALORA, rank=8, initial_rank=12, alpha=24.0, targets=("query",))
IA3 = Adapter(method=Method.IA3, targets=("query",))
MISS = Adapter(method=Method.MISS, rank=64, targets=("query",))
FULL = Adapter(method=Method.FULL)
HEAD = Adapter(method=Method.HEAD, trained_modules=("classifier",))
BITFIT = Adapter(method=Method.BITFIT, trained_modules=("classifier",), unfrozen=("bias",))

HALF = {"weight_dtype": "bfloat16", "compute_dtype": "bfloat16"}
NF4 = {"quantization": Quantization.NF4}
INT8 = {"quantization": Quantization.INT8}
MIXED = {"compute_dtype": "bfloat16"}
LIBRARIES = ("bitsandbytes", "deepspeed", "flash-attn", "liger-kernel")
TWO = {"processes": 2}
ZERO_2 = {**TWO, "zero_stage": 2}
ZERO_3 = {**TWO, "zero_stage": 3}
FSDP_1 = {**TWO, "fsdp": 1}
FSDP_2 = {**TWO, "fsdp": 2}

# rule, what it forbids, what differs in the allowed neighbour; by default LoRA on BERT, float32, a CPU with
# all libraries. Keys: adapter, level, model, task, and those of Build.hardware.
CASES = [
    ("nothing-to-adapt", {"adapter": replace(LORA, targets=("q_proj",))}, {"adapter": LORA}),
    (
        "unsupported-module",
        {"adapter": replace(MISS, rank=8, targets=("c_attn",)), "model": "gpt2"},
        {"adapter": GPT2},
    ),
    ("ia3-dropout", {"adapter": replace(IA3, dropout=0.1)}, {"adapter": IA3}),
    ("variant-of-lora", {"adapter": replace(ADALORA, use_dora=True)}, {"adapter": ADALORA}),
    (
        "experts-lora-only",
        {"adapter": replace(IA3, targets=("q_proj",), target_parameters=("down_proj",)), "model": "moe"},
        {"adapter": EXPERTS},
    ),
    ("experts-dropout", {"adapter": replace(EXPERTS, dropout=0.1), "model": "moe"}, {"adapter": EXPERTS}),
    ("experts-dora", {"adapter": replace(EXPERTS, use_dora=True), "model": "moe"}, {"adapter": EXPERTS}),
    (
        "experts-initialisation",
        {"adapter": replace(EXPERTS, init_weights="pissa"), "model": "moe"},
        {"adapter": replace(EXPERTS, init_weights="gaussian")},
    ),
    (
        "initialisation-needs-data",
        {"adapter": replace(LORA, init_weights="eva")},
        {"adapter": replace(LORA, init_weights="pissa_niter_16")},
    ),
    (
        "olora-transposed",
        {"adapter": replace(GPT2, init_weights="olora"), "model": "gpt2"},
        {"adapter": replace(GPT2, init_weights="pissa")},
    ),
    (
        "orthogonal-odd-rank",
        {"adapter": replace(LORA, init_weights="orthogonal", rank=7)},
        {"adapter": replace(LORA, init_weights="orthogonal", rank=6)},
    ),
    (
        "variant-of-lora",
        {"adapter": replace(ADALORA, rank_pattern=(("query", 4),))},
        {"adapter": replace(LORA, rank_pattern=(("query", 4),))},
    ),
    (
        "experts-old-names",
        {"adapter": replace(EXPERTS, targets=("q_proj", "shared.up_proj")), "model": "moe with dense layers"},
        {"adapter": replace(EXPERTS, targets=("q_proj", "shared.wide")), "model": "moe with dense layers"},
    ),
    ("nothing-to-unfreeze", {"adapter": replace(HEAD, trained_modules=())}, {"adapter": HEAD}),
    (
        "checkpointing-behind-frozen",
        {"adapter": HEAD, "level": {"gradient_checkpointing": True}},
        {"adapter": BITFIT},
    ),
    ("bitfit-quantized", {"adapter": BITFIT, "level": NF4}, {"adapter": HEAD}),
    ("miss-rank-above-input", {"adapter": replace(MISS, rank=65)}, {"adapter": MISS}),
    ("full-in-half-precision", {"adapter": FULL, "level": HALF, "native_bf16": True}, {"level": MIXED}),
    (
        "full-in-half-precision",
        {"adapter": FULL, "level": {**TWO, **HALF}, "native_bf16": True},
        {"level": {**ZERO_2, **HALF, "adapter_dtype": "bfloat16"}},
    ),
    ("full-quantized", {"adapter": FULL, "level": NF4}, {"adapter": LORA}),
    (
        "adalora-half-precision",
        {"adapter": ADALORA, "level": HALF, "native_bf16": True},
        {"level": MIXED},
    ),
    (
        "adalora-half-precision",
        {"adapter": ADALORA, "level": {**MIXED, **NF4}, "native_bf16": True},
        {"level": {**HALF, **INT8}},
    ),
    (
        "attention-half-precision",
        {"adapter": WHOLE, "model": "attention", "level": HALF, "native_bf16": True},
        {"level": MIXED},
    ),
    (
        "initialisation-quantized",
        {"adapter": replace(LORA, init_weights="pissa"), "level": NF4},
        {"adapter": replace(LORA, init_weights="olora")},
    ),
    (
        "dora-int8-without-gpu",
        {"adapter": replace(LORA, use_dora=True), "level": INT8},
        {"level": NF4},
    ),
    ("dora-int8-without-gpu", {"adapter": replace(LORA, use_dora=True), "level": INT8}, {"adapter": LORA}),
    (
        "dora-int8-without-gpu",
        {"adapter": replace(LORA, use_dora=True), "level": {**MIXED, **INT8}, "native_bf16": True},
        {"gpus": 1},
    ),
    (
        "float16-without-gpu",
        {"level": {"compute_dtype": "float16"}},
        {"gpus": 1, "capability": (7, 5)},
    ),
    (
        "float16-beside-bfloat16",
        {"level": {"compute_dtype": "float16"}, "gpus": 1},
        {"capability": (7, 5)},
    ),
    ("bfloat16-emulated", {"level": MIXED}, {"native_bf16": True}),
    ("bfloat16-emulated", {"level": MIXED, "gpus": 1, "capability": None}, {"capability": (8, 6)}),
    ("quantized-float32", {"level": NF4, "gpus": 1}, {"level": {**MIXED, **NF4}}),
    ("quantized-without-bitsandbytes", {"level": NF4, "libraries": ()}, {"libraries": ("bitsandbytes",)}),
    (
        "nothing-to-quantize",
        {"adapter": replace(EXPERTS, targets=()), "model": "experts", "level": NF4},
        {"adapter": EXPERTS, "model": "moe"},
    ),
    (
        "double-quantization-of-4-bit",
        {"level": {**INT8, "double_quantization": True}},
        {"level": {**NF4, "double_quantization": True}},
    ),
    (
        "checkpointing-unsupported",
        {"level": {"gradient_checkpointing": True}, "model": "no checkpointing"},
        {"model": "bert"},
    ),
    ("attention-unsupported", {"level": {"attention": "flex_attention"}}, {"level": {"attention": "eager"}}),
    (
        "flash-attention",
        {"level": {"attention": "flash_attention_2", **MIXED}, "model": "flash", "native_bf16": True},
        {"gpus": 1},
    ),
    (
        "flash-attention",
        {"level": {"attention": "flash_attention_2"}, "model": "flash", "gpus": 1},
        {"level": {"attention": "flash_attention_2", **MIXED}},
    ),
    (
        "flash-attention",
        {
            "level": {"attention": "flash_attention_2", **MIXED},
            "model": "flash",
            "gpus": 1,
            "libraries": (),
        },
        {"libraries": ("flash-attn",)},
    ),
    ("loss-of-causal-models", {"level": {"loss": "chunked"}}, {"task": TaskKind.CHAT}),
    ("liger", {"level": {"loss": "liger"}, "task": TaskKind.CAUSAL_LM}, {"gpus": 1}),
    (
        "liger",
        {"level": {"loss": "liger"}, "task": TaskKind.CAUSAL_LM, "gpus": 1, "libraries": ()},
        {"libraries": ("liger-kernel",)},
    ),
    (
        "optimizer-without-bitsandbytes",
        {"level": {"optimizer": "adamw_8bit"}, "libraries": ()},
        {"libraries": ("bitsandbytes",)},
    ),
    ("paged-without-gpu", {"level": {"optimizer": "paged_adamw_8bit"}}, {"gpus": 1}),
    ("compile-without-gpu", {"level": {"compile": True}}, {"gpus": 1}),
    ("adalora-divided", {"adapter": ADALORA, "level": {**ZERO_2, "zero_stage": 1}}, {"level": TWO}),
    (
        "adalora-divided",
        {"adapter": ADALORA, "level": FSDP_2, "gpus": 2, "model": "llama"},
        {"adapter": LORA},
    ),
    (
        "experts-fsdp-1",
        {"adapter": EXPERTS, "model": "moe", "level": FSDP_1, "gpus": 2},
        {"level": FSDP_2},
    ),
    ("one-way-to-divide", {"level": {**ZERO_3, "fsdp": 1}, "gpus": 2}, {"level": ZERO_3}),
    ("nobody-to-divide-with", {"level": {"zero_stage": 2}}, {"level": ZERO_2}),
    ("nobody-to-divide-with", {"level": {"fsdp": 1}, "gpus": 2}, {"level": FSDP_1}),
    (
        "nobody-to-divide-with",
        {"level": {"zero_stage": 2}, "gpus": 1},
        {"level": {"zero_stage": 2, "offload": "optimizer"}},
    ),
    (
        "offload-by-zero",
        {"level": {**ZERO_2, "zero_stage": 1, "offload": "optimizer"}, "gpus": 2},
        {"level": {**ZERO_2, "offload": "optimizer"}},
    ),
    (
        "offload-by-zero",
        {"level": {**ZERO_2, "offload": "all"}, "gpus": 2},
        {"level": {**ZERO_3, "offload": "all"}},
    ),
    ("offload-without-gpu", {"level": {**ZERO_2, "offload": "optimizer"}}, {"gpus": 2}),
    ("zero-without-deepspeed", {"level": ZERO_2, "libraries": ()}, {"libraries": ("deepspeed",)}),
    (
        "zero-casts",
        {"level": {**ZERO_2, **HALF}, "native_bf16": True},
        {"level": {**ZERO_2, **HALF, "adapter_dtype": "bfloat16"}},
    ),
    (
        "offloaded-optimizer",
        {"level": {**ZERO_2, "offload": "optimizer", "optimizer": "adamw_8bit"}, "gpus": 2},
        {"level": {**ZERO_2, "optimizer": "adamw_8bit"}},
    ),
    ("int8-divided", {"level": {**ZERO_3, **INT8}}, {"level": {**ZERO_2, **INT8}}),
    ("int8-divided", {"level": {**ZERO_3, **INT8}}, {"level": {**ZERO_3, **NF4}}),
    ("fsdp-without-gpu", {"level": FSDP_1}, {"gpus": 2}),
    (
        "fsdp-quantized",
        {"level": {**FSDP_1, **MIXED, **NF4}, "gpus": 2},
        {"level": {**FSDP_1, **MIXED}},
    ),
    ("fsdp-1-dtypes", {"level": {**FSDP_1, **HALF}, "gpus": 2}, {"level": {**FSDP_1, **MIXED}}),
    (
        "fsdp-2-8-bit-optimizer",
        {"level": {**FSDP_2, "optimizer": "adamw_8bit"}, "gpus": 2, "model": "llama"},
        {"level": {**FSDP_1, "optimizer": "adamw_8bit"}},
    ),
    ("fsdp-own-modules", {"level": FSDP_1, "gpus": 2, "model": "own"}, {"model": "llama"}),
    ("fsdp-2-embeddings", {"level": FSDP_2, "gpus": 2, "model": "real bert"}, {"level": FSDP_1}),
    ("fsdp-2-encoder-decoder", {"level": FSDP_2, "gpus": 2, "model": "t5"}, {"model": "llama"}),
]


@pytest.fixture(scope="session")
def models(build):
    bert = build.bert()
    return {
        "bert": bert,
        "gpt2": build.gpt2(),
        "attention": build.model([build.module("block.self_attn", "qkv", (64, 192), "attention")]),
        "moe": build.moe(),
        "moe with dense layers": build.model(
            [
                *build.moe().modules,
                build.module("model.layers.0.mlp.shared.up_proj", "mlp_in", (64, 64)),
                build.module("model.layers.0.mlp.shared.wide", "mlp_in", (64, 64)),
            ]
        ),
        "experts": build.model([build.module("experts.down_proj", "mlp_out", (64, 64), "experts", 4)]),
        "llama": bert,
        "real bert": replace(bert, model_type="bert"),
        "t5": replace(bert, is_encoder_decoder=True),
        "own": replace(bert, factory=Factory(name="own:model", folder="/")),
        "no checkpointing": replace(bert, supports_gradient_checkpointing=False),
        "flash": replace(bert, attention_kernels=("sdpa", "eager", "flash_attention_2")),
    }


def refusal_of(build, models, case):
    values = {
        "adapter": LORA,
        "level": {},
        "model": "bert",
        "task": TaskKind.TEXT_CLASSIFICATION,
        "libraries": LIBRARIES,
        **case,
    }
    adapter, model, task = values.pop("adapter"), models[values.pop("model")], values.pop("task")
    level = Level(**values.pop("level"))
    return refusal(adapter, level, model, task, build.hardware(**values))


@pytest.mark.parametrize(
    ("name", "forbidden", "change"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)]
)
def test_a_rule_forbids_what_it_is_named_for(build, models, name, forbidden, change):
    rule = refusal_of(build, models, forbidden)
    assert rule is not None
    assert rule.name == name
    allowed = refusal_of(build, models, {**forbidden, **change})
    assert allowed is None, allowed.name


def test_every_rule_has_a_name_a_sentence_and_a_case():
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))
    assert set(names) == {case[0] for case in CASES} | {rule.name for rule in BATCH_RULES}
    for rule in RULES:
        assert rule.reason.endswith(".")


@pytest.mark.parametrize(
    ("attention", "packing", "micro_batch", "is_refused"),
    [
        ("flash_attention_2", True, 2, True),
        ("flash_attention_3", True, 8, True),
        ("flash_attention_2", True, 1, False),
        ("flash_attention_2", False, 2, False),
        ("sdpa", True, 2, False),
    ],
)
def test_flash_attention_takes_packed_rows_one_at_a_time(
    build, models, attention, packing, micro_batch, is_refused
):
    setting = replace(
        setting_of(
            LORA, Level(attention=attention), models["flash"], TaskKind.CAUSAL_LM, build.hardware(gpus=1)
        ),
        packing=packing,
        micro_batch=micro_batch,
    )
    rule = first_refusal(setting, BATCH_RULES)
    assert (rule.name if rule else None) == ("packed-flash-attention" if is_refused else None)
