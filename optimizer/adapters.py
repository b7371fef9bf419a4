"""Which adapters a study may try, in which order, and what to warn of.

Knows nothing of levels, except in the warnings, and nothing of trials.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..probes.profiles import ModelProfile
from .domain import Adapter, Candidate, Method, Quantization, StudyFacts
from .methods import METHODS, oft_block
from .parts import bias_parts, blocks_of, head_parts, norm_parts
from .priors import prior_distance, prior_quality
from .sizes import quantizable_parameters, trainable_parameters
from .targets import TARGET_SETS, Targets, adapted_modules

LORA_RANKS = (4, 8, 16, 32, 64, 128)
ADALORA_RANKS = (8, 32)
OFT_BLOCKS = (16, 32, 64)
MISS_RANKS = (16, 64)
LAST_BLOCKS = (1, 2, 4)

ADALORA_SURPLUS = 1.5
"""AdaLoRA starts with this multiple of the ranks that it keeps, as in the paper (Zhang et al. 2023)."""

RSLORA_ALPHA = 16.0
"""The same for all ranks, since α/√r follows the rank; at r = 64 the factor is plain LoRA's, 2."""

DROPOUT_BY_ROWS = ((100_000, 0.0), (10_000, 0.05), (1_000, 0.1))
"""LoRA dropout for more usable rows than this; fewer rows overfit sooner and get ``SMALL_DATA_DROPOUT``."""

SMALL_DATA_DROPOUT = 0.2
UNKNOWN_DATA_DROPOUT = 0.05

ROUNDS_BEFORE = 2
"""Of adapters, before what freezes the model and has none: that is light and fast, and mostly learns less."""

UNADAPTED_SHARE = 0.5
"""Above this share of its parameters in experts that an adapter skips, there is a warning."""


@dataclass(frozen=True, slots=True)
class AdapterFactory:
    """Makes adapters for one model and task; which of them cannot work is for the rules to say."""

    targets: Targets
    dropout: float

    @classmethod
    def of(cls, facts: StudyFacts) -> AdapterFactory:
        """The factory of a study."""
        task = facts.dataset.task.kind
        return cls(Targets(facts.model, task), dropout_for(facts.dataset.usable_rows))

    def every(self, methods: Collection[Method]) -> tuple[Adapter, ...]:
        """All adapters of these methods, each once, in no order that matters.

        A target set whose roles the model lacks is replaced by all linear layers.
        """
        made = (adapter for method in methods for adapter in self._of(method))
        return tuple(dict.fromkeys(made))

    def lora(
        self, rank: int, target_set: str, *, use_rslora: bool = False, use_dora: bool = False
    ) -> Adapter | None:
        """LoRA at 2·rank, or at rsLoRA's own alpha; None where there is nothing to adapt."""
        return self._adapter(
            Method.LORA,
            target_set,
            rank=rank,
            alpha=RSLORA_ALPHA if use_rslora else 2.0 * rank,
            dropout=self.dropout,
            use_rslora=use_rslora,
            use_dora=use_dora,
        )

    def adalora(self, rank: int, target_set: str) -> Adapter | None:
        """AdaLoRA that keeps ``rank``; alpha is twice the initial rank, by which PEFT divides it."""
        initial = round(rank * ADALORA_SURPLUS)
        return self._adapter(
            Method.ADALORA,
            target_set,
            rank=rank,
            initial_rank=initial,
            alpha=2.0 * initial,
            dropout=self.dropout,
        )

    def ia3(self, target_set: str) -> Adapter | None:
        """IA3 on a target set, or where its paper has it: ``own``."""
        return self._adapter(Method.IA3, target_set)

    def ranked(self, method: Method, rank: int, target_set: str) -> Adapter | None:
        """Any method whose only number is a rank or a block's size."""
        return self._adapter(method, target_set, rank=rank)

    def partial(self, method: Method) -> Adapter | None:
        """A new head, with all biases or all norms; without a new head the one that the model has.

        None where the model has nothing of that kind.
        """
        model, trained = self.targets.model, self.targets.trained_modules
        match method:
            case Method.BITFIT:
                parts = bias_parts(model)
            case Method.NORMS:
                parts = norm_parts(model)
            case _:
                parts = () if trained else head_parts(model)
        if not parts and (method is not Method.HEAD or not trained):
            return None
        return Adapter(method=method, trained_modules=trained, unfrozen=parts)

    def last_blocks(self, count: int) -> Adapter | None:
        """The last blocks and a new head; None where that would be all blocks that there are."""
        blocks = blocks_of(self.targets.model)
        if not 0 < count < len(blocks):
            return None
        return Adapter(
            method=Method.LAST_BLOCKS,
            trained_modules=self.targets.trained_modules,
            unfrozen=blocks[-count:],
            last_blocks=count,
        )

    def _of(self, method: Method) -> Iterator[Adapter]:
        for adapter in self._grid(method):
            if adapter is not None:
                yield adapter

    def _grid(self, method: Method) -> Iterator[Adapter | None]:
        match method:
            case Method.LORA:
                for rank in LORA_RANKS:
                    for name in TARGET_SETS:
                        yield self.lora(rank, name)
                        yield self.lora(rank, name, use_rslora=True)
                        yield self.lora(rank, name, use_dora=True)
            case Method.ADALORA:
                yield from (self.adalora(rank, name) for rank in ADALORA_RANKS for name in TARGET_SETS)
            case Method.IA3:
                yield from (self.ia3(name) for name in ("own", "full"))
            case Method.OFT:
                yield from (self.ranked(method, size, name) for size in OFT_BLOCKS for name in TARGET_SETS)
            case Method.MISS:
                yield from (self.ranked(method, rank, name) for rank in MISS_RANKS for name in TARGET_SETS)
            case Method.LAST_BLOCKS:
                yield from (self.last_blocks(count) for count in LAST_BLOCKS)
            case Method.HEAD | Method.BITFIT | Method.NORMS:
                yield self.partial(method)
            case Method.FULL:
                yield Adapter(method=Method.FULL)

    def _adapter(
        self,
        method: Method,
        target_set: str,
        *,
        rank: int | None = None,
        initial_rank: int | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        use_rslora: bool = False,
        use_dora: bool = False,
    ) -> Adapter | None:
        find = self.targets.find_ia3 if method is Method.IA3 else self.targets.find
        # PEFT (0.21) has no DoRA for nn.MultiheadAttention.
        where = find(target_set, METHODS[method].kinds - ({"attention"} if use_dora else set()))
        if where is None:
            return None
        return Adapter(
            method=method,
            rank=rank,
            initial_rank=initial_rank,
            alpha=alpha,
            dropout=0.0 if where.target_parameters else dropout,
            targets=where.targets,
            target_parameters=where.target_parameters,
            feedforward=where.feedforward,
            trained_modules=self.targets.trained_modules,
            use_rslora=use_rslora,
            use_dora=use_dora,
            target_set=where.name,
        )


