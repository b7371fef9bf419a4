"""Roles of the modules of models that users bring, as the real transformers builds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from rankwise.probes.profiles import ModuleProfile
from rankwise.probes.roles import module_profiles

WIDTHS = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64}
BERT = {**WIDTHS, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**BERT, "num_key_value_heads": 2, "pad_token_id": 0}
WITH_HEADS = {**LLAMA, "head_dim": 8}
GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}
BART = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "pad_token_id": 1,
}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    **BERT,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 0,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}

SEPARATE = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
GATED = {"gate_proj": "mlp_gate", "up_proj": "mlp_in", "down_proj": "mlp_out"}
LLAMA_ROLES = {**SEPARATE, "o_proj": "attention_output", **GATED}
FUSED_ROLES = {
    "query_key_value": "qkv",
    "dense": "attention_output",
    "dense_h_to_4h": "mlp_in",
    "dense_4h_to_h": "mlp_out",
}
TWO_LAYERS = {"fc1": "mlp_in", "fc2": "mlp_out"}
BART_ROLES = {**SEPARATE, "out_proj": "attention_output", **TWO_LAYERS}
BERT_ROLES = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attention.output.dense": "attention_output",
    "intermediate.dense": "mlp_in",
    "0.output.dense": "mlp_out",
}
T5_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "attention_output"}
ROUTED = {"gate": "router", "experts.gate_up_proj": "mlp_in", "experts.down_proj": "mlp_out"}
MIXTURE_ROLES = {**SEPARATE, "o_proj": "attention_output", **ROUTED}
DEEPSEEK_ROLES = {
    "q_a_proj": "query",
    "q_b_proj": "query",
    "kv_a_proj_with_mqa": "qkv",
    "kv_b_proj": "qkv",
    "o_proj": "attention_output",
    **ROUTED,
    "shared_experts.gate_proj": "mlp_gate",
    "shared_experts.up_proj": "mlp_in",
    "shared_experts.down_proj": "mlp_out",
}
MAMBA_ROLES = dict.fromkeys(("in_proj", "x_proj", "dt_proj", "out_proj"), "other")

MODELS: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("CausalLM", "Llama", LLAMA, LLAMA_ROLES),
    ("CausalLM", "Mistral", LLAMA, LLAMA_ROLES),
    ("CausalLM", "Qwen2", LLAMA, LLAMA_ROLES),
    ("CausalLM", "Qwen3", WITH_HEADS, LLAMA_ROLES),
    ("CausalLM", "Gemma", WITH_HEADS, LLAMA_ROLES),
    ("CausalLM", "Gemma2", WITH_HEADS, LLAMA_ROLES),
    ("CausalLM", "Gemma3Text", WITH_HEADS, LLAMA_ROLES),
    ("CausalLM", "Phi", BERT, {**SEPARATE, "dense": "attention_output", **TWO_LAYERS}),
    (
        "CausalLM",
        "Phi3",
        LLAMA,
        {
            "qkv_proj": "qkv",
            "o_proj": "attention_output",
            "gate_up_proj": "mlp_in",
            "down_proj": "mlp_out",
        },
    ),
    (
        "CausalLM",
        "GPT2",
        GPT2,
        {"c_attn": "qkv", "attn.c_proj": "attention_output", "c_fc": "mlp_in", "mlp.c_proj": "mlp_out"},
    ),
    (
        "CausalLM",
        "GPTJ",
        {**GPT2, "rotary_dim": 4},
        {**SEPARATE, "out_proj": "attention_output", "fc_in": "mlp_in", "fc_out": "mlp_out"},
    ),
    ("CausalLM", "GPTNeoX", BERT, FUSED_ROLES),
    ("CausalLM", "Bloom", {**GPT2, "hidden_size": 32}, FUSED_ROLES),
    ("CausalLM", "Falcon", BERT, FUSED_ROLES),
    ("CausalLM", "OPT", {**BERT, "ffn_dim": 64, "word_embed_proj_dim": 32}, BART_ROLES),
    ("CausalLM", "Mamba", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}, MAMBA_ROLES),
    ("CausalLM", "Mixtral", {**LLAMA, "num_local_experts": 4}, MIXTURE_ROLES),
    (
        "CausalLM",
        "Qwen2Moe",
        {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 24},
        {
            **MIXTURE_ROLES,
            "shared_expert_gate": "router",
            "shared_expert.gate_proj": "mlp_gate",
            "shared_expert.up_proj": "mlp_in",
            "shared_expert.down_proj": "mlp_out",
        },
    ),
    ("CausalLM", "Qwen3Moe", {**WITH_HEADS, **EXPERTS}, MIXTURE_ROLES),
    ("CausalLM", "Olmoe", {**LLAMA, **EXPERTS}, MIXTURE_ROLES),
    ("CausalLM", "DeepseekV2", DEEPSEEK, DEEPSEEK_ROLES),
    ("CausalLM", "DeepseekV3", DEEPSEEK, DEEPSEEK_ROLES),
    (
        "CausalLM",
        "GptOss",
        {**WITH_HEADS, "num_local_experts": 4},
        {**{k: v for k, v in MIXTURE_ROLES.items() if k != "gate"}, "router": "router"},
    ),
    ("Seq2SeqLM", "T5", T5, {**T5_ATTENTION, "wi": "mlp_in", "wo": "mlp_out"}),
    (
        "Seq2SeqLM",
        "T5",
        {**T5, "feed_forward_proj": "gated-gelu"},
        {**T5_ATTENTION, "wi_0": "mlp_gate", "wi_1": "mlp_in", "wo": "mlp_out"},
    ),
    ("Seq2SeqLM", "Bart", BART, BART_ROLES),
    ("Seq2SeqLM", "Marian", BART, BART_ROLES),
    ("SequenceClassification", "Bert", BERT, BERT_ROLES),
    ("SequenceClassification", "Roberta", BERT, BERT_ROLES),
    ("SequenceClassification", "Electra", {**BERT, "embedding_size": 16}, BERT_ROLES),
    (
        "SequenceClassification",
        "Deberta",
        {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        {
            "in_proj": "qkv",
            "pos_proj": "other",
            "pos_q_proj": "other",
            **{name: role for name, role in BERT_ROLES.items() if "." in name},
        },
    ),
    (
        "SequenceClassification",
        "DebertaV2",
        BERT,
        {
            "query_proj": "query",
            "key_proj": "key",
            "value_proj": "value",
            **{name: role for name, role in BERT_ROLES.items() if "." in name},
        },
    ),
    (
        "SequenceClassification",
        "DistilBert",
        {"vocab_size": 100, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
        {
            "q_lin": "query",
            "k_lin": "key",
            "v_lin": "value",
            "out_lin": "attention_output",
            "lin1": "mlp_in",
            "lin2": "mlp_out",
        },
    ),
    (
        "SequenceClassification",
        "Albert",
        {**BERT, "embedding_size": 16},
        {
            "query": "query",
            "key": "key",
            "value": "value",
            "attention.dense": "attention_output",
            "ffn": "mlp_in",
            "ffn_output": "mlp_out",
        },
    ),
    (
        "SequenceClassification",
        "ModernBert",
        {**BERT, "pad_token_id": 0},
        {"Wqkv": "qkv", "attn.Wo": "attention_output", "Wi": "mlp_in", "mlp.Wo": "mlp_out"},
    ),
    (
        "ImageClassification",
        "ViT",
        {**BERT, "image_size": 32, "patch_size": 8},
        {**SEPARATE, "o_proj": "attention_output", **TWO_LAYERS},
    ),
]


def build(auto_class: str, name: str, settings: dict[str, Any]) -> Any:
    settings = {"bos_token_id": 0, "eos_token_id": 0, **settings}
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.device("meta"):
        return getattr(transformers, f"AutoModelFor{auto_class}").from_config(config)


@pytest.mark.parametrize(
    ("auto_class", "name", "settings", "expected"), MODELS, ids=[model[1] for model in MODELS]
)
def test_every_matrix_of_a_layer_has_its_role(
    auto_class: str, name: str, settings: dict[str, Any], expected: dict[str, str]
) -> None:
    found = [
        module
        for module in module_profiles(build(auto_class, name, settings))
        if module.layer == 0 and module.kind not in ("embedding", "convolution")
    ]
    seen = set()
    for module in found:
        ends = [end for end in expected if f".{module.name}".endswith(f".{end}")]
        assert ends, f"{module.name} ({module.role}) was not expected"
        longest = max(ends, key=len)
        assert module.role == expected[longest], module.name
        seen.add(longest)
    assert seen == expected.keys()


@pytest.mark.parametrize(
    ("auto_class", "name", "settings"), [model[:3] for model in MODELS], ids=[model[1] for model in MODELS]
)
def test_no_parameter_is_counted_twice(auto_class: str, name: str, settings: dict[str, Any]) -> None:
    model = build(auto_class, name, settings)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() in (2, 3))
    total = sum(parameter.numel() for parameter in model.parameters())
    counted = sum(module.parameters for module in module_profiles(model))
    assert counted <= total
    # Mamba has A_log, ViT positions, GPT-OSS a matrix of biases: two dimensions, and no linear layers.
    assert name in ("Mamba", "ViT", "GptOss") or counted >= matrices


def experts(name: str, settings: dict[str, Any]) -> dict[str, ModuleProfile]:
    modules = module_profiles(build("CausalLM", name, settings))
    return {module.role: module for module in modules if module.kind == "experts" and module.layer == 0}


@pytest.mark.parametrize(
    ("name", "settings", "inner"),
    [
        ("Mixtral", {**LLAMA, "num_local_experts": 4}, 64),
        ("Qwen2Moe", {**LLAMA, **EXPERTS}, 16),
        ("Qwen3Moe", {**WITH_HEADS, **EXPERTS}, 16),
        ("Olmoe", {**LLAMA, **EXPERTS}, 64),
        ("DeepseekV3", DEEPSEEK, 16),
        ("GraniteMoe", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}, 64),
        # These store their matrices as in × out; the second says so by its shapes only.
        ("GptOss", {**WITH_HEADS, "num_local_experts": 4}, 64),
        (
            "Llama4Text",
            {
                **WITH_HEADS,
                "num_local_experts": 4,
                "interleave_moe_layer_step": 1,
                "intermediate_size_mlp": 64,
            },
            64,
        ),
    ],
)
def test_experts_are_found_the_right_way_round(name: str, settings: dict[str, Any], inner: int) -> None:
    found = experts(name, settings)
    into, out = found["mlp_in"], found["mlp_out"]
    assert (into.in_features, into.out_features, into.matrices) == (32, 2 * inner, 4)
    assert (out.in_features, out.out_features, out.matrices) == (inner, 32, 4)
    assert into.parameters == 4 * 32 * 2 * inner
    assert into.name.endswith(".experts.gate_up_proj")


def test_a_router_that_is_no_linear_layer_is_found() -> None:
    modules = module_profiles(build("CausalLM", "Mixtral", {**LLAMA, "num_local_experts": 4}))
    router = next(module for module in modules if module.role == "router")
    assert (router.kind, router.in_features, router.out_features) == ("parameter", 32, 4)


def test_tied_weights_count_for_the_embedding() -> None:
    modules = {module.name: module for module in module_profiles(build("Seq2SeqLM", "T5", T5))}
    assert modules["shared"].parameters == 100 * 32
    assert (modules["lm_head"].role, modules["lm_head"].parameters) == ("head", 0)
