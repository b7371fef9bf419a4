"""The registry against PEFT itself: it adapts what was meant, with as many parameters as were estimated.

That PEFT and the others still refuse what the rules forbid is in ``test_rules_libraries.py``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from rankwise.optimizer.adapters import AdapterFactory
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe, StudyFacts, StudyRequest
from rankwise.optimizer.estimates.settings import Settings, candidate_from
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.methods import METHODS, oft_block, rank_on, rank_schedule
from rankwise.optimizer.sizes import estimated_trainable
from rankwise.optimizer.targets import Targets, adapted_modules
from rankwise.probes.model import inspect_model
from rankwise.probes.profiles import (
    DatasetProfile,
    HardwareProfile,
    HostProfile,
    ModelProfile,
    TaskKind,
    TaskProfile,
)
from rankwise.runners.build import freeze_rest

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
    "mixtral": transformers.MixtralConfig(
        vocab_size=100, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **SIZES
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        vocab_size=100,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        **SIZES,
    ),
    # The first layer is dense, and a shared expert stands beside the others.
    "deepseek_v3": transformers.DeepseekV3Config(
        vocab_size=100,
        num_key_value_heads=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        **SIZES,
    ),
}
UNSUITED = {
    # Conv1D, and a head that is the embeddings.
    ("gpt2", TaskKind.CAUSAL_LM): {Method.OFT, Method.MISS, Method.HEAD},
    # One layer, run several times.
    ("albert", TaskKind.TEXT_CLASSIFICATION): {Method.LAST_BLOCKS},
    # No biases.
    ("llama", TaskKind.TEXT_CLASSIFICATION): {Method.BITFIT},
    ("llama", TaskKind.CAUSAL_LM): {Method.BITFIT},
    ("mixtral", TaskKind.CAUSAL_LM): {Method.BITFIT},
    ("qwen3_moe", TaskKind.CAUSAL_LM): {Method.BITFIT},
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
    """One candidate of each method, variant and target set."""
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
    request = StudyRequest(model=str(path), dataset="rows.csv", methods=methods_for(model))
    first = {
        (c.adapter.method, c.adapter.target_set, c.adapter.use_rslora, c.adapter.use_dora): c
        for c in reversed(enumerate_candidates(facts, request))
    }
    return model, list(first.values())


def methods_for(model: ModelProfile) -> tuple[Method, ...]:
    """All that can sit on the kinds of modules that the model has."""
    kinds = {module.kind for module in model.modules}
    return tuple(
        m for m, spec in METHODS.items() if not m.has_adapter or spec.kinds & kinds & {"linear", "conv1d"}
    )


def build_model(path: Path, kind: TaskKind) -> torch.nn.Module:
    arguments = {"num_labels": 3} if kind is TaskKind.TEXT_CLASSIFICATION else {}
    return CLASSES[kind].from_pretrained(path, **arguments)


def load_config(candidate: Candidate, kind: TaskKind, folder: Path, base_model: str) -> PeftConfig:
    """As a user would: from the exported file."""
    config = adapter_config(candidate, task_kind=kind, base_model=base_model, total_steps=100)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return PeftConfig.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(
    ("model_path", "kind"),
    [
        ("minilm", TaskKind.TEXT_CLASSIFICATION),
        ("roberta", TaskKind.TEXT_CLASSIFICATION),
        ("llama", TaskKind.TEXT_CLASSIFICATION),
        ("llama", TaskKind.CAUSAL_LM),
        ("gpt2", TaskKind.CAUSAL_LM),
    ],
    indirect=["model_path"],
)
def test_all_linear_is_what_peft_makes_of_it(model_path, kind, tmp_path):
    """No set of ours: the poolers and routers that these leave out belong to it, and experts do not."""
    profile = inspect_model(model_path, source=str(model_path), revision=None, task=TASKS[kind])
    candidate = candidate_from(Settings(rank=4, targets="all-linear"), profile, kind)
    ours = load_config(candidate, kind, tmp_path, str(model_path))
    theirs = LoraConfig(
        r=4, target_modules="all-linear", task_type=ours.task_type, modules_to_save=ours.modules_to_save
    )
    adapted = [
        {
            name
            for name, module in get_peft_model(build_model(model_path, kind), config).named_modules()
            if isinstance(module, BaseTunerLayer)
        }
        for config in (ours, theirs)
    ]
    assert adapted[0] == adapted[1]


@pytest.mark.parametrize("model_path", ["mixtral", "qwen3_moe"], indirect=True)
def test_all_linear_has_the_experts(model_path):
    """PEFT takes them for the linear layers that they were, and the router beside them, which we do not."""
    kind = TaskKind.CAUSAL_LM
    profile = inspect_model(model_path, source=str(model_path), revision=None, task=TASKS[kind])
    adapter = candidate_from(Settings(rank=4, targets="all-linear"), profile, kind).adapter
    assert {"down_proj", "gate_up_proj"} <= {end.rpartition(".")[2] for end in adapter.target_parameters}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.filterwarnings("ignore:Invalid .oft_block_size.:UserWarning")
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
        ("mixtral", TaskKind.CAUSAL_LM),
        ("qwen3_moe", TaskKind.CAUSAL_LM),
    ],
    indirect=["model_path"],
)
def test_peft_adapts_what_was_meant(model_path, kind, tmp_path):
    profile, candidates = candidates_of(model_path, kind)
    expected = set(Method) - UNSUITED.get((profile.model_type, kind), set())
    assert {candidate.adapter.method for candidate in candidates} == expected
    has_experts = any(module.kind == "experts" for module in profile.modules)
    assert has_experts == any(candidate.adapter.target_parameters for candidate in candidates)
    for candidate in candidates:
        check(candidate, profile, kind, tmp_path, model_path)


def check(candidate: Candidate, profile: ModelProfile, kind: TaskKind, folder: Path, path: Path) -> None:
    """Built by PEFT, it is what was estimated, and a gradient reaches all of it."""
    model = build_model(path, kind)
    if candidate.adapter.method.unfreezes:
        freeze_rest(model, candidate.adapter.trained_parts, dtype=torch.float32)
    elif candidate.adapter.method is not Method.FULL:
        model = get_peft_model(model, load_config(candidate, kind, folder, str(path)))
        assert adapted_names(model) == {m.name for m in adapted_modules(candidate.adapter, profile)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert estimated_trainable(candidate, profile) == sum(p.numel() for p in trained.values())
    tokens = torch.tensor([[5, 6, 7, 8]])
    labels = tokens if kind is TaskKind.CAUSAL_LM else torch.tensor([1])
    model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss.backward()
    assert [name for name, p in trained.items() if p.grad is None] == []


def adapted_names(model: torch.nn.Module) -> set[str]:
    """Names of adapted modules and, of stacked experts, of their adapted parameters."""
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            original = name.removeprefix("base_model.model.").replace(".base_layer", "")
            wrapped = isinstance(module, ParamWrapper)
            names.add(f"{original}.{module.parameter_name}" if wrapped else original)
    return names


@pytest.mark.parametrize("model_path", ["llama"], indirect=True)
@pytest.mark.parametrize("init_weights", ["gaussian", "pissa", "pissa_niter_4", "olora", "orthogonal"])
@pytest.mark.parametrize("rank", [8, 128])
def test_initialisations_train_what_was_estimated(model_path, init_weights, rank, tmp_path):
    kind = TaskKind.CAUSAL_LM
    profile = inspect_model(model_path, source="", revision=None, task=TASKS[kind])
    lora = AdapterFactory(Targets(profile, kind), dropout=0.0).lora(rank, "full")
    check(candidate_of(replace(lora, init_weights=init_weights)), profile, kind, tmp_path, model_path)


@pytest.mark.parametrize("model_path", ["deepseek_v3"], indirect=True)
def test_dense_layers_beside_experts_change_no_rank(model_path, tmp_path):
    """PEFT would take their names for the experts' of old."""
    kind = TaskKind.CAUSAL_LM
    profile = inspect_model(model_path, source="", revision=None, task=TASKS[kind])
    lora = AdapterFactory(Targets(profile, kind), dropout=0.0).lora(8, "full")
    assert lora.target_parameters
    assert {m.role for m in profile.modules} > {"mlp_gate", "mlp_in", "mlp_out"}
    check(candidate_of(lora), profile, kind, tmp_path, model_path)


