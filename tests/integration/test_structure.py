"""Roles that no name tells, found by structure and by watching a run."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from rankwise.probes.roles import module_profiles
from rankwise.probes.structure import block_numbers, watched

from .random_modules import Attention


def roles(module: nn.Module, *inputs: torch.Tensor) -> dict[str, str]:
    calls = watched(module, partial(module, *inputs)) if inputs else ()
    return {profile.name: profile.role for profile in module_profiles(module, calls)}


@pytest.mark.parametrize(
    "names", [("fc_q", "fc_k", "fc_v", "fc_o"), ("to_q", "to_k", "to_v", "to_out"), ("Wq", "Wk", "Wv", "Wo")]
)
def test_names_that_differ_in_a_letter_are_query_key_and_value(names: tuple[str, str, str, str]) -> None:
    found = roles(Attention(8, names))
    assert [found[name] for name in names] == ["query", "key", "value", "attention_output"]


def test_what_reads_the_same_tensor_in_an_attention_is_told_by_a_run() -> None:
    attention = Attention(8, ("first", "second", "third", "last"))
    assert set(roles(attention).values()) <= {"other", "head", "mlp_in", "mlp_out"}
    found = roles(attention, torch.randn(2, 5, 8))
    assert [found[name] for name in attention.names] == ["query", "key", "value", "attention_output"]


def test_a_fused_projection_is_three_times_as_wide() -> None:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused, self.merge = nn.Linear(8, 24), nn.Linear(8, 8)

    assert roles(SelfAttention()) == {"fused": "qkv", "merge": "attention_output"}


def test_the_two_layers_of_a_mixer_go_in_and_out() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 16)

    found = roles(nn.ModuleDict({"time": Mixer(), "channels": Mixer()}))
    assert found["time.one"] == found["channels.one"] == "mlp_in"
    assert found["time.two"] == found["channels.two"] == "mlp_out"


def test_three_matrices_of_one_size_are_no_gated_layer() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.skip = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    assert set(roles(nn.ModuleDict({"block": Residual()})).values()) <= {"other", "head"}


def test_what_is_called_after_the_stacked_blocks_is_the_head() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)  # made first, called last
            self.body = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
            self.early = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.early(x)
            for block in self.body:
                x = block(x)
            return self.head(x)

    net = Net()
    found = roles(net, torch.randn(2, 8))
    assert found["head"] == "head"
    assert found["early"] == "other"
    assert block_numbers(net) == {"body.0": 0, "body.1": 1, "body.2": 2}


def test_pytorchs_attention_is_one_module_with_a_part() -> None:
    profiles = {each.name: each for each in module_profiles(nn.TransformerEncoderLayer(8, 2, 16))}
    attention, part = profiles["self_attn"], profiles["self_attn.out_proj"]
    assert (attention.kind, attention.role, attention.in_features, attention.out_features) == (
        "attention",
        "qkv",
        8,
        24,
    )
    assert (part.kind, part.role) == ("attention-part", "attention_output")
    assert attention.parameters == 24 * 8 + 24
    assert part.parameters == 8 * 8 + 8


def test_convolutions_tell_their_kernel_and_groups() -> None:
    (profile,) = module_profiles(nn.Conv2d(4, 8, (3, 5), groups=2))
    assert (profile.kind, profile.in_features, profile.out_features) == ("convolution", 4, 8)
    assert (profile.taps, profile.groups) == (15, 2)
