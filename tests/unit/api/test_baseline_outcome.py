"""What changing the present configuration would bring is told from the study's own trials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rankwise.api import baseline_outcome
from rankwise.api.baseline_outcome import baseline_document
from rankwise.api.cli.report import Report
from rankwise.api.documents import report_document
from rankwise.api.report_page import report_page
from rankwise.optimizer.baseline import Placed
from rankwise.optimizer.domain import Baseline, Outcome, Relation

BASELINE = Baseline(name="old.yaml", trainer="axolotl", settings={"method": "lora"})


@pytest.fixture
def study(finished) -> Any:
    return replace(finished.study, request=replace(finished.study.request, baseline=BASELINE))


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the study take this candidate, or this reason against one, for the baseline."""

    def place(found: Placed) -> None:
        monkeypatch.setattr(baseline_outcome, "place", lambda *_: found)

    return place


def trial_of(finished, method: str) -> Any:
    return next(
        t for t in finished.trials if t.candidate.adapter.method == method and t.outcome is Outcome.OK
    )


def test_speed_memory_loss_and_settings_are_compared(finished, study, placed, capsys) -> None:
    placed(Placed(trial_of(finished, "ia3").candidate))
    found = baseline_document(study, finished.trials, finished.recommendation)
    assert found is not None
    assert found.times_as_fast == pytest.approx(2345.6 / 2470.0)
    assert (found.loss_low, found.loss_high, found.relation) == (-0.081, -0.042, "better")
    assert "yours is worse by 0.042 … 0.081" in found.sentences[-1]
    assert ("adapter", "IA3 key,value") in {(change.setting, change.now) for change in found.changes}

    document = report_document(study, finished.trials, finished.estimates, finished.recommendation)
    assert document["recommendation"]["baseline"]["name"] == "old.yaml"
    page = report_page(study, finished.trials, finished.estimates, finished.recommendation)
    assert "Your present configuration" in page
    assert "worse by 0.042" in page
    Report(study=study, trials=finished.trials, recommendation=finished.recommendation).print()
    assert "Your present configuration (old.yaml)" in capsys.readouterr().out


def test_which_learnt_more_may_not_be_known(finished, study, placed) -> None:
    placed(Placed(trial_of(finished, "ia3").candidate))
    unknown = tuple(
        replace(each, low=-1500.0, high=1500.0, relation=Relation.UNKNOWN)
        for each in finished.recommendation.comparisons
    )
    best = replace(finished.recommendation, comparisons=unknown)
    found = baseline_document(study, finished.trials, best)
    assert found is not None
    assert found.relation == "unknown"
    assert found.sentences[-1].endswith("which is lower is not known, from too few seeds.")


def test_one_that_is_recommended_is_kept(finished, study, placed) -> None:
    placed(Placed(finished.recommendation.candidate))
    found = baseline_document(study, finished.trials, finished.recommendation)
    assert found is not None
    assert (found.is_recommended, found.changes, len(found.sentences)) == (True, (), 1)


def test_one_that_was_not_trained_as_long_says_nothing_of_loss(finished, study, placed) -> None:
    placed(Placed(trial_of(finished, "full").candidate))
    found = baseline_document(study, finished.trials, finished.recommendation)
    assert found is not None
    assert (found.relation, found.loss_difference) == (None, None)
    assert "not trained as long" in found.sentences[-1]


def test_why_it_was_not_measured_is_told_in_every_place(finished, study, placed, capsys) -> None:
    placed(Placed(None, "the method 'vera' is not known here"))
    found = baseline_document(study, finished.trials, finished.recommendation)
    assert found is not None
    assert (found.reason, found.sentences) == ("the method 'vera' is not known here", ())
    assert "is not known here" in report_page(
        study, finished.trials, finished.estimates, finished.recommendation
    )
    Report(study=study, trials=finished.trials, recommendation=finished.recommendation).print()
    assert "Not measured: the method 'vera' is not known here." in capsys.readouterr().out


def test_one_that_failed_gives_its_reason(finished, study, placed) -> None:
    failed = next(t for t in finished.trials if t.outcome is Outcome.DIVERGED)
    placed(Placed(failed.candidate))
    found = baseline_document(study, [failed], finished.recommendation)
    assert found is not None
    assert found.reason == "the loss was NaN"


def test_a_study_without_one_tells_nothing(finished) -> None:
    assert baseline_document(finished.study, finished.trials, finished.recommendation) is None
