"""Studies in figures, kept ready: what was read of a finished trial is not read again.

Knows nothing of routes.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pydantic_core

from ..optimizer.codec import from_json
from ..optimizer.comparison import comparable_trials, memory_column
from ..optimizer.domain import (
    OBJECTIVE_WEIGHTS,
    QUALITY_WITHIN,
    SCHEMA_VERSION,
    Measurement,
    Study,
    StudyState,
    Trial,
    TrialPlan,
)
from ..optimizer.overview import enumerated_of, funnel
from ..optimizer.quality import standings
from ..optimizer.scorer import TIE_POINTS, Aim, Ranking, rank
from ..store import Store
from ..store.figures import Stamp
from .response_schemas.board import (
    BoardColumn,
    ObjectiveWeights,
    StandingPlace,
    StandingsDocument,
    board_row,
)
from .wording import describe_comparison

MOST_STUDIES = 8
"""That are kept ready; one of 5,000 trials takes some 6 MB."""
LEAST_PAUSE_S = 1.0
PAUSES = 4.0
"""Standings are worked out again after so many times as long as that took: followers of a large study ask for
them at every event."""
PAGE = 1000
GZIP_LEVEL = 6
"""A board of 5,000 trials becomes a sixth, in some 40 ms."""


class Body:
    """A document as JSON, as it is and compressed."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain

    @cached_property
    def compressed(self) -> bytes:
        """By gzip."""
        return gzip.compress(self.plain, GZIP_LEVEL)


@dataclass
class _Kept:
    """Of one study."""

    rows: dict[Stamp, list[Any]] = field(default_factory=dict)
    rows_lock: threading.Lock = field(default_factory=threading.Lock)
    whole: Body | None = None
    """The board of all trials as of ``whole_seq``."""
    whole_seq: int = -1
    standings: Body | None = None
    standings_seq: int = -1
    standings_until: float = 0.0
    standings_lock: threading.Lock = field(default_factory=threading.Lock)
    """Its own: whoever waits for a row is not to wait for these."""


class Boards:
    """The studies that somebody looks at."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def board(self, study_id: str, *, after: int) -> Body:
        """A :class:`BoardDocument` as JSON: all rows, or those of which events after this number tell.

        Raises:
            NotFound: no study has this id.
        """
        kept = self._of(study_id)
        if after == 0 and kept.whole and kept.whole_seq == self._store.last_event(study_id):
            return kept.whole
        changed: list[str] | None = None
        if after > 0:
            events = self._store.events_after(study_id, after, limit=PAGE)
            if len(events) < PAGE:  # else more happened than is worth looking through
                told = (event.payload.get("trial_id") for event in events)
                changed = list(dict.fromkeys(str(trial_id) for trial_id in told if trial_id))
        last_seq, stamps = self._store.list_stamps(study_id, changed)
        if changed is not None:
            # What happened since they were read is told next time, when it is read again.
            last_seq = events[-1].seq if events else after
        rows = list(self._rows(study_id, stamps))
        values = zip(*rows, strict=True) if rows else [()] * len(BoardColumn)
        document = {
            "schema_version": SCHEMA_VERSION,
            "study_id": study_id,
            "last_seq": last_seq,
            "columns": dict(zip(BoardColumn, values, strict=True)),
        }
        body = Body(pydantic_core.to_json(document))
        if changed is None:
            kept.whole, kept.whole_seq = body, last_seq
        return body

    def standings(self, study_id: str) -> Body:
        """A :class:`StandingsDocument` as JSON, at times of a moment ago.

        Raises:
            NotFound: no study has this id.
        """
        last_seq = self._store.last_event(study_id)
        kept = self._of(study_id)
        with kept.standings_lock:
            if kept.standings and kept.standings_seq == last_seq:
                return kept.standings
            study, started_s = self._store.get_study(study_id), time.monotonic()
            if kept.standings and started_s < kept.standings_until and not study.state.is_final:
                return kept.standings
            document = standings_of(self._store, study, last_seq)
            kept.standings = Body(document.model_dump_json().encode())
            kept.standings_seq = last_seq
            now = time.monotonic()
            pause_s = 0.0 if now - started_s < 0.1 else max(LEAST_PAUSE_S, PAUSES * (now - started_s))
            kept.standings_until = now + pause_s
            return kept.standings

    def _rows(self, study_id: str, stamps: Sequence[Stamp]) -> Iterator[list[Any]]:
        kept = self._of(study_id)
        known = kept.rows
        missing = [stamp.trial_id for stamp in stamps if stamp not in known]
        fresh = {
            figures.stamp: board_row(figures)
            for figures in self._store.list_figures(study_id, missing if len(missing) < PAGE else None)
        }
        if fresh:
            renewed = {stamp.trial_id for stamp in fresh}
            with kept.rows_lock:
                # Not changed in place: other threads read it.
                kept.rows = {s: row for s, row in kept.rows.items() if s.trial_id not in renewed} | fresh
        newest = {stamp.trial_id: row for stamp, row in fresh.items()}
        for stamp in stamps:
            row = newest.get(stamp.trial_id) or known.get(stamp)
            if row is not None:
                yield row

    def _of(self, study_id: str) -> _Kept:
        with self._lock:
            kept = self._kept.setdefault(study_id, _Kept())
            self._kept.move_to_end(study_id)
            while len(self._kept) > MOST_STUDIES:
                self._kept.popitem(last=False)
            return kept


def standings_of(store: Store, study: Study, last_seq: int) -> StandingsDocument:
    """How a study's candidates stand, whether it has ended or not."""
    aim = Aim.of(study)
    trials = _ranked_trials(store, study, aim)
    own, asked = study.request.quality_within, aim.quality_within
    lets_pass = list(dict.fromkeys((own, asked, *QUALITY_WITHIN.values())))
    lets_pass.insert(0, lets_pass.pop(lets_pass.index(own)))
    ranking = rank(trials, aim)
    found = standings(ranking.compared)
    everyone = [True] * len(ranking.compared)
    good = [everyone if found is None else found.as_good(within) for within in lets_pass]
    chosen = None
    if study.state is StudyState.SUCCEEDED:
        chosen = store.get_recommendation(study.id).trial_id
    stages = funnel(
        trials,
        store.list_ruled_out(study.id),  # the others tell the funnel nothing
        enumerated=enumerated_of(store.events_after(study.id, 0)),
        ranking=ranking.scored if study.state.is_final else (),
        memory_limit_bytes=study.request.memory_limit_bytes,
    )
    return StandingsDocument(
        study_id=study.id,
        last_seq=last_seq,
        scoring=aim.scoring,
        weights=aim.weights,
        lets_pass=tuple(lets_pass),
        asked=lets_pass.index(asked),
        objectives=tuple(
            ObjectiveWeights(name=name, weights=weights, lets_pass=lets_pass.index(QUALITY_WITHIN[name]))
            for name, weights in OBJECTIVE_WEIGHTS.items()
        ),
        tie_points=TIE_POINTS,
        memory_limit_bytes=aim.memory_limit_bytes,
        device_bytes=aim.memory_total_bytes,
        places=tuple(_places(ranking, good)),
        stages=stages,
        recommended=chosen,
    )


