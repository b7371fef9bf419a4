from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ModelError
from rankwise.probes.configuration import known_model_types
from rankwise.probes.model_source import resolve_model

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def resolve(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    resolve_model(str(folder), allowed_roots=None)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"num_hidden_layers": 10**12}, "num_hidden_layers = 1000000000000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"hidden_size": -32}, "hidden_size = -32"),
        ({"hidden_size": 10**6}, "hidden_size = 1000000"),
        ({"num_labels": 10**12}, "num_labels"),
        ({"text_config": {"n_layer": 10**9}}, "n_layer"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized"),
        ({"model_type": "lama"}, "no model of type 'lama'"),
    ],
)
def test_what_no_model_has_is_refused_with_its_cause(
    tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    with pytest.raises(ModelError, match=cause) as caught:
        resolve(tmp_path, **changes)
    assert caught.value.next_step


def test_near_types_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path, model_type="qwen3-moe")
    assert "did you mean qwen3_moe" in caught.value.next_step


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2", "mixtral", "gpt-sw3", "t5", "vit"])
def test_types_that_transformers_knows_pass(tmp_path: Path, model_type: str) -> None:
    resolve(tmp_path, model_type=model_type)


def test_every_type_of_transformers_is_known() -> None:
    from transformers import CONFIG_MAPPING

    assert set(CONFIG_MAPPING) <= known_model_types()
