"""``rankwise merge`` on small real models: what was written answers as base and adapter together."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BitsAndBytesConfig,
)
from typer.testing import CliRunner

from rankwise.api.cli.main import app
from rankwise.errors import InputError
from rankwise.runners.merging import Merge, merge_adapter

TARGETS = ["q_proj", "v_proj"]
METHODS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
    "rslora": peft.LoraConfig(r=4, use_rslora=True, target_modules=TARGETS, task_type="CAUSAL_LM"),
    "dora": peft.LoraConfig(r=4, use_dora=True, target_modules=TARGETS, task_type="CAUSAL_LM"),
    "adalora": peft.AdaLoraConfig(
        init_r=6, target_r=4, total_step=9, tinit=1, tfinal=5, target_modules=TARGETS, task_type="CAUSAL_LM"
    ),
    "ia3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=[], task_type="CAUSAL_LM"),
    "oft": peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
    "miss": peft.MissConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
}


def save_adapter(model: Any, config: Any, folder: Path) -> Path:
    """As a training leaves it."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, copy.deepcopy(config))  # PEFT notes in it what it was put on
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.create_or_update_model_card = lambda *_: None
    adapted.save_pretrained(folder)
    return folder


def llama_adapter(base: Path, folder: Path, method: str = "lora", **options: Any) -> Path:
    return save_adapter(AutoModelForCausalLM.from_pretrained(base, **options), METHODS[method], folder)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = llama_adapter(tiny_llama, tmp_path / "adapter", method)
    done = merge_adapter(adapter, tmp_path / "merged")
    assert done.method == str(METHODS[method].peft_type.value)
    assert done.modules == 4
    assert done.dtype == "float32"
    assert done.moved is not None
    assert done.difference is not None
    assert done.difference < 1e-5 < 1e-2 < done.moved
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), adapter)
    ids = torch.randint(0, 900, (3, 20))
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, both.eval()(ids).logits, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(
        AutoTokenizer.from_pretrained(tiny_llama)
    )
    assert sum(parameter.numel() for parameter in merged.parameters()) == done.parameters


def test_in_half_precision(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(base)
    done = merge_adapter(llama_adapter(base, tmp_path / "adapter"), tmp_path / "merged")
    assert done.dtype == "bfloat16"
    assert load_file(tmp_path / "merged" / "model.safetensors")["model.norm.weight"].dtype is torch.bfloat16
    assert done.difference is not None
    assert 0 < done.difference < done.tolerance


def test_classifier_keeps_its_labels(tmp_path: Path) -> None:
    """The head is the adapter's own: the base has none."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=50, **sizes)).save_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    save_adapter(model, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"]), adapter)
    merge_adapter(adapter, tmp_path / "numbered")
    numbered = AutoModelForSequenceClassification.from_pretrained(tmp_path / "numbered")
    assert numbered.config.num_labels == 3
    saved = load_file(adapter / "adapter_model.safetensors")
    assert torch.equal(numbered.classifier.weight, saved["base_model.model.classifier.weight"])
    (adapter / "labels.json").write_text(json.dumps(["bad", "fair", "good"]))
    merge_adapter(adapter, tmp_path / "named")
    named = AutoModelForSequenceClassification.from_pretrained(tmp_path / "named")
    assert named.config.id2label == {0: "bad", 1: "fair", 2: "good"}


FACTORY = """
import torch
from torch import nn

def forecaster(path):
    from rankwise.examples.modules import tide
    module = tide.build()
    module.load_state_dict(torch.load(path, weights_only=True))
    return module

def drawn():
    from rankwise.examples.modules import tide
    return tide.build()

def dilated():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(4, 8, 3, padding="same", dilation=2))
    module.example_inputs = {"input": torch.ones(2, 4, 12).cumsum(-1)}
    return module

def silent():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

class Picky(nn.Sequential):
    def forward(self, x):
        assert x.shape == (1, 2, 3, 4, 8)
        return super().forward(x)

