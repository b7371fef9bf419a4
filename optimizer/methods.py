"""The methods as a registry: what PEFT calls each, where it can sit, what it trains, what rate suits it.

Another of PEFT's methods joins by a member of :class:`~.domain.Method` and an entry of :data:`METHODS`; its
grid of ranks is in ``adapters.py``. Knows nothing of models as wholes, levels or trials.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..probes.profiles import ModuleProfile
from .domain import Adapter, Method

LINEAR = frozenset({"linear"})
TRANSPOSED = frozenset({"conv1d"})
EXPERTS = frozenset({"experts"})
ANY_MATRIX = frozenset({"linear", "conv1d", "convolution", "embedding"})
ATTENTION = frozenset({"attention"})
CONVOLUTION = frozenset({"convolution"})

RATE_WIDTH = 2000
RATE_EXPONENT = 0.781
UNKNOWN_WIDTH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """All that the factory and the exports know of one method."""

    peft_type: str | None
    """PEFT's name; None where there is no adapter."""
    kinds: frozenset[str]
    """Kinds of modules that it can sit on (:attr:`ModuleProfile.kind`)."""
    config_fields: Callable[[Adapter, int], dict[str, Any]]
    """(adapter, optimizer steps of the training) → the fields of PEFT's configuration that are its own."""
    trainable_on: Callable[[Adapter, ModuleProfile], int]
    """Parameters that it trains on one module."""
    rate_at_width: float
    """Learning rate for a model that is ``RATE_WIDTH`` wide; a narrower one takes higher rates.

    Rule, exponent (Llama's) and the tenfold rate of LoRA over full fine-tuning: "LoRA Without Regret"
    (Schulman et al. 2025).
    """
    tried_on: frozenset[str] = frozenset()
    """Kinds that it may take besides, of modules that a factory makes: trying tells."""
    tried_unasked: bool = True
    """Tried in studies that name no methods; one that freezes most weights only where a head is new, or
    where no adapter suits."""


def learning_rate(method: Method, hidden_size: int | None) -> float:
    """A rate to start from, to two significant digits."""
    width = hidden_size or UNKNOWN_WIDTH
    return float(f"{METHODS[method].rate_at_width * (RATE_WIDTH / width) ** RATE_EXPONENT:.1e}")


