"""Who may write: workers, and the rights to run a study or a trial that they hold for a while.

Knows nothing about how claims are granted, renewed or ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..optimizer.domain import Study, Trial

LEASE_S = 45.0
"""How long a claim lives without a heartbeat."""
HEARTBEAT_S = 10.0
"""How often a claim is renewed: three heartbeats may be missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A supervisor, as the database knows it."""

    name: str
    """For people: ``host:pid``."""
    place: str
    """Where it runs. Of all supervisors of a place one lives at a time."""
    environment: str | None = None
    """What its measurements may be compared with (``environment_key``); None: with all that are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyClaim:
    """The right to run one study, for as long as the lease is renewed."""

    study: Study
    """As it was when it was claimed."""
    fence: int
    """How often the study has been claimed; all writes of its run carry it."""
    moved: bool
    """It ran in another place before: paths and devices in its facts are that place's."""

    @property
    def id(self) -> str:
        """The study's id."""
        return self.study.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to run one trial on these devices, for as long as the lease is renewed."""

    trial: Trial
    fence: int
    """Names the attempt. Greater than the fence of every earlier attempt; writes carry it."""
    devices: tuple[str, ...]
    disturbed_before: int
    """Earlier attempts at the trial that were disturbed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What was found without anybody who looks after it."""

    trials: tuple[Trial, ...] = ()
    """Their attempts were ended as lost."""
    studies: tuple[str, ...] = ()
    """Ids of studies that are back in the queue, or cancelled if that was asked for."""

    def __add__(self, other: Reaped) -> Reaped:
        return Reaped(trials=self.trials + other.trials, studies=self.studies + other.studies)