PATTERNS = {
    "a layer": ((r"layers\.1\..*", 16),),
    "names": (("q_proj", 2), (r"layers\.\d+\.mlp\..*", 3)),
    "the first that matches": ((r".*\.1\.self_attn\.q_proj", 32), (r"[qv]_proj", 4)),
    "an alternative": ((r"k_proj|layers\.0\.mlp\.up_proj", 5),),
}


@pytest.mark.parametrize("model_path", ["llama"], indirect=True)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("use_dora", [False, True], ids=["plain", "dora"])
def test_patterns_of_ranks_match_as_in_peft(model_path, pattern, use_dora, tmp_path):
    kind = TaskKind.CAUSAL_LM
    profile = inspect_model(model_path, source="", revision=None, task=TASKS[kind])
    lora = AdapterFactory(Targets(profile, kind), dropout=0.0).lora(8, "full", use_dora=use_dora)
    lora = replace(lora, rank_pattern=pattern, alpha_pattern=((pattern[0][0], 7.0),))
    check(candidate_of(lora), profile, kind, tmp_path, model_path)
    model = get_peft_model(
        build_model(model_path, kind), load_config(candidate_of(lora), kind, tmp_path, str(model_path))
    )
    ranks = {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    assert ranks == {m.name: rank_on(lora, m.name) for m in adapted_modules(lora, profile)}
    assert len(set(ranks.values())) > 1


@pytest.mark.parametrize("in_features", [12, 48, 64, 384, 1000])
@pytest.mark.parametrize("wanted", [5, 16, 32, 64, 700])
def test_peft_takes_the_block_size_that_was_expected(in_features, wanted):
    adjusted = OFTLayer.adjust_oft_parameters(None, in_features, wanted)
    assert adjusted == oft_block(in_features, wanted)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 10, 29])
