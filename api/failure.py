"""Why a study has no recommendation, as the error that ended it. Knows nothing of where the study is."""

from __future__ import annotations

from typing import Protocol

from .. import errors
from ..errors import RankwiseError, RunnerError
from ..optimizer.domain import StudyState


class Ended(Protocol):
    """A study, or what a server answered of one."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> StudyState: ...
    @property
    def reason(self) -> str | None: ...


def failure_of(study: Ended) -> RankwiseError | None:
    """Why a final study has no recommendation, as the error that ended it; None if it has one.

    The reason of a failed study starts with the name of that error's class.
    """
    if study.state is StudyState.SUCCEEDED:
        return None
    if study.state is StudyState.CANCELLED:
        return RunnerError(f"study {study.id} was cancelled")
    name, _, text = (study.reason or "").partition(": ")
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, RankwiseError)):
        return RunnerError(study.reason or f"study {study.id} failed for no known reason")
    message, _, next_step = text.partition(" — ")
    return kind(message, next_step=next_step)
