"""Sentences for people: why this configuration, what was ruled out, what was not measured.

Figures are measured ones, each with its uncertainty where that is known. Knows nothing of how trials
are ranked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev

from .adapters import warnings_for
from .comparison import (
    FAILURES,
    OUT_OF_MEMORY,
    WHY_FAILED,
    Compared,
    comparable_trials,
    exceeds,
    finish_s,
    memory_column,
)
from .domain import (
    Candidate,
    Comparison,
    Estimate,
    Measurement,
    Outcome,
    Relation,
    Rung,
    ScoredTrial,
    Scoring,
    Study,
    StudyFacts,
    StudyRequest,
    Trial,
    Weights,
)
from .estimates.intervals import Fits
from .levels import refused_starts

STANDARD_ERRORS = 2.0
"""Held-out losses closer than this many standard errors are no difference."""

NAMES_SHOWN = 3

LEAST_HALF = 5
"""Fewer steps than this in half a training say nothing about its direction."""

LIMIT_MARGIN = 1.05
"""A limit that is proposed is this much above a peak: peaks differ by some percent from run to run."""

LEAST_SHARE_SHOWN = 0.001
"""Below this a difference prints as none."""

TOLD_COLUMNS = ("peak_device_bytes", "peak_allocated_bytes", "peak_process_bytes", "peak_tensor_bytes")

MEMORY_NAMES = {
    "peak_device_bytes": "of device memory",
    "peak_reserved_bytes": "reserved by CUDA's allocator",
    "peak_allocated_bytes": "allocated on the device",
    "peak_process_bytes": "of process memory",
    "peak_tensor_bytes": "in live tensors",
}


def explain(
    study: Study,
    ranking: Sequence[ScoredTrial],
    ranked: Sequence[Compared],
    comparisons: Sequence[Comparison],
    trials: Sequence[Trial],
    estimates: Mapping[Candidate, Estimate],
) -> tuple[str, ...]:
    """Why the first of ``ranked`` (the compared trials in the order of ``ranking``) is recommended.

    Args:
        comparisons: of what it learnt with what each of the others did.
    """
    request = study.request
    column = memory_column([each.measurement for each in ranked])
    best, *others = ranked
    learnt = {comparison.trial_id: comparison for comparison in comparisons}
    return (
        *_learnt_nothing(best.measurement, study),
        _verdict(request, ranking, best),
        _figures(best, column),
        *_by_rank(best.measurement),
        *_as_told(best),
        *([_against(best.measurement, others[0], learnt.get(others[0].trial.id), column)] if others else []),
        *_better_learners(others[1:], learnt),
        *_moves(trials),
        *_caveats(best, column, trials, study),
        *(warnings_for(best.trial.candidate, study.facts.model) if study.facts else ()),
        *_refused_starts(study),
        *_disturbed(ranked),
        *_ruled_out(trials, request.memory_limit_bytes),
        *_never_run(estimates),
    )


def explain_nothing_fits(
    trials: Sequence[Trial],
    estimates: Mapping[Candidate, Estimate],
    request: StudyRequest,
    *,
    full_steps: int | None,
) -> tuple[str, str]:
    """What was tried, and what would help."""
    never_run = tuple(_never_run(estimates))
    memory_limit_bytes = request.memory_limit_bytes
    if not trials and not never_run:
        return "no trial was run, so nothing can be recommended", "allow a larger budget"
    if late := _too_late(trials, request, full_steps):
        return late
    opening = f"none of {_count(len(trials), 'trial')} can be recommended." if trials else "nothing fits."
    message = " ".join((opening, *_ruled_out(trials, memory_limit_bytes), *never_run))
    if trials and not any(
        t.outcome in OUT_OF_MEMORY or exceeds(t.measurement, memory_limit_bytes) for t in trials
    ):
        return message, "read the logs of the trials that failed"
    others = "shorten max_length or allow more methods"
    if memory_limit_bytes is None:
        return message, f"{others}, or take a smaller model"
    return message, f"{_larger_limit(trials, estimates, memory_limit_bytes)}, {others}"


def say_why_named(each: Compared, recommended: Compared, column: str | None) -> str:
    """What is gained, and lost, by taking this in place of what is recommended."""
    if each.trial.id == recommended.trial.id:
        return f"{each.trial.candidate.describe()}: the recommended one."
    own, other = each.measurement, recommended.measurement
    parts = []
    if own.speed and other.speed:
        parts.append(_more_or_less(own.speed / other.speed - 1, "faster", "slower", "as fast"))
    if column:
        ratio = getattr(own, column) / getattr(other, column) - 1
        parts.append(_more_or_less(ratio, "more memory", "less memory", "as much memory"))
    if own.judged_loss is not None and other.judged_loss is not None:
        parts.append(f"held-out loss {own.judged_loss:.4f} against {other.judged_loss:.4f}")
    return f"{each.trial.candidate.describe()}: {', '.join(parts)}."


def _more_or_less(ratio: float, more: str, less: str, same: str) -> str:
    if abs(ratio) < LEAST_SHARE_SHOWN:
        return same
    return f"{abs(ratio):.1%} {more if ratio > 0 else less}"


def _too_late(
    trials: Sequence[Trial], request: StudyRequest, full_steps: int | None
) -> tuple[str, str] | None:
    """Everything that succeeded would take longer than is allowed; None where that is not the reason."""
    compared = comparable_trials(trials, request.memory_limit_bytes)
    times = [finish_s(each.measurement, full_steps) for each in compared] if full_steps else []
    known = [seconds for seconds in times if seconds is not None]
    limit_s = request.finish_limit_s
    if not known or limit_s is None or min(known) <= limit_s:
        return None
    return (
        f"nothing finishes within {limit_s / 3600:.3g} h: the fastest of "
        f"{_count(len(compared), 'configuration')} takes {min(known) / 3600:.3g} h "
        f"for {_count(full_steps or 0, 'step')}",
        f"allow {math.ceil(min(known) / 360) / 10:g} h, or fewer epochs",
    )


def _larger_limit(
    trials: Sequence[Trial], estimates: Mapping[Candidate, Estimate], memory_limit_bytes: int
) -> str:
    """Which limit would do, as far as the trials tell: one that was ended at the limit has no peak."""
    peaks = [
        t.measurement.memory_bytes
        for t in trials
        if t.outcome is Outcome.OK and t.measurement and t.measurement.memory_bytes
    ]
    needs = [it.low_bytes for it in estimates.values() if it.fits is Fits.NO and it.low_bytes]
    if not trials and needs:
        return f"raise the memory limit above {_gib(min(needs))} (the least that was estimated)"
    if not peaks:
        twice = 2 * memory_limit_bytes
        return f"raise the memory limit (no trial got far enough to say to what: try {_gib(twice)})"
    hundredths = math.ceil(round(LIMIT_MARGIN * min(peaks) * 100 / 2**30, 3))
    enough, least = f"{hundredths / 100:.2f} GiB", _gib(min(peaks))
    return f"raise the memory limit to {enough} (the smallest measured peak is {least})"


def _verdict(request: StudyRequest, ranking: Sequence[ScoredTrial], best: Compared) -> str:
    rung = "trained" if best.trial.plan.rung is Rung.TRAIN else "probed"
    name = best.trial.candidate.describe()
    if len(ranking) == 1:
        alone = f"{name} is the only {rung} configuration that succeeded: there is none to compare it with"
        if request.scoring is Scoring.CLASSIC:
            return f"{alone}."
        return f"{alone}, and its score of {ranking[0].score:.1f} says nothing."
    score = f"{ranking[0].score:.1f}"
    tied = sum(scored.tied_with_best for scored in ranking)
    place = f"is the smallest of {tied} tied for" if tied else "has"
    among = f"among {len(ranking)} {rung} configurations"
    if request.scoring is Scoring.CLASSIC:
        rule = "classic formula; its quality is a table by adapter, not a measurement"
    else:
        rule = _shares(request.effective_weights, ranking[0])
        score += " of 100"
        if worse := sum(not scored.is_as_good for scored in ranking):
            among = (
                f"among the {len(ranking) - worse} of {len(ranking)} {rung} configurations that learnt enough"
            )
    return f"{name} {place} the best score, {score} ({rule}), {among}."


def _shares(weights: Weights, scored: ScoredTrial) -> str:
    """How much each part counted, of the parts that could be compared."""
    weight_of = {name: getattr(weights, name) for name in scored.parts}
    total = sum(weight_of.values())
    if total == 0:
        return "no weighted part could be compared; all others count alike"
    return ", ".join(f"{name} {weight / total:.0%}" for name, weight in weight_of.items())


def _figures(best: Compared, column: str | None) -> str:
    measurement = best.measurement
    parts = []
    if measurement.speed is not None:
        width = measurement.tokens_per_s_rel_halfwidth
        parts.append(
            f"{measurement.speed:,.0f} {measurement.speed_unit}"
            + (f" ± {width:.1%}" if width is not None else "")
        )
    if column:
        parts.append(f"a peak of {_gib(getattr(measurement, column))} {MEMORY_NAMES[column]}")
    if measurement.heldout_loss is not None:
        parts.append(f"{_loss(measurement)} after {_count(best.trial.plan.train_steps, 'step')}")
    if measurement.metric_name and measurement.metric_value is not None:
        parts.append(f"{measurement.metric_name} {measurement.metric_value:.3f}")
    return f"Measured here: {', '.join(parts)}."


def _by_rank(measurement: Measurement) -> Iterator[str]:
    """How evenly several processes share the work."""
    ranks = measurement.ranks
    peaks = [
        each.peak_reserved_bytes or each.peak_tensor_bytes or each.peak_process_bytes or 0 for each in ranks
    ]
    if not any(peaks):
        return
    most = max(range(len(peaks)), key=peaks.__getitem__)
    told = f"Of {len(ranks)} processes rank {ranks[most].rank} held most, {_gib(peaks[most])}"
    told += f", and none less than {_gib(min(peaks))}"
    if talking := [each.communication_share for each in ranks if each.communication_share is not None]:
        told += (
            f"; they talked to each other, or waited, for {min(talking):.0%} to {max(talking):.0%} of a step"
        )
    yield f"{told}."


def _as_told(best: Compared) -> Iterator[str]:
    """What a dry run had told of the same columns, beside what was measured."""
    told, measured = best.trial.estimate, best.measurement
    if told is None:
        return
    parts = [
        f"{_gib(estimated)} {MEMORY_NAMES[name]}, and {_gib(found)} were measured"
        for name in TOLD_COLUMNS
        if (estimated := getattr(told, name)) and (found := getattr(measured, name))
    ]
    if told.tokens_per_s and told.tokens_per_s_low and told.tokens_per_s_high:
        parts.append(f"{told.tokens_per_s_low:,.0f} to {told.tokens_per_s_high:,.0f} {told.unit}/s")
    if parts:
        yield f"A dry run had told, before anything was run: {'; '.join(parts)}."


def _refused_starts(study: Study) -> Iterator[str]:
    """What was asked for first and left out, with the reason."""
    if study.facts is None or study.request.use_tiers:
        return
    for start, rule in refused_starts(study.facts, study.request):
        yield f"{start.name.capitalize()} was asked for, and could not be tried. {rule.reason}"


def _never_run(estimates: Mapping[Candidate, Estimate]) -> Iterator[str]:
    hopeless = {it: told for it, told in estimates.items() if told.fits is Fits.NO}
    if hopeless:
        names = [f"{candidate.describe()} ({told.reason})" for candidate, told in hopeless.items()]
        yield f"Ruled out by a dry run, and not run: {_some(names)}."


def _loss(measurement: Measurement) -> str:
    error = f" ± {measurement.heldout_loss_se:.4f}" if measurement.heldout_loss_se is not None else ""
    rows = f" over {_count(measurement.heldout_rows, 'row')}" if measurement.heldout_rows else ""
    return f"held-out loss {measurement.heldout_loss:.4f}{error}{rows}"


def _against(best: Measurement, runner_up: Compared, learnt: Comparison | None, column: str | None) -> str:
    other = runner_up.measurement
    parts = []
    if best.speed and other.speed:
        ratio = best.speed / other.speed - 1
        noise = math.hypot(best.tokens_per_s_rel_halfwidth or 0.0, other.tokens_per_s_rel_halfwidth or 0.0)
        parts.append(
            f"no difference in speed beyond the measurement's ± {noise:.1%}"
            if abs(ratio) <= noise
            else f"{abs(ratio):.1%} {'faster' if ratio > 0 else 'slower'}"
        )
    if column:
        ratio = getattr(best, column) / getattr(other, column) - 1
        amount = f"{abs(ratio):.1%} {'more' if ratio > 0 else 'less'}"
        parts.append(f"{amount if abs(ratio) >= LEAST_SHARE_SHOWN else 'as much'} memory")
    if learnt is not None:
        parts.append(_loss_difference(learnt))
    return f"Against the runner-up, {runner_up.trial.candidate.describe()}: {', '.join(parts)}."


def _loss_difference(learnt: Comparison) -> str:
    """Signed, with the interval in which the differences of all compared trials lie together."""
    difference = learnt.difference
    if learnt.low is None or learnt.high is None:
        return f"held-out loss {difference:+.4f} (uncertainty unknown)"
    if learnt.relation is Relation.UNKNOWN:
        return f"which learnt more is not known: held-out loss {difference:+.4f}, from too few seeds"
    interval = f"{learnt.low:+.4f} to {learnt.high:+.4f}"
    if learnt.relation is Relation.NO_DIFFERENCE:
        return f"no difference in held-out loss found at this budget ({difference:+.4f}, {interval})"
    word = "lower" if difference < 0 else "higher"
    return f"held-out loss {word} by {abs(difference):.4f} ({interval})"


def _better_learners(others: Sequence[Compared], learnt: Mapping[str, Comparison]) -> Iterator[str]:
    """Those below the runner-up that learnt more, beyond doubt, than what is recommended."""
    for other in others:
        comparison = learnt.get(other.trial.id)
        if comparison is not None and comparison.relation is Relation.WORSE:
            yield (
                f"{_name(other.trial)} learnt more ({_loss_difference(comparison)} "
                "for the recommended one), but is behind by the weights of speed and memory."
            )


def _moves(trials: Sequence[Trial]) -> Iterator[str]:
    """What trainings led the search to try."""
    moves = [t for t in trials if t.plan.rung is Rung.TRAIN and "because" in t.plan.reason]
    if moves:
        tried = _some([f"{trial.plan.reason} (trial {trial.number})" for trial in moves])
        yield f"Tried because of what trainings showed: {tried}."


def _disturbed(ranked: Sequence[Compared]) -> Iterator[str]:
    disturbed = [each for each in ranked if each.measurement.disturbances]
    if disturbed:
        sentences = [cause for each in disturbed for cause in each.measurement.disturbances]
        causes = dict.fromkeys(sentence.removesuffix(".") for sentence in sentences)
        yield (
            f"Speed and memory of {_count(len(disturbed), 'compared trial')} were measured while something "
            f"else disturbed them, each time that it was tried: {_some(list(causes))}."
        )


def _caveats(best: Compared, column: str | None, trials: Sequence[Trial], study: Study) -> Iterator[str]:
    if column == "peak_tensor_bytes":
        yield "Memory is compared by live tensors, because not all trials have a peak of device or process."
    elif column is None:
        yield "Memory was not compared: no figure of it is known for all trials."
    probed = {t.candidate.shape_key for t in trials if t.outcome is Outcome.OK and t.plan.rung is Rung.PROBE}
    trained = {t.candidate.shape_key for t in trials if t.outcome is Outcome.OK and t.plan.rung is Rung.TRAIN}
    if number := sum(trial.reused_from is not None for trial in trials):
        yield (
            f"{_count(number, 'trial')} had been measured in this environment before and "
            f"{'was' if number == 1 else 'were'} not run again."
        )
    if study.facts and not study.facts.model.has_weights:
        yield from _without_weights(study.facts)
    elif best.trial.plan.rung is Rung.PROBE:
        yield "Quality was not measured: no training finished, so the score rests on speed and memory alone."
    elif untrained := len(probed - trained):
        yield (
            f"{_count(untrained, 'other configuration')} had speed and memory measured, but not quality: "
            "those figures and published results, a prior and no measurement, decided which were trained."
        )


def _without_weights(facts: StudyFacts) -> Iterator[str]:
    yield (
        "Quality was not measured: only the model's configuration is at hand, so trials ran on random "
        "weights, and the score rests on speed and memory alone."
    )
    if any(module.kind == "experts" for module in facts.model.modules):
        yield "Which experts a token is sent to depends on real weights; speed may differ with them."
    if facts.tokens_estimated:
        yield "No tokenizer was at hand either: lengths are estimated at four characters a token."


def _ruled_out(trials: Sequence[Trial], memory_limit_bytes: int | None) -> Iterator[str]:
    """One sentence for each way to fail."""
    for outcome in FAILURES:
        if failed := [t for t in trials if t.outcome is outcome]:
            yield f"Ruled out, {WHY_FAILED[outcome]}: {_some([_name(trial) for trial in failed])}."
    large = [
        f"{_name(trial)} at {_gib(trial.measurement.memory_bytes)}"
        for trial in trials
        if trial.measurement
        and trial.measurement.memory_bytes
        and exceeds(trial.measurement, memory_limit_bytes)
    ]
    if large and memory_limit_bytes:
        yield f"Ruled out, above the limit of {_gib(memory_limit_bytes)}: {_some(large)}."


def _learnt_nothing(best: Measurement, study: Study) -> Iterator[str]:
    """A warning where what is recommended shows no sign that it learnt anything.

    Of a classifier: it is no better than answering by how often each label occurs. That answer's loss is the
    entropy of the labels, in nats. Other tasks have no such baseline, but their losses while they trained.
    """
    counts = study.facts.dataset.label_counts.values() if study.facts else ()
    if best.heldout_loss is None:
        return
    most = best.heldout_loss + STANDARD_ERRORS * (best.heldout_loss_se or 0.0)
    if len(counts) < 2:
        yield from _no_progress(best, most)
        return
    total = sum(counts)
    baseline = -sum(count / total * math.log(count / total) for count in counts if count)
    if most >= baseline:
        yield (
            f"Nothing was learnt within this budget: a held-out loss of {best.heldout_loss:.4f} is no "
            f"better than answering by how often each label occurs ({baseline:.4f}). The comparison of "
            "quality says little; allow more time."
        )


def _no_progress(measurement: Measurement, most: float) -> Iterator[str]:
    """A warning where neither the training loss fell nor the held-out one is below where training began.

    The first step's loss is that of the untouched model: an adapter starts as nothing. Halves are compared
    by the standard errors of their means; batches differ more than what a short training moves, so this
    says that nothing was seen, not that nothing was there.
    """
    losses = [loss for loss in measurement.train_losses if loss is not None]
    half = len(losses) // 2
    if half < LEAST_HALF or most < losses[0]:
        return
    means = fmean(losses[:half]), fmean(losses[-half:])
    error = math.hypot(*(stdev(part) / math.sqrt(half) for part in (losses[:half], losses[-half:])))
    if means[0] - means[1] >= STANDARD_ERRORS * error:
        return
    yield (
        f"No learning could be seen within this budget: the training loss was {means[0]:.4f} in the first "
        f"half of the {len(losses)} steps and {means[1]:.4f} in the second (± {error:.4f} for the "
        "difference). The comparison of quality says little; allow more time."
    )


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return "; ".join(names[:NAMES_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _name(trial: Trial) -> str:
    return f"{trial.candidate.describe()} (trial {trial.number})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
