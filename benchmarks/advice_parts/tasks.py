"""The tasks: which model learns what, for how long, and which adapters are tried at which rates.

Trainings go through the product's own code; what is measured is in ``training.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rankwise.home import Home
from rankwise.optimizer.codec import from_json, to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, StudyFacts, StudyRequest
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.methods import learning_rate
from rankwise.optimizer.rules import preferred_attention
from rankwise.optimizer.targets import Targets
from rankwise.probes.host import read_hardware
from rankwise.probes.model_source import resolve_model
from rankwise.runners import prepare

STUDY_SEED = 0
REPLICATES = 3
RATE_STEPS = (-2, -1, 0, 1, 2)
"""Learning rates are the adapter's own times 10 ** (k / 2)."""
SHARES_OF_BUDGET = (1, 4, 10)
"""Trainings last the whole budget divided by these."""
PEFT_DEFAULT = "PEFT default"
PEFT_DEFAULT_RATES = (5e-5, 2e-4)
"""transformers' default, and what is usual with LoRA."""

_ADAPTERS = {
    "LoRA r4": r"LORA r=4 α=8 (minimal|full)",
    "LoRA r16": r"LORA r=16 α=32 full",
    "LoRA r64": r"LORA r=64 α=128 full",
    "DoRA r16": r"LORA r=16 α=32 DoRA full",
    "AdaLoRA r8": r"ADALORA r=12→8 α=24 full",
    "IA3": r"IA3 (?!full)",
    "full": r"full fine-tuning",
}
"""Name in the tables → how :meth:`Adapter.describe` begins; of several the first that a study would try."""
_NEW_HEAD = {**_ADAPTERS, "last block": r"last block", "biases": r"biases"}
del _NEW_HEAD["LoRA r64"]
_OLD_HEAD = {**_ADAPTERS, "rsLoRA r32": r"LORA r=32 α=16 rsLoRA full"}
_NO_ATTENTION = {**_OLD_HEAD, "IA3": r"IA3"}
_TIERS = {
    "tier r16": r"LORA r=16 α=32 (balanced|full)",
    "tier r32": r"LORA r=32 α=64 (balanced|full)",
    "tier r32 all": r"LORA r=32 α=64 full",
}
"""Beside full fine-tuning what the first design fixed for 14 to 20 GiB, see ``optimizer/tiers.py``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One model on one data set."""

    name: str
    model: str
    """Of :func:`.models.make_all`."""
    data: str
    """Of :func:`.sources.write_all`."""
    steps: int
    """The whole budget of a training, in optimizer steps; divisible by 16."""
    heldout_share: float
    """Larger than a study's: what is held out tells the truth, of which studies see a part."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Of the study."""
    adapters: Mapping[str, str] = field(default_factory=lambda: _OLD_HEAD)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Lengths of trainings in optimizer steps, the whole budget first."""
        return tuple(round(self.steps / share) for share in SHARES_OF_BUDGET)


TASKS = (
    Task(
        name="text-classification",
        model="feeling",
        data="reviews",
        steps=96,
        heldout_share=0.25,
        adapters=_NEW_HEAD,
        asked={"max_length": 48},
    ),
    Task(
        name="text-regression",
        model="place",
        data="airports",
        steps=96,
        heldout_share=0.3,
        adapters=_NEW_HEAD,
        asked={"max_length": 32, "task": "regression", "label_column": "longitude"},
    ),
    Task(
        name="causal-lm",
        model="decoder",
        data="dialogues",
        steps=96,
        heldout_share=0.4,
        asked={"max_length": 64, "task": "causal-lm", "packing": False},
    ),
    Task(
        name="seq2seq",
        model="encoder-decoder",
        data="pairs",
        steps=96,
        heldout_share=0.4,
        asked={"max_length": 40, "task": "seq2seq", "context_column": "source", "target_column": "target"},
    ),
    Task(name="images", model="vision", data="digits", steps=96, heldout_share=0.4, adapters=_NEW_HEAD),
    Task(
        name="patch-tst",
        model="patch-tst",
        data="bay",
        steps=96,
        heldout_share=0.25,
        asked={"time_column": "date"},
    ),
    Task(
        name="patch-mixer",
        model="patch-mixer",
        data="days",
        steps=96,
        heldout_share=0.4,
        adapters=_NO_ATTENTION,
        asked={"time_column": "date"},
    ),
)


def prepare_facts(
    task: Task, models: Mapping[str, Path], data: Mapping[str, Path], home: Home
) -> tuple[StudyRequest, StudyFacts]:
    """What a study of the task asks and finds, by the job that studies run; rows are written below ``home``.

    The whole training of the study is the task's budget.
    """
    request = StudyRequest(
        model=str(models[task.model]),
        dataset=str(data[task.data]),
        seed=STUDY_SEED,
        effective_batch=8,
        **task.asked,
    )
    found: dict[str, Any] = {}

    def report(kind: str, /, **fields: Any) -> None:
        if kind == "result":
            found.update(fields["facts"])

    source = resolve_model(request.model, allowed_roots=None)
    spec = {
        "request": to_json(request),
        "hardware": to_json(read_hardware(home.create().root)),
        "model_path": str(source.path),
        "model_source": source.source,
        "revision": source.revision,
        "factory": None,
        "allow_remote_code": False,
        "dataset_path": request.dataset,
        "tokens_root": str(home.tokens),
    }
    with ExitStack() as changed:
        for name in [name for name in sys.modules if name.startswith("rankwise.runners.")]:
            if hasattr(sys.modules[name], "heldout_share"):
                share = patch.object(sys.modules[name], "heldout_share", lambda _: task.heldout_share)
                changed.enter_context(share)
        prepare.run(spec, report)
    facts = from_json(StudyFacts, found)
    epochs = task.steps / (facts.train_rows // facts.recipe.effective_batch)
    return (
        replace(request, epochs=epochs),
        replace(facts, recipe=replace(facts.recipe, epochs=epochs)),
    )


def grid_adapters(task: Task, facts: StudyFacts, request: StudyRequest) -> dict[str, Adapter]:
    """Name → adapter of the grid.

    Raises:
        SystemExit: a study of the task would not try one of them.
    """
    return _named(task.adapters, task, facts, request)


def tier_adapters(task: Task, facts: StudyFacts, request: StudyRequest) -> dict[str, Adapter]:
    """Name → adapter of the fixed tiers, full fine-tuning left out."""
    return _named(_TIERS, task, facts, request)


def peft_default(facts: StudyFacts) -> Adapter:
    """What ``LoraConfig()`` makes, on the modules that PEFT takes for the type of model; queries and values
    where it knows none."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    names = {module.name.rpartition(".")[2] for module in facts.model.modules}
    usual = [name for name in ("q_proj", "v_proj", "query", "value", "q", "v") if name in names]
    targets = KNOWN.get(facts.model.model_type) or usual or ["fc1", "fc2"]
    found = Targets(facts.model, facts.dataset.task.kind)
    return Adapter(
        method=Method.LORA,
        rank=8,
        alpha=8.0,
        targets=tuple(sorted(targets)),
        trained_modules=found.trained_modules,
    )


