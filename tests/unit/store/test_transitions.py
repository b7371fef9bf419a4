from __future__ import annotations

from rankwise.optimizer.domain import StudyState, TrialState
from rankwise.store.transitions import STUDY_SOURCES, TRIAL_SOURCES


def test_every_state_has_its_sources() -> None:
    assert set(STUDY_SOURCES) == set(StudyState)
    assert set(TRIAL_SOURCES) == set(TrialState)


def test_nothing_leaves_a_final_state() -> None:
    assert not any(state.is_final for sources in STUDY_SOURCES.values() for state in sources)
    assert all(TrialState.FINISHED not in sources for sources in TRIAL_SOURCES.values())
