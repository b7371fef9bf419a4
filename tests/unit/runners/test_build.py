"""What the builder sets on models that are not as simple as most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, EncoderDecoderConfig

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Quantization, Recipe
from rankwise.runners.build import build_model, make_optimizer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CPU = torch.device("cpu")


def candidate(method: Method = Method.LORA, *, weight_decay: float = 0.0, **level: Any) -> dict[str, Any]:
    chosen = Candidate(
        adapter=Adapter(method=method, trained_modules=() if method is Method.FULL else ("classifier",)),
        level=Level(**level),
        recipe=Recipe(max_length=16, weight_decay=weight_decay),
        micro_batch=1,
        learning_rate=1e-3,
    )
    return to_json(chosen)


def bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**SIZES))


@pytest.mark.parametrize(
    ("config", "decayed"),
    [
        (IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]), set()),
        (LoraConfig(r=2, target_modules=["query"], use_dora=True), {"lora_A", "lora_B"}),
    ],
    ids=["ia3", "dora"],
)
def test_weight_decay_spares_vectors(config: Any, decayed: set[str]) -> None:
    """IA3's are stored as a row or a column; decay would pull them from 1, which changes nothing, to 0."""
    model = get_peft_model(bert(), config)
    optimizer = make_optimizer(model, candidate(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {
        names[id(parameter)]
        for group in optimizer.param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert {part for name in found for part in name.split(".") if part.startswith("lora_")} == decayed
    assert bool(found) == bool(decayed)


def test_the_configuration_that_a_composite_model_reads_is_set(tmp_path: Path) -> None:
    """A cache that is left on there would let samples that share a row see each other."""
    decoder = {"is_decoder": True, "add_cross_attention": True, "use_cache": True}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**SIZES), BertConfig(**SIZES, **decoder)
    )
    config.save_pretrained(tmp_path)
    model: Any = build_model(
        str(tmp_path),
        task={"kind": "seq2seq", "labels": []},
        candidate=candidate(Method.FULL),
        adapter_config=None,
        pad_id=7,
        seed=0,
        device=CPU,
        has_weights=False,
    )
    for part in (model.config, model.decoder.config):
        assert (part.use_cache, part.pad_token_id) == (False, 7)


@pytest.mark.parametrize(
    ("method", "quantization"),
    [("ia3", Quantization.NF4), ("adalora", Quantization.INT8)],
)
def test_layer_norms_take_what_adapters_give_on_a_cpu(
    tmp_path: Path, method: str, quantization: Quantization
) -> None:
    """Both give float32 where weights are bfloat16, which PyTorch's layer norm refuses on a CPU."""
    bert().save_pretrained(tmp_path)
    fields: dict[str, Any] = {
        "ia3": {"feedforward_modules": ["output.dense"]},
        "adalora": {"init_r": 3, "target_r": 2, "total_step": 10},
    }
    model = build_model(
        str(tmp_path),
        task={"kind": "text-classification", "labels": ["a", "b"]},
        candidate=candidate(
            Method(method), weight_dtype="bfloat16", compute_dtype="bfloat16", quantization=quantization
        ),
        adapter_config={
            "peft_type": method.upper(),
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": "bert",
            "target_modules": ["key", "output.dense"],
            "modules_to_save": ["classifier"],
            **fields[method],
        },
        pad_id=0,
        seed=0,
        device=CPU,
    )
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([1])).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_what_is_skipped_or_trained_is_not_quantized(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    form = candidate(Method.LAST_BLOCKS, quantization=Quantization.NF4, skip_modules=("pooler.dense",))
    form["adapter"]["unfrozen"] = ["bert.encoder.layer.0.output"]
    model = build_model(
        str(tmp_path),
        task={"kind": "text-classification", "labels": ["a", "b"]},
        candidate=form,
        adapter_config=None,
        pad_id=0,
        seed=0,
        device=CPU,
    )
    plain = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert plain == {"classifier", "bert.pooler.dense", "bert.encoder.layer.0.output.dense"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        "classifier.weight",
        "classifier.bias",
        *(
            f"bert.encoder.layer.0.output.{module}.{own}"
            for module in ("dense", "LayerNorm")
            for own in ("weight", "bias")
        ),
    }
    assert {model.get_parameter(name).dtype for name in trained} == {torch.float32}