def _ranked_trials(store: Store, study: Study, aim: Aim) -> list[Trial]:
    """All trials by number, without what a ranking does not need: logs, estimates, and the rows' scores of
    trainings that are not compared."""
    trials = [
        Trial(
            id=figures.stamp.trial_id,
            study_id=study.id,
            number=figures.number,
            plan=TrialPlan(
                candidate=figures.candidate,
                rung=figures.rung,
                replicate=figures.replicate,
                train_steps=figures.train_steps,
            ),
            state=figures.stamp.state,
            attempts=figures.stamp.attempts,
            outcome=figures.outcome,
            reason=figures.stamp.reason,
            measurement=from_json(Measurement, figures.measured) if figures.measured else None,
            wall_s=figures.wall_s,
        )
        for figures in store.list_figures(study.id)
    ]
    compared = comparable_trials(trials, aim.memory_limit_bytes)
    scores = store.list_heldout([trial.id for each in compared for trial in each.replicates])
    trials = [replace(each, heldout=scores[each.id]) if each.id in scores else each for each in trials]
    return sorted(trials, key=lambda each: each.number)


def _places(ranking: Ranking, good: Sequence[Sequence[bool]]) -> Iterator[StandingPlace]:
    column = memory_column([each.measurement for each in ranking.compared])
    comparisons = {comparison.trial_id: comparison for comparison in ranking.comparisons}
    for index, (scored, compared) in enumerate(zip(ranking.scored, ranking.compared, strict=True)):
        measured = compared.measurement
        yield StandingPlace(
            trial_id=scored.trial_id,
            number=scored.number,
            candidate_id=compared.trial.candidate.id,
            rank=scored.rank,
            score=scored.score,
            parts=scored.parts,
            as_good=tuple(each[index] for each in good),
            trainable_params=measured.trainable_params,
            memory_bytes=getattr(measured, column) if column else None,
            judged_loss=measured.judged_loss,
            speed=measured.speed,
            speed_unit=measured.speed_unit,
            heldout_loss=measured.heldout_loss,
            heldout_loss_se=measured.heldout_loss_se,
            seeds=max(1, len(scored.replicates)),
            on_pareto_front=scored.on_pareto_front,
            tied_with_best=scored.tied_with_best,
            is_as_good=scored.is_as_good,
            finish_s=scored.finish_s,
            beside="" if scored.rank == 1 else describe_comparison(comparisons.get(scored.trial_id)),
        )
