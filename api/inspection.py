"""What an inspected model's modules add up to, and what each method would train of them. Imports no torch.

Knows nothing of terminals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..optimizer.adapters import AdapterFactory, dropout_for
from ..optimizer.codec import to_json
from ..optimizer.domain import SCHEMA_VERSION, Adapter, Level, Method, Quantization
from ..optimizer.methods import METHODS
from ..optimizer.rules import ADAPTER_RULES, first_refusal, setting_of
from ..optimizer.selection import ALL_LINEAR, ROLE_WORDS, Selection, select
from ..optimizer.sizes import (
    BYTES_PER_ELEMENT,
    BYTES_PER_QUANTIZED_PARAMETER,
    quantizable_parameters,
    trainable_parameters,
)
from ..optimizer.targets import Targets
from ..optimizer.verdicts import Verdict
from ..probes.profiles import HardwareProfile, ModelProfile, ModuleProfile
from ..runners.jobs import Inspection

_SHOWN_FIELDS = (
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
)
"""What of an adapter decides which parameters are trained."""

TARGET_RANKS = (4, 8, 16, 32, 64)

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleGroup:
    """Modules of one role, kind and shape."""

    names: tuple[str, ...]
    """Their names, with ``*`` for numbers; each form once."""
    kind: str
    role: str
    in_features: int
    out_features: int
    matrices: int
    """In each module: the experts of a layer, else 1."""
    count: int
    parameters: int
    """Of all together; those shared with another module count for the first of the two, so that 0 is tied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """What a method would train of the model, or why it does not suit it."""

    adapter: Adapter
    """Without targets where the method finds nothing to sit on."""
    parameters: int | None
    refusal: str | None


def module_groups(model: ModelProfile) -> tuple[ModuleGroup, ...]:
    """The model's modules as groups, in the order in which they are met."""
    groups: dict[tuple[str, str, int, int, int], list[ModuleProfile]] = {}
    for module in model.modules:
        key = (module.kind, module.role, module.in_features, module.out_features, module.matrices)
        groups.setdefault(key, []).append(module)
    return tuple(
        ModuleGroup(
            names=tuple(dict.fromkeys(_NUMBER.sub("*", module.name) for module in modules)),
            kind=kind,
            role=role,
            in_features=in_features,
            out_features=out_features,
            matrices=matrices,
            count=len(modules),
            parameters=sum(module.parameters for module in modules),
        )
        for (kind, role, in_features, out_features, matrices), modules in groups.items()
    )


def what_trains(inspection: Inspection, hardware: HardwareProfile) -> tuple[Trainable, ...]:
    """Every adapter that a study might try, methods in turn and the smallest first.

    rsLoRA is left out: it trains what LoRA trains.
    """
    model, task = inspection.model, None if inspection.task is None else inspection.task.kind
    factory = AdapterFactory(Targets(model, task), dropout_for(None))

    def found(method: Method) -> Iterator[Trainable]:
        adapters = [adapter for adapter in factory.every((method,)) if not adapter.use_rslora]
        for adapter in adapters or (Adapter(method=method),):
            rule = first_refusal(setting_of(adapter, Level(), model, task, hardware), ADAPTER_RULES)
            yield Trainable(
                adapter=adapter,
                parameters=trainable_parameters(adapter, model) if rule is None else None,
                refusal=None if rule is None else rule.reason,
            )

    return tuple(
        row
        for method in Method
        for row in sorted(found(method), key=lambda row: (row.parameters is None, row.parameters or 0))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOption:
    """One choice of targets, and what LoRA would train there."""

    selection: Selection
    adapters: int
    parameters: Mapping[int, int]
    """Rank → trained parameters."""


def target_options(inspection: Inspection, written: Sequence[str]) -> tuple[TargetOption, ...]:
    """What each choice of targets matches, and what LoRA would train at several ranks.

    Raises:
        InputError: a choice cannot be read, or matches nothing.
    """
    model = inspection.model

    def option(text: str) -> TargetOption:
        selection = select(text, model)
        trained = METHODS[Method.LORA].trainable_on
        parameters = {
            rank: sum(trained(Adapter(method=Method.LORA, rank=rank), module) for module in selection.modules)
            for rank in TARGET_RANKS
        }
        return TargetOption(selection=selection, adapters=len(selection.modules), parameters=parameters)

    return tuple(option(text) for text in written)


def guide(model: ModelProfile) -> tuple[str, ...]:
    """The choices that are worth comparing: heads, attention, both, everything linear."""
    roles = {module.role for module in model.modules}
    words = [word for word in ("head", "attention-output", "attention", "mlp") if ROLE_WORDS[word] & roles]
    both = ["head,attention-output"] if {"head", "attention_output"} <= roles else []
    linear = any(m.kind in ("linear", "conv1d") and m.role != "head" for m in model.modules)
    return (*words, *both, *([ALL_LINEAR] if linear else []))


def bytes_by_dtype(model: ModelProfile) -> Mapping[str, int]:
    """Bytes of the weights in memory, by the name of a dtype or quantization.

    Quantized are linear layers only; what is left out stays in two bytes.
    """
    sizes = {name: size * model.parameters for name, size in BYTES_PER_ELEMENT.items() if name != "float16"}
    quantized = quantizable_parameters(model, model.new_modules)
    for name in (Quantization.INT8, Quantization.NF4):
        rate = BYTES_PER_QUANTIZED_PARAMETER[name]
        sizes[name.value] = 2 * (model.parameters - quantized) + int(rate * quantized)
    return sizes


def expert_parameters(model: ModelProfile) -> int:
    """Parameters in stacked experts."""
    return sum(module.parameters for module in model.modules if module.kind == "experts")


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain JSON data; its name is the key that it stands under."""
    form = to_json(verdict)
    del form["name"]
    return {"supported": verdict.supported, **form.pop("where"), **form}


def inspection_document(
    inspection: Inspection, hardware: HardwareProfile, targets: Sequence[str] = ()
) -> dict[str, Any]:
    """The inspection as plain JSON data; with what is matched by targets that somebody chose, or might."""
    model = inspection.model
    return {
        "schema_version": SCHEMA_VERSION,
        "task": inspection.task and to_json(inspection.task),
        "model": to_json(model),
        "stored_bytes": dict(inspection.stored_bytes),
        "bytes_by_dtype": dict(bytes_by_dtype(model)),
        "expert_parameters": expert_parameters(model),
        "tried_with": inspection.tried_with,
        "methods": {verdict.name: verdict_document(verdict) for verdict in inspection.verdicts},
        "targets": {
            option.selection.written: {
                **to_json(option.selection.where),
                "names": [module.name for module in option.selection.modules],
                "adapters": option.adapters,
                "trainable_params": {str(rank): count for rank, count in option.parameters.items()},
                "warnings": list(option.selection.warnings),
            }
            for option in target_options(inspection, targets or guide(model))
        },
        "groups": [to_json(group) for group in module_groups(model)],
        "trainable": [
            {
                **{name: to_json(row.adapter)[name] for name in _SHOWN_FIELDS},
                "parameters": row.parameters,
                "share": None if row.parameters is None else row.parameters / max(1, model.parameters),
                "refusal": row.refusal,
            }
            for row in what_trains(inspection, hardware)
        ],
    }
