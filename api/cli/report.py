"""A study's trials and recommendation, as a JSON document and as text for people.

Shared by ``recommend`` and ``studies show``. Computes nothing: every number comes from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, TypeVar

from rich.text import Text

from ...optimizer.comparison import comparable_trials
from ...optimizer.domain import (
    Candidate,
    Estimate,
    Measurement,
    Outcome,
    Recommendation,
    Rung,
    Study,
    StudyRequest,
    StudyState,
    Trial,
    TrialState,
)
from ..units import format_bytes, format_seconds
from .console import results

if TYPE_CHECKING:
    from ...runners.lock import LockHolder
    from ...store import Store

Value = TypeVar("Value", int, float)

UNKNOWN = "–"
"""Stands where a value was not measured."""

REUSED = "reused"
DISTURBED = "disturbed"
FIGURES = ("speed", "memory", "estimate", "loss", "score")

GAP = 2
"""Spaces between columns."""

LEAST_ADAPTER_WIDTH = 16

STATE_STYLES = {
    StudyState.SUCCEEDED: "green",
    StudyState.FAILED: "red",
    StudyState.CANCELLED: "yellow",
    StudyState.RUNNING: "cyan",
    StudyState.QUEUED: "dim",
}

INTERRUPTED = Text("interrupted", "yellow")
"""In place of the state of a study that nobody works on: the store has it as queued, or still as running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is shown of one study."""

    study: Study
    trials: Sequence[Trial]
    estimates: Mapping[Candidate, Estimate] = field(default_factory=dict)
    """What dry runs told, of shapes that were not run too."""
    recommendation: Recommendation | None = None
    sources: Mapping[str, Trial] = field(default_factory=dict)
    """The trials, by id, that measurements were taken over from."""
    files: Sequence[Path] = ()

    @classmethod
    def load(cls, store: Store, study: Study) -> Report:
        """What the store knows of the study now."""
        has_recommendation = study.state is StudyState.SUCCEEDED
        trials = store.list_trials(study.id)
        return cls(
            study=study,
            trials=trials,
            estimates=store.list_estimates(study.id),
            sources={t.reused_from: store.get_trial(t.reused_from) for t in trials if t.reused_from},
            recommendation=store.get_recommendation(study.id) if has_recommendation else None,
        )

    def document(self) -> dict[str, Any]:
        """Plain JSON data."""
        from ..documents import report_document

        return {
            **report_document(self.study, self.trials, self.estimates, self.recommendation),
            "files": [str(path) for path in self.files],
        }

    def print(self, holder: LockHolder | None = None) -> None:
        """Write it to standard output for people. ``holder`` is who runs studies now."""
        results.print(_heading(self.study, holder))
        for note in self.study.facts.dataset.notes if self.study.facts else ():
            results.print(Text(f"data: {note}", "yellow"))
        results.print()
        if self.trials:
            _print_trials(self.trials, self.study.request, self.recommendation)
        for footnote in _footnotes(self.trials, self.sources):
            results.print(Text(footnote, "yellow"))
        if self.recommendation is not None:
            _print_recommendation(self.recommendation)
        if self.files:
            names = ", ".join(sorted(path.name for path in self.files))
            results.print(f"\nWritten to {self.files[0].parent}: {names}", soft_wrap=True)


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
        loss = f"held-out loss {measurement.heldout_loss:.3f}"
        if measurement.heldout_loss_se is not None:
            loss += f" ± {measurement.heldout_loss_se:.3f}"
        parts.append(loss)
    if measurement.metric_name is not None and measurement.metric_value is not None:
        parts.append(f"{measurement.metric_name} {measurement.metric_value:.3f}")
    return ", ".join(parts)


def describe_settings(candidate: Candidate) -> str:
    """What surrounds the adapter: ``GradCP + AMP bfloat16, batch 4×4, lr 0.0002``."""
    batch = (
        f"{candidate.micro_batch}×{candidate.accumulation}"
        if candidate.accumulation > 1
        else candidate.micro_batch
    )
    return f"{candidate.level.describe()}, batch {batch}, lr {candidate.learning_rate:g}"


def outcome_text(trial: Trial) -> Text:
    """How the trial ended, or where it stands: a word."""
    if trial.outcome is None:
        return Text(trial.state, "dim" if trial.state is TrialState.QUEUED else "cyan")
    if trial.outcome is not Outcome.OK:
        return Text(trial.outcome, "red")
    if trial.measurement and trial.measurement.disturbances:
        return Text(DISTURBED, "yellow")
    if trial.reused_from is not None:
        return Text(REUSED, "green")
    return Text("probed" if trial.plan.rung is Rung.PROBE else "trained", "green")


def describe_request(request: StudyRequest) -> str:
    """What was asked, in the words that people call the files by: ``MiniLM on reviews.csv, balanced``."""
    model, dataset = (path.rstrip("/").rsplit("/", 1)[-1] for path in (request.model, request.dataset))
    counts = request.objective.value if request.weights is None else "own weights"
    return f"{model} on {dataset}, {counts}"


def is_interrupted(study: Study, holder: LockHolder | None) -> bool:
    """Whether it had begun and nobody works on it. ``holder`` is who runs studies now."""
    # One that still waits for its first run has not been touched since it was asked for.
    has_begun = study.updated_at > study.created_at
    is_in_hand = holder is not None and holder.study_id in (None, study.id)
    return has_begun and not is_in_hand and not study.state.is_final


def state_text(study: Study, holder: LockHolder | None) -> Text:
    """Where a study stands: a word."""
    if is_interrupted(study, holder):
        return INTERRUPTED
    return Text(study.state, STATE_STYLES[study.state])


def name_source(trial: Trial) -> str:
    """Which trial of which study something was taken over from."""
    return f"study {trial.study_id}, trial {trial.number}"


def _heading(study: Study, holder: LockHolder | None) -> Text:
    heading = Text.assemble(("Study ", "bold"), (study.id, "bold"), "  ", state_text(study, holder))
    heading.append(f"\n{describe_request(study.request)}")
    if study.request.memory_limit_bytes is not None:
        heading.append(f", at most {format_bytes(study.request.memory_limit_bytes)}")
    if study.facts is not None:
        heading.append(f"\n{study.facts.dataset.task.kind}: {study.facts.dataset.task.reason}", "dim")
    return heading


@dataclass(frozen=True, slots=True)
class _Row:
    """A trial as it is shown: a line with its figures, and below it the settings over the whole width."""

    number: str
    adapter: str
    figures: tuple[str, ...]
    outcome: Text
    settings: str
    style: str


def _print_trials(trials: Sequence[Trial], request: StudyRequest, best: Recommendation | None) -> None:
    """One table for all trials. Lines are laid out here because cells of rich's tables span no columns."""
    units = {
        trial.measurement.speed_unit for trial in trials if trial.measurement and trial.measurement.speed
    }
    titles = (next(iter(units), "tokens/s"), *FIGURES[1:])
    head = _Row("#", "configuration", titles, Text("outcome"), "", "bold")
    rows = [head, *_rows(trials, request, best)]
    number_width = max(len(row.number) for row in rows)
    widths = [max(len(row.figures[column]) for row in rows) for column in range(len(FIGURES))]
    outcome_width = max(len(row.outcome) for row in rows)
    taken = number_width + sum(widths) + outcome_width + GAP * (len(widths) + 2)
    room = max(LEAST_ADAPTER_WIDTH, min(results.width - taken, max(len(row.adapter) for row in rows)))
    gap, indent = " " * GAP, " " * (number_width + GAP)
    for row in rows:
        first, *rest = wrap(row.adapter, room)
        figures = [text.rjust(width) for text, width in zip(row.figures, widths, strict=True)]
        line = gap.join((row.number.rjust(number_width), first.ljust(room), *figures))
        results.print(Text.assemble((line + gap, row.style), row.outcome), soft_wrap=True)
        for part in rest:
            results.print(Text(indent + part, row.style), soft_wrap=True)
        for part in wrap(row.settings, results.width - len(indent)):
            results.print(Text(indent + part, "dim"), soft_wrap=True)