def dropout_for(rows: int | None) -> float:
    """The design's table: the more rows, the less dropout; None is unknown."""
    if rows is None:
        return UNKNOWN_DATA_DROPOUT
    return next((rate for least, rate in DROPOUT_BY_ROWS if rows > least), SMALL_DATA_DROPOUT)


def in_order(adapters: Collection[Adapter], model: ModelProfile) -> tuple[Adapter, ...]:
    """The best of each family first, then the second of each, and so on.

    A family is a method with its variant (plain LoRA, rsLoRA, DoRA, AdaLoRA, …). Within a family, and among
    those of one round, the better published quality comes first, then the nearer published run, then the
    smaller adapter. What freezes the model and has no adapter joins after the first two rounds, since nothing
    comparable was published of it. Ranks that exceed every matrix they sit on come last of all.
    """
    keys = {
        adapter: (
            exceeds_every_matrix(adapter, model),
            -prior_quality(adapter),
            prior_distance(adapter),
            trainable_parameters(adapter, model),
        )
        for adapter in adapters
    }
    rounds: dict[tuple[object, ...], int] = {}
    places = []
    for adapter in sorted(adapters, key=keys.__getitem__):
        family = (adapter.method, adapter.use_rslora, adapter.use_dora, adapter.init_weights)
        rounds[family] = rounds.get(family, ROUNDS_BEFORE if adapter.method.unfreezes else 0) + 1
        places.append((keys[adapter][0], rounds[family], keys[adapter], adapter))
    return tuple(place[-1] for place in sorted(places, key=lambda place: place[:3]))


def exceeds_every_matrix(adapter: Adapter, model: ModelProfile) -> bool:
    """The rank is above the smaller side of every matrix: it adds parameters, but nothing to learn with."""
    rank = _largest_rank(adapter)
    return bool(rank) and all(side < rank for side in _smaller_sides(adapter, model))


def warnings_for(candidate: Candidate, model: ModelProfile) -> tuple[str, ...]:
    """What a user should know of a candidate that is allowed all the same, in sentences."""
    adapter = candidate.adapter
    return (
        *_rank_warnings(adapter, model),
        *_block_warnings(adapter, model),
        *_expert_warnings(candidate, model),
    )


def _rank_warnings(adapter: Adapter, model: ModelProfile) -> Iterator[str]:
    rank = _largest_rank(adapter)
    sides = _smaller_sides(adapter, model)
    narrow = [side for side in sides if side < rank]
    if narrow:
        which = "all" if len(narrow) == len(sides) else f"{len(narrow)} of {len(sides)}"
        yield (
            f"Rank {rank} exceeds the smaller side (from {min(narrow)}) of {which} adapted matrices: there "
            "it adds parameters, but nothing to learn with them."
        )


def _block_warnings(adapter: Adapter, model: ModelProfile) -> Iterator[str]:
    if adapter.method is not Method.OFT or adapter.rank is None:
        return
    inputs = {module.in_features for module in adapted_modules(adapter, model)}
    changed = {size for size in inputs if oft_block(size, adapter.rank) != adapter.rank}
    if changed:
        yield (
            f"Blocks of {adapter.rank} do not divide inputs of {', '.join(map(str, sorted(changed)))}: PEFT "
            "takes the nearest size that does."
        )


def _expert_warnings(candidate: Candidate, model: ModelProfile) -> Iterator[str]:
    adapter, level = candidate.adapter, candidate.level
    experts = sum(module.parameters for module in model.modules if module.kind == "experts")
    if not experts or adapter.method is Method.FULL:
        return
    share = experts / model.parameters
    if not adapter.target_parameters and share > UNADAPTED_SHARE:
        yield f"The experts, {share:.0%} of the model's parameters, are left as they are."
    if level.quantization is not Quantization.NONE:
        left_alone = (*adapter.trained_parts, *level.skip_modules)
        quantized = quantizable_parameters(model, left_alone) / model.parameters
        yield (
            f"Only {quantized:.0%} of the model's parameters are quantized to {level.quantization}: "
            "bitsandbytes leaves experts as they are."
        )


def _largest_rank(adapter: Adapter) -> int:
    """0 where the method has no rank: IA3, and OFT, whose number is a block's size."""
    if adapter.method is Method.OFT:
        return 0
    patterns = (rank for _, rank in adapter.rank_pattern)
    return max(adapter.rank or 0, adapter.initial_rank or 0, *patterns)


def _smaller_sides(adapter: Adapter, model: ModelProfile) -> list[int]:
    return [min(module.in_features, module.out_features) for module in adapted_modules(adapter, model)]
