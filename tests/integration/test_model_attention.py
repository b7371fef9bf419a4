"""What the probe says of attention, held against the real transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from rankwise.probes.attention import attention_kernels, narrowed, supports_packing

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "factor": 32.0,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
}


def on_meta(name: str, **settings: Any) -> Any:
    """A decoder of the size that its configuration has by default, which is that of a published model."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**settings))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Llama", {"num_key_value_heads": 8, "rope_parameters": LLAMA3_ROPE}),
        ("Mistral", {"sliding_window": 4096}),
        ("Qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
        ("Qwen3", {}),
        ("Gemma", {}),
        ("Gemma2", {}),
        ("Gemma3Text", {}),
        ("Phi", {}),
        ("Phi3", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 4096}),
        ("GPT2", {}),
        ("GPTNeoX", {}),
        ("Mixtral", {}),
        ("DeepseekV3", {}),
    ],
)
def test_samples_can_share_a_row(name: str, settings: dict[str, Any]) -> None:
    assert supports_packing(on_meta(name, **settings))


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("OPT", {}, "its mask is made without position ids"),
        ("Falcon", {}, "the same"),
        ("GptOss", {}, "the same"),
        ("Bloom", {}, "it takes no position ids: it is biased by distance"),
        ("Mamba", {}, "its state runs on from one sample into the next"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"] * 8, "num_hidden_layers": 16}, "convolutions"),
    ],
)
def test_samples_would_see_each_other(name: str, settings: dict[str, Any], why: str) -> None:
    assert not supports_packing(on_meta(name, **settings)), why


def test_a_model_that_cannot_be_narrowed_is_not_packed() -> None:
    model = on_meta("Llama", num_hidden_layers=1)
    model.config.hidden_act = "no-such"
    assert not supports_packing(model)


def test_asking_leaves_model_and_random_numbers_alone() -> None:
    model = on_meta("Llama", num_hidden_layers=3)
    before, state = model.config.to_dict(), torch.get_rng_state()
    assert supports_packing(model)
    assert model.config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_narrow_copy_keeps_every_kind_of_layer() -> None:
    config = transformers.Gemma3TextConfig()
    assert len(config.layer_types) > 8
    small = narrowed(config)
    assert set(small.layer_types) == set(config.layer_types)
    assert len(small.layer_types) == small.num_hidden_layers <= 8
    assert small.hidden_size <= 64


@pytest.mark.parametrize("kv_heads", [1, 8, 32])
def test_a_narrow_copy_shares_keys_as_the_model_does(kv_heads: int) -> None:
    config = transformers.LlamaConfig(num_attention_heads=32, num_key_value_heads=kv_heads)
    small = narrowed(config)
    assert (small.num_attention_heads, small.num_key_value_heads) == (4, max(1, kv_heads // 8))


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Gemma2", "Bloom", "Falcon", "Mamba"])
def test_kernels_are_those_that_transformers_takes(name: str) -> None:
    model = on_meta(name)
    kernels = attention_kernels(model)
    assert "eager" in kernels
    for kernel in ("sdpa", "eager", "flex_attention"):
        config = getattr(transformers, f"{name}Config")()
        with torch.device("meta"):
            if kernel in kernels:
                AutoModelForCausalLM.from_config(config, attn_implementation=kernel)
            else:
                with pytest.raises(ValueError, match="does not support"):
                    AutoModelForCausalLM.from_config(config, attn_implementation=kernel)


def test_the_kernel_that_runs_anywhere_comes_first() -> None:
    llama = attention_kernels(on_meta("Llama", num_hidden_layers=1))
    assert llama[:2] == ("sdpa", "eager")
    assert "flash_attention_2" in llama
    assert attention_kernels(on_meta("Bloom")) == ("eager",)
    assert "flash_attention_2" not in attention_kernels(on_meta("GptOss"))
