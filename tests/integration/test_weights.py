"""Base models as they come into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Level, Quantization
from rankwise.runners.weights import load_base

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """A classifier that was trained on two classes."""
    BertForSequenceClassification(BertConfig(vocab_size=32, num_labels=2, **SIZES)).save_pretrained(tmp_path)
    return tmp_path


def load(path: Path, labels: list[str]) -> Any:
    return load_base(
        str(path),
        task={"kind": "text-classification", "labels": labels},
        level=to_json(Level()),
        trained_modules=["classifier"],
        device=torch.device("cpu"),
        seed=0,
        has_weights=True,
        trust_remote_code=False,
    )


def test_a_head_of_other_classes_is_made_anew(two_classes: Path) -> None:
    model = load(two_classes, ["a", "b", "c"])
    assert model.classifier.weight.shape == (3, 16)
    assert load(two_classes, ["a", "b"]).classifier.weight.shape == (2, 16)
    stored = BertForSequenceClassification.from_pretrained(two_classes)
    assert torch.equal(model.bert.pooler.dense.weight, stored.bert.pooler.dense.weight)


def test_a_body_of_other_shapes_is_refused(two_classes: Path) -> None:
    path = two_classes / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 48}))
    with pytest.raises(ValueError, match=r"other shapes than config.json says: bert\."):
        load(two_classes, ["a", "b"])


def test_a_factorys_module_keeps_the_weights_that_are_to_be_skipped() -> None:
    level = to_json(Level(quantization=Quantization.NF4, compute_dtype="bfloat16"))
    model = load_base(
        "",
        task={"kind": "array-regression"},
        level=level,
        trained_modules=["linear2"],
        skip_modules=[],
        device=torch.device("cpu"),
        seed=0,
        has_weights=True,
        trust_remote_code=False,
        factory={
            "name": "torch.nn:TransformerEncoderLayer",
            "folder": ".",
            "arguments": {"d_model": 64, "nhead": 2, "dim_feedforward": 64},
        },
    )
    assert type(model.linear1.weight).__name__ == "Params4bit"
    assert type(model.linear2) is torch.nn.Linear
    model.eval()
    assert model(torch.randn(2, 3, 64)).shape == (2, 3, 64), "no fast path reads packed weights"
