"""How many studies and trials there are, and how long trials took: read from indexes, not from rows."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import case, func, select
from sqlmodel import col

from ..optimizer.domain import Outcome, Rung, StudyState, TrialState
from .database import Database
from .tables import DeviceLeaseRow, StudyRow, TrialRow

BUCKETS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialTotal:
    """Trials that are alike in state, outcome and rung, of all studies."""

    state: TrialState
    outcome: Outcome | None
    rung: Rung
    count: int
    timed: int
    """Of them, those of which it is known how long they took."""
    wall_s: float
    """Of these, together."""
    within: tuple[int, ...]
    """Of these, how many took so long at most, for each of :data:`BUCKETS_S`."""


class Counting(Database):
    """What the store tells those who watch over it."""

    def count_studies(self) -> dict[StudyState, int]:
        """How many studies are in each state."""
        query = select(col(StudyRow.state), func.count()).group_by(col(StudyRow.state))
        with self._read() as connection:
            counts = dict.fromkeys(StudyState, 0)
            for state, count in connection.execute(query):
                counts[state] = count
            return counts

    def count_devices_in_use(self) -> int:
        """How many devices trials run on."""
        with self._read() as connection:
            return connection.scalar(select(func.count()).select_from(DeviceLeaseRow)) or 0

    def total_trials(self) -> list[TrialTotal]:
        """All trials by state, outcome and rung."""
        kinds = (col(TrialRow.state), col(TrialRow.outcome), col(TrialRow.rung))
        wall_s = col(TrialRow.wall_s)
        query = select(
            *kinds,
            func.count(),
            func.count(wall_s),
            func.sum(wall_s),
            *(func.count(case((wall_s <= limit, 1))) for limit in BUCKETS_S),
        ).group_by(*kinds)
        with self._read() as connection:
            return [
                TrialTotal(
                    state=state,
                    outcome=outcome,
                    rung=rung,
                    count=count,
                    timed=timed,
                    wall_s=total_s or 0.0,
                    within=tuple(within),
                )
                for state, outcome, rung, count, timed, total_s, *within in connection.execute(query)
            ]