def unknown():
    torch.manual_seed(0)
    return Picky(nn.Linear(8, 8))
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with factories of its own in ``lab_models``."""
    (tmp_path / "lab_models.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lab_models", raising=False)
    return tmp_path


def test_module_of_a_factory(lab: Path) -> None:
    from rankwise.examples.modules import tide

    module = tide.build()
    torch.save(module.state_dict(), lab / "base.pt")
    save_adapter(module, peft.LoraConfig(r=4, target_modules=["dense_in", "dense_out"]), lab / "adapter")
    done = merge_adapter(
        lab / "adapter",
        lab / "merged",
        base="lab_models:forecaster",
        arguments={"path": str(lab / "base.pt")},
    )
    assert done.difference is not None
    assert done.difference < 1e-5
    merged, inputs = tide.build(), module.example_inputs
    merged.load_state_dict(load_file(lab / "merged" / "model.safetensors"))
    both = PeftModel.from_pretrained(tide.build(), lab / "adapter")
    both.base_model.model.load_state_dict(torch.load(lab / "base.pt"), strict=False)
    with torch.no_grad():
        found = merged.eval()(**inputs)["prediction_outputs"]
        assert found.shape == (2, 8, 3)
        assert not torch.allclose(found, both.eval()(**inputs)["prediction_outputs"]), "base not loaded"


def test_module_that_says_nothing_of_its_inputs(lab: Path) -> None:
    import lab_models

    save_adapter(lab_models.silent(), peft.LoraConfig(r=4, target_modules=["0"]), lab / "adapter")
    done = merge_adapter(lab / "adapter", lab / "merged", base="lab_models:silent")
    assert done.difference is not None
    assert not load_file(lab / "merged" / "model.safetensors")["1.running_mean"].any(), "it was not trained"


def test_module_that_cannot_be_called_is_merged_uncompared(lab: Path) -> None:
    import lab_models

    save_adapter(lab_models.unknown(), peft.LoraConfig(r=4, target_modules=["0"]), lab / "adapter")
    done = merge_adapter(lab / "adapter", lab / "merged", base="lab_models:unknown")
    assert (done.moved, done.difference) == (None, None)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        merge_adapter(*arguments, **options)
    return str(raised.value)


def test_what_answers_differently_is_not_written(lab: Path) -> None:
    import lab_models

    save_adapter(lab_models.dilated(), peft.LoraConfig(r=4, target_modules=["0"]), lab / "adapter")
    message = refusal(lab / "adapter", lab / "merged", base="lab_models:dilated")
    assert "merged, LORA answers differently: by" in message
    assert "nothing was written" in message
    assert not list(lab.glob("*merg*"))


def test_factory_that_draws_its_weights_is_no_base(lab: Path) -> None:
    import lab_models

    save_adapter(lab_models.drawn(), peft.LoraConfig(r=4, target_modules=["dense_in"]), lab / "adapter")
    message = refusal(lab / "adapter", lab / "merged", base="lab_models:drawn")
    assert "makes other weights each time" in message


def test_method_without_weights_to_merge(tiny_llama: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    adapter = save_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), config, tmp_path / "adapter")
    assert "PROMPT_TUNING cannot be merged: it puts vectors before the input" in refusal(
        adapter, tmp_path / "merged"
    )


def test_quantized_base(tiny_llama: Path, tmp_path: Path) -> None:
    quantization = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_llama, quantization_config=quantization, device_map="cpu"
    )
    model.save_pretrained(tmp_path / "base")
    adapter = llama_adapter(tiny_llama, tmp_path / "adapter")
    message = refusal(adapter, tmp_path / "merged", base=str(tmp_path / "base"))
    assert "weights are already quantized" in message
    assert "name the model that they were made from" in message


@pytest.mark.filterwarnings("ignore:.*tie", "ignore:Setting .save_embedding_layers. to")
def test_weight_that_others_share(tiny_llama: Path, tmp_path: Path) -> None:
    """Merged into the head, it would be in the embedding too."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    tied = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapter = save_adapter(tied, config, tmp_path / "adapter")
    assert "answers differently" in refusal(adapter, tmp_path / "merged")


def test_other_base(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = llama_adapter(tiny_llama, tmp_path / "adapter")
    config = AutoModelForCausalLM.from_pretrained(tiny_llama).config
    config.hidden_size, config.head_dim = 128, 32
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wider")
    message = refusal(adapter, tmp_path / "merged", base=str(tmp_path / "wider"))
    assert "does not fit its base" in message
    assert "size mismatch" in message


def test_names_that_do_not_match(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = llama_adapter(tiny_llama, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {name.replace("layers.1.", "blocks.1."): tensor for name, tensor in tensors.items()}
    save_file(renamed, file)
    message = refusal(adapter, tmp_path / "merged")
    assert "the file lacks base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in message
    assert "the model has no base_model.model.model.blocks.1.self_attn.q_proj.lora_A.weight" in message
    assert "names and configuration must match" in message


def test_folders_that_are_none(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = llama_adapter(tiny_llama, tmp_path / "adapters" / "tone")
    assert "is there already" in refusal(adapter, adapter)
    assert f"name one of the adapters in it: {adapter}" in refusal(adapter.parent, tmp_path / "merged")
    assert "has no adapter_config.json" in refusal(tiny_llama, tmp_path / "merged")
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    assert "a pickle, which can run any code" in refusal(adapter, tmp_path / "merged")
    (adapter / "adapter_model.bin").unlink()
    assert "holds an adapter's configuration only" in refusal(adapter, tmp_path / "merged")


def test_base_that_is_gone(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = llama_adapter(tiny_llama, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "./nowhere"})
    )
    message = refusal(adapter, tmp_path / "merged")
    assert "the base that" in message
    assert "name it with --base" in message
    done = merge_adapter(adapter, tmp_path / "merged", base=str(tiny_llama))
    assert isinstance(done, Merge)


def test_command(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = llama_adapter(tiny_llama, tmp_path / "adapter")
    runner = CliRunner()
    result = runner.invoke(app, ["merge", str(adapter), "--out", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    assert "Merged LORA on 4 modules into" in result.stdout
    assert "model.safetensors" in result.stdout
    result = runner.invoke(app, ["merge", str(adapter), "--out", str(tmp_path / "again"), "--json"])
    document = json.loads(result.stdout)
    assert document["method"] == "LORA"
    assert document["difference"] < document["tolerance"]
