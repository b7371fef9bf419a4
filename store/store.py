"""The one interface to the database: studies, trials, attempts, events, recommendations.

Each public method is one transaction. Knows nothing about processes, torch or HTTP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, or_, select, true, update
from sqlalchemy.orm import Session
from sqlmodel import col

from ..errors import NotFound, StoreError
from ..optimizer.domain import (
    Candidate,
    Estimate,
    Event,
    HeldoutScores,
    Measurement,
    Outcome,
    Recommendation,
    Rung,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialPlan,
    TrialState,
)
from . import events, schema
from .clock import Clock, SystemClock
from .events import EventKind
from .mapping import (
    document,
    estimate_of,
    event_of,
    heldout_of,
    recommendation_of,
    study_of,
    trial_of,
)
from .sqlite import connect_engine, for_writes, sqlite_url, trouble_reported
from .tables import AttemptRow, EstimateRow, EventRow, HeldoutRow, RecommendationRow, StudyRow, TrialRow
from .transaction import Transaction, find_study, new_id, require_running, stale
from .transitions import STUDY_SOURCES

LEASE_S = 45.0
"""How long an attempt lives without a heartbeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to run one trial on these devices, for as long as the lease is renewed."""

    trial: Trial
    fence: int
    """Names the attempt. Greater than the fence of every earlier attempt; writes carry it."""
    devices: tuple[str, ...]
    disturbed_before: int
    """Earlier attempts at the trial that were disturbed."""


class Store:
    """The memory of one ``RANKWISE_HOME``, safe to share between threads and processes.

    What it promises, whichever database is behind it:

    * a method has either happened entirely, and survives a power cut, or not at all;
    * only the transitions of ``transitions.py`` happen, whoever races;
    * a trial runs only in a running study, with one live attempt; a device serves one attempt;
    * a write with a fence that is no longer live changes nothing;
    * a study has a recommendation exactly when it succeeded;
    * events of a study are numbered 1, 2, 3 … (``events.py`` lists those that the store appends itself).

    Every method raises StoreError when the database cannot be used: locked, full, damaged.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    @classmethod
    def open(cls, url_or_path: Path | str, *, clock: Clock | None = None) -> Store:
        """Connect to a database; create it where there is none, upgrade it where it is older.

        Raises:
            StoreError: it is newer than this rankwise, of another program, or unusable. It is unchanged.
        """
        engine = connect_engine(sqlite_url(url_or_path))
        try:
            with trouble_reported(engine):
                schema.bring_up_to_date(engine)
        except StoreError:
            engine.dispose()
            raise
        return cls(engine, clock or SystemClock())

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def schema_version(self) -> str:
        """The version of the database's schema, such as ``0001``."""
        with trouble_reported(self._engine), self._engine.connect() as connection:
            return schema.stored_version(connection) or ""

    # Studies

    def create_study(self, request: StudyRequest) -> Study:
        """Put a study into the queue."""
        with self._write() as transaction:
            row = StudyRow(
                ulid=new_id(),
                request=document(request),
                state=StudyState.QUEUED,
                created_at=transaction.now,
                updated_at=transaction.now,
            )
            transaction.session.add(row)
            transaction.session.flush()
            transaction.append_event(row, EventKind.STUDY_CREATED, events.study_created(request))
            return study_of(row)

    def get_study(self, study_id: str) -> Study:
        """One study.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as session:
            return study_of(find_study(session, study_id))

    def list_studies(
        self, *, limit: int = 50, before: str | None = None, state: StudyState | None = None
    ) -> list[Study]:
        """Studies, newest first.

        Args:
            limit: how many at most.
            before: only studies older than the one with this id: the last of the previous page.
            state: only studies in this state.

        Raises:
            NotFound: no study has the id ``before``.
        """
        query = select(StudyRow).order_by(col(StudyRow.id).desc()).limit(limit)
        if state is not None:
            query = query.where(col(StudyRow.state) == state)
        with self._read() as session:
            if before is not None:
                query = query.where(col(StudyRow.id) < find_study(session, before).id)
            return [study_of(row) for row in session.scalars(query)]

    def claim_study(self, *, only: str | None = None, include_running: bool = False) -> Study | None:
        """Take the oldest queued study in hand: queued → running. None if there is none.

        Args:
            only: claim no other than this one, whether it is queued or was left running.
            include_running: adopt studies that were left running, too. For the elected supervisor, which
                knows that whoever ran them is dead.
        """
        claimable = set(STUDY_SOURCES[StudyState.RUNNING])
        if include_running or only is not None:
            claimable.add(StudyState.RUNNING)
        oldest = select(col(StudyRow.id)).where(col(StudyRow.state).in_(claimable))
        if only is not None:
            oldest = oldest.where(col(StudyRow.ulid) == only)
        oldest = oldest.order_by(col(StudyRow.id)).limit(1).with_for_update(skip_locked=True)
        claim = (
            update(StudyRow)
            .where(col(StudyRow.id) == oldest.scalar_subquery())
            .values(state=StudyState.RUNNING)
            .returning(StudyRow)
        )
        with self._write() as transaction:
            row = transaction.session.scalars(claim).one_or_none()
            if row is None:
                return None
            transaction.append_event(row, EventKind.STUDY_RUNNING)
            return study_of(row)

    def release_study(self, study_id: str) -> Study:
        """Put a study back into the queue, for the next supervisor: running → queued.

        Raises:
            NotFound: no study has this id.
            Conflict: it is not running, or one of its trials still is.
        """
        with self._write() as transaction:
            row = transaction.lock_study(study_id)
            transaction.move_study(row, StudyState.QUEUED)
            transaction.append_event(row, EventKind.STUDY_RELEASED)
            return study_of(row)

    def request_cancel(self, study_id: str) -> Study:
        """Cancel a queued study at once; ask the supervisor to cancel a running one.

        Raises:
            NotFound: no study has this id.
            Conflict: it has ended.
        """
        with self._write() as transaction:
            row = transaction.lock_study(study_id)
            if row.state is not StudyState.RUNNING:
                transaction.end_study(row, StudyState.CANCELLED, "cancelled on request")
            elif not row.cancel_requested:
                transaction.append_event(row, EventKind.STUDY_CANCEL_REQUESTED)
            row.cancel_requested = True
            return study_of(row)

    def save_facts(self, study_id: str, facts: StudyFacts) -> Study:
        """Keep what the probes found for a running study, in place of facts found before.

        Raises:
            NotFound: no study has this id.
            Conflict: it is not running.
        """
        with self._write() as transaction:
            row = transaction.lock_study(study_id)
            require_running(row)
            row.facts = document(facts)
            transaction.append_event(row, EventKind.STUDY_FACTS, events.study_facts(facts))
            return study_of(row)

    def add_wall(self, study_id: str, wall_s: float) -> float:
        """Add to the study's wall time, so that it survives restarts. Returns the sum over all its runs.

        Raises:
            NotFound: no study has this id.
        """
        with self._write() as transaction:
            row = transaction.lock_study(study_id)
            row.wall_s += wall_s
            return row.wall_s

    def attempts_wall_s(self, study_id: str) -> float:
        """Time in attempts at the study's trials that ended, whatever came of them.

        Unknown, and counted as none, is that of attempts whose worker died.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as session:
            study = find_study(session, study_id)
            query = (
                select(func.sum(AttemptRow.wall_s))
                .join(TrialRow, col(TrialRow.id) == AttemptRow.trial_id)
                .where(col(TrialRow.study_id) == study.id)
            )
            return session.scalars(query).one() or 0.0

    def finish_study(
        self,
        study_id: str,
        state: StudyState,
        reason: str | None = None,
        recommendation: Recommendation | None = None,
    ) -> Study:
        """End a running study. Trials of it that are still queued are finished as cancelled.

        Args:
            study_id: a study none of whose trials is running.
            state: succeeded, failed or cancelled.
            reason: why it failed or ended early, in a sentence.
            recommendation: what it recommends; given exactly when it succeeded.

        Raises:
            NotFound: no study has this id.
            Conflict: it is not running, or one of its trials still is.
        """
        if not state.is_final or (state is StudyState.SUCCEEDED) != (recommendation is not None):
            given = "with" if recommendation else "without"
            raise ValueError(f"a study cannot end as {state} {given} a recommendation")
        with self._write() as transaction:
            row = transaction.lock_study(study_id)
            require_running(row)
            transaction.end_study(row, state, reason, recommendation)
            return study_of(row)

    def get_recommendation(self, study_id: str) -> Recommendation:
        """What a study recommends.

        Raises:
            NotFound: no study has this id, or it has no recommendation (yet).
        """
        with self._read() as session:
            study = find_study(session, study_id)
            row = session.get(RecommendationRow, study.id)
        if row is not None:
            return recommendation_of(row)
        if study.state.is_final:
            why = f" ({study.reason})" if study.reason else ""
            raise NotFound(
                f"study {study_id} has no recommendation: it ended as {study.state}{why}",
                next_step=f"see its trials with `rankwise studies show {study_id}`",
            )
        raise NotFound(
            f"study {study_id} has no recommendation yet: it is {study.state}",
            next_step=f"run it to its end with `rankwise recommend --resume {study_id}`",
        )

    # Estimates

    def save_estimates(self, study_id: str, estimates: Mapping[Candidate, Estimate]) -> None:
        """Keep what dry runs told of shapes; a shape that something was told of before keeps that.

        Raises:
            NotFound: no study has this id.
            Conflict: the study is not running.
        """
        with self._write() as transaction:
            study = transaction.lock_study(study_id)
            require_running(study)
            for candidate, estimate in estimates.items():
                if transaction.find_estimate(study, candidate) is None:
                    transaction.add_estimate(study, candidate, estimate)

    def list_estimates(self, study_id: str) -> dict[Candidate, Estimate]:
        """What dry runs told, in the order of telling: a candidate of each shape, and its estimate.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as session:
            study = find_study(session, study_id)
            query = (
                select(EstimateRow).where(col(EstimateRow.study_id) == study.id).order_by(col(EstimateRow.id))
            )
            return dict(estimate_of(row) for row in session.scalars(query))

    def list_estimated(self, device: str) -> list[Trial]:
        """Probes, of any study, that measured on this device what had been estimated before."""
        query = (
            select(TrialRow, col(StudyRow.ulid))
            .join(StudyRow, col(StudyRow.id) == TrialRow.study_id)
            .join(EstimateRow, col(EstimateRow.id) == TrialRow.estimate_id)
            .where(
                col(EstimateRow.device) == device,
                col(TrialRow.rung) == Rung.PROBE,
                col(TrialRow.outcome) == Outcome.OK,
                col(TrialRow.reused_from).is_(None),
            )
            .order_by(col(TrialRow.id))
        )
        with self._read() as session:
            return [trial_of(row, study_id) for row, study_id in session.execute(query)]

    # Trials and attempts

    def plan_trial(self, study_id: str, plan: TrialPlan) -> Trial:
        """Put a trial of a running study into the queue, once.

        Returns the existing trial, whatever its state, where the study has one of this candidate, rung,
        replicate and number of steps: a resumed search meets its own trials again.

        Raises:
            NotFound: no study has this id.
            Conflict: the study is not running.
        """
        with self._write() as transaction:
            return transaction.plan_trial(transaction.lock_study(study_id), plan)

    def list_trials(self, study_id: str, *, with_heldout: bool = False) -> list[Trial]:
        """All trials of a study, by number.

        Args:
            study_id: the study.
            with_heldout: with what each training scored on every held-out row, some 20 kB of it a training.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as session:
            study = find_study(session, study_id)
            query = select(TrialRow).where(col(TrialRow.study_id) == study.id).order_by(col(TrialRow.number))
            if not with_heldout:
                return [trial_of(row, study_id) for row in session.scalars(query)]
            scored = query.add_columns(HeldoutRow).outerjoin(HeldoutRow)
            return [
                replace(trial_of(row, study_id), heldout=None if scores is None else heldout_of(scores))
                for row, scores in session.execute(scored)
            ]

    def count_trials(self, study_ids: Collection[str]) -> dict[str, dict[TrialState, int]]:
        """How many trials each of these studies has in each state: every study and state has its number."""
        query = (
            select(col(StudyRow.ulid), col(TrialRow.state), func.count())
            .join(TrialRow, col(TrialRow.study_id) == StudyRow.id)
            .where(col(StudyRow.ulid).in_(study_ids))
            .group_by(col(StudyRow.ulid), col(TrialRow.state))
        )
        counts = {study_id: dict.fromkeys(TrialState, 0) for study_id in study_ids}
        with self._read() as session:
            for study_id, state, count in session.execute(query):
                counts[study_id][state] = count
        return counts

    def get_trial(self, trial_id: str) -> Trial:
        """One trial.

        Raises:
            NotFound: no trial has this id.
        """
        query = select(TrialRow, col(StudyRow.ulid)).join(StudyRow).where(col(TrialRow.ulid) == trial_id)
        with self._read() as session:
            found = session.execute(query).one_or_none()
        if found is None:
            raise NotFound(f"there is no trial {trial_id}")
        return trial_of(*found)

    def list_alike(self, structure_sha256: str, task: str, *, limit: int = 10) -> list[list[Trial]]:
        """Trials of the latest studies that succeeded with a model of this structure on this kind of task.

        Returns a list for each study, the oldest first.
        """
        facts = col(StudyRow.facts)
        query = (
            select(StudyRow)
            .where(
                col(StudyRow.state) == StudyState.SUCCEEDED,
                facts["model"]["structure_sha256"].as_string() == structure_sha256,
                facts["dataset"]["task"]["kind"].as_string() == task,
            )
            .order_by(col(StudyRow.id).desc())
            .limit(limit)
        )
        with self._read() as session:
            names = {study.id: study.ulid for study in session.scalars(query)}
            of_study: dict[int, list[Trial]] = {study_id: [] for study_id in sorted(names)}
            trials = select(TrialRow).where(col(TrialRow.study_id).in_(of_study)).order_by(col(TrialRow.id))
            for row in session.scalars(trials):
                of_study[row.study_id].append(trial_of(row, names[row.study_id]))
        return list(of_study.values())

    def find_measurement(self, measurement_key: str) -> Trial | None:
        """The newest trial, of any study, that measured this undisturbed; None if there is none.

        Trials that took over a measurement are left out: it is the trial which measured that is found.
        """
        query = (
            select(TrialRow, col(StudyRow.ulid))
            .join(StudyRow)
            .where(
                col(TrialRow.measurement_key) == measurement_key,
                col(TrialRow.outcome) == Outcome.OK,
                col(TrialRow.reused_from).is_(None),
            )
            .order_by(col(TrialRow.finished_at).desc(), col(TrialRow.id).desc())
        )
        with self._read() as session:
            trials = (trial_of(row, study_id) for row, study_id in session.execute(query))
            return next((it for it in trials if it.measurement and not it.measurement.disturbances), None)

    def reuse_measurement(self, trial_id: str, source: Trial) -> Trial:
        """Finish a queued trial of a running study as ok, with what another trial has measured.

        Args:
            trial_id: the trial, of which no attempt is made.
            source: as :meth:`find_measurement` finds it.

        Raises:
            NotFound: no trial has this id.
            Conflict: its study is not running, or it is not queued.
        """
        with self._write() as transaction:
            study = transaction.lock_study_of_trial(trial_id)
            require_running(study)
            return transaction.reuse_measurement(study, trial_id, source)

    def claim_trial(
        self,
        trial_id: str,
        *,
        devices: Sequence[str],
        worker: str,
        lease_s: float = LEASE_S,
        measurement_key: str | None = None,
    ) -> Claim | None:
        """Take a queued trial in hand, with the devices that it is to run on.

        Args:
            trial_id: a trial of a running study.
            devices: what no other attempt may use meanwhile: the UUIDs of GPUs, a name for the CPU.
            worker: who runs it, for people who look into the database.
            lease_s: how long the attempt lives without a heartbeat.
            measurement_key: what it is going to measure, for :meth:`find_measurement`; None if that is of
                no use to other studies.

        Returns:
            None when the trial is not queued any more or one of the devices is in use.

        Raises:
            NotFound: no trial has this id.
            Conflict: its study is not running.
        """
        with self._write() as transaction:
            study = transaction.lock_study_of_trial(trial_id)
            require_running(study)
            row = transaction.start_trial(trial_id, measurement_key)
            if row is None:
                return None
            attempt = AttemptRow(
                trial_id=row.id,
                number=row.attempts,
                worker=worker,
                boot_id=self._clock.boot_id,
                lease_until=self._clock.boot_s() + lease_s,
                started_at=transaction.now,
            )
            transaction.session.add(attempt)
            transaction.session.flush()
            if not transaction.lease_devices(attempt.fence, devices):
                return None
            trial = trial_of(row, study.ulid)
            transaction.append_event(study, EventKind.TRIAL_RUNNING, events.trial_running(trial, devices))
            return Claim(
                trial=trial,
                fence=attempt.fence,
                devices=tuple(devices),
                disturbed_before=transaction.count_attempts(row.id, Outcome.DISTURBED),
            )

    def heartbeat(self, claim: Claim, *, lease_s: float = LEASE_S) -> None:
        """Renew the lease of a live attempt: it lasts another ``lease_s`` from now.

        Raises:
            StaleFence: the attempt has ended: somebody held its worker for dead.
        """
        renewal = (
            update(AttemptRow)
            .where(col(AttemptRow.fence) == claim.fence, col(AttemptRow.outcome).is_(None))
            .values(lease_until=self._clock.boot_s() + lease_s, boot_id=self._clock.boot_id)
            .returning(col(AttemptRow.fence))
        )
        with self._write() as transaction:
            if transaction.session.scalars(renewal).one_or_none() is None:
                raise stale(claim.fence)

    def finish_attempt(
        self,
        claim: Claim,
        *,
        outcome: Outcome,
        reason: str | None = None,
        measurement: Measurement | None = None,
        heldout: HeldoutScores | None = None,
        log_tail: str | None = None,
        wall_s: float | None = None,
    ) -> Trial:
        """End a live attempt, free its devices, and finish its trial.

        A disturbed attempt takes the trial back to the queue instead, as does a lost one unless it was the
        last one allowed.

        Args:
            claim: the attempt.
            outcome: how it ended.
            reason: why, in a sentence.
            measurement: what was measured; kept when the trial is finished, and only then.
            heldout: what a training scored on each held-out row; kept with the measurement.
            log_tail: the end of what the trial's processes wrote.
            wall_s: from launch to the last report.

        Raises:
            StaleFence: the attempt has ended before: somebody held its worker for dead.
        """
        with self._write() as transaction:
            return transaction.end_attempt(
                claim.fence,
                outcome,
                reason=reason,
                measurement=measurement,
                heldout=heldout,
                log_tail=log_tail,
                wall_s=wall_s,
            )

    def release_attempt(self, claim: Claim, reason: str) -> Trial:
        """End a live attempt whose worker is to stop; its trial goes back to the queue, no failure counted.

        Raises:
            StaleFence: the attempt has ended before: somebody held its worker for dead.
        """
        with self._write() as transaction:
            return transaction.end_attempt(claim.fence, Outcome.CANCELLED, reason=reason, released=True)

    def expire_attempts(self, *, all_of_previous: bool = False) -> list[Trial]:
        """End live attempts that nobody looks after any more as lost. Returns their trials.

        Args:
            all_of_previous: end every live attempt, not only those whose lease is over or that a restart of
                the machine ended. For a newly elected supervisor, before it claims anything.
        """
        over = or_(
            col(AttemptRow.lease_until) <= self._clock.boot_s(),
            col(AttemptRow.boot_id) != self._clock.boot_id,
        )
        live = select(col(AttemptRow.fence)).where(col(AttemptRow.outcome).is_(None))
        abandoned = live.where(true() if all_of_previous else over).order_by(col(AttemptRow.fence))
        reason = "its supervisor ended" if all_of_previous else "its supervisor gave no sign of life"
        with self._write() as transaction:
            fences = transaction.session.scalars(abandoned).all()
            return [transaction.end_attempt(fence, Outcome.LOST, reason=reason) for fence in fences]

    # Events

    def append_event(self, study_id: str, kind: str, payload: Mapping[str, Any]) -> Event:
        """Add a line to a study's history.

        Raises:
            NotFound: no study has this id.
        """
        with self._write() as transaction:
            row = transaction.append_event(transaction.lock_study(study_id), kind, payload)
            return event_of(row, study_id)

    def events_after(self, study_id: str, seq: int, *, limit: int = 1000) -> list[Event]:
        """Events with a greater number than ``seq`` (0 for all), in order, ``limit`` at most.

        Raises:
            NotFound: no study has this id.
        """
        with self._read() as session:
            study = find_study(session, study_id)
            query = (
                select(EventRow)
                .where(col(EventRow.study_id) == study.id, col(EventRow.seq) > seq)
                .order_by(col(EventRow.seq))
                .limit(limit)
            )
            return [event_of(row, study_id) for row in session.scalars(query)]

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """A transaction that sees one state of the database throughout."""
        with trouble_reported(self._engine), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        """A transaction that no other writer comes between; committed at the end, rolled back on an error."""
        engine = for_writes(self._engine)
        with trouble_reported(engine), Session(engine, expire_on_commit=False) as session:
            yield Transaction(session, self._clock.utc())
            session.commit()
