"""What a model is made of, and which methods it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...optimizer.verdicts import Proof, Support
from ...probes.profiles import TaskProfile
from .parts import Document, Part


class MethodVerdict(Part):
    """What a model takes of one method."""

    supported: bool
    support: Support
    reason: str | None
    """Why not, or what to know."""
    modules: tuple[str, ...]
    """What is adapted: PEFT's ``target_modules``."""
    pattern: str | None
    """In their place, a regular expression, where no list tells modules apart."""
    parameters: tuple[str, ...]
    """PEFT's ``target_parameters``: stacked experts."""
    trained: tuple[str, ...]
    """Parts of the model itself that are trained."""
    trainable_params: int | None
    """At rank 8 where there is one."""
    proof: Proof | None
    """``step``: built, and a training step taken; ``build``: built only."""
    left_out: Mapping[str, str]
    """Modules that were meant to be adapted, and why they are not."""


class TargetOptionBody(Part):
    """What one choice of targets matches, and what LoRA would train there."""

    modules: tuple[str, ...]
    pattern: str | None
    parameters: tuple[str, ...]
    trained: tuple[str, ...]
    names: tuple[str, ...]
    """Modules, by their whole names."""
    adapters: int
    trainable_params: Mapping[str, int]
    """By rank."""
    warnings: tuple[str, ...]


class InspectionDocument(Document):
    """A model's structure, and which methods it takes, found by trying each."""

    task: TaskProfile | None
    """Null for the module of a factory: only data tell."""
    model: dict[str, Any]
    stored_bytes: Mapping[str, int]
    bytes_by_dtype: Mapping[str, int]
    expert_parameters: int
    tried_with: str | None
    """Where the inputs of the tries are from; null where none were found, and models were only built."""
    methods: Mapping[str, MethodVerdict]
    targets: Mapping[str, TargetOptionBody]
    groups: tuple[dict[str, Any], ...]
    trainable: tuple[dict[str, Any], ...]
