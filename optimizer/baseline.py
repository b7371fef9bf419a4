"""The configuration that somebody trains with now, as a candidate of a study.

It keeps its adapter, level, micro-batch, rate and schedule; rows are those of the study, and as many of them
make a step, so that its losses can be held against the others'. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import InputError
from .domain import Baseline, Candidate, Method, StudyFacts, TrialPlan
from .estimates.settings import Settings, candidate_from
from .evidence import Evidence
from .rules import RULES, first_refusal, setting_of
from .targets import PEFT_HEADS
from .trainers.as_estimate import as_estimate
from .trainers.reading import Reading
from .verdicts import listed

NOT_WORTHWHILE = frozenset(
    {
        "full-in-half-precision",
        "float16-beside-bfloat16",
        "bfloat16-emulated",
        "quantized-float32",
        "checkpointing-behind-frozen",
        "compile-without-gpu",
        "paged-without-gpu",
        "ia3-dropout",
        "double-quantization-of-4-bit",
    }
)
"""Rules about what is not worth trying: what somebody trains with is measured all the same."""

_RULES = tuple(rule for rule in RULES if rule.name not in NOT_WORTHWHILE)

REASON = "your present configuration"

_FIELD_OF = {
    "rslora": "use_rslora",
    "dora": "use_dora",
    "batch_size": "micro_batch",
    "gradient_accumulation": "accumulation",
    "seq_len": "length",
}
"""Options of an estimate → fields of its settings, where they are called otherwise."""

_SETTING_FIELDS = frozenset(each.name for each in fields(Settings))


@dataclass(frozen=True, slots=True)
class Placed:
    """A baseline in a study: the candidate, or why there is none."""

    candidate: Candidate | None
    reason: str | None = None
    """A sentence without its full stop."""


def reading_of(baseline: Baseline) -> Reading:
    """What its file said."""
    return Reading(
        trainer=baseline.trainer,
        keys={},
        settings=baseline.settings,
        said=frozenset(baseline.said),
    )


def place(baseline: Baseline, facts: StudyFacts) -> Placed:
    """The baseline on the study's model, rows and hardware."""
    reading = reading_of(baseline)
    if reading.method is None:
        told = reading.get("method")
        return Placed(None, f"the method {told!r:.40} is not known here" if told else "it names no method")
    if reading.get("zero_stage") or reading.get("offload", "none") != "none":
        return Placed(None, "it divides the training among GPUs, and trials run on one")
    try:
        candidate = _candidate(reading, facts)
    except InputError as error:
        return Placed(None, error.message)
    beside = set(reading.get("trained_modules", ())) - {*candidate.adapter.trained_modules, *PEFT_HEADS}
    if beside and candidate.adapter.method.has_adapter:
        return Placed(None, f"it trains {listed(sorted(beside))} beside its adapter, which studies do not")
    setting = setting_of(
        candidate.adapter, candidate.level, facts.model, facts.dataset.task.kind, facts.hardware
    )
    setting = replace(setting, packing=candidate.recipe.packing, micro_batch=candidate.micro_batch)
    rule = first_refusal(setting, _RULES)
    return Placed(candidate) if rule is None else Placed(None, rule.reason.rstrip("."))


def _candidate(reading: Reading, facts: StudyFacts) -> Candidate:
    options = {_FIELD_OF.get(name, name): value for name, value in as_estimate(reading).items()}
    options = {name: value for name, value in options.items() if name in _SETTING_FIELDS}
    asked = Settings(**{**options, "length": None, "packed": False, "quantization": reading.quantization})
    asked = replace(asked, method=reading.method or Method.LORA)
    made = candidate_from(asked, facts.model, facts.dataset.task.kind)
    recipe = facts.recipe
    return replace(
        made,
        adapter=replace(made.adapter, **dict(_adapter_changes(reading))),
        level=replace(made.level, skip_modules=tuple(reading.get("skip_modules", ()))),
        recipe=replace(
            recipe,
            schedule=reading.get("schedule", recipe.schedule),
            warmup_ratio=reading.get("warmup_share", recipe.warmup_ratio),
            weight_decay=reading.get("weight_decay", recipe.weight_decay),
            max_grad_norm=reading.get("max_grad_norm", recipe.max_grad_norm),
        ),
        micro_batch=min(made.micro_batch, recipe.effective_batch),
        learning_rate=reading.get("learning_rate", made.learning_rate),
    )


def _adapter_changes(reading: Reading) -> Iterator[tuple[str, Any]]:
    """What estimates do not ask for, and a training does."""
    if reading.method not in (Method.LORA, Method.ADALORA):
        return
    yield "dropout", reading.get("dropout", 0.0)
    start = reading.get("init_weights")
    if reading.method is Method.LORA and isinstance(start, str):
        yield "init_weights", start
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = reading.get(name)
        if isinstance(pattern, Mapping) and pattern and reading.method is Method.LORA:
            yield name, tuple(pattern.items())


def before(
    plan: TrialPlan | None, baseline: Candidate, evidence: Evidence, *, affords: bool
) -> TrialPlan | None:
    """The baseline's training that comes before this plan: as long, and with as many seeds, as a finalist's.

    Args:
        plan: of the search; None where it is over.
        affords: there is time and a trial for one more.
    """
    if evidence.measured(baseline) is None or not affords:
        return None
    if plan is None:
        return _at_the_end(baseline, evidence)
    is_final = plan.train_steps and plan.train_steps == plan.goal_steps
    if not is_final or evidence.trained(baseline, plan.train_steps, plan.replicate) is not None:
        return None
    if plan.replicate and evidence.loss(baseline, plan.train_steps) is None:
        return None  # it failed with the first seed
    return replace(plan, candidate=baseline, reason=f"{REASON}, as far as the finalists")


def _at_the_end(baseline: Candidate, evidence: Evidence) -> TrialPlan | None:
    """Nobody became a finalist: it is trained as far as the others were."""
    longest = max(evidence.trainings, key=lambda trial: trial.plan.train_steps, default=None)
    if longest is None or evidence.trained(baseline, longest.plan.train_steps) is not None:
        return None
    return replace(longest.plan, candidate=baseline, replicate=0, reason=f"{REASON}, as far as the others")
