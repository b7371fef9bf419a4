"""The page: what is shown of a finished study, in which order and words.

Text is escaped by the template, marks by the writer of SVG. The page loads nothing and runs nothing; its
policy says so to the browser, in the file itself as over HTTP. Knows nothing of stores and files.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from ... import __version__
from ...optimizer.domain import (
    Candidate,
    Estimate,
    Measurement,
    Recommendation,
    Relation,
    Rung,
    Study,
    StudyFacts,
    Trial,
)
from ...optimizer.keys import environment_key, trial_device
from ...optimizer.overview import Place, funnel, leaderboard, rate_sweeps
from ...optimizer.spreading import devices_of
from ..baseline_outcome import baseline_document
from ..units import format_bytes, format_seconds
from ..wording import (
    UNKNOWN,
    as_sentence,
    cost_of,
    describe_confidence,
    describe_cost,
    describe_count,
    describe_evidence,
    describe_finish,
    describe_left,
    describe_limits,
    describe_loss,
    describe_place,
    describe_request,
    describe_settings,
)
from .figures import (
    Column,
    Line,
    Table,
    estimated,
    kind_of,
    loss_curves,
    pareto,
    quality_plots,
    size_of,
    speed_of,
    sweep_curves,
    unit_of,
)
from .plots import bar
from .takers import takers_table


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


STYLE = _resource("page.css")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-"
    f"{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)
"""Nothing is loaded or run; the one style sheet is known by its hash."""


def report_page(
    study: Study,
    trials: Sequence[Trial],
    estimates: Mapping[Candidate, Estimate],
    recommendation: Recommendation,
    *,
    enumerated: int | None = None,
    adapter_config: Mapping[str, Any] | None = None,
) -> str:
    """The whole file's text.

    Args:
        study: with its facts.
        trials: all of them.
        estimates: what was told of shapes, of those too that were not run.
        recommendation: what the study came to.
        enumerated: how many candidates the search began with; None where that is not known.
        adapter_config: PEFT's configuration of the recommended adapter; None where it has none.
    """
    view = _View(study, trials, estimates, recommendation, enumerated).contents()
    view["adapter_config"] = adapter_config and json.dumps(adapter_config, indent=2, ensure_ascii=False)
    return _template().render(
        view=view,
        style=Markup(STYLE),  # noqa: S704 - the file beside this one
        policy=CONTENT_SECURITY_POLICY,
        version=__version__,
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_resource("page.html.jinja"))


@dataclass(frozen=True, slots=True)
class _View:
    """One study, taken apart into what the sections show."""

    study: Study
    trials: Sequence[Trial]
    estimates: Mapping[Candidate, Estimate]
    best: Recommendation
    enumerated: int | None

    def contents(self) -> dict[str, Any]:
        """Everything that the template asks for."""
        request, best = self.study.request, self.best
        places = leaderboard(self.trials, best, memory_limit_bytes=request.memory_limit_bytes)
        sweeps = rate_sweeps(self.trials)
        stages = funnel(
            self.trials,
            self.estimates,
            enumerated=self.enumerated,
            ranking=best.ranking,
            memory_limit_bytes=request.memory_limit_bytes,
        )
        most = max((stage.candidates for stage in stages), default=1)
        shown = {
            "title": f"{best.candidate.adapter.describe()} for {describe_request(request)}",
            "study_id": self.study.id,
            "created": f"{self.study.created_at:%Y-%m-%d %H:%M}",
            "headline": f"{best.candidate.adapter.describe()}, for {describe_request(request)}",
            "verdict": best.reasons[0] if best.reasons else describe_evidence(best.evidence),
            "figures": list(self._figures()),
            "settings": list(self._settings()),
            "takers": takers_table(self.study, self.trials, best),
            "reasons": best.reasons,
            "named": self._named(),
            "baseline": self._baseline(),
            "leaderboard": self._leaderboard(places),
            "confidence": describe_confidence(best),
            "quality_plots": list(quality_plots(places)),
            "funnel": [
                {
                    "name": stage.name,
                    "count": describe_count(stage),
                    "bar": bar(stage.candidates / most),
                    "left": describe_left(stage),
                }
                for stage in stages
            ],
            "stopped": best.stopped and as_sentence(best.stopped),
            "pareto": pareto(places, self.trials),
            "curves": loss_curves(places),
            "sweeps": sweep_curves(sweeps),
            "estimates": list(estimated(self.trials)),
            "time": list(self._time()),
            "not_measured": list(self._not_measured()),
            "environment": list(self._environment()),
            "libraries": list(self._libraries()),
            "trials": self._all_trials(),
        }
        return {**shown, "sections": list(_sections(shown))}

    def _baseline(self) -> dict[str, Any] | None:
        """What was trained with before, and what changing it would bring."""
        found = baseline_document(self.study, self.trials, self.best)
        if found is None:
            return None
        lines = [Line((change.setting, change.now, change.then)) for change in found.changes]
        columns = [Column("setting"), Column("now"), Column("recommended")]
        return {
            "name": found.name,
            "description": found.description,
            "reason": found.reason and as_sentence(f"not measured: {found.reason}"),
            "sentences": found.sentences,
            "changes": Table(columns=columns, rows=lines) if lines else None,
        }

    def _figures(self) -> Iterator[tuple[str, str, str]]:
        """Name, value, detail: what one looks for first."""
        measured, finish = self.best.evidence, self.best.finish
        if measured.speed is not None:
            width = measured.tokens_per_s_rel_halfwidth
            detail = measured.speed_unit + ("" if width is None else f", ± {width:.0%}")
            yield "speed", f"{measured.speed:,.0f}", detail
        if measured.memory_bytes is not None:
            yield "memory", format_bytes(measured.memory_bytes), "at its peak"
        if measured.heldout_loss is not None:
            error = measured.heldout_loss_se
            loss, _, spread = describe_loss(measured.heldout_loss, error).partition(" ± ")
            yield "held-out loss", loss, f"± {spread}, a standard error" if spread else ""
        if measured.metric_name and measured.metric_value is not None:
            yield measured.metric_name, f"{measured.metric_value:.3f}", "on held-out rows"
        if measured.own_metric is not None:
            yield "your evaluation", f"{measured.own_metric:.4g}", ""
        if finish is not None:
            between = f"{format_seconds(finish.low_s)} … {format_seconds(finish.high_s)}"
            yield f"your {self.study.request.epochs:g} epochs", format_seconds(finish.seconds), between
            if finish.cost is not None:
                yield "cost", describe_cost(finish.cost), "at your price an hour"

    def _settings(self) -> Iterator[tuple[str, str]]:
        candidate = self.best.candidate
        adapter, level, recipe = candidate.adapter, candidate.level, candidate.recipe
        yield "adapter", adapter.describe()
        if targets := ", ".join((*adapter.targets, *adapter.target_parameters)) or adapter.target_pattern:
            yield "adapted", targets
        if adapter.trained_parts:
            yield "trained in full", ", ".join(adapter.trained_parts)
        if adapter.dropout:
            yield "dropout", f"{adapter.dropout:g}"
        yield "level", level.describe()
        yield "optimizer", level.optimizer
        yield (
            "learning rate",
            f"{candidate.learning_rate:g}, {recipe.schedule}, {recipe.warmup_ratio:.0%} warm-up",
        )
        steps = f", {candidate.accumulation} micro-batches a step" if candidate.accumulation > 1 else ""
        yield "micro-batch", f"{candidate.micro_batch} rows{steps}"
        if recipe.max_length is not None:
            yield "length", f"{recipe.max_length} tokens at most{', packed' if recipe.packing else ''}"
        yield "epochs", f"{recipe.epochs:g}"
        if limits := describe_limits(self.study.request):
            yield "asked for", limits

    def _named(self) -> Table | None:
        if not self.best.named:
            return None
        rows = [
            Line(
                (named.name, f"#{named.number}", named.reason),
                is_winner=named.trial_id == self.best.trial_id,
            )
            for named in self.best.named
        ]
        columns = [Column("objective"), Column("trial", number=True), Column("what, and why")]
        return Table(columns=columns, rows=rows)

    def _leaderboard(self, places: Sequence[Place]) -> Table:
        price = self.study.request.price_per_hour
        columns = [
            Column("", number=True),
            Column("adapter"),
            Column(unit_of(place.measurement for place in places), number=True),
            Column("memory", number=True),
            Column("held-out loss", number=True),
            Column("seeds", number=True),
            Column("beside the recommended", relation=True),
            Column("your run", number=True),
            *([] if price is None else [Column("cost", number=True)]),
            Column("score", number=True),
        ]
        rows = []
        for place in places:
            devices = devices_of(place.trial.candidate.level, self.study.facts)
            cost = cost_of(place.scored.finish_s, price, devices)
            cells = [
                str(place.scored.rank),
                place.trial.candidate.adapter.describe(),
                speed_of(place.measurement),
                size_of(place.measurement.memory_bytes),
                describe_loss(place.heldout_loss, place.measurement.heldout_loss_se),
                str(place.seeds),
                describe_place(place),
                UNKNOWN if place.scored.finish_s is None else format_seconds(place.scored.finish_s),
                *([] if price is None else [UNKNOWN if cost is None else describe_cost(cost)]),
                f"{place.scored.score:.1f}",
            ]
            rows.append(
                Line(
                    cells,
                    is_winner=place.is_recommended,
                    relation=kind_of(place),
                    note=f"trial {place.trial.number}: {describe_settings(place.trial.candidate)}",
                )
            )
        return Table(columns=columns, rows=rows)

    def _time(self) -> Iterator[tuple[str, str]]:
        best, request = self.best, self.study.request
        if best.finish is not None:
            yield "the whole training", describe_finish(best.finish, request.epochs)
            yield "not counted in it", "evaluation, saving, loading of the model"
        if request.price_per_hour is not None:
            yield "price", f"{request.price_per_hour:,.2f} an hour"
            held = max(devices_of(trial.candidate.level, self.study.facts) for trial in self.trials)
            yield "cost of this study", describe_cost(best.wall_s / 3600 * request.price_per_hour * held)
        yield (
            "this study",
            f"{format_seconds(best.wall_s)}, of a budget of {format_seconds(request.budget_s)}",
        )
        if best.overhead_share is not None:
            held_out = f", {best.evaluation_share:.0%} on evaluation" if best.evaluation_s else ""
            yield "outside measured steps", f"{best.overhead_share:.0%} of it{held_out}"
        for rung, name in ((Rung.PROBE, "probes"), (Rung.TRAIN, "trainings")):
            own = [trial for trial in self.trials if trial.plan.rung is rung]
            ran_s = sum(trial.wall_s or 0.0 for trial in own if trial.reused_from is None)
            reused = sum(trial.reused_from is not None for trial in own)
            taken_over = f", {reused} taken over from earlier studies" if reused else ""
            yield name, f"{len(own)}{taken_over}; {format_seconds(ran_s)}"

    def _not_measured(self) -> Iterator[str]:
        best, facts = self.best, self.study.facts
        steps = max((trial.plan.train_steps for trial in self.trials), default=0)
        full = best.finish.steps if best.finish else None
        if not best.quality_measured:
            yield "Quality: no training was held against held-out rows, so speed and memory decided alone."
        elif full is not None and steps < full:
            yield (
                f"The whole training: candidates were compared after {steps:,} of its {full:,} steps. What "
                "leads then may not lead at the end."
            )
        elif steps:
            yield f"Trainings longer than {steps:,} steps."
        if any(c.relation is Relation.NO_DIFFERENCE for c in best.comparisons):
            yield "Differences smaller than the intervals: no difference found is not the same as none."
        trained = {t.candidate.adapter for t in self.trials if t.plan.rung is Rung.TRAIN}
        probed = {t.candidate.adapter for t in self.trials if t.plan.rung is Rung.PROBE}
        if untrained := len(probed - trained):
            yield f"What {untrained} further adapters learn: only their speed and memory were measured."
        yield "Time for evaluation, saving and loading of the model."
        yield "Several devices at once: trials ran on one."
        if facts is not None and facts.dataset.every_nth_row > 1:
            yield f"Most rows: one in {facts.dataset.every_nth_row} was used."
        if facts is not None and facts.tokens_estimated:
            yield "True lengths: without a tokenizer a token was taken to have four characters."
        if facts is not None and facts.truncated_rows:
            share = facts.truncated_tokens_share
            yield f"The ends of {facts.truncated_rows:,} rows that were cut: {share:.1%} of all tokens."
        if disturbed := [f"#{t.number}" for t in self.trials if t.measurement and t.measurement.disturbances]:
            yield f"Undisturbed speed of {', '.join(disturbed)}: others used the machine."

    def _environment(self) -> Iterator[tuple[str, str]]:
        facts, request = self.study.facts, self.study.request
        yield "model", request.model
        yield "data", request.dataset
        if facts is None:
            return
        model, dataset, host = facts.model, facts.dataset, facts.hardware.host
        yield "structure", f"{model.architecture}, {model.parameters / 1e6:,.1f} M parameters"
        if model.revision:
            yield "revision", model.revision
        yield "task", f"{dataset.task.kind}: {dataset.task.reason}"
        yield "rows", f"{facts.train_rows:,} to train on, {facts.heldout_rows:,} held out"
        yield "SHA-256 of the data", dataset.sha256
        for note in dataset.notes:
            yield "note", note
        yield from _device(facts)
        cores = f"{host.physical_cores or UNKNOWN} cores, {host.logical_cores} threads"
        yield "processor", f"{host.cpu_model or UNKNOWN}, {cores}, {format_bytes(host.ram_total_bytes)}"
        yield "system", f"{host.platform}, Python {host.python_version}"
        yield "seed", str(request.seed)
        yield "environment", environment_key(facts.hardware)

    def _libraries(self) -> Iterator[tuple[str, str]]:
        if self.study.facts is not None:
            host = self.study.facts.hardware.host
            yield from sorted(host.libraries.items())
            yield from sorted(host.variables.items())

    def _all_trials(self) -> Table:
        columns = [
            Column("trial", number=True),
            Column("configuration"),
            Column("rung"),
            Column("steps", number=True),
            Column(unit_of(trial.measurement for trial in self.trials), number=True),
            Column("memory", number=True),
            Column("held-out loss", number=True),
            Column("outcome"),
        ]
        rows = []
        for trial in self.trials:
            measured = trial.measurement or Measurement()
            outcome = trial.outcome.value if trial.outcome else trial.state.value
            cells = (
                str(trial.number),
                trial.candidate.describe(),
                trial.plan.rung.value,
                str(trial.plan.train_steps or UNKNOWN),
                speed_of(measured),
                size_of(measured.memory_bytes),
                describe_loss(measured.heldout_loss, measured.heldout_loss_se),
                f"{outcome}: {trial.reason}" if trial.reason else outcome,
            )
            rows.append(Line(cells, is_winner=trial.id == self.best.trial_id))
        return Table(columns=columns, rows=rows)


def _sections(shown: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Anchor and name of each section that there is, in their order."""
    yield "settings", "Settings"
    yield "reasons", "Why"
    if shown["named"]:
        yield "others", "Other objectives"
    if shown["baseline"]:
        yield "baseline", "Your configuration"
    yield "leaderboard", "Compared"
    yield "funnel", "Candidates"
    if shown["pareto"]:
        yield "pareto", "Speed and memory"
    if shown["curves"] or shown["sweeps"]:
        yield "learning", "Learning"
    yield "estimates", "Estimates"
    yield "cost", "Time and cost"
    yield "limits", "Not measured"
    yield "environment", "Environment"
    if shown["takers"]:
        yield "takers", "Your trainer"
    yield "trials", "Trials"


def _device(facts: StudyFacts) -> Iterator[tuple[str, str]]:
    gpu = trial_device(facts.hardware)
    if gpu is None:
        yield "device", f"the processor: {facts.hardware.gpu_note or 'no GPU'}"
        return
    yield "device", f"{gpu.name}, {format_bytes(gpu.total_bytes)}{', MIG' if gpu.is_mig else ''}"
    yield "driver", gpu.driver_version or UNKNOWN
