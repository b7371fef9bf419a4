"""The families: a small model of each, and which data it learns from. Knows not what is done with it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 30522
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")

_TINY = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_BLOCKS = {**_TINY, "intermediate_size": 128, "max_position_embeddings": 256}
_DECODER = {**_BLOCKS, "num_key_value_heads": 2}
_SERIES = {"context_length": 32, "prediction_length": 8, "num_input_channels": 4, "patch_length": 8}


@dataclass(frozen=True, slots=True)
class Family:
    """A family with its small model."""

    name: str
    data: str
    """Name of its data, of :func:`.data.write_all`."""
    model: str | Mapping[str, Any]
    """A factory of ``examples/modules``, or the fields of a configuration."""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def source(self, folder: Path, tokenizer: Path) -> str:
        """What to name to rankwise: a model with random weights is written for that, and a tokenizer."""
        if isinstance(self.model, str):
            return f"examples.modules.{self.model}:build"
        place = folder / self.name.replace(" ", "-").replace(",", "")
        kind: Any = getattr(transformers, self.model["architectures"][0])
        torch.manual_seed(0)
        kind(kind.config_class(**self.model)).save_pretrained(place)
        if "vocab_size" in self.model:
            for name in TOKENIZER_FILES:
                shutil.copy(tokenizer / name, place)
        return str(place)

    @property
    def options(self) -> dict[str, Any]:
        """What a study of it is asked beside model and data."""
        if self.data != "series":
            return {"task": "causal-lm"} if self.data == "texts" else {}
        return {"time_column": "date", "context_length": 32, "prediction_length": 8}


def _of(model_type: str, architecture: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **fields}


_BERT = _of("bert", "BertForSequenceClassification", _BLOCKS)
_MODERN_BERT = _of(
    "modernbert",
    "ModernBertForSequenceClassification",
    {**_BLOCKS, "pad_token_id": 0, "layer_types": ["full_attention", "sliding_attention"]},
)
_CONTEXT = {"context": 32, "horizon": 8, "channels": 4}

FAMILIES = (
    Family("Llama", "texts", _of("llama", "LlamaForCausalLM", _DECODER)),
    Family("Qwen3", "texts", _of("qwen3", "Qwen3ForCausalLM", {**_DECODER, "head_dim": 16})),
    Family("Mistral", "texts", _of("mistral", "MistralForCausalLM", _DECODER)),
    Family(
        "GPT-2",
        "texts",
        _of(
            "gpt2",
            "GPT2LMHeadModel",
            {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
        ),
    ),
    Family("BERT, two classes", "two classes", _BERT),
    Family("BERT, five classes", "five classes", _BERT),
    Family("BERT, a number", "a number", _BERT),
    Family("ModernBERT, two classes", "two classes", _MODERN_BERT),
    Family(
        "T5",
        "pairs",
        _of(
            "t5",
            "T5ForConditionalGeneration",
            {
                "vocab_size": VOCABULARY,
                "d_model": 64,
                "d_kv": 16,
                "d_ff": 128,
                "num_layers": 2,
                "num_heads": 4,
            }
            | {"is_encoder_decoder": True, "pad_token_id": 0, "decoder_start_token_id": 0},
        ),
    ),
    Family(
        "ViT, classes",
        "images",
        _of(
            "vit",
            "ViTForImageClassification",
            {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
            | {"image_size": 14, "patch_size": 7, "num_channels": 1},
        ),
    ),
    Family("ViT, heat maps", "heat maps", "vit_heatmap", {"image_size": 14, "patch": 7}),
    Family("Chronos (T5)", "series", "chronos_t5", _CONTEXT),
    Family("GPT forecaster", "series", "gpt_forecaster", _CONTEXT),
    Family("TinyTimeMixer", "series", "tiny_time_mixer", _CONTEXT),
    Family("PatchTSMixer", "series", _of("patchtsmixer", "PatchTSMixerForPrediction", _SERIES)),
    Family(
        "PatchTST",
        "series",
        _of(
            "patchtst",
            "PatchTSTForPrediction",
            {**_SERIES, "d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64},
        ),
    ),
    Family("TiDE", "series", "tide", _CONTEXT),
    Family("TS2Vec", "windows", "ts2vec", {"channels": 4}),
    Family("ATCNet", "recordings", "atcnet", {"electrodes": 4, "classes": 2, "samples": 448}),
)
