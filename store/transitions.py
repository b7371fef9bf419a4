"""The legal transitions of studies and trials, in one place.

The store puts these sets into the WHERE of every UPDATE that changes a state, so that an illegal
transition changes no row whichever process tries it. Knows nothing about SQL.

    study   queued ⇄ running → succeeded | failed | cancelled        queued → cancelled
    trial   queued ⇄ running → finished     queued → finished (its study ended, or its measurement was known)
"""

from __future__ import annotations

from collections.abc import Mapping

from ..optimizer.domain import StudyState, TrialState

MAX_ATTEMPTS = 3
"""A trial whose attempts were lost this many times is finished as lost: it may be what kills the machine.

Attempts that were disturbed or released do not count: their processes did as they should."""

STUDY_SOURCES: Mapping[StudyState, frozenset[StudyState]] = {
    StudyState.QUEUED: frozenset({StudyState.RUNNING}),
    StudyState.RUNNING: frozenset({StudyState.QUEUED}),
    StudyState.SUCCEEDED: frozenset({StudyState.RUNNING}),
    StudyState.FAILED: frozenset({StudyState.RUNNING}),
    StudyState.CANCELLED: frozenset({StudyState.QUEUED, StudyState.RUNNING}),
}
"""For each state of a study, the states that it may be entered from."""

TRIAL_SOURCES: Mapping[TrialState, frozenset[TrialState]] = {
    TrialState.QUEUED: frozenset({TrialState.RUNNING}),
    TrialState.RUNNING: frozenset({TrialState.QUEUED}),
    TrialState.FINISHED: frozenset({TrialState.QUEUED, TrialState.RUNNING}),
}
"""For each state of a trial, the states that it may be entered from."""
