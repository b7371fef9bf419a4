"""What a study found of its baseline, and what changing it would bring. Computes no statistics of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..optimizer.baseline import place
from ..optimizer.domain import Candidate, Comparison, Measurement, Recommendation, Relation, Study, Trial
from .response_schemas.recommendations import BaselineDocument, SettingChange
from .units import format_bytes
from .wording import describe_comparison, describe_settings


def baseline_document(
    study: Study, trials: Sequence[Trial], recommendation: Recommendation | None
) -> BaselineDocument | None:
    """What changing the baseline would bring; None where the study has none, or nothing is known yet."""
    asked, facts = study.request.baseline, study.facts
    if asked is None or facts is None:
        return None
    placed = place(asked, facts)
    if placed.candidate is None:
        return BaselineDocument(name=asked.name, trainer=asked.trainer, reason=placed.reason)
    own = [trial for trial in trials if trial.candidate.id == placed.candidate.id]
    measured = next((t.measurement for t in own if t.measurement is not None and t.measurement.speed), None)
    document = BaselineDocument(
        name=asked.name,
        trainer=asked.trainer,
        description=describe_both(placed.candidate),
        candidate_id=placed.candidate.id,
        trials=tuple(trial.number for trial in own),
        reason=None if measured else _why_not(own),
    )
    if recommendation is None or measured is None:
        return document
    best = recommendation.evidence
    comparison = _comparison(own, recommendation)
    is_kept = recommendation.candidate.id == placed.candidate.id
    return document.model_copy(
        update={
            "is_recommended": is_kept,
            "times_as_fast": best.speed / measured.speed if best.speed and measured.speed else None,
            "memory_bytes": measured.memory_bytes,
            "memory_change_bytes": best.memory_bytes - measured.memory_bytes
            if best.memory_bytes is not None and measured.memory_bytes is not None
            else None,
            "loss_difference": comparison and comparison.difference,
            "loss_low": comparison and comparison.low,
            "loss_high": comparison and comparison.high,
            "relation": comparison and comparison.relation.value,
            "changes": () if is_kept else changes(placed.candidate, recommendation.candidate),
            "sentences": tuple(_sentences(measured, best, comparison))
            if not is_kept
            else ("Your present configuration is the recommended one: nothing that was tried is better.",),
        }
    )


def describe_both(candidate: Candidate) -> str:
    """The adapter and what surrounds it."""
    return f"{candidate.adapter.describe()}, {describe_settings(candidate)}"


def changes(before: Candidate, after: Candidate) -> tuple[SettingChange, ...]:
    """The settings in which two candidates differ, in words."""
    rows: Mapping[str, Callable[[Candidate], Any]] = {
        "adapter": lambda c: c.adapter.describe(),
        "alpha": lambda c: c.adapter.alpha,
        "dropout": lambda c: c.adapter.dropout if c.adapter.method.has_adapter else None,
        "precision and memory": lambda c: c.level.describe(),
        "micro-batch": lambda c: c.micro_batch,
        "rows a step": lambda c: c.recipe.effective_batch,
        "learning rate": lambda c: c.learning_rate,
        "schedule": lambda c: c.recipe.schedule,
        "warm-up": lambda c: c.recipe.warmup_ratio,
        "weight decay": lambda c: c.recipe.weight_decay,
        "gradient norm": lambda c: c.recipe.max_grad_norm,
    }
    found = ((name, _word(told(before)), _word(told(after))) for name, told in rows.items())
    return tuple(SettingChange(setting=name, now=now, then=then) for name, now, then in found if now != then)


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _why_not(own: Sequence[Trial]) -> str:
    ended = next((trial for trial in own if trial.outcome is not None), None)
    if ended is None:
        return "it was not run"
    return ended.reason or f"its trial ended with {ended.outcome}"


def _comparison(own: Sequence[Trial], recommendation: Recommendation) -> Comparison | None:
    ids = {trial.id for trial in own}
    return next((each for each in recommendation.comparisons if each.trial_id in ids), None)


def _sentences(old: Measurement, new: Measurement, comparison: Comparison | None) -> Sequence[str]:
    """Speed, memory and loss, a sentence each."""
    found = []
    if old.speed and new.speed:
        unit = old.speed_unit
        found.append(
            f"Speed: {new.speed:,.0f} {unit} in place of {old.speed:,.0f}, "
            f"{new.speed / old.speed:.2f} times as fast."
        )
    if old.memory_bytes is not None and new.memory_bytes is not None:
        found.append(
            f"Memory: {format_bytes(new.memory_bytes)} in place of {format_bytes(old.memory_bytes)}."
        )
    if comparison is None:
        found.append("Held-out loss: your configuration was not trained as long, so nothing can be said.")
    else:
        said = {
            Relation.NO_DIFFERENCE: "no difference was found",
            Relation.UNKNOWN: "which is lower is not known, from too few seeds",
        }.get(comparison.relation, f"yours is {describe_comparison(comparison)}")
        found.append(f"Held-out loss on the same rows: {said}.")
    return found
