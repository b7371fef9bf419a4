"""The level factory: facts in, candidates out, best prior first and never an invalid one.

Rules out by arithmetic only what cannot fit whatever the batch. Knows nothing of trials and what they
measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from ..errors import InputError, NothingFits
from ..probes.profiles import HardwareProfile, ModelProfile, ModuleProfile, TaskKind
from .domain import Adapter, Candidate, Level, Method, Recipe, StudyFacts, StudyRequest
from .priors import prior_quality

LORA_GRID = ((8, "minimal"), (16, "minimal"), (16, "balanced"), (32, "balanced"), (16, "full"))
"""Ranks and target sets that are tried."""

TARGET_ROLES = {
    "minimal": frozenset({"query", "value"}),
    "balanced": frozenset({"query", "key", "value", "attention_output"}),
}
"""Roles that make up a target set; a fused ``qkv`` stands for query, key and value."""

IA3_ROLES = frozenset({"key", "value"})
"""Outputs that IA3 scales, beside the input of ``mlp_out`` (Liu et al. 2022, and PEFT's own tables)."""

PEFT_HEADS = ("classifier", "score")
"""How the modules end that PEFT adds to ``modules_to_save`` of every sequence classifier."""

DROPOUT_BY_ROWS = ((100_000, 0.0), (10_000, 0.05), (1_000, 0.1))
"""LoRA dropout for more usable rows than this; fewer rows overfit sooner and get ``SMALL_DATA_DROPOUT``."""

SMALL_DATA_DROPOUT = 0.2

RATE_WIDTH = 2000
RATE_EXPONENT = 0.781
RATES_AT_WIDTH = {Method.LORA: 5e-4, Method.FULL: 5e-5, Method.IA3: 7e-3}
"""Learning rates of a model that is ``RATE_WIDTH`` wide; a narrower one takes higher rates.

Rule, exponent (Llama's) and the tenfold rate of LoRA over full fine-tuning: "LoRA Without Regret" (Schulman
et al. 2025). IA3's rate is the best published one of PEFT's method_comparison (5e-3 at a width of 3072).
"""

UNKNOWN_WIDTH = 1024

MICRO_BATCH_SHARES = (1, 2, 4, 8)
"""Micro-batches are about the effective batch divided by these."""

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}

TRAINED_BYTES_PER_PARAMETER = 16
"""Weight, gradient and Adam's two moments, all float32."""


def enumerate_candidates(facts: StudyFacts, request: StudyRequest) -> tuple[Candidate, ...]:
    """All candidates of a study, best prior first.

    Adapters come in the order of published quality, the smaller first among equals; the candidates of
    one adapter with mixed precision before float32, checkpointing off before on, large micro-batches
    before small ones.

    Raises:
        InputError: no allowed method suits the model.
        NothingFits: the weights, gradients and optimizer state alone exceed the memory of every candidate.
    """
    candidates = [
        Candidate(
            adapter=adapter,
            level=level,
            recipe=facts.recipe,
            micro_batch=micro_batch,
            learning_rate=learning_rate(adapter.method, facts.model.hidden_size),
        )
        for adapter in _adapters(facts, request.methods)
        for level in _levels(facts.hardware, facts.model, adapter.method)
        for micro_batch in micro_batches(facts.recipe)
    ]
    capacity_bytes = min(filter(None, (request.memory_limit_bytes, device_bytes(facts.hardware))))
    fitting = [c for c in candidates if least_bytes(c, facts.model) <= capacity_bytes]
    if not fitting:
        least = min(least_bytes(candidate, facts.model) for candidate in candidates)
        raise NothingFits(
            f"no configuration of {facts.model.source} fits {capacity_bytes / 2**30:.2f} GiB: the weights, "
            f"gradients and optimizer state of the smallest alone need {least / 2**30:.2f} GiB",
            next_step="raise the memory limit, allow more methods or take a smaller model",
        )
    return tuple(fitting)


def learning_rate(method: Method, hidden_size: int | None) -> float:
    """A rate to start from, to two significant digits."""
    width = hidden_size or UNKNOWN_WIDTH
    return float(f"{RATES_AT_WIDTH[method] * (RATE_WIDTH / width) ** RATE_EXPONENT:.1e}")


def suffixes_for(wanted: Collection[str], all_names: Iterable[str]) -> tuple[str, ...] | None:
    """The fewest and shortest suffixes that match all wanted module names and no other, sorted.

    PEFT takes a target for a module's name or for its end after a dot. Each wanted name contributes its
    shortest end that no unwanted name has; such ends never contain each other, so none can be left out.

    Returns:
        None where a wanted name is itself the end of an unwanted one: no suffix tells those apart.
    """
    taken = {end for name in all_names if name not in wanted for end in _ends(name)}
    if not taken.isdisjoint(wanted):
        return None
    return tuple(sorted({next(end for end in _ends(name) if end not in taken) for name in wanted}))


