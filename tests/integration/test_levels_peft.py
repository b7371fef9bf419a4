"""Candidates on real models: PEFT adapts what was meant, with as many parameters as were estimated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from rankwise.optimizer.domain import Candidate, Method, Recipe, StudyFacts, StudyRequest
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.levels import adapted_modules, enumerate_candidates, estimated_trainable
from rankwise.probes.model import inspect_model
from rankwise.probes.profiles import (
    DatasetProfile,
    HardwareProfile,
    HostProfile,
    ModelProfile,
    TaskKind,
    TaskProfile,
)

CLASSES = {
    TaskKind.TEXT_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    TaskKind.CAUSAL_LM: transformers.AutoModelForCausalLM,
}
TASKS = {
    TaskKind.TEXT_CLASSIFICATION: TaskProfile(
        kind=TaskKind.TEXT_CLASSIFICATION, text_column="text", label_column="label", labels=("a", "b", "c")
    ),
    TaskKind.CAUSAL_LM: TaskProfile(kind=TaskKind.CAUSAL_LM, text_column="text"),
}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "roberta": transformers.RobertaConfig(vocab_size=100, num_labels=3, **SIZES),
    "distilbert": transformers.DistilBertConfig(vocab_size=100, dim=32, hidden_dim=64, n_layers=2, n_heads=2),
    "albert": transformers.AlbertConfig(vocab_size=100, embedding_size=16, **SIZES),
}


@pytest.fixture(scope="module")
def model_path(request, tmp_path_factory, minilm_path, tiny_llama):
    """The folder of the model with the name of the parameter; the small ones are random bodies."""
    name = request.param
    if name in ("minilm", "llama"):
        return {"minilm": minilm_path, "llama": tiny_llama}[name]
    folder = tmp_path_factory.mktemp(name)
    body, _, has_head = name.partition("+")
    kind = transformers.AutoModelForSequenceClassification if has_head else transformers.AutoModel
    kind.from_config(SMALL_CONFIGS[body]).save_pretrained(folder)
    return folder


def candidates_of(path: Path, kind: TaskKind) -> tuple[ModelProfile, list[Candidate]]:
    """One candidate of each adapter."""
    host = HostProfile(
        cpu_model=None,
        physical_cores=1,
        logical_cores=1,
        ram_total_bytes=2**40,
        ram_available_bytes=2**40,
        disk_free_bytes=2**40,
        platform="Linux",
        python_version="3",
        native_bf16=False,
    )
    dataset = DatasetProfile(
        source="rows.csv",
        path="rows.csv",
        sha256="",
        format="csv",
        size_bytes=1,
        rows=2000,
        usable_rows=2000,
        columns=("text", "label"),
        task=TASKS[kind],
    )
    model = inspect_model(path, source=str(path), revision=None, task=TASKS[kind])
    facts = StudyFacts(
        hardware=HardwareProfile(host=host),
        model=model,
        dataset=dataset,
        recipe=Recipe(max_length=64),
        tokens_path="",
        pad_id=0,
        train_rows=1800,
        heldout_rows=200,
        heldout_share=0.1,
        truncated_rows=0,
        truncated_tokens_share=0.0,
    )
    found = enumerate_candidates(facts, StudyRequest(model=str(path), dataset="rows.csv"))
    first = {candidate.adapter: candidate for candidate in reversed(found)}
    return model, list(first.values())


def build_model(path: Path, kind: TaskKind) -> torch.nn.Module:
    arguments = {"num_labels": 3} if kind is TaskKind.TEXT_CLASSIFICATION else {}
    return CLASSES[kind].from_pretrained(path, **arguments)


def load_config(candidate: Candidate, kind: TaskKind, folder: Path, base_model: str) -> PeftConfig:
    """As a user would: from the exported file."""
    config = adapter_config(candidate, task_kind=kind, base_model=base_model)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return PeftConfig.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(
    ("model_path", "kind"),
    [
        ("minilm", TaskKind.TEXT_CLASSIFICATION),
        ("roberta", TaskKind.TEXT_CLASSIFICATION),
        ("roberta+head", TaskKind.TEXT_CLASSIFICATION),
        ("distilbert", TaskKind.TEXT_CLASSIFICATION),
        ("albert", TaskKind.TEXT_CLASSIFICATION),
        ("llama", TaskKind.TEXT_CLASSIFICATION),
        ("llama", TaskKind.CAUSAL_LM),
        ("gpt2", TaskKind.CAUSAL_LM),
    ],
    indirect=["model_path"],
)
def test_peft_adapts_what_was_meant(model_path, kind, tmp_path):
    profile, candidates = candidates_of(model_path, kind)
    assert {candidate.adapter.method for candidate in candidates} == set(Method)
    for candidate in candidates:
        model = build_model(model_path, kind)
        if candidate.adapter.method is not Method.FULL:
            model = get_peft_model(model, load_config(candidate, kind, tmp_path, str(model_path)))
            adapted = {
                name.removeprefix("base_model.model.")
                for name, module in model.named_modules()
                if isinstance(module, BaseTunerLayer)
            }
            assert adapted == {module.name for module in adapted_modules(candidate.adapter, profile)}
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert estimated_trainable(candidate, profile) == sum(p.numel() for p in trained.values())
        tokens = torch.tensor([[5, 6, 7, 8]])
        labels = tokens if kind is TaskKind.CAUSAL_LM else torch.tensor([1])
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss.backward()
        assert [name for name, p in trained.items() if p.grad is None] == []


def test_the_exported_file_equals_the_config_built_by_hand(minilm_path, tmp_path):
    kind = TaskKind.TEXT_CLASSIFICATION
    _, candidates = candidates_of(minilm_path, kind)
    shared = {
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "some/model",
        "modules_to_save": ["classifier"],
    }
    by_name = {candidate.adapter.describe(): candidate for candidate in candidates}
    lora = LoraConfig(
        **shared,
        r=16,
        lora_alpha=32,
        lora_dropout=0.1,
        target_modules=["query", "key", "value", "attention.output.dense"],
    )
    assert load_config(by_name["LORA r=16 α=32 balanced"], kind, tmp_path, "some/model") == lora
    outputs = [f"{layer}.output.dense" for layer in range(6)]
    ia3 = IA3Config(**shared, target_modules=["key", "value", *outputs], feedforward_modules=outputs)
    assert load_config(by_name["IA3 key,value,mlp_out"], kind, tmp_path, "some/model") == ia3
