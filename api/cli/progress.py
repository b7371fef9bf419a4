"""What a study is doing, shown on standard error: a live display, or plain lines where that is no terminal.

Everything shown is derived from the study and its trials. Knows nothing about stores and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ...errors import NothingFits
from ...optimizer.domain import Outcome, Study, StudyFacts, StudyRequest, StudyState, Trial, TrialState
from ...optimizer.scorer import recommend
from ..wording import describe_evidence, describe_request, name_source
from .console import notes, print_note
from .report import REUSED

READING = "reading data and model"


class Display(Protocol):
    """Is told whenever the study or its trials have changed."""

    def update(self, study: Study, trials: Sequence[Trial]) -> None: ...
    def note(self, sentence: str) -> None: ...


@contextmanager
def show_progress(find_trial: Callable[[str], Trial], *, quiet: bool) -> Iterator[Display]:
    """The display that suits standard error, for as long as the block lasts.

    ``find_trial`` gives the trial of any study that has an id.
    """
    if quiet:
        yield NoDisplay()
    elif notes.is_terminal:
        display = LiveDisplay(find_trial)
        with Live(console=notes, get_renderable=display.render, transient=True):
            yield display
    else:
        yield LineDisplay(find_trial)


class NoDisplay:
    """Shows nothing."""

    def update(self, study: Study, trials: Sequence[Trial]) -> None: ...
    def note(self, sentence: str) -> None: ...


class LineDisplay:
    """One line for each thing that happened, for logs and pipes."""

    def __init__(self, find_trial: Callable[[str], Trial]) -> None:
        self._find_trial = cache(find_trial)
        self._started = datetime.now(UTC)
        self._shown: set[str] = set()

    def update(self, study: Study, trials: Sequence[Trial]) -> None:
        self._say_once(f"study {study.id}: {describe_request(study.request)}")
        if study.facts is not None:
            self._say_once(describe_task(study.facts))
            self._say_once(describe_facts(study.facts))
        elif study.state is StudyState.RUNNING:
            self._say_once(READING)
        for trial in trials:
            what = f"trial {trial.number} {trial.plan.rung}"
            if trial.state is not TrialState.QUEUED:
                attempt = f" (attempt {trial.attempts})" if trial.attempts > 1 else ""
                self._say_once(f"{what}: {trial.candidate.describe()}{attempt}")
            if trial.outcome is not None:
                self._say_once(f"{what} {describe_outcome(trial, self._find_trial)}")
        if study.state.is_final:
            self._say_once(f"study {study.state}")

    def note(self, sentence: str) -> None:
        self._say_once(sentence)

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._shown:
            self._shown.add(sentence)
            elapsed_s = (datetime.now(UTC) - self._started).total_seconds()
            notes.print(f"[{clock(elapsed_s):>6}] {sentence}", soft_wrap=True)


class LiveDisplay:
    """A few lines that are drawn anew: how far the study is, what runs now, and the best trial so far."""

    def __init__(self, find_trial: Callable[[str], Trial]) -> None:
        self._find_trial = cache(find_trial)
        self._started = datetime.now(UTC)
        self._seen: tuple[Study, Sequence[Trial], Trial | None] | None = None
        self._last = ""

    def update(self, study: Study, trials: Sequence[Trial]) -> None:
        self._seen = (study, trials, best_so_far(study, trials))
        ended = [trial for trial in trials if trial.outcome is not None]
        if ended:
            what = f"#{ended[-1].number} {ended[-1].plan.rung}"
            self._last = f"{what}  {describe_outcome(ended[-1], self._find_trial)}"

    def note(self, sentence: str) -> None:
        print_note(sentence)

    def render(self) -> RenderableType:
        """Called several times a second by another thread, so that the clocks go on between updates."""
        if self._seen is None:
            return Text("starting", "dim")
        study, trials, best = self._seen
        now = datetime.now(UTC)
        lines = Table.grid(padding=(0, 2))
        lines.add_column(no_wrap=True, style="dim")
        lines.add_column(no_wrap=True, overflow="ellipsis")
        running = [trial for trial in trials if trial.state is TrialState.RUNNING]
        for trial in running:
            what = f"#{trial.number} {trial.plan.rung} {clock(running_s(trial, now))}"
            lines.add_row("now", f"{what}  {trial.candidate.describe()}")
        if not running:
            lines.add_row("now", READING if study.facts is None else "choosing the next trial")
        if study.facts is not None:
            lines.add_row("task", describe_task(study.facts))
        for note in study.facts.dataset.notes if study.facts else ():
            lines.add_row("data", note)
        if self._last:
            lines.add_row("last", self._last)
        if best is not None and best.measurement is not None:
            lines.add_row("best", f"#{best.number} {best.plan.rung}  {best.candidate.describe()}")
            lines.add_row("", describe_evidence(best.measurement))
        title = Text.assemble(("Study ", "bold"), (study.id, "bold"), f"  {describe_request(study.request)}")
        return Group(title, self._bar(study, trials, now), lines)

    def _bar(self, study: Study, trials: Sequence[Trial], now: datetime) -> RenderableType:
        done = sum(trial.outcome is not None for trial in trials)
        elapsed_s = (now - self._started).total_seconds()
        left_s = remaining_s(study.request, trials, now)
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            f"{done} of at most {study.request.max_trials} trials",
            ProgressBar(total=elapsed_s + left_s, completed=elapsed_s),
            f"{clock(elapsed_s)}, at most {clock(left_s)} left",
        )
        return bar


def remaining_s(request: StudyRequest, trials: Sequence[Trial], now: datetime) -> float:
    """Seconds left at most: by the budget, or by the trials that are left at the pace so far."""
    finished = [trial.wall_s for trial in trials if trial.wall_s is not None]
    running = [running_s(trial, now) for trial in trials if trial.state is TrialState.RUNNING]
    left_s = request.budget_s - sum(finished) - sum(running)
    if finished:
        pace_s = sum(finished) / len(finished)
        left_s = min(left_s, pace_s * (request.max_trials - len(finished)) - sum(running))
    return max(0.0, left_s)


def running_s(trial: Trial, now: datetime) -> float:
    """Seconds since the trial was launched."""
    return 0.0 if trial.started_at is None else max(0.0, (now - trial.started_at).total_seconds())


def clock(seconds: float) -> str:
    """Minutes and seconds as ``2:05``: unlike text with units it keeps its width while it runs."""
    minutes, whole_s = divmod(int(seconds), 60)
    return f"{minutes}:{whole_s:02}"


def best_so_far(study: Study, trials: Sequence[Trial]) -> Trial | None:
    """The trial that would be recommended if the study ended now."""
    try:
        chosen = recommend(study, trials, wall_s=0.0, measured_s=0.0)
    except NothingFits:
        return None
    return next(trial for trial in trials if trial.id == chosen.trial_id)


def describe_task(facts: StudyFacts) -> str:
    """What is learnt of the data, and why that."""
    return f"{facts.dataset.task.kind}: {facts.dataset.task.reason}"


def describe_facts(facts: StudyFacts) -> str:
    """What was found before the first trial, in a line."""
    model, dataset, recipe = facts.model, facts.dataset, facts.recipe
    of_weights = "" if model.has_weights else " and no weights, so quality is not measured"
    every = f" (trials take one in {dataset.every_nth_row})" if dataset.every_nth_row > 1 else ""
    truncated = f", {facts.truncated_rows:,} truncated" if facts.truncated_rows else ""
    estimated = " by estimate" if facts.tokens_estimated else ""
    packed = ", packed" if recipe.packing else ""
    set_aside = "".join(f"; {note}" for note in dataset.notes)
    return (
        f"{model.architecture} with {model.parameters / 1e6:,.1f} M parameters{of_weights}; "
        f"{facts.train_rows:,} rows to train on, {facts.heldout_rows:,} held out{every}, "
        f"{describe_rows(facts)}{estimated}{packed}{truncated}{set_aside}"
    )


def describe_rows(facts: StudyFacts) -> str:
    """What a row is, in words."""
    form = facts.dataset.task.arrays
    if form is None:
        return f"at most {facts.recipe.max_length} tokens each"
    arrays = (*form.inputs, *((form.target,) if form.target else ()))
    shapes = ", ".join(f"{each.name} {'×'.join(map(str, each.shape)) or 'one number'}" for each in arrays)
    return f"each {shapes}"


def describe_outcome(trial: Trial, find_trial: Callable[[str], Trial]) -> str:
    """How a trial ended, in a line."""
    if trial.outcome is Outcome.OK and trial.measurement is not None:
        reused = trial.reused_from
        how = "ok" if reused is None else f"{REUSED} from {name_source(find_trial(reused))}"
        disturbed = "".join(f"; disturbed: {cause}" for cause in trial.measurement.disturbances)
        return f"{how}: {describe_evidence(trial.measurement)}{disturbed}"
    return f"{trial.outcome}: {trial.reason}" if trial.reason else str(trial.outcome)
