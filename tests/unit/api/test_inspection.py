from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.api.inspection import bytes_by_dtype, inspection_document, module_groups, what_trains
from rankwise.optimizer.domain import Method
from rankwise.optimizer.verdicts import Support, Verdict
from rankwise.probes.host import read_hardware
from rankwise.probes.profiles import HardwareProfile, ModelProfile, ModuleProfile, TaskKind, TaskProfile
from rankwise.runners.jobs import Inspection

LAYERS = 2


def matrix(name: str, role: str, sizes: tuple[int, int], **changes: Any) -> ModuleProfile:
    values = {"kind": "linear", "parameters": sizes[0] * sizes[1], **changes}
    return ModuleProfile(name=name, role=role, in_features=sizes[0], out_features=sizes[1], **values)


def model(modules: list[ModuleProfile], **changes: Any) -> ModelProfile:
    parameters = sum(module.parameters for module in modules)
    values: dict[str, Any] = {
        "source": "some/model",
        "path": "/models/some",
        "revision": None,
        "architecture": "SomeModel",
        "model_type": "some",
        "parameters": parameters,
        "weight_bytes": 4 * parameters,
        "structure_sha256": "0" * 64,
        "hidden_size": 8,
        "layers": LAYERS,
        "max_positions": None,
        "supports_gradient_checkpointing": True,
        "modules": tuple(modules),
        "new_modules": (),
    }
    return ModelProfile(**{**values, **changes})


@pytest.fixture
def mixture() -> Inspection:
    """Two layers with separate projections and four experts; the output is tied to the embedding."""
    modules = [matrix("embed", "other", (100, 8), kind="embedding")]
    for layer in range(LAYERS):
        at = f"layers.{layer}"
        modules += [
            matrix(f"{at}.attn.{end}_proj", role, (8, 8)) for end, role in (("q", "query"), ("v", "value"))
        ]
        modules.append(matrix(f"{at}.mlp.gate", "router", (8, 4), kind="parameter"))
        stacked = {"kind": "experts", "parameters": 4 * 8 * 16, "matrices": 4}
        modules.append(matrix(f"{at}.mlp.experts.up_proj", "mlp_in", (8, 16), **stacked))
    modules.append(matrix("lm_head", "head", (8, 100), parameters=0))
    task = TaskProfile(kind=TaskKind.CAUSAL_LM, text_column="")
    verdict = Verdict(name="lora", support=Support.NO, reason="It does not fit.")
    return Inspection(
        task=task,
        model=model(modules),
        stored_bytes={"F32": 1},
        tried_with="its configuration",
        verdicts=(verdict,),
    )


@pytest.fixture(scope="module")
def hardware() -> HardwareProfile:
    return read_hardware(Path("/"))


def test_modules_are_grouped_by_role_and_shape(mixture: Inspection) -> None:
    groups = {group.names: group for group in module_groups(mixture.model)}
    assert list(groups) == [
        ("embed",),
        ("layers.*.attn.q_proj",),
        ("layers.*.attn.v_proj",),
        ("layers.*.mlp.gate",),
        ("layers.*.mlp.experts.up_proj",),
        ("lm_head",),
    ]
    experts = groups["layers.*.mlp.experts.up_proj",]
    assert (experts.count, experts.matrices, experts.parameters) == (2, 4, 2 * 4 * 8 * 16)
    assert groups["lm_head",].parameters == 0
    assert sum(group.parameters for group in groups.values()) == mixture.model.parameters


def test_every_method_trains_something_or_says_why_not(
    mixture: Inspection, hardware: HardwareProfile
) -> None:
    rows = what_trains(mixture, hardware)
    assert {row.adapter.method for row in rows} == set(Method)
    assert all((row.parameters is None) == bool(row.refusal) for row in rows)
    by_set = {
        (row.adapter.target_set, row.adapter.rank): row.parameters
        for row in rows
        if row.adapter.method is Method.LORA and not row.adapter.use_dora
    }
    on_attention = LAYERS * 2 * 16 * (8 + 8)
    assert by_set["minimal", 16] == on_attention
    assert by_set["full", 16] == on_attention + LAYERS * 4 * 16 * (8 + 16)
    (full,) = (row for row in rows if row.adapter.method is Method.FULL)
    assert full.parameters == mixture.model.parameters
    refused = {row.refusal for row in rows if row.adapter.use_dora and row.adapter.target_parameters}
    assert refused == {"PEFT has no DoRA for stacked experts."}


def test_a_method_without_a_module_to_sit_on_has_a_reason(
    mixture: Inspection, hardware: HardwareProfile
) -> None:
    transposed = replace(
        mixture,
        model=replace(
            mixture.model,
            modules=tuple(
                replace(m, kind="conv1d") for m in mixture.model.modules if m.role in ("query", "value")
            ),
        ),
    )
    reasons = {row.adapter.method: row.refusal for row in what_trains(transposed, hardware)}
    assert reasons[Method.OFT] == "The model has no module of a kind that the method can sit on."
    assert reasons[Method.LORA] is None


def test_only_linear_layers_shrink_when_quantized(mixture: Inspection) -> None:
    sizes = bytes_by_dtype(mixture.model)
    total, linear = mixture.model.parameters, LAYERS * 2 * 8 * 8
    assert sizes["float32"] == 4 * total
    assert sizes["bfloat16"] == 2 * total
    assert sizes["int8"] == 2 * (total - linear) + linear
    assert sizes["nf4"] == 2 * (total - linear) + int(linear * (0.5 + 4 / 64))


def test_the_document_is_stable_json(mixture: Inspection, hardware: HardwareProfile) -> None:
    document = inspection_document(mixture, hardware)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == [
        "schema_version",
        "task",
        "model",
        "stored_bytes",
        "bytes_by_dtype",
        "expert_parameters",
        "tried_with",
        "methods",
        "targets",
        "groups",
        "trainable",
    ]
    assert document["expert_parameters"] == LAYERS * 4 * 8 * 16
    assert set(document["trainable"][0]) == {
        "method",
        "target_set",
        "rank",
        "initial_rank",
        "use_dora",
        "targets",
        "target_parameters",
        "feedforward",
        "trained_modules",
        "unfrozen",
        "last_blocks",
        "parameters",
        "share",
        "refusal",
    }
    assert document["trainable"][-1] | {"share": 1.0, "method": "full"} == document["trainable"][-1]