def test_adalora_keeps_its_ranks_however_short_the_training(tiny_llama, tmp_path, total_steps):
    """Steps count from 0. After a single one nothing is pruned: PEFT has no importance to go by."""
    adapter = Adapter(
        method=Method.ADALORA, rank=8, initial_rank=12, alpha=24.0, targets=("q_proj", "v_proj")
    )
    config = adapter_config(
        candidate_of(adapter),
        task_kind=TaskKind.CAUSAL_LM,
        base_model=str(tiny_llama),
        total_steps=total_steps,
    )
    assert rank_schedule(total_steps).items() <= config.items()
    torch.manual_seed(0)
    model = get_peft_model(build_model(tiny_llama, TaskKind.CAUSAL_LM), PeftConfig.from_peft_type(**config))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tokens = torch.tensor([[5, 6, 7, 8]])
    for step in range(total_steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    values = [p for name, p in model.named_parameters() if "lora_E" in name]
    kept = sum(int(value.count_nonzero()) for value in values)
    assert kept == len(values) * (12 if total_steps == 1 else 8)


def candidate_of(adapter: Adapter) -> Candidate:
    return Candidate(
        adapter=adapter, level=Level(), recipe=Recipe(max_length=64), micro_batch=1, learning_rate=1e-3
    )


def test_the_exported_file_equals_the_config_built_by_hand(minilm_path, tmp_path):
    kind = TaskKind.TEXT_CLASSIFICATION
    profile = inspect_model(minilm_path, source="", revision=None, task=TASKS[kind])
    factory = AdapterFactory(Targets(profile, kind), dropout=0.1)
    shared = {
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "some/model",
        "modules_to_save": ["classifier"],
    }
    lora = LoraConfig(
        **shared,
        r=16,
        lora_alpha=32,
        lora_dropout=0.1,
        target_modules=["query", "key", "value", "attention.output.dense"],
    )
    ours = candidate_of(factory.lora(16, "balanced"))
    assert load_config(ours, kind, tmp_path, "some/model") == lora
    outputs = [f"{layer}.output.dense" for layer in range(6)]
    ia3 = IA3Config(**shared, target_modules=["key", "value", *outputs], feedforward_modules=outputs)
    assert load_config(candidate_of(factory.ia3("own")), kind, tmp_path, "some/model") == ia3