def adapted_modules(adapter: Adapter, model: ModelProfile) -> tuple[ModuleProfile, ...]:
    """The modules that PEFT puts this adapter on."""
    return tuple(
        module
        for module in model.modules
        if any(f".{module.name}".endswith(f".{target}") for target in adapter.targets)
        and not _is_trained(module.name, adapter.trained_modules)
    )


def estimated_trainable(candidate: Candidate, model: ModelProfile) -> int:
    """Trainable parameters, from the shapes of the modules that are adapted or trained in full."""
    return _trainable(candidate.adapter, model)


def least_bytes(candidate: Candidate, model: ModelProfile) -> int:
    """A lower bound on memory: weights, gradients and optimizer state, without a single activation.

    Frozen embeddings are left out: a host may map their file and touch only the rows in use.
    """
    trained = estimated_trainable(candidate, model)
    if candidate.adapter.method is Method.FULL:
        return TRAINED_BYTES_PER_PARAMETER * trained
    embeddings = sum(module.parameters for module in model.modules if module.kind == "embedding")
    frozen = max(0, model.parameters - embeddings)
    return BYTES_PER_ELEMENT[candidate.level.weight_dtype] * frozen + TRAINED_BYTES_PER_PARAMETER * trained


def micro_batches(recipe: Recipe) -> tuple[int, ...]:
    """Divisors of the effective batch, descending: the largest not above each of its shares."""
    batch = recipe.effective_batch
    divisors = [size for size in range(batch, 0, -1) if batch % size == 0]
    shares = (max(1, batch // share) for share in MICRO_BATCH_SHARES)
    return tuple(dict.fromkeys(next(d for d in divisors if d <= share) for share in shares))


def device_bytes(hardware: HardwareProfile) -> int:
    """Memory of the largest GPU, or the host's where there is none."""
    return max((gpu.total_bytes for gpu in hardware.gpus), default=hardware.host.ram_total_bytes)


def _adapters(facts: StudyFacts, methods: Collection[Method]) -> list[Adapter]:
    allowed = frozenset(methods or Method)
    found = dict.fromkeys(adapter for adapter in _all_adapters(facts) if adapter.method in allowed)
    if not found:
        raise InputError(
            f"{facts.model.source} ({facts.model.architecture}) has no linear layer that "
            f"{' or '.join(sorted(allowed))} could adapt",
            next_step=f"allow method {Method.FULL}",
        )
    return sorted(found, key=lambda adapter: (-prior_quality(adapter), _trainable(adapter, facts.model)))


def _all_adapters(facts: StudyFacts) -> Iterator[Adapter]:
    """Every adapter that suits the model; a target set that it lacks is replaced by all linear layers."""
    model = replace(facts.model, new_modules=_trained_modules(facts.model, facts.dataset.task.kind))
    dropout = next(
        (rate for rows, rate in DROPOUT_BY_ROWS if facts.dataset.usable_rows > rows), SMALL_DATA_DROPOUT
    )
    for rank, target_set in LORA_GRID:
        name, targets = _lora_targets(model, target_set)
        adapter = Adapter(
            method=Method.LORA,
            rank=rank,
            alpha=2.0 * rank,
            dropout=dropout,
            targets=targets,
            trained_modules=model.new_modules,
            target_set=name,
        )
        sides = [min(m.in_features, m.out_features) for m in adapted_modules(adapter, model)]
        # Above the smaller side of every matrix a higher rank adds parameters but nothing to learn with them.
        if rank <= max(sides, default=0):
            yield adapter
    if ia3 := _ia3(model):
        yield ia3
    yield Adapter(method=Method.FULL)


def _trained_modules(model: ModelProfile, task: TaskKind) -> tuple[str, ...]:
    """New modules and, for classification, the heads that PEFT trains whether it is asked to or not.

    A new module within such a head is named by the head: PEFT would wrap both, and the inner copy, though
    trainable, would take no part in the forward pass (RoBERTa's ``classifier.dense``).
    """
    heads = PEFT_HEADS if task is TaskKind.TEXT_CLASSIFICATION else ()
    trained = set(model.new_modules)
    for name in {*model.new_modules, *(module.name for module in model.modules)}:
        head = next((block for block in _blocks(name) if block.endswith(heads)), None)
        if head is not None:
            trained = trained - {name} | {head}
    return tuple(sorted(trained))


def _lora_targets(model: ModelProfile, target_set: str) -> tuple[str, tuple[str, ...]]:
    """Name and suffixes of a target set, or of all linear layers in its place."""
    if target_set in TARGET_ROLES:
        targets = _suffixes(model, _with_roles(model, TARGET_ROLES[target_set]))
        if targets:
            return target_set, targets
    return "full", _suffixes(model, _adaptable(model))


def _ia3(model: ModelProfile) -> Adapter | None:
    """IA3 where PEFT puts it: key, value and the MLP's second matrix; else on all linear layers."""
    scaled = _suffixes(model, _with_roles(model, IA3_ROLES))
    feedforward = _suffixes(model, [m for m in _adaptable(model) if m.role == "mlp_out"])
    name = "key,value,mlp_out" if feedforward else "key,value"
    if not scaled:
        name, scaled, feedforward = "full", _suffixes(model, _adaptable(model)), ()
    if not scaled:
        return None
    return Adapter(
        method=Method.IA3,
        targets=tuple(sorted({*scaled, *feedforward})),
        feedforward=feedforward,
        trained_modules=model.new_modules,
        target_set=name,
    )


def _adaptable(model: ModelProfile) -> list[ModuleProfile]:
    """Linear layers, the head and whatever is trained in full anyway left out."""
    return [
        module
        for module in model.modules
        if module.kind in ("linear", "conv1d")
        and module.role != "head"
        and not _is_trained(module.name, model.new_modules)
    ]


def _with_roles(model: ModelProfile, roles: frozenset[str]) -> list[ModuleProfile]:
    """The adaptable modules of these roles; none if the model lacks one of them."""
    adaptable = _adaptable(model)
    missing = roles - {module.role for module in adaptable}
    fused = any(module.role == "qkv" for module in adaptable)
    if missing - ({"query", "key", "value"} if fused else set()):
        return []
    return [module for module in adaptable if module.role in roles or module.role == "qkv"]


def _suffixes(model: ModelProfile, wanted: Collection[ModuleProfile]) -> tuple[str, ...]:
    """Suffixes for these modules, checked against all modules and the blocks that contain them."""
    blocks = {block for module in model.modules for block in _blocks(module.name)}
    return suffixes_for({module.name for module in wanted}, blocks) or ()


def _ends(name: str) -> Iterator[str]:
    """The ends of a dotted name, shortest first: ``c``, ``b.c``, ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))


def _blocks(name: str) -> Iterator[str]:
    """The blocks that hold a module, outermost first, and itself: ``a``, ``a.b``, ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _is_trained(name: str, trained_modules: Collection[str]) -> bool:
    """Whether PEFT's ``modules_to_save`` covers this module: its name, or a block's around it, ends so."""
    return any(f"{trained}." in f"{name}." for trained in trained_modules)


def _trainable(adapter: Adapter, model: ModelProfile) -> int:
    if adapter.method is Method.FULL:
        return model.parameters
    trained = sum(m.parameters for m in model.modules if _is_trained(m.name, adapter.trained_modules))
    return trained + sum(_adapter_parameters(adapter, module) for module in adapted_modules(adapter, model))


def _adapter_parameters(adapter: Adapter, module: ModuleProfile) -> int:
    if adapter.method is Method.IA3:
        on_input = any(module.name.endswith(end) for end in adapter.feedforward)
        return module.in_features if on_input else module.out_features
    magnitudes = module.out_features if adapter.use_dora else 0
    return (adapter.rank or 0) * (module.in_features + module.out_features) + magnitudes


def _levels(hardware: HardwareProfile, model: ModelProfile, method: Method) -> Iterator[Level]:
    for precision in _precisions(hardware):
        if method is Method.FULL and precision.weight_dtype != "float32":
            continue  # AdamW's updates are mostly smaller than half a bfloat16 step of the weight
        yield precision
        if model.supports_gradient_checkpointing:
            yield replace(precision, gradient_checkpointing=True)


def _precisions(hardware: HardwareProfile) -> tuple[Level, ...]:
    """What the device computes in hardware, preferred first; float16 never on a host."""
    plain, mixed = Level(), Level(compute_dtype="bfloat16")
    if not hardware.gpus:
        return (mixed, plain) if hardware.host.native_bf16 else (plain,)
    if not all(gpu.supports_bf16 for gpu in hardware.gpus):
        return (Level(compute_dtype="float16"), plain)
    return (mixed, Level(weight_dtype="bfloat16", compute_dtype="bfloat16"), plain)
