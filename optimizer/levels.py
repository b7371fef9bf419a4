"""The level factory: facts in, candidates out, best prior first and never an invalid one.

Which levels there are; adapters come from ``adapters.py``, and ``rules.py`` says what is left out and why.
Beyond the rules, only what cannot fit whatever the batch is ruled out, by arithmetic. Knows nothing of
trials and what they measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError, NothingFits
from ..probes.profiles import ModelProfile
from .adapters import AdapterFactory, in_order
from .domain import (
    Adapter,
    Candidate,
    Level,
    Method,
    Quantization,
    Recipe,
    StudyFacts,
    StudyRequest,
)
from .fitting import Memory
from .ladder import spread_levels
from .methods import METHODS, learning_rate
from .presets import Start, starts_of
from .rule import Rule, Setting
from .rules import (
    ADAPTER_RULES,
    BATCH_RULES,
    LEVEL_RULES,
    PAIR_RULES,
    first_refusal,
    preferred_attention,
    setting_of,
)
from .spreading import processes_for
from .targets import is_adaptable, trained_modules
from .tiers import tier_pairs

PRECISIONS = (
    Level(compute_dtype="bfloat16"),
    Level(weight_dtype="bfloat16", compute_dtype="bfloat16"),
    Level(compute_dtype="float16"),
    Level(),
)
"""Dtypes of weights and computing, preferred first; what is trained is float32 in all of them."""

QUANTIZATIONS = (Quantization.NONE, Quantization.INT8, Quantization.NF4)
"""Combined with every precision where the request names none; FP4, no better than NF4, is a variation."""

MICRO_BATCH_SHARES = (1, 2, 4, 8)
"""Micro-batches are about the effective batch divided by these."""

WIDE_LOGITS = 4
"""From this many hidden widths on, the vocabulary makes the logits the widest tensor of a step: an MLP is
about as wide inside."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What one rule kept out of a study."""

    rule: Rule
    count: int
    """Adapters at levels."""
    adapter: Adapter
    """The first of them …"""
    level: Level
    """… and its level."""


@dataclass(frozen=True, slots=True)
class _Variation:
    """One setting changed on the preferred precision."""

    changes: Mapping[str, Any]
    saves_memory: bool = False
    """Tried with checkpointing too: where memory is short, both are wanted."""


def enumerate_candidates(facts: StudyFacts, request: StudyRequest) -> tuple[Candidate, ...]:
    """All candidates of a study, best prior first; with ``request.use_tiers`` those of the tiers only.

    The order, from the outside in, is a promise to the search:

    * Adapters: those that the request begins with, at the levels that it asks for; then the best of each
      family (plain LoRA, rsLoRA, DoRA, AdaLoRA, IA3, full fine-tuning, …) by published quality, then the
      second of each, and so on; ranks above every matrix last.
    * Levels: for each precision, preferred first, and each quantization, none first: without checkpointing,
      then with. After all of these, the first that fits, unquantized if any such does, with one setting
      changed (double quantization, FP4, attention, loss, optimizer, ``torch.compile``) without
      checkpointing and, where that setting saves memory, with. Last those that several processes share, or
      that offload (:mod:`.ladder`), the mildest first. An adapter has those levels of the list that the
      rules allow and that fit.
    * Micro-batches: descending, those that the rules allow at the level.

    Raises:
        InputError: no allowed method suits the model at any allowed level.
        NothingFits: the weights, gradients and optimizer state alone exceed the memory of every candidate.
    """
    memory = Memory.of(facts, request)
    pairs, refused = _pairs(facts, request, memory)
    if not pairs:
        raise _nothing_suits(facts, request, refused)
    fitting = [pair for pair in pairs if memory.fits(*pair)]
    if not fitting:
        least_gib = min(memory.least_bytes(*pair) for pair in pairs) / 2**30
        processes = processes_for(request, facts.hardware, facts.recipe.effective_batch)
        divided = f", which is too much divided among {processes} processes too" if processes > 1 else ""
        raise NothingFits(
            f"no configuration of {facts.model.source} fits {memory.capacity_bytes / 2**30:.2f} GiB: the "
            f"weights, gradients and optimizer state of the smallest alone need {least_gib:.2f} GiB{divided}",
            next_step=f"raise the memory limit above {least_gib:.2f} GiB (activations come on top), allow "
            "more methods or take a smaller model",
        )
    rates = {method: learning_rate(method, facts.model.hidden_size) for method in METHODS}
    of_level = {level: adapter for adapter, level in fitting}
    sizes = {level: _allowed_sizes(adapter, level, facts) for level, adapter in of_level.items()}
    return tuple(
        Candidate(
            adapter=adapter,
            level=level,
            recipe=facts.recipe,
            micro_batch=micro_batch,
            learning_rate=rates[adapter.method],
        )
        for adapter, level in fitting
        for micro_batch in sizes[level]
    )


