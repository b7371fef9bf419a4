from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console

from rankwise.api.cli import progress
from rankwise.api.cli.progress import (
    LineDisplay,
    LiveDisplay,
    best_so_far,
    clock,
    describe_facts,
    describe_outcome,
    remaining_s,
    show_progress,
)
from rankwise.optimizer.domain import Outcome, Rung, StudyRequest


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    written = StringIO()
    monkeypatch.setattr(progress, "notes", Console(file=written, width=100, markup=False, highlight=False))
    return written


def drawn(display: LiveDisplay) -> str:
    console = Console(width=100, file=StringIO(), record=True)
    console.print(display.render())
    return console.export_text()


def test_lines_tell_each_thing_once(script, store, stderr: StringIO, candidates):
    display = LineDisplay(store.get_trial)
    lora, _ = candidates

    def update() -> None:
        display.update(store.get_study(script.id), store.list_trials(script.id))
        display.update(store.get_study(script.id), store.list_trials(script.id))

    update()
    script.begin()
    update()
    claim = script.start(lora, Rung.PROBE)
    update()
    store.finish_attempt(claim, outcome=Outcome.LOST, reason="the process was killed")
    script.start(lora, Rung.PROBE)
    update()
    display.note("waiting for process 1")
    display.note("waiting for process 1")

    said = [line.split("] ", 1)[1] for line in stderr.getvalue().splitlines()]
    assert said == [
        f"study {script.id}: MiniLM on reviews.csv, balanced",
        "text-classification: few distinct labels",
        "BertModel with 22.7 M parameters; 320 rows to train on, 80 held out, at most 128 tokens each",
        f"trial 1 probe: {lora.describe()}",
        f"trial 1 probe: {lora.describe()} (attempt 2)",
        "waiting for process 1",
    ]


def test_reading_takes_a_while_and_is_announced(script, store, stderr: StringIO):
    script.take()
    LineDisplay(store.get_trial).update(store.get_study(script.id), [])
    assert stderr.getvalue().endswith("] reading data and model\n")


def test_the_live_display_shows_what_runs_what_is_best_and_what_is_left(script, store, candidates, probed):
    display = LiveDisplay(store.get_trial)
    assert "starting" in drawn(display)
    script.begin()
    lora, full = candidates
    script.run(lora, Rung.PROBE, probed)
    script.start(full, Rung.PROBE)

    display.update(store.get_study(script.id), store.list_trials(script.id))

    text = drawn(display)
    assert "1 of at most 64 trials" in text
    assert re.search(r"at most 0:(49|50) left", text)
    assert f"#2 probe 0:00  {full.describe()}" in text
    assert f"#1 probe  {lora.describe()}" in text
    assert re.search(r"last +#1 probe  ok: 2,346 tokens/s", text)
    assert "2,346 tokens/s ± 2%, 430 MiB at its peak" in text


def test_the_live_display_shows_what_was_noticed_of_the_data(script, store):
    script.begin()
    study = store.get_study(script.id)
    noted = replace(study.facts, dataset=replace(study.facts.dataset, notes=("7 rows are set aside",)))
    display = LiveDisplay(store.get_trial)
    display.update(replace(study, facts=noted), [])
    assert re.search(r"data +7 rows are set aside", drawn(display))


def test_before_the_first_trial_nothing_is_best(script, store):
    script.begin()
    assert best_so_far(store.get_study(script.id), store.list_trials(script.id)) is None


def test_what_is_left_follows_the_budget_and_then_the_pace(script, store, candidates, probed):
    now = datetime.now(UTC)
    script.begin()
    assert remaining_s(script.request, [], now) == script.request.budget_s

    script.run(candidates[0], Rung.PROBE, probed)
    trials = store.list_trials(script.id)
    few = StudyRequest(model="", dataset="", budget_s=1000.0, max_trials=3)
    assert remaining_s(few, trials, now) == pytest.approx(20.0)
    many = StudyRequest(model="", dataset="", budget_s=60.0, max_trials=100)
    assert remaining_s(many, trials, now) == pytest.approx(50.0)

    script.start(candidates[1], Rung.PROBE)
    trials = store.list_trials(script.id)
    assert trials[1].started_at is not None
    later = trials[1].started_at + timedelta(seconds=15)
    assert remaining_s(few, trials, later) == pytest.approx(5.0)
    assert remaining_s(few, trials, later + timedelta(hours=1)) == 0.0


def test_what_limits_the_facts_is_said(script, store):
    script.begin()
    facts = store.get_study(script.id).facts
    odd = replace(
        facts,
        model=replace(facts.model, has_weights=False),
        dataset=replace(facts.dataset, every_nth_row=7),
        recipe=replace(facts.recipe, packing=True),
        tokens_estimated=True,
        truncated_rows=3,
    )
    assert describe_facts(odd) == (
        "BertModel with 22.7 M parameters and no weights, so quality is not measured; "
        "320 rows to train on, 80 held out (trials take one in 7), "
        "at most 128 tokens each by estimate, packed, 3 truncated"
    )


def test_reused_and_disturbed_trials_say_so(script, store, candidates, probed):
    script.begin()
    disturbed = replace(probed, disturbances=("a neighbour woke up",))
    trial = script.run(candidates[0], Rung.PROBE, disturbed)
    found = describe_outcome(trial, store.get_trial)
    assert found.endswith("430 MiB at its peak; disturbed: a neighbour woke up")
    reused = describe_outcome(replace(trial, reused_from=trial.id), store.get_trial)
    assert reused.startswith(f"reused from study {script.id}, trial 1: 2,346 tokens/s")
    assert reused.endswith("disturbed: a neighbour woke up")


def test_quiet_shows_nothing(script, store, stderr: StringIO):
    with show_progress(store.get_trial, quiet=True) as display:
        display.update(store.get_study(script.id), [])
        display.note("waiting")
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0:00"), (65.0, "1:05"), (3600.0, "60:00")])
def test_clock(seconds: float, text: str):
    assert clock(seconds) == text
