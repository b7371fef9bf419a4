"""A study's trials and recommendation, as a JSON document and as text for people.

Shared by ``recommend`` and ``studies show``. Computes nothing: every number comes from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    Relation,
    Rung,
    Study,
    StudyRequest,
    StudyState,
    Trial,
    TrialState,
)
from ...optimizer.overview import Place, Stage, Sweep, enumerated_of, funnel, leaderboard, rate_sweeps
from ...optimizer.resources import Resources, asked_for
from ...optimizer.spreading import devices_of
from ..units import format_bytes, format_seconds
from ..wording import (
    UNKNOWN,
    as_sentence,
    cost_of,
    describe_confidence,
    describe_cost,
    describe_count,
    describe_finish,
    describe_left,
    describe_limits,
    describe_loss,
    describe_place,
    describe_request,
    describe_resources,
    describe_settings,
    describe_sweep,
    name_source,
)
from .console import results

if TYPE_CHECKING:
    from ...store import Store
    from ..response_schemas.recommendations import BaselineDocument

Value = TypeVar("Value", int, float)

REUSED = "reused"
DISTURBED = "disturbed"
FIGURES = ("speed", "memory", "estimate", "loss", "score")

GAP = 2
"""Spaces between columns."""

LEAST_ADAPTER_WIDTH = 16

MOST_PLACES = 15
"""Of a leaderboard at the terminal; all are in the documents."""

RELATION_STYLES = {
    Relation.BETTER: "yellow",
    Relation.WORSE: "cyan",
    Relation.NO_DIFFERENCE: "green",
    Relation.UNKNOWN: "dim",
}
"""Of what was found between the recommended candidate and another."""

STATE_STYLES = {
    StudyState.SUCCEEDED: "green",
    StudyState.FAILED: "red",
    StudyState.CANCELLED: "yellow",
    StudyState.RUNNING: "cyan",
    StudyState.QUEUED: "dim",
}

INTERRUPTED = (", interrupted", "yellow")
"""Beside the state of a study that nobody works on: the store has it as queued, or still as running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is shown of one study."""

    study: Study
    trials: Sequence[Trial]
    estimates: Mapping[Candidate, Estimate] = field(default_factory=dict)
    """What dry runs told, of shapes that were not run too."""
    recommendation: Recommendation | None = None
    enumerated: int | None = None
    """Candidates that the search began with; None where that is not known."""
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
            enumerated=enumerated_of(store.events_after(study.id, 0)),
            sources={t.reused_from: store.get_trial(t.reused_from) for t in trials if t.reused_from},
            recommendation=store.get_recommendation(study.id) if has_recommendation else None,
        )

    def stages(self) -> Sequence[Stage]:
        """How candidates became few."""
        return funnel(
            self.trials,
            self.estimates,
            enumerated=self.enumerated,
            ranking=self.recommendation.ranking if self.recommendation else (),
            memory_limit_bytes=self.study.request.memory_limit_bytes,
        )

    def document(self) -> dict[str, Any]:
        """Plain JSON data."""
        from ..documents import report_document

        return {
            **report_document(
                self.study, self.trials, self.estimates, self.recommendation, enumerated=self.enumerated
            ),
            "files": [str(path) for path in self.files],
        }

    def print(self, *, is_interrupted: bool = False, all_trials: bool = False) -> None:
        """Write it to standard output for people.

        Args:
            is_interrupted: it had begun, and nobody works on it.
            all_trials: each in a line of its own, those too that only tried a learning rate.
        """
        results.print(_heading(self.study, is_interrupted=is_interrupted))
        for note in self.study.facts.dataset.notes if self.study.facts else ():
            results.print(Text(f"data: {note}", "yellow"))
        results.print()
        best, request = self.recommendation, self.study.request
        sweeps = rate_sweeps(self.trials)
        if best is None or all_trials:
            shown = self.trials if all_trials else _without_sweeps(self.trials, sweeps)
            if shown:
                _print_trials(shown, request, best)
            for footnote in _footnotes(self.trials, self.sources):
                results.print(Text(footnote, "yellow"))
            if shown and best is not None:
                results.print()
        if best is not None:
            _print_funnel(self.stages())
            _print_leaderboard(
                leaderboard(self.trials, best, memory_limit_bytes=request.memory_limit_bytes), self.study
            )
            if not all_trials:
                for footnote in _footnotes(self.trials, self.sources):
                    results.print(Text(footnote, "yellow"))
        _print_sweeps(sweeps)
        if best is not None:
            print_recommendation(best, request.epochs, asked_for(self.study, best))
        if best is not None and request.baseline is not None:
            from ..baseline_outcome import baseline_document

            _print_baseline(baseline_document(self.study, self.trials, best))
        if self.files:
            names = ", ".join(sorted(path.name for path in self.files))
            results.print(f"\nWritten to {self.files[0].parent}: {names}", soft_wrap=True)


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


def state_text(study: Study, *, is_interrupted: bool) -> Text:
    """Where a study stands: its state, in the word of JSON, and whether it was interrupted."""
    state = Text(study.state, STATE_STYLES[study.state])
    return state.append(*INTERRUPTED) if is_interrupted else state


def _heading(study: Study, *, is_interrupted: bool) -> Text:
    heading = Text.assemble(
        ("Study ", "bold"), (study.id, "bold"), "  ", state_text(study, is_interrupted=is_interrupted)
    )
    heading.append(f"\n{describe_request(study.request)}")
    if limits := describe_limits(study.request):
        heading.append(f", {limits}")
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
    """One table for all trials."""
    titles = (_speed_unit(trial.measurement for trial in trials), *FIGURES[1:])
    _print_table(
        _Row("#", "configuration", titles, Text("outcome"), "", "bold"), _rows(trials, request, best)
    )


def _print_leaderboard(places: Sequence[Place], study: Study) -> None:
    """The compared candidates, best first: what was measured of each, and how it stands to the first."""
    request = study.request
    has_finish = any(place.scored.finish_s is not None for place in places)
    has_cost = has_finish and request.price_per_hour is not None
    titles = [_speed_unit(place.measurement for place in places), "memory", "held-out loss", "seeds"]
    titles += ["your run"] if has_finish else []
    titles += ["cost"] if has_cost else []
    rows = []
    for place in places[:MOST_PLACES]:
        measured, finish_s = place.measurement, place.scored.finish_s
        figures = [
            _shown(measured.speed, "{:,.0f}".format),
            _shown(measured.memory_bytes, format_bytes),
            describe_loss(place.heldout_loss, measured.heldout_loss_se),
            str(place.seeds) if place.heldout_loss is not None else UNKNOWN,
        ]
        figures += [_shown(finish_s, format_seconds)] if has_finish else []
        devices = devices_of(place.trial.candidate.level, study.facts)
        cost = cost_of(finish_s, request.price_per_hour, devices)
        figures += [_shown(cost, describe_cost)] if has_cost else []
        style = RELATION_STYLES[_relation(place)]
        rows.append(
            _Row(
                number=f"{'→ ' if place.is_recommended else ''}{place.scored.rank}",
                adapter=place.trial.candidate.adapter.describe(),
                figures=tuple(figures),
                outcome=Text("" if place.is_recommended else describe_place(place), style),
                settings=f"#{place.trial.number}  {describe_settings(place.trial.candidate)}",
                style="bold" if place.is_recommended else "",
            )
        )
    head = _Row("", "compared", tuple(titles), Text("held-out loss beside → 1"), "", "bold")
    _print_table(head, rows)
    if len(places) > MOST_PLACES:
        results.print(f"… and {len(places) - MOST_PLACES} more: --json has all")


def _relation(place: Place) -> Relation:
    return Relation.UNKNOWN if place.comparison is None else place.comparison.relation


def _print_table(head: _Row, body: Iterable[_Row]) -> None:
    """Lines are laid out here because cells of rich's tables span no columns.

    Where the terminal is too narrow for all, the last column comes down into the line of the settings.
    """
    rows = [head, *body]
    number_width = max(len(row.number) for row in rows)
    widths = [max(len(row.figures[column]) for row in rows) for column in range(len(head.figures))]
    outcome_width = max(len(row.outcome) for row in rows)
    widest = max(len(row.adapter) for row in rows)
    taken = number_width + sum(widths) + GAP * (len(widths) + 1)
    has_room = results.width - taken - outcome_width - GAP >= min(widest, LEAST_ADAPTER_WIDTH)
    if has_room:
        taken += outcome_width + GAP
    room = max(LEAST_ADAPTER_WIDTH, min(results.width - taken, widest))
    gap, indent = " " * GAP, " " * (number_width + GAP)
    for row in rows:
        first, *rest = wrap(row.adapter, room)
        figures = [text.rjust(width) for text, width in zip(row.figures, widths, strict=True)]
        line = gap.join((row.number.rjust(number_width), first.ljust(room), *figures))
        end = Text.assemble(gap, row.outcome) if has_room else Text()
        results.print(Text.assemble((line, row.style), end), soft_wrap=True)
        for part in rest:
            results.print(Text(indent + part, row.style), soft_wrap=True)
        if row.outcome and row is not head and not has_room:
            results.print(Text.assemble(indent, row.outcome), soft_wrap=True)
        for part in wrap(row.settings, results.width - len(indent)):
            results.print(Text(indent + part, "dim"), soft_wrap=True)


def _speed_unit(measurements: Iterable[Measurement | None]) -> str:
    units = {measured.speed_unit for measured in measurements if measured and measured.speed}
    return next(iter(units), "tokens/s")


def _print_funnel(stages: Sequence[Stage]) -> None:
    """A line for each stage, and one in which those that left say why."""
    width = max((len(stage.name) for stage in stages), default=0)
    for stage in stages:
        results.print(Text.assemble((stage.name.rjust(width), "bold"), f"  {describe_count(stage)}"))
        if stage.left:
            indent = " " * (width + GAP)
            _print_wrapped("; ".join(describe_left(stage)), f"{indent}– ", f"{indent}  ", "dim")
    if stages:
        results.print()


def _print_baseline(found: BaselineDocument | None) -> None:
    """What changing the present configuration would bring."""
    if found is None:
        return
    results.print(Text(f"\nYour present configuration ({found.name})", "bold"))
    if found.reason is not None:
        _print_wrapped(as_sentence(f"not measured: {found.reason}"), "  ", "  ")
        return
    if found.description is not None:
        _print_wrapped(found.description, "  ", "  ", "dim")
    for sentence in found.sentences:
        _print_wrapped(sentence, "  • ", "    ")
    for change in found.changes:
        _print_wrapped(f"{change.setting}: {change.now} → {change.then}", "  – ", "    ", "dim")


def _print_sweeps(sweeps: Sequence[Sweep]) -> None:
    """The learning rates that were tried, a line for each adapter."""
    if not sweeps:
        return
    results.print(Text("\nLearning rates, with the held-out loss at each", "bold"))
    for sweep in sweeps:
        text = f"{sweep.adapter.describe()}, {sweep.train_steps} steps: {describe_sweep(sweep)}"
        _print_wrapped(text, "  ", "    ")


def _print_wrapped(text: str, first: str, rest: str, style: str = "") -> None:
    for line in wrap(text, results.width, initial_indent=first, subsequent_indent=rest):
        results.print(Text(line, style), soft_wrap=True)


def _without_sweeps(trials: Sequence[Trial], sweeps: Sequence[Sweep]) -> Sequence[Trial]:
    """All but those at learning rates that their adapter did not go on with: sweeps are shown apart."""
    passed = {
        point.trial_number
        for sweep in sweeps
        for point in sweep.points
        if point.outcome is not None and point.learning_rate != sweep.kept
    }
    return [trial for trial in trials if trial.number not in passed]


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


def print_recommendation(best: Recommendation, epochs: float, asked: Resources | None) -> None:
    """The configuration, why it is recommended, and what it asks of a scheduler.

    Args:
        epochs: that were asked for.
    """
    heading = "Recommended: " if best.quality_measured else "Recommended by speed and memory alone: "
    adapter = best.candidate.adapter.describe()
    results.print(Text.assemble("\n", (heading, "bold green"), (adapter, "bold")))
    results.print(f"  {describe_settings(best.candidate)}")
    if best.finish is not None:
        line = f"{describe_finish(best.finish, epochs)}, evaluation and saving not counted"
        _print_wrapped(as_sentence(line), "  ", "  ")
    if asked is not None:
        _print_wrapped(as_sentence(f"to ask of a scheduler: {describe_resources(asked)}"), "  ", "  ")
    for reason in best.reasons:
        _print_wrapped(reason, "  • ", "    ")
    if confidence := describe_confidence(best):
        _print_wrapped(confidence, "  • ", "    ")
    _print_named(best)
    if best.stopped is not None:
        results.print()
        _print_wrapped(as_sentence(best.stopped), "", "")
    if best.overhead_share is not None:
        share = f"{best.overhead_share:.0%} of the wall time ({format_seconds(best.wall_s)})"
        held_out = f", {best.evaluation_share:.0%} on evaluation" if best.evaluation_s else ""
        results.print(f"\n{share} was spent outside measured steps{held_out}.")


def _print_named(best: Recommendation) -> None:
    """What would be recommended under other objectives, a line each."""
    if not best.named:
        return
    results.print(Text("\nFrom the same trials", "bold"))
    width = max(len(named.name) for named in best.named)
    indent = " " * (width + 2 + GAP)
    for named in best.named:
        _print_wrapped(f"#{named.number} {named.reason}", f"  {named.name.ljust(width)}  ", indent)