def rates_of(base: float) -> tuple[float, ...]:
    """The five learning rates around an adapter's own, to two significant digits."""
    return tuple(float(f"{base * 10 ** (step / 2):.1e}") for step in RATE_STEPS)


def candidate_of(
    adapter: Adapter,
    facts: StudyFacts,
    *,
    rate: float | None = None,
    checkpointing: bool = False,
    micro_batch: int | None = None,
) -> Candidate:
    """In float32; unless said otherwise at the adapter's own rate, with the effective batch at once."""
    return Candidate(
        adapter=adapter,
        level=Level(attention=preferred_attention(facts.model), gradient_checkpointing=checkpointing),
        recipe=facts.recipe,
        micro_batch=micro_batch or facts.recipe.effective_batch,
        learning_rate=rate or learning_rate(adapter.method, facts.model.hidden_size),
    )


def _named(
    wanted: Mapping[str, str], task: Task, facts: StudyFacts, request: StudyRequest
) -> dict[str, Adapter]:
    listed = dict.fromkeys(candidate.adapter for candidate in enumerate_candidates(facts, request))
    found = {}
    for name, pattern in wanted.items():
        adapter = next((each for each in listed if re.match(pattern, each.describe())), None)
        if adapter is None:
            raise SystemExit(f"{task.name}: no adapter that a study would try begins with {pattern!r}")
        found[name] = adapter
    return found
