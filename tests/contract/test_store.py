"""What every backend of the store promises. Another one joins by one more parameter of ``url``."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from rankwise.errors import Conflict, NotFound, StaleFence
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Estimate,
    HeldoutScores,
    Level,
    Measurement,
    Method,
    Outcome,
    Recipe,
    Recommendation,
    Rung,
    ScoredTrial,
    Scoring,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialPlan,
    TrialState,
    Weights,
)
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.keys import environment_key
from rankwise.probes.profiles import (
    DatasetProfile,
    GpuProfile,
    HardwareProfile,
    HostProfile,
    LengthProfile,
    ModelProfile,
    ModuleProfile,
    TaskKind,
    TaskProfile,
)
from rankwise.store import Claim, QuarantineCause, Reaped, Store, StudyClaim, Worker
from rankwise.store import clock as clock_module
from rankwise.store.clock import Moment

GPU = "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"
NO_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class HandClock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.boot_id = "first-boot"
        self.seconds = 100.0
        self.wall_error_s = 0.0

    def now(self, _: Session) -> Moment:
        return Moment(self.utc(), self.boot_id, self.seconds)

    def utc(self) -> datetime:
        return datetime.fromtimestamp(1_700_000_000 + self.seconds + self.wall_error_s, UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'rankwise.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("empty_postgres_url"))
    return f"sqlite:///{tmp_path / 'rankwise.db'}"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(url: str, clock: HandClock) -> Iterator[Store]:
    store = Store.open(url, clock=clock)
    yield store
    store.close()


def make_request(**changes: object) -> StudyRequest:
    return dataclasses.replace(StudyRequest(model="models/tiny", dataset="reviews.csv"), **changes)


def make_plan(learning_rate: float = 1e-4, rung: Rung = Rung.PROBE, **changes: object) -> TrialPlan:
    candidate = Candidate(
        adapter=Adapter(method=Method.LORA, rank=8, alpha=16, targets=("q_proj", "v_proj")),
        level=Level(),
        recipe=Recipe(max_length=128),
        micro_batch=4,
        learning_rate=learning_rate,
    )
    return TrialPlan(candidate=candidate, rung=rung, **changes)


def make_facts() -> StudyFacts:
    return StudyFacts(
        hardware=HardwareProfile(
            host=HostProfile(
                cpu_model=None,
                physical_cores=None,
                logical_cores=2,
                ram_total_bytes=2**34,
                ram_available_bytes=2**33,
                disk_free_bytes=2**36,
                platform="linux",
                python_version="3.11.7",
                native_bf16=None,
                libraries={"torch": "2.13.0"},
            ),
            gpus=(GpuProfile(uuid=GPU, index=0, name="H100", total_bytes=2**36, compute_capability=(9, 0)),),
        ),
        model=ModelProfile(
            source="models/tiny",
            path="models/tiny",
            revision=None,
            architecture="BertForSequenceClassification",
            model_type="bert",
            parameters=4_000_000,
            weight_bytes=16_000_000,
            structure_sha256="ab" * 32,
            hidden_size=128,
            layers=2,
            max_positions=512,
            supports_gradient_checkpointing=True,
            modules=(
                ModuleProfile(
                    name="q", kind="linear", role="query", in_features=8, out_features=8, parameters=72
                ),
            ),
            new_modules=("classifier",),
        ),
        dataset=DatasetProfile(
            source="reviews.csv",
            path="reviews.csv",
            sha256="cd" * 32,
            format="csv",
            size_bytes=1000,
            rows=100,
            usable_rows=99,
            columns=("text", "label"),
            task=TaskProfile(kind=TaskKind.TEXT_CLASSIFICATION, text_column="text", labels=("0", "1")),
            label_counts={"0": 50, "1": 49},
            lengths=LengthProfile(
                p50=10, p90=20, p99=30, max=40, mean=12.5, rows_measured=99, estimated=False
            ),
        ),
        recipe=Recipe(max_length=64),
        tokens_path="cache/tokens/ef",
        train_rows=89,
        heldout_rows=10,
        heldout_share=0.1,
        pad_id=0,
        truncated_rows=0,
        truncated_tokens_share=0.0,
    )


def make_recommendation(trial: Trial) -> Recommendation:
    return Recommendation(
        study_id=trial.study_id,
        trial_id=trial.id,
        candidate=trial.candidate,
        evidence=Measurement(tokens_per_s=1234.5, heldout_loss=0.3, train_losses=(0.7, 0.6)),
        score=87.5,
        scoring=Scoring.COMPARABLE,
        weights=Weights(speed=0.4, memory=0.2, quality=0.4),
        ranking=(
            ScoredTrial(
                trial_id=trial.id,
                number=1,
                rank=1,
                score=87.5,
                parts={"speed": 1.0, "quality": 0.75},
                on_pareto_front=True,
                tied_with_best=False,
            ),
        ),
        reasons=("Fastest of one.",),
        quality_measured=True,
        wall_s=60.0,
        measured_s=42.0,
    )


WORKER = Worker(name="host:1", place="here")
ELSEWHERE = Worker(name="other:1", place="elsewhere")

RUNS: dict[str, StudyClaim] = {}
"""The last claim of each study, by its id."""


def take(store: Store, worker: Worker = WORKER, *, only: str | None = None) -> StudyClaim | None:
    """Claim a study, if there is one."""
    claim = store.claim_study(worker, only=only)
    if claim is not None:
        RUNS[claim.id] = claim
    return claim


def start_study(store: Store) -> StudyClaim:
    claimed = take(store, only=store.create_study(make_request()).id)
    assert claimed is not None
    return claimed


def claim_trial(store: Store, trial: Trial, **options: Any) -> Claim | None:
    """An attempt at a trial, by whoever has its study in hand."""
    options = {"devices": [GPU], "worker": "w", **options}
    return store.claim_trial(RUNS[trial.study_id], trial.id, **options)


def start_trial(store: Store, *, lease_s: float = 45.0) -> Claim:
    claim = claim_trial(store, store.plan_trial(start_study(store), make_plan()), lease_s=lease_s)
    assert claim is not None
    return claim


def finish_first(store: Store, study: StudyClaim) -> Trial:
    """Plan, run and finish a trial of a running study."""
    claim = claim_trial(store, store.plan_trial(study, make_plan()))
    assert claim is not None
    return store.finish_attempt(claim, outcome=Outcome.OK, measurement=Measurement(tokens_per_s=10.0))


def kinds(store: Store, study_id: str) -> list[str]:
    return [event.kind for event in store.events_after(study_id, 0)]


class TestStudies:
    def test_is_read_as_it_was_written(self, store: Store, clock: HandClock) -> None:
        request = make_request(
            weights=Weights(speed=1, memory=0, quality=2), methods=(Method.IA3,), max_length=64
        )
        study = store.create_study(request)

        assert study.state is StudyState.QUEUED
        assert study.request == request
        assert study.created_at == clock.utc()
        assert store.get_study(study.id) == study

    def test_what_a_write_returns_is_what_is_stored(self, store: Store, clock: HandClock) -> None:
        study = store.create_study(make_request())
        clock.seconds += 1

        def claim() -> Study | None:
            return (claimed := take(store)) and claimed.study

        writes: list[Callable[[], object]] = [
            claim,
            lambda: store.save_facts(RUNS[study.id], make_facts()),
            lambda: store.release_study(RUNS[study.id]),
            claim,
            lambda: store.request_cancel(study.id),
            lambda: store.finish_study(RUNS[study.id], StudyState.CANCELLED, "on request"),
        ]
        for write in writes:
            assert write() == store.get_study(study.id)

    def test_unknown_id(self, store: Store) -> None:
        study = start_study(store)
        unknown = replace(study, study=replace(study.study, id=NO_ID))
        calls: list[Callable[[], object]] = [
            lambda: store.get_study(NO_ID),
            lambda: store.list_studies(before=NO_ID),
            lambda: store.release_study(unknown),
            lambda: store.request_cancel(NO_ID),
            lambda: store.save_facts(unknown, make_facts()),
            lambda: store.add_wall(unknown, 1.0),
            lambda: store.attempts_wall_s(NO_ID),
            lambda: store.finish_study(unknown, StudyState.FAILED),
            lambda: store.get_recommendation(NO_ID),
            lambda: store.plan_trial(unknown, make_plan()),
            lambda: store.list_trials(NO_ID),
            lambda: store.get_trial(NO_ID),
            lambda: store.claim_trial(study, NO_ID, devices=[GPU], worker="w"),
            lambda: store.renew_study(unknown),
            lambda: store.holder_of(NO_ID),
            lambda: store.append_event(unknown, "x", {}),
            lambda: store.events_after(NO_ID, 0),
        ]
        for call in calls:
            with pytest.raises(NotFound, match=NO_ID):
                call()

    def test_list_is_newest_first_and_pages_meet(self, store: Store) -> None:
        ids = [store.create_study(make_request(seed=seed)).id for seed in range(5)]
        newest_first = ids[::-1]

        first = [study.id for study in store.list_studies(limit=2)]
        second = [study.id for study in store.list_studies(limit=2, before=first[-1])]
        third = [study.id for study in store.list_studies(limit=2, before=second[-1])]
        assert [*first, *second, *third] == newest_first

    def test_list_by_state(self, store: Store) -> None:
        first, second = (store.create_study(make_request(seed=seed)) for seed in range(2))
        store.request_cancel(first.id)
        assert [study.id for study in store.list_studies(state=StudyState.QUEUED)] == [second.id]
        assert [study.id for study in store.list_studies(state=StudyState.CANCELLED)] == [first.id]

    def test_claims_go_by_age(self, store: Store) -> None:
        ids = [store.create_study(make_request()).id for _ in range(2)]
        claimed = [take(store), take(store), take(store)]
        assert [study and study.id for study in claimed] == [*ids, None]
        assert store.get_study(ids[0]).state is StudyState.RUNNING

    def test_claim_of_one(self, store: Store) -> None:
        store.create_study(make_request())
        wanted = store.create_study(make_request())
        claimed = take(store, only=wanted.id)
        assert claimed is not None
        assert claimed.id == wanted.id
        assert take(store, only=wanted.id) is None
        store.finish_study(claimed, StudyState.FAILED)
        assert take(store, only=wanted.id) is None

    def test_release(self, store: Store) -> None:
        study = start_study(store)
        assert store.release_study(study).state is StudyState.QUEUED
        with pytest.raises(StaleFence, match="queued"):
            store.release_study(study)

    def test_facts(self, store: Store) -> None:
        study = start_study(store)
        store.save_facts(study, make_facts())
        assert store.get_study(study.id).facts == make_facts()

    def test_wall_time_adds_up_over_connections(self, store: Store, url: str) -> None:
        study = start_study(store)
        assert store.add_wall(study, 10.0) == 10.0
        again = Store.open(url)
        assert again.add_wall(study, 5.0) == 15.0
        again.close()

    def test_time_of_all_attempts_counts(self, store: Store) -> None:
        claim = start_trial(store)
        study_id = claim.trial.study_id
        assert store.attempts_wall_s(study_id) == 0.0
        for outcome in (Outcome.LOST, Outcome.DISTURBED, Outcome.OK):
            store.finish_attempt(claim, outcome=outcome, wall_s=10.0)
            claim = claim_trial(store, claim.trial) or claim
        other = start_trial(store)
        store.release_attempt(other, "the supervisor was stopped")
        assert store.attempts_wall_s(study_id) == 30.0
        assert store.attempts_wall_s(other.trial.study_id) == 0.0


class TestCancelling:
    def test_queued_ends_at_once_with_its_trials(self, store: Store) -> None:
        study = start_study(store)
        trial = store.plan_trial(study, make_plan())
        store.release_study(study)

        cancelled = store.request_cancel(study.id)
        assert (cancelled.state, cancelled.cancel_requested) == (StudyState.CANCELLED, True)
        assert store.get_trial(trial.id).outcome is Outcome.CANCELLED

    def test_running_is_flagged_once(self, store: Store) -> None:
        study = start_study(store)
        for _ in range(2):
            flagged = store.request_cancel(study.id)
            assert (flagged.state, flagged.cancel_requested) == (StudyState.RUNNING, True)
        assert kinds(store, study.id).count("study.cancel_requested") == 1

    def test_ended_stays_ended(self, store: Store) -> None:
        study = start_study(store)
        store.finish_study(study, StudyState.FAILED, "no such model")
        with pytest.raises(Conflict, match="failed"):
            store.request_cancel(study.id)
        assert store.get_study(study.id).cancel_requested is False

    def test_race_with_a_claim_has_one_of_two_ends(self, store: Store, url: str) -> None:
        other = Store.open(url)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(20):
                study = store.create_study(make_request())
                cancelled = pool.submit(store.request_cancel, study.id)
                claimed = pool.submit(other.claim_study, WORKER, only=study.id)
                cancelled.result()
                if claimed.result() is None:
                    assert store.get_study(study.id).state is StudyState.CANCELLED
                else:
                    assert store.get_study(study.id).state is StudyState.RUNNING
                    assert store.get_study(study.id).cancel_requested
        other.close()


class TestFinishing:
    def test_success_keeps_the_recommendation(self, store: Store) -> None:
        study = start_study(store)
        recommendation = make_recommendation(finish_first(store, study))
        finished = store.finish_study(study, StudyState.SUCCEEDED, recommendation=recommendation)
        assert finished.state is StudyState.SUCCEEDED
        assert store.get_recommendation(study.id) == recommendation

    def test_queued_trials_are_cancelled(self, store: Store) -> None:
        study = start_study(store)
        done = finish_first(store, study)
        waiting = store.plan_trial(study, make_plan(2e-4))
        store.finish_study(study, StudyState.FAILED, "disk full")

        assert store.get_trial(done.id).outcome is Outcome.OK
        dropped = store.get_trial(waiting.id)
        assert (dropped.state, dropped.outcome) == (TrialState.FINISHED, Outcome.CANCELLED)
        assert store.get_study(study.id).reason == "disk full"

    @pytest.mark.parametrize("state", [StudyState.FAILED, StudyState.CANCELLED])
    def test_only_running_studies(self, store: Store, state: StudyState) -> None:
        study = start_study(store)
        store.release_study(study)
        with pytest.raises(StaleFence, match="queued"):
            store.finish_study(study, state)
        again = take(store)
        assert again is not None
        store.finish_study(again, state)
        with pytest.raises(StaleFence, match=state):
            store.finish_study(again, StudyState.FAILED)

    def test_not_while_a_trial_runs(self, store: Store) -> None:
        claim = start_trial(store)
        for move in (
            lambda: store.finish_study(RUNS[claim.trial.study_id], StudyState.FAILED),
            lambda: store.release_study(RUNS[claim.trial.study_id]),
        ):
            with pytest.raises(Conflict, match="trial 1 still runs"):
                move()
        assert store.get_study(claim.trial.study_id).state is StudyState.RUNNING

    def test_a_recommendation_goes_with_success_only(self, store: Store) -> None:
        study = start_study(store)
        recommendation = make_recommendation(finish_first(store, study))
        with pytest.raises(ValueError, match="succeeded without"):
            store.finish_study(study, StudyState.SUCCEEDED)
        with pytest.raises(ValueError, match="failed with"):
            store.finish_study(study, StudyState.FAILED, recommendation=recommendation)
        with pytest.raises(ValueError, match="running"):
            store.finish_study(study, StudyState.RUNNING)

    def test_missing_recommendation_says_why(self, store: Store) -> None:
        study = start_study(store)
        with pytest.raises(NotFound, match="yet: it is running"):
            store.get_recommendation(study.id)
        store.finish_study(study, StudyState.FAILED, "no such model")
        with pytest.raises(NotFound, match=r"failed \(no such model\)"):
            store.get_recommendation(study.id)


class TestTrials:
    def test_is_read_as_it_was_planned(self, store: Store) -> None:
        study = start_study(store)
        plan = make_plan(rung=Rung.TRAIN, train_steps=100, reason="front-runner")
        trial = store.plan_trial(study, plan)
        assert trial.plan == plan
        assert (trial.number, trial.state, trial.attempts) == (1, TrialState.QUEUED, 0)
        assert store.get_trial(trial.id) == trial

    def test_planning_twice_gives_the_same_trial(self, store: Store) -> None:
        study = start_study(store)
        finished = finish_first(store, study)
        assert store.plan_trial(study, make_plan(reason="asked again")) == finished

        different = [
            make_plan(2e-4),
            make_plan(replicate=1),
            make_plan(rung=Rung.TRAIN, train_steps=10),
            make_plan(rung=Rung.TRAIN, train_steps=20),
        ]
        planned = [store.plan_trial(study, plan) for plan in different]
        assert [trial.number for trial in planned] == [2, 3, 4, 5]
        assert store.list_trials(study.id) == [finished, *planned]

    def test_numbers_are_per_study(self, store: Store) -> None:
        studies = [start_study(store) for _ in range(2)]
        assert [store.plan_trial(study, make_plan()).number for study in studies] == [1, 1]

    def test_are_counted_by_state(self, store: Store) -> None:
        busy, idle, other = (start_study(store) for _ in range(3))
        finish_first(store, busy)
        finish_first(store, other)
        for rate in (2e-4, 3e-4):
            store.plan_trial(busy, make_plan(rate))
        assert store.count_trials([busy.id, idle.id]) == {
            busy.id: {TrialState.QUEUED: 2, TrialState.RUNNING: 0, TrialState.FINISHED: 1},
            idle.id: {TrialState.QUEUED: 0, TrialState.RUNNING: 0, TrialState.FINISHED: 0},
        }
        assert store.count_trials([]) == {}

    def test_only_running_studies_get_trials(self, store: Store) -> None:
        study = start_study(store)
        store.release_study(study)
        with pytest.raises(StaleFence, match="queued"):
            store.plan_trial(study, make_plan())
        assert store.list_trials(study.id) == []

    def test_only_trials_of_running_studies_are_claimed(self, store: Store) -> None:
        study = start_study(store)
        trial = store.plan_trial(study, make_plan())
        store.release_study(study)
        with pytest.raises(StaleFence, match="queued"):
            claim_trial(store, trial)

    def test_life_of_a_trial(self, store: Store, clock: HandClock) -> None:
        claim = start_trial(store)
        assert (claim.trial.state, claim.trial.attempts) == (TrialState.RUNNING, 1)
        assert claim.trial == store.get_trial(claim.trial.id)
        started_at = clock.utc()
        clock.seconds += 30
        measurement = Measurement(tokens_per_s=99.5, peak_process_bytes=2**30, train_losses=(1.0, 0.5))
        trial = store.finish_attempt(
            claim, outcome=Outcome.OK, measurement=measurement, log_tail="done\n", wall_s=29.5
        )
        assert trial == store.get_trial(trial.id)
        assert trial.state is TrialState.FINISHED
        assert trial.outcome is Outcome.OK
        assert trial.measurement == measurement
        assert (trial.started_at, trial.finished_at) == (started_at, clock.utc())
        assert (trial.log_tail, trial.wall_s) == ("done\n", 29.5)

    @pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.LOST, Outcome.DISTURBED}))
    def test_every_other_outcome_is_final(self, store: Store, outcome: Outcome) -> None:
        claim = start_trial(store)
        trial = store.finish_attempt(claim, outcome=outcome, reason="because")
        assert (trial.state, trial.outcome, trial.reason) == (TrialState.FINISHED, outcome, "because")
        assert claim_trial(store, trial) is None

    def test_a_running_trial_is_taken(self, store: Store) -> None:
        claim = start_trial(store)
        assert claim_trial(store, claim.trial, devices=["another"]) is None

    def test_a_device_serves_one_attempt(self, store: Store) -> None:
        claim = start_trial(store)
        other = store.plan_trial(RUNS[claim.trial.study_id], make_plan(2e-4))
        assert claim_trial(store, other, devices=["free", GPU]) is None
        assert store.get_trial(other.id) == other
        assert kinds(store, claim.trial.study_id).count("trial.running") == 1

        store.finish_attempt(claim, outcome=Outcome.OOM)
        second = claim_trial(store, other, devices=["free", GPU])
        assert second is not None
        assert second.devices == ("free", GPU)
        assert second.fence > claim.fence

    def test_numbers_that_are_none_become_unknown(self, store: Store) -> None:
        claim = start_trial(store)
        measurement = Measurement(
            tokens_per_s=float("nan"), heldout_loss=float("inf"), train_losses=(1.0, float("nan"))
        )
        store.finish_attempt(claim, outcome=Outcome.DIVERGED, measurement=measurement, wall_s=float("nan"))
        trial = store.get_trial(claim.trial.id)
        assert trial.measurement == Measurement(train_losses=(1.0, None))
        assert trial.wall_s is None


class TestHeldoutScores:
    SCORES = HeldoutScores(losses=(2.25, 0.5), items=(3, 1))

    def train(self, store: Store, study: StudyClaim, steps: int, outcome: Outcome = Outcome.OK) -> Trial:
        plan = make_plan(rung=Rung.TRAIN, train_steps=steps)
        claim = claim_trial(store, store.plan_trial(study, plan))
        assert claim is not None
        return store.finish_attempt(
            claim, outcome=outcome, measurement=Measurement(heldout_loss=0.6875), heldout=self.SCORES
        )

    def test_are_read_where_they_are_asked_for(self, store: Store) -> None:
        study = start_study(store)
        finish_first(store, study)
        trial = self.train(store, study, 10)
        assert trial.heldout == self.SCORES
        assert [it.heldout for it in store.list_trials(study.id, with_heldout=True)] == [None, self.SCORES]
        assert [it.heldout for it in store.list_trials(study.id)] == [None, None]
        assert store.list_trials(study.id, with_heldout=True)[1] == trial

    def test_are_those_of_the_attempt_that_finished_the_trial(self, store: Store) -> None:
        study = start_study(store)
        lost = self.train(store, study, 10, Outcome.LOST)
        assert lost.state is TrialState.QUEUED
        assert lost.heldout is None
        assert store.list_trials(study.id, with_heldout=True)[0].heldout is None
        assert self.train(store, study, 10).heldout == self.SCORES

    def test_of_other_studies_stay_there(self, store: Store) -> None:
        first, second = start_study(store), start_study(store)
        self.train(store, first, 10)
        assert store.list_trials(second.id, with_heldout=True) == []

    def test_that_are_no_numbers_end_nothing(self, store: Store) -> None:
        claim = start_trial(store)
        scores = HeldoutScores(losses=(float("nan"),), items=(1,))
        with pytest.raises(ValueError, match="no number"):
            store.finish_attempt(claim, outcome=Outcome.OK, heldout=scores)
        assert store.get_trial(claim.trial.id).state is TrialState.RUNNING


class TestLostAttempts:
    def test_released_attempts_count_as_no_failure(self, store: Store) -> None:
        claim = start_trial(store)
        for _ in range(5):
            trial = store.release_attempt(claim, "the supervisor was stopped")
            assert (trial.state, trial.outcome) == (TrialState.QUEUED, None)
            with pytest.raises(StaleFence):
                store.heartbeat(claim)
            again = claim_trial(store, trial)
            assert again is not None
            claim = again
        assert store.finish_attempt(claim, outcome=Outcome.LOST).state is TrialState.QUEUED

    def test_is_tried_again_and_given_up_after_the_third(self, store: Store) -> None:
        claim = start_trial(store)
        fences = [claim.fence]
        for attempt in (1, 2):
            trial = store.finish_attempt(
                claim, outcome=Outcome.LOST, reason=f"killed {attempt}", log_tail="…"
            )
            assert (trial.state, trial.attempts, trial.outcome) == (TrialState.QUEUED, attempt, None)
            assert (trial.reason, trial.started_at, trial.finished_at) == (f"killed {attempt}", None, None)
            again = claim_trial(store, trial)
            assert again is not None
            assert again.trial.reason is None
            claim = again
            fences.append(claim.fence)
        trial = store.finish_attempt(claim, outcome=Outcome.LOST, reason="killed 3")
        assert (trial.state, trial.attempts, trial.outcome) == (TrialState.FINISHED, 3, Outcome.LOST)
        assert fences == sorted(set(fences))
        assert kinds(store, trial.study_id)[-5:] == [
            "trial.lost",
            "trial.running",
            "trial.lost",
            "trial.running",
            "trial.finished",
        ]

    def test_late_writes_change_nothing(self, store: Store) -> None:
        claim = start_trial(store)
        store.reap(dead_place=WORKER.place)
        take(store)
        current = claim_trial(store, claim.trial)
        assert current is not None
        before = store.get_trial(claim.trial.id)
        with pytest.raises(StaleFence):
            store.heartbeat(claim)
        with pytest.raises(StaleFence):
            store.finish_attempt(claim, outcome=Outcome.OK, measurement=Measurement(tokens_per_s=1.0))
        assert store.get_trial(claim.trial.id) == before
        assert store.finish_attempt(current, outcome=Outcome.OK).outcome is Outcome.OK
        with pytest.raises(StaleFence):
            store.finish_attempt(current, outcome=Outcome.CRASHED)

    def test_lease_runs_out(self, store: Store, clock: HandClock) -> None:
        claim = start_trial(store, lease_s=45)
        study = RUNS[claim.trial.study_id]
        clock.seconds += 44
        assert store.reap() == Reaped()
        store.heartbeat(claim, lease_s=45)
        store.renew_study(study, lease_s=100)
        clock.seconds += 44
        assert store.reap() == Reaped()
        clock.seconds += 1
        reaped = store.reap()
        assert ([trial.id for trial in reaped.trials], reaped.studies) == ([claim.trial.id], ())
        assert store.get_trial(claim.trial.id).state is TrialState.QUEUED
        assert claim_trial(store, claim.trial) is not None


class TestAbandonedStudies:
    def test_a_claim_runs_out_with_its_attempt(self, store: Store, clock: HandClock) -> None:
        claim = start_trial(store, lease_s=1000)
        study = RUNS[claim.trial.study_id]
        clock.seconds += 44
        assert store.holder_of(study.id) == WORKER
        store.renew_study(study)
        clock.seconds += 44
        assert store.reap() == Reaped()
        clock.seconds += 1
        assert store.holder_of(study.id) is None
        reaped = store.reap()
        assert ([trial.id for trial in reaped.trials], reaped.studies) == ([claim.trial.id], (study.id,))
        assert store.get_study(study.id).state is StudyState.QUEUED
        lost = store.events_after(study.id, 0)[-1]
        assert (lost.kind, lost.payload["worker"]) == ("study.lost", WORKER.name)
        assert store.reap() == Reaped()

    @pytest.mark.parametrize("error_s", [3600.0, -3600.0])
    def test_a_wall_clock_that_is_set_ends_nothing(
        self, store: Store, clock: HandClock, error_s: float
    ) -> None:
        start_trial(store)
        clock.wall_error_s = error_s
        assert store.reap() == Reaped()
        clock.seconds += 44
        assert store.reap() == Reaped()
        clock.seconds += 1
        assert len(store.reap().trials) == 1

    @pytest.mark.parametrize("error_s", [3600.0, -3600.0])
    def test_this_machines_wall_clock_is_not_asked(
        self, url: str, monkeypatch: pytest.MonkeyPatch, error_s: float
    ) -> None:
        """With the backend's own clock: CLOCK_BOOTTIME, or the server's."""
        right_s, right = time.time, time.clock_gettime

        class WrongDatetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> WrongDatetime:
                return cls.fromtimestamp(right_s() + error_s, tz)

        def wrong(which: int) -> float:
            return right(which) + (error_s if which == time.CLOCK_REALTIME else 0.0)

        with closing(Store.open(url)) as store:
            start_trial(store)
            monkeypatch.setattr(clock_module, "datetime", WrongDatetime)
            monkeypatch.setattr(time, "clock_gettime", wrong)
            monkeypatch.setattr(time, "time", lambda: right_s() + error_s)
            assert store.reap() == Reaped()

    def test_a_restart_of_the_machine_ends_claims(self, store: Store, clock: HandClock) -> None:
        start_trial(store)
        clock.boot_id = "second-boot"
        clock.seconds = 1.0
        reaped = store.reap()
        assert (len(reaped.trials), len(reaped.studies)) == (1, 1)
        assert store.reap() == Reaped()

    def test_a_successor_takes_over_at_once_what_its_place_left(self, store: Store) -> None:
        left, others = start_trial(store), take(store, ELSEWHERE, only=store.create_study(make_request()).id)
        assert others is not None
        reaped = store.reap(dead_place=WORKER.place)
        assert ([trial.id for trial in reaped.trials], reaped.studies) == (
            [left.trial.id],
            (left.trial.study_id,),
        )
        assert reaped.trials[0].reason == "its supervisor ended"
        assert store.holder_of(others.id) == ELSEWHERE
        again = take(store)
        assert again is not None
        assert (again.id, again.moved) == (left.trial.study_id, False)

    def test_what_was_to_be_cancelled_is(self, store: Store) -> None:
        claim = start_trial(store)
        store.request_cancel(claim.trial.study_id)
        store.reap(dead_place=WORKER.place)
        assert store.get_study(claim.trial.study_id).state is StudyState.CANCELLED
        assert store.get_trial(claim.trial.id).outcome is Outcome.CANCELLED

    def test_another_place_goes_on_and_is_told_that_it_is_another(self, store: Store) -> None:
        study = start_study(store)
        store.release_study(study)
        moved = take(store, ELSEWHERE)
        assert moved is not None
        assert (moved.id, moved.moved, moved.fence) == (study.id, True, study.fence + 1)

    def test_late_writes_of_a_run_change_nothing(self, store: Store, clock: HandClock) -> None:
        """Whoever was stopped past its lease comes back to a study that another one runs."""
        late = start_study(store)
        trial = store.plan_trial(late, make_plan())
        source = finish_first(store, start_study(store))
        clock.seconds += 45
        store.reap()
        current = take(store, ELSEWHERE, only=late.id)
        assert current is not None
        before = (store.get_study(late.id), store.list_trials(late.id), store.events_after(late.id, 0))
        recommendation = make_recommendation(source)
        writes: list[Callable[[], object]] = [
            lambda: store.renew_study(late),
            lambda: store.save_facts(late, make_facts()),
            lambda: store.append_event(late, "x", {}),
            lambda: store.save_estimates(late, {make_plan().candidate: told(Fits.NO)}),
            lambda: store.plan_trial(late, make_plan(2e-4)),
            lambda: store.reuse_measurement(late, trial.id, source),
            lambda: store.claim_trial(late, trial.id, devices=[GPU], worker="w"),
            lambda: store.add_wall(late, 1.0),
            lambda: store.release_study(late),
            lambda: store.finish_study(late, StudyState.SUCCEEDED, None, recommendation),
        ]
        for write in writes:
            with pytest.raises(StaleFence, match="run 1 of study"):
                write()
        assert before == (
            store.get_study(late.id),
            store.list_trials(late.id),
            store.events_after(late.id, 0),
        )
        store.renew_study(current)


class TestSeveralPlaces:
    def test_what_is_reserved_is_left_to_its_place(self, store: Store) -> None:
        reserved = store.create_study(make_request(), reserved_for=ELSEWHERE.place)
        assert take(store) is None
        claimed = take(store, ELSEWHERE)
        assert claimed is not None
        assert claimed.id == reserved.id

    def test_unless_it_is_asked_for(self, store: Store) -> None:
        reserved = store.create_study(make_request(), reserved_for=ELSEWHERE.place)
        claimed = take(store, only=reserved.id)
        assert claimed is not None
        store.release_study(claimed)
        assert take(store) is not None  # and then it is this place's

    def test_what_was_measured_is_left_to_where_it_can_be_compared(self, store: Store) -> None:
        facts = make_facts()
        study = start_study(store)
        store.save_facts(study, facts)
        store.release_study(study)
        other = replace(ELSEWHERE, environment="of another GPU")
        assert take(store, other) is None
        alike = take(store, replace(ELSEWHERE, environment=environment_key(facts.hardware)))
        assert alike is not None
        store.release_study(alike)
        same_place = replace(ELSEWHERE, environment="the same place with a new driver")
        assert take(store, same_place) is not None

    def test_two_that_want_the_same_devices_do_not_wait_for_each_other(self, store: Store, url: str) -> None:
        devices = ["GPU-1", "GPU-2", "GPU-3"]
        with closing(Store.open(url)) as other, ThreadPoolExecutor(2) as pool:
            for _ in range(10):
                trials = [store.plan_trial(start_study(store), make_plan()) for _ in range(2)]
                attempts = [
                    pool.submit(claim_trial, where, trial, devices=order)
                    for where, trial, order in zip(
                        (store, other), trials, (devices, devices[::-1]), strict=True
                    )
                ]
                (won,) = [claim for attempt in attempts if (claim := attempt.result())]
                store.finish_attempt(won, outcome=Outcome.OK)


class TestDisturbedAttempts:
    def test_is_tried_again_and_only_the_last_measurement_is_kept(self, store: Store) -> None:
        claim = start_trial(store)
        assert claim.disturbed_before == 0
        trial = store.finish_attempt(
            claim,
            outcome=Outcome.DISTURBED,
            reason="a neighbour took 2 GiB",
            measurement=Measurement(tokens_per_s=1.0),
        )
        assert (trial.state, trial.outcome, trial.measurement) == (TrialState.QUEUED, None, None)
        assert trial.reason == "a neighbour took 2 GiB"

        again = claim_trial(store, trial)
        assert again is not None
        assert again.disturbed_before == 1
        trial = store.finish_attempt(again, outcome=Outcome.OK, measurement=Measurement(tokens_per_s=9.0))
        assert (trial.attempts, trial.measurement) == (2, Measurement(tokens_per_s=9.0))
        history = store.events_after(trial.study_id, 0)
        assert [event.kind for event in history][-4:] == [
            "trial.running",
            "trial.disturbed",
            "trial.running",
            "trial.finished",
        ]
        assert history[-3].payload["reason"] == "a neighbour took 2 GiB"

    def test_neither_counts_for_the_other(self, store: Store) -> None:
        claim = start_trial(store)
        seen = []
        for outcome in (Outcome.LOST, Outcome.DISTURBED, Outcome.DISTURBED, Outcome.LOST, Outcome.OK):
            seen.append(claim.disturbed_before)
            trial = store.finish_attempt(claim, outcome=outcome)
            claim = claim_trial(store, trial) or claim
        assert seen == [0, 0, 1, 2, 2]
        assert (trial.attempts, trial.outcome) == (5, Outcome.OK)


def told(fits: Fits | None = Fits.YES, **changes: Any) -> Estimate:
    return Estimate(device="a GPU", fits=fits, peak_device_bytes=2**30, **changes)


class TestEstimates:
    def test_are_read_as_they_were_written_and_kept_by_later_trials(self, store: Store) -> None:
        study, plan = start_study(store), make_plan()
        estimate = told(flops={"bfloat16": 10**12}, step_tokens=12.5)
        store.save_estimates(study, {plan.candidate: estimate})
        assert store.list_estimates(study.id) == {plan.candidate: estimate}
        trial = store.plan_trial(study, plan)
        assert trial.estimate == estimate
        assert store.get_trial(trial.id) == store.list_trials(study.id)[0] == trial

    def test_a_shape_keeps_what_was_told_first(self, store: Store) -> None:
        study, candidate = start_study(store), make_plan().candidate
        same_shape = replace(candidate, learning_rate=2 * candidate.learning_rate)
        store.save_estimates(study, {candidate: told()})
        store.save_estimates(study, {same_shape: told(Fits.NO)})
        assert store.list_estimates(study.id) == {candidate: told()}
        assert store.plan_trial(study, replace(make_plan(), candidate=same_shape)).estimate == told()

    def test_are_of_one_study(self, store: Store) -> None:
        store.save_estimates(start_study(store), {make_plan().candidate: told()})
        other = start_study(store)
        assert store.list_estimates(other.id) == {}
        assert store.plan_trial(other, make_plan()).estimate is None

    def test_what_is_ruled_out_is_an_event(self, store: Store) -> None:
        study, candidate = start_study(store), make_plan().candidate
        store.save_estimates(study, {candidate: told(Fits.NO, reason="it needs too much")})
        newest = store.events_after(study.id, 0)[-1]
        assert newest.kind == "candidate.ruled_out"
        assert newest.payload == {"candidate": candidate.describe(), "reason": "it needs too much"}

    def test_only_in_running_studies(self, store: Store) -> None:
        study = start_study(store)
        store.release_study(study)
        with pytest.raises(StaleFence):
            store.save_estimates(study, {make_plan().candidate: told()})

    @pytest.mark.parametrize(
        ("outcome", "found"), [(Outcome.OK, True), (Outcome.OOM, True), (Outcome.DIVERGED, False)]
    )
    def test_what_teaches_of_estimates_is_found_by_device(
        self, store: Store, outcome: Outcome, found: bool
    ) -> None:
        study = start_study(store)
        store.save_estimates(study, {make_plan().candidate: told()})
        trial = store.plan_trial(study, make_plan())
        claim = claim_trial(store, trial)
        assert claim is not None
        trial = store.finish_attempt(claim, outcome=outcome, measurement=Measurement(tokens_per_s=1.0))
        assert store.list_estimated("a GPU") == ([trial] if found else [])
        assert store.list_estimated("another GPU") == []


class TestReuse:
    def measure(self, store: Store, key: str | None, outcome: Outcome = Outcome.OK, **figures: Any) -> Trial:
        """A finished trial of a study of its own."""
        trial = store.plan_trial(start_study(store), make_plan())
        claim = claim_trial(store, trial, measurement_key=key)
        assert claim is not None
        return store.finish_attempt(claim, outcome=outcome, measurement=Measurement(**figures), wall_s=8.0)

    def test_the_newest_measurement_is_found(self, store: Store, clock: HandClock) -> None:
        assert store.find_measurement("k") is None
        for speed in (1.0, 2.0):
            clock.seconds += 1
            newest = self.measure(store, "k", tokens_per_s=speed)
        self.measure(store, "other", tokens_per_s=3.0)
        self.measure(store, None, tokens_per_s=4.0)
        assert store.find_measurement("k") == newest

    @pytest.mark.parametrize(
        ("outcome", "figures"),
        [(Outcome.OOM, {}), (Outcome.OK, {"tokens_per_s": 1.0, "disturbances": ("a neighbour computed",)})],
        ids=["failed", "disturbed"],
    )
    def test_only_sound_ones_are_found(self, store: Store, outcome: Outcome, figures: dict[str, Any]) -> None:
        sound = self.measure(store, "k", tokens_per_s=2.0)
        self.measure(store, "k", outcome, **figures)
        assert store.find_measurement("k") == sound

    def test_one_that_is_under_way_is_not_found(self, store: Store) -> None:
        trial = store.plan_trial(start_study(store), make_plan())
        claim = claim_trial(store, trial, measurement_key="k")
        assert claim is not None
        assert store.find_measurement("k") is None
        store.finish_attempt(claim, outcome=Outcome.LOST)
        assert store.find_measurement("k") is None

    def test_is_taken_over_without_an_attempt(self, store: Store, clock: HandClock) -> None:
        source = self.measure(store, "k", tokens_per_s=2.0, measured_s=5.0)
        clock.seconds += 60
        planned = store.plan_trial(start_study(store), make_plan(3e-4))
        trial = store.reuse_measurement(RUNS[planned.study_id], planned.id, source)
        assert trial == store.get_trial(planned.id)
        assert (trial.state, trial.outcome, trial.attempts) == (TrialState.FINISHED, Outcome.OK, 0)
        assert (trial.measurement, trial.reused_from) == (source.measurement, source.id)
        assert (trial.started_at, trial.finished_at, trial.wall_s) == (None, clock.utc(), 0.0)
        assert store.attempts_wall_s(trial.study_id) == 0.0
        last = store.events_after(trial.study_id, 0)[-1]
        assert (last.kind, last.payload["reused_from"]) == ("trial.finished", source.id)

    def test_rows_are_taken_over_with_a_training(self, store: Store) -> None:
        trained = make_plan(rung=Rung.TRAIN, train_steps=20)
        trial = store.plan_trial(start_study(store), trained)
        claim = claim_trial(store, trial, measurement_key="k")
        assert claim is not None
        scores = HeldoutScores(losses=(0.5, 1.5), items=(1, 2))
        store.finish_attempt(
            claim, outcome=Outcome.OK, measurement=Measurement(heldout_loss=0.7), heldout=scores
        )
        source = store.find_measurement("k")
        assert source is not None
        planned = store.plan_trial(start_study(store), trained)
        store.reuse_measurement(RUNS[planned.study_id], planned.id, source)
        (taken,) = store.list_trials(planned.study_id, with_heldout=True)
        assert (taken.reused_from, taken.heldout) == (trial.id, scores)

    def test_studies_of_the_same_structure_and_kind_of_task_are_alike(self, store: Store) -> None:
        facts = make_facts()
        another = dataclasses.replace(
            facts, model=dataclasses.replace(facts.model, structure_sha256="another")
        )
        succeeded = []
        for own in (facts, another, facts):
            study = start_study(store)
            store.save_facts(study, own)
            trial = finish_first(store, study)
            store.finish_study(study, StudyState.SUCCEEDED, recommendation=make_recommendation(trial))
            succeeded.append(store.list_trials(study.id))
        failed = start_study(store)
        store.save_facts(failed, facts)
        store.finish_study(failed, StudyState.FAILED, "it did not work")
        sha256, kind = facts.model.structure_sha256, facts.dataset.task.kind
        assert store.list_alike(sha256, kind) == [succeeded[0], succeeded[2]]
        assert store.list_alike(sha256, kind, limit=1) == [succeeded[2]]
        assert store.list_alike(sha256, TaskKind.REGRESSION) == []

    def test_what_was_taken_over_is_no_source(self, store: Store, clock: HandClock) -> None:
        source = self.measure(store, "k", tokens_per_s=2.0)
        trial = store.plan_trial(start_study(store), make_plan())
        claim = claim_trial(store, trial, measurement_key="k")
        assert claim is not None
        store.finish_attempt(claim, outcome=Outcome.LOST)
        clock.seconds += 1
        store.reuse_measurement(RUNS[trial.study_id], trial.id, source)
        assert store.find_measurement("k") == source

    def test_only_for_queued_trials_of_running_studies(self, store: Store) -> None:
        source = self.measure(store, "k", tokens_per_s=2.0)
        claim = start_trial(store)
        with pytest.raises(Conflict, match="not queued"):
            store.reuse_measurement(RUNS[claim.trial.study_id], claim.trial.id, source)
        store.release_attempt(claim, "the supervisor was stopped")
        store.release_study(RUNS[claim.trial.study_id])
        with pytest.raises(StaleFence, match="queued"):
            store.reuse_measurement(RUNS[claim.trial.study_id], claim.trial.id, source)


class TestEvents:
    def test_history_of_a_study(self, store: Store) -> None:
        study = start_study(store)
        store.save_facts(study, make_facts())
        trial = finish_first(store, study)
        store.plan_trial(study, make_plan(2e-4))
        store.finish_study(study, StudyState.SUCCEEDED, recommendation=make_recommendation(trial))
        history = store.events_after(study.id, 0)
        assert [event.kind for event in history] == [
            "study.created",
            "study.running",
            "study.facts",
            "trial.planned",
            "trial.running",
            "trial.finished",
            "trial.planned",
            "trial.finished",
            "study.finished",
        ]
        assert [event.seq for event in history] == list(range(1, 10))
        assert history[5].payload["tokens_per_s"] == 10.0
        assert history[-1].payload == {
            "state": "succeeded",
            "reason": None,
            "trial_id": trial.id,
            "score": 87.5,
        }

    def test_appended_and_read_from_a_number_on(self, store: Store, clock: HandClock) -> None:
        study = start_study(store)
        written = [store.append_event(study, "trial.progress", {"step": step}) for step in range(4)]
        assert [event.seq for event in written] == [3, 4, 5, 6]
        assert written[0].created_at == clock.utc()
        assert store.events_after(study.id, 4) == written[2:]
        assert store.events_after(study.id, 2, limit=2) == written[:2]
        assert store.events_after(study.id, 6) == []

    def test_a_number_that_is_none_becomes_null(self, store: Store) -> None:
        study = start_study(store)
        store.append_event(study, "trial.progress", {"loss": float("nan"), "losses": [1.0, float("inf")]})
        assert store.events_after(study.id, 2)[0].payload == {"loss": None, "losses": [1.0, None]}

    def test_a_failed_change_leaves_no_event(self, store: Store) -> None:
        claim = start_trial(store)
        before = kinds(store, claim.trial.study_id)
        with pytest.raises(Conflict):
            store.release_study(RUNS[claim.trial.study_id])
        assert kinds(store, claim.trial.study_id) == before

    def test_numbers_have_no_gaps_under_concurrent_writers(self, store: Store, url: str) -> None:
        study = start_study(store)
        stores = [store, store, Store.open(url), Store.open(url)]

        def write(writer: Store) -> list[int]:
            return [writer.append_event(study, "tick", {}).seq for _ in range(25)]

        with ThreadPoolExecutor(len(stores)) as pool:
            given = [seq for numbers in pool.map(write, stores) for seq in numbers]
        for other in stores[2:]:
            other.close()
        assert sorted(given) == list(range(3, 103))
        assert [event.seq for event in store.events_after(study.id, 0)] == list(range(1, 103))


CLAIM_ALL = """
store = Store.open(url)
study_id, fence, *trial_ids = trial_ids
claim = StudyClaim(study=store.get_study(study_id), fence=int(fence), moved=False)
wait()
claimed = [
    trial_id for trial_id in trial_ids
    if store.claim_trial(claim, trial_id, devices=[f"device of {trial_id}"], worker="w")
]
print(json.dumps(claimed))
store.close()
"""

OPEN = """
wait()
Store.open(url).close()
print("null")
"""


HEAD = """
import json, sys
from rankwise.store import Store, StudyClaim
url, *trial_ids = sys.argv[1:]
def wait():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def run_at_once(script: str, url: str, *arguments: str) -> list[Any]:
    """Run a script in four processes that start their work together; returns what each printed."""
    command = [sys.executable, "-c", HEAD + script, url, *arguments]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in processes]


