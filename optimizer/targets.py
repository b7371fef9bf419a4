"""From the roles of a model's modules to the suffixes by which PEFT finds them, and back.

Knows nothing of ranks, methods' settings or levels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from ..probes.profiles import ModelProfile, ModuleProfile, TaskKind
from .domain import Adapter

ROLES = {
    "minimal": frozenset({"query", "value"}),
    "balanced": frozenset({"query", "key", "value", "attention_output"}),
}
"""Roles that make up a target set; a fused ``qkv`` stands for query, key and value."""

IA3_ROLES = frozenset({"key", "value"})
"""Outputs that IA3 scales, beside the input of ``mlp_out`` (Liu et al. 2022, and PEFT's own tables)."""

TARGET_SETS = ("minimal", "balanced", "full")

UNTOUCHED_ROLES = frozenset({"head", "router"})
"""A head is trained in full or not at all; an adapted router would send tokens to other experts."""

EXPERT_NAMES_OF_OLD = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate"})
"""How experts and routers were called before transformers 5 stacked them. LoRA configurations of mixtures are
converted by PEFT (0.21), which takes any target that ends so for these."""

ADAPTED_KINDS = ("linear", "conv1d", "attention")

PEFT_HEADS = ("classifier", "score")
"""How the modules end that PEFT adds to ``modules_to_save`` of every sequence classifier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSet:
    """Where an adapter sits, in PEFT's words; see the fields of the same names in :class:`Adapter`."""

    name: str
    targets: tuple[str, ...]
    target_parameters: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()


class Targets:
    """The target sets of one model for one task; each is computed once, whatever the number of adapters."""

    def __init__(self, model: ModelProfile, task: TaskKind | None) -> None:
        self.model = model
        self.trained_modules = trained_modules(model, task)
        self._modules = [module for module in model.modules if module.kind != "experts"]
        self._experts = [module for module in model.modules if module.kind == "experts"]
        self._blocks = {block for module in self._modules for block in _blocks(module.name)}
        self._blocks |= {block for module in self._experts for block in _blocks(_parent(module.name))}
        self._adaptable = self._find_adaptable()
        self._known: dict[frozenset[str], tuple[str, ...]] = {}

    def _find_adaptable(self) -> list[ModuleProfile]:
        """Linear layers and attentions. Of a module that a factory made heads as well, since none is new, and
        convolutions where there is nothing else."""
        trained = self.trained_modules
        if self.model.factory is None:
            return [module for module in self._modules if is_adaptable(module, trained)]
        own = [module for module in self._modules if not is_trained(module.name, trained)]
        matrices = [module for module in own if module.kind in ADAPTED_KINDS]
        return matrices or [m for m in own if m.kind == "convolution" and m.groups == 1]

    def find(self, name: str, kinds: Collection[str]) -> TargetSet | None:
        """The set of this name among modules of these kinds; all linear layers where its roles are missing.

        Experts belong to the set ``full`` only. None where there is nothing to adapt.
        """
        if name in ROLES and (targets := self._suffixes(self._with_roles(ROLES[name], kinds))):
            return TargetSet(name=name, targets=targets)
        wanted = self._of(kinds)
        if "experts" in kinds and self._experts:  # PEFT would take these for experts
            wanted = [each for each in wanted if each.name.rpartition(".")[2] not in EXPERT_NAMES_OF_OLD]
        targets = self._suffixes(wanted)
        experts = self._expert_suffixes() if "experts" in kinds and name == "full" else ()
        return TargetSet(name="full", targets=targets, target_parameters=experts) if targets else None

    def find_ia3(self, name: str, kinds: Collection[str]) -> TargetSet | None:
        """IA3's own set, ``key,value`` with the MLP's second matrix, or the set of another name.

        None where the roles of its own set are missing, or there is nothing to adapt.
        """
        second = [module for module in self._of(kinds) if module.role == "mlp_out"]
        if name == "full":
            return self._scaled("full", self._of(kinds), second)
        if name in ROLES:
            found = self.find(name, kinds)
            return None if found is None or found.name == "full" else found
        scaled = self._with_roles(IA3_ROLES, kinds)
        return self._scaled("key,value,mlp_out" if second else "key,value", scaled, second)

    def _scaled(
        self, name: str, scaled: list[ModuleProfile], second: list[ModuleProfile]
    ) -> TargetSet | None:
        targets, feedforward = self._suffixes(scaled), self._suffixes(second)
        if not targets:
            return None
        return TargetSet(name=name, targets=tuple(sorted({*targets, *feedforward})), feedforward=feedforward)

    def _of(self, kinds: Collection[str]) -> list[ModuleProfile]:
        return [module for module in self._adaptable if module.kind in kinds]

    def _with_roles(self, roles: frozenset[str], kinds: Collection[str]) -> list[ModuleProfile]:
        """The adaptable modules of these roles; none if the model lacks one of them."""
        adaptable = self._of(kinds)
        missing = roles - {module.role for module in adaptable}
        fused = any(module.role == "qkv" for module in adaptable)
        if missing - ({"query", "key", "value"} if fused else set()):
            return []
        return [module for module in adaptable if module.role in roles or module.role == "qkv"]

    def _suffixes(self, wanted: Collection[ModuleProfile]) -> tuple[str, ...]:
        """Suffixes for these modules, checked against all modules and the blocks that contain them."""
        names = frozenset(module.name for module in wanted)
        if names not in self._known:
            self._known[names] = suffixes_for(names, self._blocks) or ()
        return self._known[names]

    def _expert_suffixes(self) -> tuple[str, ...]:
        """Ends of the experts' parameters, checked against all parameters that are known by name."""
        names = {module.name for module in self._experts}
        return suffixes_for(names, names | {f"{module.name}.weight" for module in self._modules}) or ()


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


def target_pattern(names: Collection[str]) -> str:
    """A regular expression for PEFT's ``target_modules`` that these names match in full, and no others."""
    return "|".join(re.escape(name) for name in names)


def adapted_modules(adapter: Adapter, model: ModelProfile) -> tuple[ModuleProfile, ...]:
    """The modules, and stacked parameters of experts, that PEFT puts this adapter on."""
    if adapter.target_pattern is not None:
        pattern = re.compile(adapter.target_pattern)
        return tuple(
            module
            for module in model.modules
            if pattern.fullmatch(module.name) and not is_trained(module.name, adapter.trained_modules)
        )
    ends = tuple(f".{target}" for target in adapter.targets)
    parameter_ends = tuple(f".{target}" for target in adapter.target_parameters)
    return tuple(
        module
        for module in model.modules
        if f".{module.name}".endswith(parameter_ends if module.kind == "experts" else ends)
        and not is_trained(module.name, adapter.trained_modules)
    )


def has_experts(model: ModelProfile) -> bool:
    """Some of its parameters stack the matrices of experts."""
    return any(module.kind == "experts" for module in model.modules)


def is_adaptable(module: ModuleProfile, trained: Collection[str]) -> bool:
    """A linear layer of the body that is not trained in full anyway: what is adapted, and quantized."""
    return (
        module.kind in ADAPTED_KINDS
        and module.role not in UNTOUCHED_ROLES
        and not is_trained(module.name, trained)
    )


def is_trained(name: str, trained: Collection[str]) -> bool:
    """Whether PEFT's ``modules_to_save`` covers this module: its name, or a block's around it, ends so.

    Ends in the middle of a word count: to PEFT ``pre_classifier`` is a ``classifier``.
    """
    return any(f"{end}." in f"{name}." for end in trained)


def trained_modules(model: ModelProfile, task: TaskKind | None) -> tuple[str, ...]:
    """New modules and, for tasks with a head, the heads that PEFT trains whether it is asked to or not.

    A new module within such a head is named by the head: PEFT would wrap both, and the inner copy, though
    trainable, would take no part in the forward pass (RoBERTa's ``classifier.dense``).
    """
    heads = PEFT_HEADS if task is not None and task.has_new_head else ()
    trained = set(model.new_modules)
    for name in {*model.new_modules, *(module.name for module in model.modules)}:
        head = next((block for block in _blocks(name) if block.endswith(heads)), None)
        if head is not None:
            trained = trained - {name} | {head}
    return tuple(sorted(trained))


def _ends(name: str) -> Iterator[str]:
    """The ends of a dotted name, shortest first: ``c``, ``b.c``, ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))


def _blocks(name: str) -> Iterator[str]:
    """The blocks that hold a module, outermost first, and itself: ``a``, ``a.b``, ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
