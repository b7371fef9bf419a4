"""Models and data for the checks, made here: configurations without weights, and texts of random letters.

Knows nothing of devices and trials.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHARACTERS_PER_TOKEN = 4
"""Of the stand-in tokenizer that a model without one gets."""

SHORTEST_SHARE = 0.6
"""Of the longest text: rows of different lengths, and yet none so short that several would share a row."""

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "eos_token_id": None,
}

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "tie_word_embeddings": False,
    },
    "0.1b": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
"""One that a CPU trains in seconds; those of SmolLM2-135M, Llama-3.2-1B, Llama-3.2-3B and Llama-3.1-8B."""


def write_model(folder: Path, shape: str) -> Path:
    """A folder with nothing but the configuration of a shape."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**LLAMA, **SHAPES[shape]}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def write_texts(path: Path, *, rows: int, tokens: int, seed: int = 0) -> Path:
    """A file of different texts, one ``{"text": …}`` a line; the first is ``tokens`` long, none is longer."""
    source = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            share = 1.0 if row == 0 else source.uniform(SHORTEST_SHARE, 1.0)
            letters = source.choices(string.ascii_lowercase, k=int(share * tokens) * CHARACTERS_PER_TOKEN)
            file.write(json.dumps({"text": "".join(letters)}) + "\n")
    return path
