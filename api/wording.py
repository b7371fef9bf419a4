"""Candidates, evidence and comparisons in words, for terminal and page alike. Knows nothing of either."""

from __future__ import annotations

from collections.abc import Sequence

from ..optimizer.domain import (
    Candidate,
    Comparison,
    Finish,
    Measurement,
    Recommendation,
    Relation,
    StudyRequest,
    Trial,
)
from ..optimizer.overview import Place, Stage, Sweep
from ..optimizer.resources import Resources
from .units import format_bytes, format_seconds

UNKNOWN = "–"
"""Stands where a value was not measured."""

NOT_KNOWN = "not known"
"""Which of two learnt more, where so few seeds leave it open."""

LEAST_FIXED_LOSS = 0.1
"""Smaller ones are written with significant digits: three places after the point would hide them."""


def describe_evidence(measurement: Measurement) -> str:
    """One line of what was measured: ``1,234 tokens/s ± 3 %, 410 MiB, held-out loss 0.412 ± 0.011``."""
    parts = []
    if measurement.speed is not None:
        speed = f"{measurement.speed:,.0f} {measurement.speed_unit}"
        if measurement.tokens_per_s_rel_halfwidth is not None:
            speed += f" ± {measurement.tokens_per_s_rel_halfwidth:.0%}"
        parts.append(speed)
    if measurement.memory_bytes is not None:
        parts.append(f"{format_bytes(measurement.memory_bytes)} at its peak")
    if measurement.heldout_loss is not None:
        parts.append(f"held-out loss {describe_loss(measurement.heldout_loss, measurement.heldout_loss_se)}")
    if measurement.metric_name is not None and measurement.metric_value is not None:
        parts.append(f"{measurement.metric_name} {measurement.metric_value:.3f}")
    return ", ".join(parts)


def describe_settings(candidate: Candidate) -> str:
    """What surrounds the adapter: ``GradCP + AMP bfloat16, batch 4×4, lr 0.0002``."""
    return f"{describe_batch(candidate)}, lr {candidate.learning_rate:g}"


def describe_batch(candidate: Candidate) -> str:
    """The same without the learning rate."""
    batch = (
        f"{candidate.micro_batch}×{candidate.accumulation}"
        if candidate.accumulation > 1
        else candidate.micro_batch
    )
    return f"{candidate.level.describe()}, batch {batch}"


def describe_request(request: StudyRequest) -> str:
    """What was asked, in the words that people call the files by: ``MiniLM on reviews.csv, balanced``."""
    model, dataset = (path.rstrip("/").rsplit("/", 1)[-1] for path in (request.model, request.dataset))
    counts = request.objective.value if request.weights is None else "own weights"
    return f"{model} on {dataset}, {counts}"


def describe_limits(request: StudyRequest) -> str:
    """What a configuration had to keep to: ``at most 10 GiB, done within 6 h 00 m``; "" without limits."""
    parts = []
    if request.memory_limit_bytes is not None:
        parts.append(f"at most {format_bytes(request.memory_limit_bytes)}")
    if request.finish_limit_s is not None:
        parts.append(f"done within {format_seconds(request.finish_limit_s)}")
    if request.quality_within is not None:
        parts.append(f"at most {request.quality_within:.3g} of the best held-out loss above it")
    if request.price_per_hour is not None:
        parts.append(f"{request.price_per_hour:,.2f} an hour")
    if request.processes is not None:
        parts.append(f"{request.processes} process{'' if request.processes == 1 else 'es'}")
    return ", ".join(parts)


def name_source(trial: Trial) -> str:
    """Which trial of which study something was taken over from."""
    return f"study {trial.study_id}, trial {trial.number}"


def describe_loss(loss: float | None, error: float | None = None) -> str:
    """``0.412 ± 0.011``, the second the standard error."""
    if loss is None:
        return UNKNOWN
    return _loss(loss) + ("" if error is None else f" ± {_loss(error, like=loss)}")


def describe_place(place: Place) -> str:
    """How a compared candidate's quality stands to the recommended one's: ``worse by 0.02 … 0.05``."""
    return "recommended" if place.is_recommended else describe_comparison(place.comparison)


