"""What a model's attention can do: which kernels there are for it, and whether samples may share a row.

The latter is tried, not looked up: a few layers of the model's class, made narrow and given random weights,
must give each of two packed samples what it gets alone. Runs on the CPU in a child of the warm server.
Knows nothing of files and weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NARROW_FIELDS = tuple(
    (re.compile(names), most)
    for names, most in (
        (r"vocab_size", 32),
        (r"hidden_size|word_embed_proj_dim", 64),
        (r"head_dim|kv_channels|qk_nope_head_dim|qk_rope_head_dim|v_head_dim|rotary_dim", 16),
        (r"num_attention_heads|num_key_value_heads", 4),
        (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts", 4),
        (r"\w*intermediate_size|ffn_dim|n_inner|expert_ffn_hidden_size", 32),
        (r"q_lora_rank|kv_lora_rank", 8),
        (r"num_experts_per_tok|moe_top_k|n_shared_experts", 2),
        (r"n_group|topk_group|first_k_dense_replace", 1),
        (r"\w*sliding_window|window_size", 4),
    )
)
"""(fields of a configuration, the most they keep): enough for attention to work as in the whole model."""

MOST_LAYERS = 8
FIRST_SAMPLE, SECOND_SAMPLE = 5, 7
"""Tokens of the two samples: each longer than a narrowed sliding window."""

TOLERANCE = 1e-3
"""Far above what the order of float32 sums changes, far below what a look at a neighbour does."""

CANNOT_BUILD = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers' configurations and models were seen to raise on fields that they did not expect."""


def attention_kernels(model: Any) -> tuple[str, ...]:
    """The values of ``attn_implementation`` that transformers takes for this model.

    ``sdpa`` first, where there is one; last those that need a library or a GPU, which is not asked after.
    ``eager`` stands for whatever the model's own code does, which may be no attention at all.
    """
    compatible = getattr(model, "_compatible_flash_implementations", None)
    flash = [
        name
        for name in sorted(ALL_ATTENTION_FUNCTIONS.valid_keys())
        if re.fullmatch(r"flash_attention_\d", name)
        and model._supports_flash_attn
        and (compatible is None or name in compatible)
    ]
    sdpa = ["sdpa"] if model._supports_sdpa else []
    flex = ["flex_attention"] if model._supports_flex_attn else []
    return (*sdpa, "eager", *flash, *flex)


def supports_packing(model: Any) -> bool:
    """Whether samples in one row, told apart by position ids that start again, leave each other untouched.

    Asks the sdpa and eager kernels, without an attention mask and without a cache: only then does
    transformers look at the position ids. False also where a narrow copy of the model cannot be made.

    Args:
        model: a decoder, on any device; its parameters are not touched.
    """
    if model.config.is_encoder_decoder:
        return False
    kernels = [name for name in attention_kernels(model) if name in ("sdpa", "eager")]
    try:
        return all(_keeps_apart(type(model), narrowed(model.config), kernel) for kernel in kernels)
    except CANNOT_BUILD:
        return False


def narrowed(config: Any) -> Any:
    """A copy of a configuration with few layers of every kind it has, each a few dozen numbers wide."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    heads, pairs = (getattr(text, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    for name in {*text.to_dict(), *text.attribute_map}:
        value = getattr(text, name, None)
        most = next((most for names, most in NARROW_FIELDS if names.fullmatch(name)), None)
        if most is not None and isinstance(value, int) and not isinstance(value, bool) and value > most:
            setattr(text, name, most)
        elif name.endswith("_token_id"):
            setattr(text, name, None)
    if heads and pairs:
        text.num_key_value_heads = max(1, text.num_attention_heads * pairs // heads)
    kinds = text.to_dict().get("layer_types")
    if kinds:
        text.num_hidden_layers = min(MOST_LAYERS, 1 + max(kinds.index(kind) for kind in set(kinds)))
        text.layer_types = kinds[: text.num_hidden_layers]
    else:
        text.num_hidden_layers = min(2, text.num_hidden_layers)
    if getattr(text, "rope_parameters", None):
        text.rope_parameters = _plain_rope(text.rope_parameters)
    small.use_cache = text.use_cache = False
    return small


def _plain_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions without the stretching whose factors belong to the full width of a head."""
    if all(isinstance(value, Mapping) for value in parameters.values()):
        return {kind: _plain_rope(of_kind) for kind, of_kind in parameters.items()}
    kept = ("rope_theta", "partial_rotary_factor")
    return {"rope_type": "default", **{name: parameters[name] for name in kept if name in parameters}}


def _keeps_apart(model_class: Any, config: Any, kernel: str) -> bool:
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        model = model_class._from_config(config, attn_implementation=kernel, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:  # as initialised, attention is too weak to show
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        ids = torch.randint(config.get_text_config().vocab_size, (1, FIRST_SAMPLE + SECOND_SAMPLE))
        samples = ids.split([FIRST_SAMPLE, SECOND_SAMPLE], dim=1)
        positions = [torch.arange(sample.shape[1])[None] for sample in samples]
        packed = model(input_ids=ids, position_ids=torch.cat(positions, dim=1), use_cache=False).logits
        alone = [
            model(input_ids=sample, position_ids=position, use_cache=False).logits
            for sample, position in zip(samples, positions, strict=True)
        ]
        return torch.allclose(packed, torch.cat(alone, dim=1), rtol=TOLERANCE, atol=TOLERANCE)