def explain_refusals(facts: StudyFacts, request: StudyRequest) -> tuple[LeftOut, ...]:
    """What the rules kept out of a study, and why, the most frequent first."""
    _, refused = _pairs(facts, request, Memory.of(facts, request))
    return _by_rule(refused)


def micro_batches(recipe: Recipe, processes: int = 1) -> tuple[int, ...]:
    """Divisors of a process's rows of a step, descending: the largest not above each share of them."""
    batch = recipe.effective_batch // processes
    divisors = [size for size in range(batch, 0, -1) if batch % size == 0]
    shares = (max(1, batch // share) for share in MICRO_BATCH_SHARES)
    return tuple(dict.fromkeys(next(d for d in divisors if d <= share) for share in shares))


def _allowed_sizes(adapter: Adapter, level: Level, facts: StudyFacts) -> tuple[int, ...]:
    """The usual micro-batches without those that a rule forbids; a single row where that leaves none."""
    setting = replace(
        setting_of(adapter, level, facts.model, facts.dataset.task.kind, facts.hardware),
        packing=facts.recipe.packing,
    )
    sizes = (
        size
        for size in micro_batches(facts.recipe, level.processes)
        if first_refusal(replace(setting, micro_batch=size), BATCH_RULES) is None
    )
    return tuple(sizes) or (1,)


_Pair = tuple[Adapter, Level]
_Refused = tuple[Adapter, Level, Rule]


def _pairs(facts: StudyFacts, request: StudyRequest, memory: Memory) -> tuple[list[_Pair], list[_Refused]]:
    """Adapters at levels in the promised order, and those that a rule forbids."""
    factory = AdapterFactory.of(facts)
    if request.use_tiers:
        return _Gate(facts).sort(tier_pairs(facts, request, factory))
    levels: dict[Adapter, dict[Level, None]] = {}
    refused: list[_Refused] = []
    processes = processes_for(request, facts.hardware, facts.recipe.effective_batch)
    gate = _Gate(facts)

    def add(pairs: Sequence[_Pair], quantizations: tuple[Quantization, ...]) -> None:
        found = _with_variations(pairs, quantizations, facts, gate, memory, processes, refused)
        for adapter, own in found.items():
            levels.setdefault(adapter, {}).update(dict.fromkeys(own))

    for start in starts_of(facts, request):
        add(_start_pairs(start, facts), (start.quantization,))
    first = tuple(levels)
    if not request.only_presets:
        base = tuple(_base_levels(request.quantizations or QUANTIZATIONS, preferred_attention(facts.model)))
        adapters = factory.every(_methods(facts, request))
        add([(adapter, level) for adapter in adapters for level in base], request.quantizations)
    ordered = (*first, *in_order(tuple(levels)[len(first) :], facts.model))
    return [(adapter, level) for adapter in ordered for level in levels[adapter]], refused


def refused_starts(facts: StudyFacts, request: StudyRequest) -> Iterator[tuple[Start, Rule]]:
    """What a study was asked to begin with and cannot, each with the first rule that forbids it."""
    for start in starts_of(facts, request):
        allowed, refused = _Gate(facts).sort(_start_pairs(start, facts))
        if not allowed and refused:
            yield start, _by_rule(refused)[0].rule


def _start_pairs(start: Start, facts: StudyFacts) -> list[_Pair]:
    """An adapter at the levels that it is asked for at."""
    base = _base_levels((start.quantization,), preferred_attention(facts.model))
    levels = (start.at(level) for level in base)
    return [(start.adapter, level) for level in levels if level is not None]


def _with_variations(
    pairs: Sequence[_Pair],
    quantizations: tuple[Quantization, ...],
    facts: StudyFacts,
    gate: _Gate,
    memory: Memory,
    processes: int,
    refused: list[_Refused],
) -> dict[Adapter, list[Level]]:
    """The allowed of these pairs as levels of each adapter, then one setting varied, then several processes;
    the others are noted."""
    allowed, not_allowed = gate.sort(pairs)
    levels: dict[Adapter, list[Level]] = {}
    for adapter, level in allowed:
        levels.setdefault(adapter, []).append(level)
    varied = [
        (adapter, level)
        for adapter, own in levels.items()
        for level in _varied_levels(memory.preferred(adapter, own), own, quantizations, facts.model)
    ]
    more, more_not_allowed = gate.sort(varied)
    refused += [*not_allowed, *more_not_allowed]
    spread: dict[Adapter, list[Level]] = {}
    if processes > 1 or facts.hardware.gpus:
        spread = {
            adapter: _spread(adapter, own, gate, memory, processes, refused)
            for adapter, own in levels.items()
        }
    for adapter, level in more:
        levels[adapter].append(level)
    for adapter, own in spread.items():
        levels[adapter] += own
    return levels


def _spread(
    adapter: Adapter,
    own: Sequence[Level],
    gate: _Gate,
    memory: Memory,
    processes: int,
    refused: list[_Refused],
) -> list[Level]:
    """Its levels of several processes, or with the host's help; what a rule forbids is noted."""

    def admits(level: Level) -> bool:
        rule = gate.refusal(adapter, level)
        if rule is not None:
            refused.append((adapter, level, rule))
        return rule is None

    return spread_levels(adapter, own, memory, processes, admits)


def _methods(facts: StudyFacts, request: StudyRequest) -> Collection[Method]:
    """Those asked for; else what is tried unasked, which depends on whether a head is new or nothing else
    suits."""
    if request.methods:
        return request.methods
    model, task = facts.model, facts.dataset.task.kind
    new = trained_modules(model, task)
    may_freeze = task.has_new_head or not any(is_adaptable(module, new) for module in model.modules)
    return [
        method
        for method, spec in METHODS.items()
        if spec.tried_unasked and (may_freeze or not method.unfreezes)
    ]


def _base_levels(quantizations: Collection[Quantization], attention: str) -> Iterator[Level]:
    for precision in PRECISIONS:
        for quantization in sorted(quantizations, key=list(Quantization).index):
            level = replace(precision, quantization=quantization, attention=attention)
            yield level
            yield replace(level, gradient_checkpointing=True)


def _varied_levels(
    preferred: Level, own: Sequence[Level], quantizations: tuple[Quantization, ...], model: ModelProfile
) -> Iterator[Level]:
    """The preferred of an adapter's levels with one setting changed."""
    for variation in _variations(preferred, own, quantizations, model):
        changed = replace(preferred, **variation.changes)
        yield changed
        if variation.saves_memory and not preferred.gradient_checkpointing:
            yield replace(changed, gradient_checkpointing=True)


def _variations(
    preferred: Level, own: Sequence[Level], quantizations: tuple[Quantization, ...], model: ModelProfile
) -> Iterator[_Variation]:
    for quantization in dict.fromkeys(level.quantization for level in own):
        if quantization.is_4bit and not preferred.double_quantization:
            yield _Variation({"quantization": quantization, "double_quantization": True}, saves_memory=True)
    if not quantizations:
        yield _Variation({"quantization": Quantization.FP4}, saves_memory=True)
    for kernel in model.attention_kernels:
        if kernel in ("flash_attention_2", "eager") and kernel != preferred.attention:
            yield _Variation({"attention": kernel})
    if has_wide_logits(model):
        yield _Variation({"loss": "chunked"}, saves_memory=True)
        yield _Variation({"loss": "liger"}, saves_memory=True)
    yield _Variation({"optimizer": "adamw_torch_fused"})
    yield _Variation({"optimizer": "adamw_8bit"}, saves_memory=True)
    yield _Variation({"optimizer": "paged_adamw_8bit"}, saves_memory=True)
    yield _Variation({"compile": True})


def has_wide_logits(model: ModelProfile) -> bool:
    """The vocabulary is so large that the logits weigh on a step's memory."""
    embeddings = [module for module in model.modules if module.kind == "embedding"]
    width = model.hidden_size or max((module.out_features for module in embeddings), default=0)
    return any(module.in_features >= WIDE_LOGITS * width for module in embeddings)


class _Gate:
    """The rules, each asked as rarely as what it looks at allows."""

    def __init__(self, facts: StudyFacts) -> None:
        self._facts = facts
        self._settings: dict[Adapter, Setting] = {}
        self._by_adapter: dict[Adapter, Rule | None] = {}
        self._by_level: dict[tuple[Level, tuple[str, ...]], Rule | None] = {}

    def refusal(self, adapter: Adapter, level: Level) -> Rule | None:
        """The first rule that forbids the pair."""
        if adapter not in self._settings:
            model, task, hardware = self._facts.model, self._facts.dataset.task.kind, self._facts.hardware
            self._settings[adapter] = setting_of(adapter, level, model, task, hardware)
            self._by_adapter[adapter] = first_refusal(self._settings[adapter], ADAPTER_RULES)
        setting = replace(self._settings[adapter], level=level)
        key = level, adapter.trained_parts
        if key not in self._by_level:
            self._by_level[key] = first_refusal(setting, LEVEL_RULES)
        return self._by_adapter[adapter] or first_refusal(setting, PAIR_RULES) or self._by_level[key]

    def sort(self, pairs: Sequence[_Pair]) -> tuple[list[_Pair], list[_Refused]]:
        """Those that no rule forbids, and the others."""
        allowed: list[_Pair] = []
        refused: list[_Refused] = []
        for adapter, level in pairs:
            rule = self.refusal(adapter, level)
            if rule is None:
                allowed.append((adapter, level))
            else:
                refused.append((adapter, level, rule))
        return allowed, refused


def _by_rule(refused: Sequence[_Refused]) -> tuple[LeftOut, ...]:
    counts = Counter(rule.name for _, _, rule in refused)
    first = {
        rule.name: LeftOut(rule, counts[rule.name], adapter, level)
        for adapter, level, rule in reversed(refused)
    }
    return tuple(sorted(first.values(), key=lambda left_out: (-left_out.count, left_out.rule.name)))


def _nothing_suits(facts: StudyFacts, request: StudyRequest, refused: Sequence[_Refused]) -> InputError:
    model = f"{facts.model.source} ({facts.model.architecture})"
    names = " or ".join(sorted(_methods(facts, request)))
    if not refused:
        return InputError(
            f"{model} has no linear layer that {names} could adapt",
            next_step=f"allow method {Method.FULL}",
        )
    reasons = " ".join(left_out.rule.reason for left_out in _by_rule(refused))
    return InputError(
        f"{model} can take none of the allowed methods ({names}) as asked. {reasons}",
        next_step="allow other methods or quantizations",
    )
