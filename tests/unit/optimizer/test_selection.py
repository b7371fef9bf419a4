"""What people write for targets, and what of a model it matches."""

from __future__ import annotations

import pytest

from rankwise.errors import InputError
from rankwise.optimizer.selection import select
from rankwise.probes.profiles import ModelProfile, ModuleProfile

LAYERS = 4


def module(name: str, role: str, kind: str = "linear", layer: int | None = None) -> ModuleProfile:
    return ModuleProfile(
        name=name, kind=kind, role=role, in_features=8, out_features=8, parameters=64, layer=layer
    )


@pytest.fixture
def model() -> ModelProfile:
    """Windows of attention with dense heads, as in EEG networks, beside stacked blocks."""
    modules = [module("stem", "other", "convolution"), module("embed", "other", "embedding")]
    for layer in range(LAYERS):
        at = f"blocks.{layer}"
        modules += [
            module(f"{at}.attn.q_proj", "query", layer=layer),
            module(f"{at}.attn.v_proj", "value", layer=layer),
            module(f"{at}.mlp.fc1", "mlp_in", layer=layer),
        ]
    for window in range(2):
        modules += [
            module(f"msa{window}", "qkv", "attention"),
            module(f"msa{window}.out_proj", "attention_output", "attention-part"),
            module(f"dense{window}", "head"),
        ]
    return ModelProfile(
        source="some/model",
        path="/models/some",
        revision=None,
        architecture="Some",
        model_type="some",
        parameters=sum(each.parameters for each in modules),
        weight_bytes=1,
        structure_sha256="0" * 64,
        hidden_size=8,
        layers=LAYERS,
        max_positions=None,
        supports_gradient_checkpointing=False,
        modules=tuple(modules),
        new_modules=(),
    )


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("q_proj@0", ["blocks.0.attn.q_proj"]),
        ("blocks.1.attn.v_proj", ["blocks.1.attn.v_proj"]),
        ("q_proj@2-", ["blocks.2.attn.q_proj", "blocks.3.attn.q_proj"]),
        ("query,value@-1", ["blocks.3.attn.q_proj", "blocks.3.attn.v_proj"]),
        ("mlp@1-2", ["blocks.1.mlp.fc1", "blocks.2.mlp.fc1"]),
        ("@3", ["blocks.3.attn.q_proj", "blocks.3.attn.v_proj", "blocks.3.mlp.fc1"]),
        ("['dense']", ["dense0", "dense1"]),
        ("['dense', 'msa']", ["msa0", "dense0", "msa1", "dense1"]),
        ("dense0,msa0", ["msa0", "dense0"]),
        ("head", ["dense0", "dense1"]),
        ("re:.*[02].*q_proj", ["blocks.0.attn.q_proj", "blocks.2.attn.q_proj"]),
        ("convolution", ["stem"]),
    ],
)
def test_what_is_written_matches(model: ModelProfile, written: str, names: list[str]) -> None:
    assert [each.name for each in select(written, model).modules] == names


def test_all_linear_is_what_peft_takes_it_for(model: ModelProfile) -> None:
    names = {each.name for each in select("all-linear", model).modules}
    assert len(names) == 3 * LAYERS
    assert not any(name.startswith(("dense", "msa", "stem")) for name in names)


def test_targets_come_as_peft_takes_them(model: ModelProfile) -> None:
    assert select("query", model).where.modules == ("q_proj",)
    assert select("q_proj@0", model).where.modules == ("0.attn.q_proj",)


def test_an_empty_part_matches_everything_and_is_warned_of(model: ModelProfile) -> None:
    found = select("['']", model)
    assert len(found.modules) == len(model.modules) - 2, "an attention's parts come with it"
    assert "matches everything" in found.warnings[0]


def test_the_output_of_pytorchs_attention_stands_for_all_of_it(model: ModelProfile) -> None:
    found = select("out_proj", model)
    assert [each.name for each in found.modules] == ["msa0", "msa1"]
    assert "reads the weight itself" in found.warnings[0]


def test_a_part_of_names_is_a_last_resort_and_said(model: ModelProfile) -> None:
    found = select("_proj", model)
    assert {each.name.rpartition(".")[2] for each in found.modules} == {"q_proj", "v_proj", "msa0", "msa1"}
    assert "No module is called '_proj'" in found.warnings[0]


@pytest.mark.parametrize(
    ("written", "message", "next_step"),
    [
        ("q_prj", "no module of some/model matches 'q_prj'; it has stem, embed", "did you mean q_proj"),
        ("re:(", "no regular expression", ""),
        ("['dense'", "is no list of texts", ""),
        ("query@7", "not all there: some/model has layers 0 to 3", ""),
        ("query@3-1", "not all there", ""),
        ("query@x", "names no range of layers", ""),
        ("head@0", "matches 'head@0'", ""),
    ],
)
def test_what_matches_nothing_is_refused(
    model: ModelProfile, written: str, message: str, next_step: str
) -> None:
    with pytest.raises(InputError) as caught:
        select(written, model)
    assert message in caught.value.message
    assert next_step in caught.value.next_step
