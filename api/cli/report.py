"""A study's trials and recommendation, as a JSON document and as text for people.

Shared by ``recommend`` and ``studies show``. Computes nothing: every number comes from the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...optimizer.domain import (
    Candidate,
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
    from ...store import Store

UNKNOWN = "–"
"""Stands where a value was not measured."""

STATE_STYLES = {
    StudyState.SUCCEEDED: "green",
    StudyState.FAILED: "red",
    StudyState.CANCELLED: "yellow",
    StudyState.RUNNING: "cyan",
    StudyState.QUEUED: "dim",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is shown of one study."""

    study: Study
    trials: Sequence[Trial]
    recommendation: Recommendation | None = None
    files: Sequence[Path] = ()

    @classmethod
    def load(cls, store: Store, study: Study) -> Report:
        """What the store knows of the study now."""
        has_recommendation = study.state is StudyState.SUCCEEDED
        return cls(
            study=study,
            trials=store.list_trials(study.id),
            recommendation=store.get_recommendation(study.id) if has_recommendation else None,
        )

    def document(self) -> dict[str, Any]:
        """Plain JSON data."""
        from ..documents import report_document

        return {
            **report_document(self.study, self.trials, self.recommendation),
            "files": [str(path) for path in self.files],
        }

    def print(self) -> None:
        """Write it to standard output for people."""
        results.print(_heading(self.study), end="\n\n")
        if self.trials:
            results.print(_trials_table(self.trials, self.recommendation))
        failures: dict[str, list[str]] = {}
        for trial in self.trials:
            if trial.outcome not in (None, Outcome.OK):
                cause = f"{trial.outcome}: {trial.reason or 'no reason given'}"
                failures.setdefault(cause, []).append(f"#{trial.number}")
        for cause, numbers in failures.items():
            results.print(Text(f"{', '.join(numbers)} {cause}", "yellow"))
        if self.recommendation is not None:
            _print_recommendation(self.recommendation)
        if self.files:
            names = ", ".join(sorted(path.name for path in self.files))
            results.print(f"\nWritten to {self.files[0].parent}: {names}", soft_wrap=True)


def describe_evidence(measurement: Measurement) -> str:
    """One line of what was measured: ``1,234 tokens/s ± 3 %, 410 MiB, held-out loss 0.412 ± 0.011``."""
    parts = []
    if measurement.tokens_per_s is not None:
        speed = f"{measurement.tokens_per_s:,.0f} tokens/s"
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
    """How the trial ended, or where it stands."""
    if trial.outcome is None:
        return Text(trial.state, "dim" if trial.state is TrialState.QUEUED else "cyan")
    return Text(trial.outcome, "green" if trial.outcome is Outcome.OK else "red")


def describe_request(request: StudyRequest) -> str:
    """What was asked, in the words that people call the files by: ``MiniLM on reviews.csv, balanced``."""
    model, dataset = (path.rstrip("/").rsplit("/", 1)[-1] for path in (request.model, request.dataset))
    counts = request.objective.value if request.weights is None else "own weights"
    return f"{model} on {dataset}, {counts}"


def _heading(study: Study) -> Text:
    state = (study.state.value, STATE_STYLES[study.state])
    heading = Text.assemble(("Study ", "bold"), (study.id, "bold"), "  ", state)
    heading.append(f"\n{describe_request(study.request)}")
    if study.request.memory_limit_bytes is not None:
        heading.append(f", at most {format_bytes(study.request.memory_limit_bytes)}")
    return heading


def _trials_table(trials: Sequence[Trial], recommendation: Recommendation | None) -> Table:
    scores = {scored.trial_id: scored.score for scored in recommendation.ranking} if recommendation else {}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("configuration", ratio=1, min_width=24)
    table.add_column("rung", no_wrap=True)
    for name in ("tokens/s", "memory", "loss", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    # A training takes its speed from the probe of its shape, as the ranking does.
    probed = {
        t.candidate.shape_key: t.measurement for t in trials if t.measurement and t.plan.rung is Rung.PROBE
    }
    for trial in trials:
        is_best = recommendation is not None and trial.id == recommendation.trial_id
        measured = trial.measurement or Measurement()
        score = scores.get(trial.id)
        speed = measured.tokens_per_s or probed.get(trial.candidate.shape_key, Measurement()).tokens_per_s
        table.add_row(
            f"→ {trial.number}" if is_best else str(trial.number),
            Text.assemble(
                trial.candidate.adapter.describe(), "\n", (describe_settings(trial.candidate), "dim")
            ),
            trial.plan.rung.value,
            UNKNOWN if speed is None else f"{speed:,.0f}",
            UNKNOWN if measured.memory_bytes is None else format_bytes(measured.memory_bytes),
            UNKNOWN if measured.heldout_loss is None else f"{measured.heldout_loss:.3f}",
            UNKNOWN if score is None else f"{score:.1f}",
            outcome_text(trial),
            style="bold" if is_best else "",
        )
    return table


def _print_recommendation(best: Recommendation) -> None:
    adapter = best.candidate.adapter.describe()
    results.print(Text.assemble("\n", ("Recommended: ", "bold green"), (adapter, "bold")))
    for line in (describe_settings(best.candidate), *(f"• {reason}" for reason in best.reasons)):
        results.print(Padding(line, (0, 0, 0, 2), expand=False))
    if best.overhead_share is not None:
        share = f"{best.overhead_share:.0%} of the wall time ({format_seconds(best.wall_s)})"
        results.print(f"\n{share} was spent outside measured steps.")