def describe_comparison(comparison: Comparison | None) -> str:
    """The other's quality beside the recommended one's: ``worse by 0.02 … 0.05``, ``no difference``.

    ``not known`` where they were compared, and so few seeds tell nothing.
    """
    if comparison is None:
        return UNKNOWN
    if comparison.relation is Relation.UNKNOWN:
        return NOT_KNOWN
    if comparison.relation is Relation.NO_DIFFERENCE:
        return "no difference"
    # The difference is the recommended one's less the other's: what is negative, the other has more of.
    is_worse = comparison.relation is Relation.BETTER
    ends = [abs(end) for end in (comparison.low, comparison.high) if end is not None]
    amount = " … ".join(f"{end:.2g}" for end in sorted(ends)) or f"{abs(comparison.difference):.2g}"
    return f"{'worse' if is_worse else 'better'} by {amount}"


def describe_finish(finish: Finish, epochs: float) -> str:
    """``your 3 epochs (1,200 steps): 2 h 10 m (2 h 05 m … 2 h 16 m), about 5.40``."""
    passes = f"your {epochs:g} epoch{'' if epochs == 1 else 's'} ({finish.steps:,} steps)"
    between = f"{format_seconds(finish.low_s)} … {format_seconds(finish.high_s)}"
    cost = "" if finish.cost is None else f", about {describe_cost(finish.cost)}"
    return f"{passes}: {format_seconds(finish.seconds)} ({between}){cost}"


def describe_resources(asked: Resources) -> str:
    """``1 GPU of 24 GB (18.4 GiB needed), 8 cores, 10.0 GiB of host memory, 3 h 20 m``."""
    parts = []
    if asked.gpus:
        size = "" if asked.gpu_card_gb is None else f" of {asked.gpu_card_gb} GB"
        needed = "" if asked.gpu_bytes is None else f" ({format_bytes(asked.gpu_bytes)} needed)"
        parts.append(f"{asked.gpus} GPU{'' if asked.gpus == 1 else 's'}{size}{needed}")
    parts.append(f"{asked.cpus} core{'' if asked.cpus == 1 else 's'}")
    parts.append(f"{format_bytes(asked.host_bytes)} of host memory")
    parts.append(format_seconds(asked.limit_s))
    return ", ".join(parts)


def describe_cost(cost: float) -> str:
    """Money in whatever currency: ``5.40``, ``0.0031``."""
    return f"{cost:,.2f}" if cost >= LEAST_FIXED_LOSS or cost == 0 else f"{cost:.2g}"


def cost_of(seconds: float | None, price_per_hour: float | None, devices: int) -> float | None:
    """What so long a time on so many devices costs; None where time or price is unknown."""
    return None if seconds is None or price_per_hour is None else seconds / 3600 * price_per_hour * devices


def describe_confidence(recommendation: Recommendation) -> str | None:
    """What the intervals of the comparisons promise; None where there are none."""
    if recommendation.confidence is None or not recommendation.comparisons:
        return None
    relations = {comparison.relation for comparison in recommendation.comparisons}
    explained = {
        Relation.NO_DIFFERENCE: " No difference: none was found at this budget.",
        Relation.UNKNOWN: " Not known: too few seeds to tell.",
    }
    return (
        "Differences are in held-out loss, on the same rows; all intervals together hold with "
        f"{recommendation.confidence:.0%} confidence."
        + "".join(words for relation, words in explained.items() if relation in relations)
    )


def as_sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def describe_count(stage: Stage) -> str:
    """``16 candidates of 5 adapters``."""
    of = ""
    if stage.adapters is not None and stage.adapters != stage.candidates:
        of = f" of {_count(stage.adapters, 'adapter')}"
    return _count(stage.candidates, "candidate") + of


def describe_left(stage: Stage) -> Sequence[str]:
    """Why some went no further, a part each: ``3 diverged``."""
    return [f"{count:,} {why}" for why, count in stage.left.items()]


def describe_sweep(sweep: Sweep) -> str:
    """``1e-4: 0.52, 3e-4: 0.43 (kept), 1e-3: diverged``."""
    parts = []
    for point in sweep.points:
        failed = UNKNOWN if point.outcome is None else point.outcome.value
        loss = failed if point.heldout_loss is None else describe_loss(point.heldout_loss)
        kept = " (kept)" if point.learning_rate == sweep.kept else ""
        parts.append(f"{point.learning_rate:.2g}: {loss}{kept}")
    return ", ".join(parts)


def _loss(loss: float, *, like: float | None = None) -> str:
    return f"{loss:.3f}" if abs(loss if like is None else like) >= LEAST_FIXED_LOSS else f"{loss:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