def rank_schedule(total_steps: int) -> dict[str, int]:
    """When AdaLoRA prunes ranks: not in the first tenth, then ever more; the second half only fine-tunes.

    Shares are those of the paper's experiments (Zhang et al. 2023; on SST-2 tinit is 12 % and tfinal 44 %
    of some 50,000 steps, ΔT 100). PEFT asks for ``tinit < total_step - tfinal``: so it is from one step on.
    """
    return {
        "total_step": total_steps,
        "tinit": total_steps // 10,
        "tfinal": total_steps // 2,
        "deltaT": max(1, total_steps // 500),
    }


def oft_block(in_features: int, wanted: int) -> int:
    """The block size that PEFT takes in place of one that does not divide the input: the nearest that does.

    Of two equally near it takes the smaller; a block larger than the input becomes all of it.
    """
    divisors = (size for size in range(1, in_features + 1) if in_features % size == 0)
    return min(divisors, key=lambda size: (abs(size - wanted), size))


def _rank(adapter: Adapter) -> int:
    return adapter.rank or 0


def _lora_fields(adapter: Adapter, _: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
    }
    if adapter.rank_pattern:
        fields["rank_pattern"] = dict(adapter.rank_pattern)
    if adapter.alpha_pattern:
        fields["alpha_pattern"] = dict(adapter.alpha_pattern)
    if adapter.init_weights is not None:
        fields["init_lora_weights"] = adapter.init_weights
    if adapter.target_parameters:
        fields["target_parameters"] = list(adapter.target_parameters)
    return fields


def rank_on(adapter: Adapter, module_name: str) -> int:
    """The rank that PEFT gives this module: that of the first pattern that matches, else the adapter's."""
    for pattern, rank in adapter.rank_pattern:
        if re.match(rf"(.*\.)?({pattern})$", module_name):
            return rank
    return _rank(adapter)


def _lora_trainable(adapter: Adapter, module: ModuleProfile) -> int:
    rank = rank_on(adapter, module.name)
    if (adapter.init_weights or "").startswith(("pissa", "olora")):
        # These cut A and B out of a decomposition of the weight, which has no more columns than this.
        rank = min(rank, module.in_features, module.out_features)
    magnitudes = module.out_features if adapter.use_dora else 0
    sides = module.in_features * module.taps + module.out_features // module.groups
    if module.kind == "attention":  # its output projection too
        sides += 2 * module.in_features
    return module.matrices * rank * sides + magnitudes


def _adalora_fields(adapter: Adapter, total_steps: int) -> dict[str, Any]:
    return {
        "init_r": adapter.initial_rank,
        "target_r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        **rank_schedule(total_steps),
    }


def _adalora_trainable(adapter: Adapter, module: ModuleProfile) -> int:
    """Both factors and the singular values between them, before anything is pruned."""
    return (adapter.initial_rank or 0) * (module.in_features + module.out_features + 1)


def _ia3_trainable(adapter: Adapter, module: ModuleProfile) -> int:
    on_input = any(f".{module.name}".endswith(f".{end}") for end in adapter.feedforward)
    return module.in_features if on_input else module.out_features


def _oft_trainable(adapter: Adapter, module: ModuleProfile) -> int:
    """Each block's skew-symmetric matrix, the half above its diagonal."""
    block = oft_block(module.in_features, _rank(adapter))
    return module.in_features // block * (block * (block - 1) // 2)


def _without_adapter(*, rate_at_width: float, tried_unasked: bool = True) -> MethodSpec:
    """Of a method that trains the model's own weights: which, ``parts.py`` knows."""
    return MethodSpec(
        peft_type=None,
        kinds=frozenset(),
        config_fields=lambda *_: {},
        trainable_on=lambda *_: 0,
        rate_at_width=rate_at_width,
        tried_unasked=tried_unasked,
    )


METHODS: Mapping[Method, MethodSpec] = {
    Method.LORA: MethodSpec(
        peft_type="LORA",
        kinds=LINEAR | TRANSPOSED | EXPERTS | ATTENTION | CONVOLUTION,
        tried_on=ANY_MATRIX | ATTENTION,
        config_fields=_lora_fields,
        trainable_on=_lora_trainable,
        rate_at_width=5e-4,
    ),
    Method.ADALORA: MethodSpec(
        peft_type="ADALORA",
        kinds=LINEAR | TRANSPOSED,
        tried_on=ANY_MATRIX,
        config_fields=_adalora_fields,
        trainable_on=_adalora_trainable,
        # LoRA's: at DeBERTa's width, 768, it becomes 1.1e-3; the paper's tuned rates are 5e-4 to 2.2e-3.
        rate_at_width=5e-4,
    ),
    Method.IA3: MethodSpec(
        peft_type="IA3",
        kinds=LINEAR | TRANSPOSED,
        tried_on=ANY_MATRIX,
        config_fields=lambda adapter, _: {"feedforward_modules": list(adapter.feedforward)},
        trainable_on=_ia3_trainable,
        # The best published one of PEFT's method_comparison: 5e-3 at a width of 3072.
        rate_at_width=7e-3,
    ),
    Method.OFT: MethodSpec(
        peft_type="OFT",
        kinds=LINEAR,
        tried_on=ANY_MATRIX,
        config_fields=lambda adapter, _: {
            "oft_block_size": adapter.rank,
            "module_dropout": adapter.dropout,
            "bias": "none",
        },
        trainable_on=_oft_trainable,
        # That of PEFT's method_comparison: 1e-4 at a width of 3072.
        rate_at_width=1.4e-4,
        tried_unasked=False,
    ),
    Method.MISS: MethodSpec(
        peft_type="MISS",
        kinds=LINEAR,
        tried_on=ANY_MATRIX,
        config_fields=lambda adapter, _: {
            "r": adapter.rank,
            "miss_dropout": adapter.dropout,
            "bias": "none",
        },
        trainable_on=lambda adapter, module: _rank(adapter) * module.out_features,
        rate_at_width=1.4e-4,
        tried_unasked=False,
    ),
    # Probes of a frozen body are usually trained at 1e-3, which this is at a width of 768.
    Method.HEAD: _without_adapter(rate_at_width=5e-4),
    Method.LAST_BLOCKS: _without_adapter(rate_at_width=5e-5),
    # At BERT's widths 4.2e-4 and 3.4e-4: BitFit was tuned between 1e-4 and 1e-3 (Ben Zaken et al. 2022).
    Method.BITFIT: _without_adapter(rate_at_width=2e-4),
    Method.NORMS: _without_adapter(rate_at_width=2e-4, tried_unasked=False),
    Method.FULL: _without_adapter(rate_at_width=5e-5),
}
"""One entry for each method; an integration test holds each against PEFT itself.

OFT keeps its block size in :attr:`Adapter.rank`.
"""