def _rows(trials: Sequence[Trial], request: StudyRequest, best: Recommendation | None) -> Iterator[_Row]:
    scores = {scored.trial_id: scored.score for scored in best.ranking} if best else {}
    # The figures that the scores rest on: a training's speed and memory are those of its shape's probe.
    compared = {
        each.trial.id: each.measurement for each in comparable_trials(trials, request.memory_limit_bytes)
    }
    for trial in trials:
        is_best = best is not None and trial.id == best.trial_id
        measured = compared.get(trial.id) or trial.measurement or Measurement()
        yield _Row(
            number=f"→ {trial.number}" if is_best else str(trial.number),
            adapter=trial.candidate.adapter.describe(),
            figures=(
                _shown(measured.speed, "{:,.0f}".format),
                _shown(measured.memory_bytes, format_bytes),
                _told(trial.estimate),
                _shown(measured.heldout_loss, "{:.3f}".format),
                _shown(scores.get(trial.id), "{:.1f}".format),
            ),
            outcome=outcome_text(trial),
            settings=describe_settings(trial.candidate),
            style="bold" if is_best else "",
        )


def _shown(value: Value | None, form: Callable[[Value], str]) -> str:
    return UNKNOWN if value is None else form(value)


def _told(estimate: Estimate | None) -> str:
    """What had been told of the column before it; where too little is known, the least that it can be."""
    if estimate is None:
        return UNKNOWN
    for told in (estimate.peak_device_bytes, estimate.peak_process_bytes):
        if told is not None:
            return format_bytes(told)
    return _shown(estimate.low_bytes, lambda least: f"≥ {format_bytes(least)}")


def _footnotes(trials: Sequence[Trial], sources: Mapping[str, Trial]) -> Iterator[str]:
    """What words in the column of outcomes mean, with the trials that they stand at."""
    numbers: dict[str, list[str]] = {}
    for trial in trials:
        for remark in _remarks(trial, sources):
            numbers.setdefault(remark, []).append(f"#{trial.number}")
    for remark, found in numbers.items():
        yield f"{', '.join(found)} {remark}"


def _remarks(trial: Trial, sources: Mapping[str, Trial]) -> Iterator[str]:
    if trial.outcome not in (None, Outcome.OK):
        yield f"{trial.outcome}: {trial.reason or 'no reason given'}"
    if trial.reused_from is not None:
        yield f"{REUSED} from {name_source(sources[trial.reused_from])}: the environment is the same"
    for disturbance in trial.measurement.disturbances if trial.measurement else ():
        yield f"{DISTURBED}: {disturbance}"


def _print_recommendation(best: Recommendation) -> None:
    heading = "Recommended: " if best.quality_measured else "Recommended by speed and memory alone: "
    adapter = best.candidate.adapter.describe()
    results.print(Text.assemble("\n", (heading, "bold green"), (adapter, "bold")))
    results.print(f"  {describe_settings(best.candidate)}")
    for reason in best.reasons:
        for line in wrap(reason, results.width - 4, initial_indent="• ", subsequent_indent="  "):
            results.print(f"  {line}", soft_wrap=True)
    if best.overhead_share is not None:
        share = f"{best.overhead_share:.0%} of the wall time ({format_seconds(best.wall_s)})"
        results.print(f"\n{share} was spent outside measured steps.")
