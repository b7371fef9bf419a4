"""Heads, blocks, biases and norms are found by the names of parameters alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.parts import (
    bias_parts,
    blocks_of,
    head_parts,
    is_part,
    norm_parts,
    parameters_of,
    parts_for,
)
from rankwise.probes.profiles import TensorProfile


def tensors(*names: str, parameters: int = 10) -> tuple[TensorProfile, ...]:
    """Those whose last part is ``bias`` are biases, those of a ``norm`` are a norm's."""

    def kind(name: str) -> str:
        owner, _, own = name.rpartition(".")
        if owner.endswith("norm"):
            return "norm"
        return "bias" if "bias" in own else "matrix"

    return tuple(
        TensorProfile(name=name, kind=kind(name), parameters=parameters, block=block_around(name))
        for name in names
    )


def block_around(name: str) -> str | None:
    parts = name.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("bert.encoder.layer.1.dense.weight", "bert.encoder.layer.1", True),
        ("bert.encoder.layer.11.dense.weight", "bert.encoder.layer.1", False),
        ("bert.encoder.layer.1.dense.bias", "bias", True),
        ("bias", "bias", True),
        ("pre_classifier.weight", "classifier", False),
        ("rel_bias.weight", "bias", False),
    ],
)
def test_a_part_stands_between_dots(name, part, expected):
    assert is_part(name, (part,)) is expected


def test_parts_of_a_bert(build):
    model = build.bert(layers=3, hidden=16)
    assert blocks_of(model) == tuple(f"bert.encoder.layer.{n}" for n in range(3))
    assert bias_parts(model) == ("bias",)
    assert norm_parts(model) == ("LayerNorm",)
    assert parameters_of(norm_parts(model), model) == 3 * 2 * 16
    assert parameters_of((*bias_parts(model), *norm_parts(model)), model) == sum(
        tensor.parameters for tensor in model.tensors if tensor.kind in ("bias", "norm")
    )


def test_a_head_that_shares_the_embeddings_has_no_weights_of_its_own(build):
    model = build.gpt2()
    assert head_parts(model) == ("lm_head",)
    tied = [replace(m, parameters=0) if m.name == "lm_head" else m for m in model.modules]
    assert head_parts(replace(model, modules=tuple(tied))) == ()


def test_the_decoder_of_two_stacks_is_the_last(build):
    names = [f"{side}.block.{n}.layer.0.q.weight" for side in ("encoder", "decoder") for n in range(2)]
    model = build.model([], tensors=tensors("shared.weight", *names, "decoder.norm.weight", "lm_head.weight"))
    assert blocks_of(model) == ("decoder.block.0", "decoder.block.1")


def test_a_small_stack_behind_the_body_is_a_head(build):
    body = tensors(*(f"body.{n}.weight" for n in range(3)), parameters=1000)
    model = build.model([], tensors=(*body, *tensors("head.0.weight", "head.2.weight")))
    assert blocks_of(model) == ("body.0", "body.1", "body.2")


def test_without_numbered_blocks_there_are_none(build):
    assert blocks_of(build.model([], tensors=tensors("only.weight", "block.0.weight"))) == ()
    assert blocks_of(build.model([])) == ()


def test_names_grow_until_nothing_else_is_meant(build):
    model = build.model([], tensors=tensors("net.0.weight", "net.1.weight", "other.1.weight"))
    assert parts_for({"net.1"}, {"net.1.weight"}, model) == ("net.1",)
    assert parts_for({"other.1"}, {"other.1.weight", "net.1.weight"}, model) == ("1",)


def test_packed_biases_count(build):
    model = build.model([], tensors=tensors("msa.in_proj_bias", "msa.out_proj.bias", "msa.in_proj_weight"))
    assert bias_parts(model) == ("bias", "in_proj_bias")