class TestProcesses:
    def test_trials_are_claimed_once(self, store: Store, url: str) -> None:
        study = start_study(store)
        ids = [store.plan_trial(study, make_plan(1e-4 * number)).id for number in range(1, 101)]
        claimed = [
            trial_id
            for each in run_at_once(CLAIM_ALL, url, study.id, str(study.fence), *ids)
            for trial_id in each
        ]
        assert sorted(claimed) == sorted(ids)
        assert all(trial.attempts == 1 for trial in store.list_trials(study.id))

    def test_several_may_create_the_database_at_once(self, empty_url: str) -> None:
        assert run_at_once(OPEN, empty_url) == [None] * 4
        store = Store.open(empty_url)
        assert store.list_studies() == []
        store.close()


class TestDevices:
    def test_a_quarantine_is_news_once_and_ends_for_good_or_by_hand(
        self, store: Store, clock: HandClock
    ) -> None:
        assert store.quarantine_device(GPU, QuarantineCause.MEMORY, "it leaks", baseline_bytes=70 * 2**30)
        assert not store.quarantine_device(GPU, QuarantineCause.HEALTH, "it is worn out")
        clock.seconds += 1
        assert store.quarantine_device("GPU-2", QuarantineCause.HEALTH, "it is worn out")
        first, second = store.list_quarantines()
        assert (first.device, first.reason, first.baseline_bytes) == (GPU, "it leaks", 70 * 2**30)
        assert (second.device, second.cause) == ("GPU-2", QuarantineCause.HEALTH)
        assert second.since == clock.utc()
        store.lift_quarantine(GPU)
        assert store.quarantine_device(GPU, QuarantineCause.MEMORY, "it leaks")
        assert store.release_device(GPU).reason == "it leaks"
        assert [each.device for each in store.list_quarantines()] == ["GPU-2"]
        assert len(store.list_quarantines(with_released=True)) == 2
        assert not store.quarantine_device(GPU, QuarantineCause.MEMORY, "it leaks")
        assert store.quarantine_device(GPU, QuarantineCause.MEMORY, "it leaks more")
        with pytest.raises(NotFound):
            store.release_device("GPU-3")

    def test_who_has_a_device_is_known(self, store: Store) -> None:
        study = start_study(store)
        assert store.leased_devices([GPU]) == set()
        assert store.claim_trial(study, store.plan_trial(study, make_plan()).id, devices=[GPU], worker="w")
        assert store.leased_devices([GPU, "GPU-2"]) == {GPU}
        assert store.leased_devices(["GPU-2"]) == set()
