"""The ranking of a study, in pages.

Of a study that succeeded it is a part of what it recommends, and only the trials of a page are read. That of
any other is worked out from all its trials and kept until the study has changed. What a large study's ranking
costs is not spent again at every event of it: one that took long is shown for a while, and says as of which
event it is. Knows nothing of requests.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Protocol

from ..optimizer.domain import Study, StudyState
from ..optimizer.overview import Place, leaderboard
from ..optimizer.scorer import Aim, rank
from ..store import Store
from ..store.marks import Mark
from .response_schemas.leaderboard import PlaceDocument

MAX_PLACES = 20_000
"""That are kept of all studies together."""
AT_ONCE = 32
PATIENCE = 20.0
"""A ranking is shown for this many times what it cost, whatever happens meanwhile."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a study's places, best first, and of how many they are."""

    places: tuple[PlaceDocument, ...]
    compared: int


class Standings(Protocol):
    """How a study's candidates stand."""

    @property
    def as_of(self) -> Mark:
        """What of the study is taken into account."""
        ...

    def page(self, begin: int, limit: int) -> Page:
        """Places from the one after ``begin`` others on."""
        ...


@dataclass(frozen=True, slots=True)
class Recommended:
    """The standings of a study that succeeded, read when a page is wanted."""

    as_of: Mark
    _store: Store

    def page(self, begin: int, limit: int) -> Page:
        """Places with the trials of their shapes: what a place shows depends on no others."""
        study_id = self.as_of.study_id
        whole = self._store.get_recommendation(study_id)
        shown = replace(whole, ranking=whole.ranking[begin : begin + limit])
        places = leaderboard(
            self._store.list_trials_of_shapes(study_id, [scored.trial_id for scored in shown.ranking]),
            shown,
            memory_limit_bytes=self._store.get_request(study_id).memory_limit_bytes,
        )
        return Page(tuple(map(PlaceDocument.of, places)), len(whole.ranking))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All places of a study that has not succeeded."""

    as_of: Mark
    places: tuple[PlaceDocument, ...]
    made_at_s: float
    cost_s: float

    def page(self, begin: int, limit: int) -> Page:
        """Places from the one after ``begin`` others on."""
        return Page(self.places[begin : begin + limit], len(self.places))

    def is_good_for(self, mark: Mark) -> bool:
        """Whether it is still to be shown."""
        if self.as_of == mark:
            return True
        if mark.state is not self.as_of.state:
            return False
        return time.monotonic() - self.made_at_s < PATIENCE * self.cost_s


class Leaderboards:
    """Rankings by study, the one used last kept longest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: OrderedDict[str, Standing] = OrderedDict()
        self._lock = threading.Lock()
        self._working = [threading.Lock() for _ in range(AT_ONCE)]

    def of(self, mark: Mark) -> Standings:
        """The ranking of the study with this mark; blocks while it is worked out."""
        if (found := self.ready(mark)) is not None:
            return found
        # Those who ask meanwhile wait for the same one, and seldom for another study's.
        with self._working[hash(mark.study_id) % AT_ONCE]:
            return self._find(mark) or self._work_out(mark)

    def ready(self, mark: Mark) -> Standings | None:
        """The same where nothing has to be worked out."""
        return Recommended(mark, self._store) if mark.state is StudyState.SUCCEEDED else self._find(mark)

    def _find(self, mark: Mark) -> Standing | None:
        with self._lock:
            found = self._kept.get(mark.study_id)
            if found is None or not found.is_good_for(mark):
                return None
            self._kept.move_to_end(mark.study_id)
            return found

    def _work_out(self, mark: Mark) -> Standing:
        began_s = time.monotonic()
        places = _places(self._store, self._store.get_study(mark.study_id))
        ended_s = time.monotonic()
        made = Standing(
            as_of=mark,
            places=tuple(PlaceDocument.of(place) for place in places),
            made_at_s=ended_s,
            cost_s=ended_s - began_s,
        )
        with self._lock:
            self._kept[mark.study_id] = made
            self._kept.move_to_end(mark.study_id)
            while len(self._kept) > 1 and sum(len(each.places) for each in self._kept.values()) > MAX_PLACES:
                self._kept.popitem(last=False)
        return made


def _places(store: Store, study: Study) -> tuple[Place, ...]:
    ranking = rank(store.list_trials(study.id, with_heldout=True), Aim.of(study))
    return tuple(
        Place(
            scored=scored,
            trial=compared.trial,
            measurement=compared.measurement,
            heldout_loss=compared.measurement.heldout_loss,
            seeds=max(1, len(scored.replicates)),
            comparison=None,
            is_recommended=False,
        )
        for scored, compared in zip(ranking.scored, ranking.compared, strict=True)
    )
