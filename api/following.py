"""Following a study until it is final, with a supervisor kept alive for it meanwhile.

Shared by the command line and the Python entry. Knows nothing about terminals, nor about how a study is run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..errors import RunnerError
from ..home import Home
from ..optimizer.domain import Event, Study, StudyRequest, StudyState, Trial
from ..runners.place import place_of
from ..runners.supervisor_process import SupervisorProcess, lock_holder
from ..store import Store
from ..store.events import BASELINE_LEFT_OUT, EventKind
from .units import format_bytes

POLL_S = 0.2
_UNFINISHED = (StudyState.QUEUED, StudyState.RUNNING)
MAX_FRUITLESS_STARTS = 3
"""A supervisor that ends this often in a row without a new event will not do better the next time."""


def follow(
    store: Store,
    study_id: str,
    home: Home,
    on_change: Callable[[Study, Sequence[Trial]], None] = lambda _study, _trials: None,
    on_notice: Callable[[str], None] = lambda _sentence: None,
    *,
    allow_remote_code: bool = False,
) -> Study:
    """Run the study, or wait while another process runs it, and return it once it is final.

    Args:
        store: the database of ``home``.
        study_id: a study that is stored already, in whatever state.
        home: where the supervisor is elected.
        on_change: called with the study and its trials at first, after every change and at the end.
        on_notice: called with sentences about why nothing happens yet, or happens again.
        allow_remote_code: a supervisor of our own may run code that comes with the model.

    Raises:
        NotFound: no such study.
        RunnerError: the supervisor ended again and again without any progress.
    """
    keeper = _Keeper(home, study_id, on_notice, allow_remote_code=allow_remote_code)
    seen = 0
    try:
        while True:
            # Asked before the study is read: a supervisor that ends in between has just finished the study.
            in_hand = keeper.has_supervisor() or is_run_elsewhere(store, study_id, home)
            events = store.events_after(study_id, seen)
            study = store.get_study(study_id)
            for sentence in _notices(events):
                on_notice(sentence)
            if events or study.state.is_final:
                on_change(study, store.list_trials(study_id))
            if study.state.is_final:
                return study
            if events:
                seen = events[-1].seq
                keeper.fruitless_starts = 0
            if not in_hand:
                keeper.start_supervisor()
            time.sleep(POLL_S)
    finally:
        keeper.stop()


def find_unfinished(store: Store, request: StudyRequest) -> str | None:
    """The id of the newest study that asked for the same and has not ended; None if there is none.

    How long it may take does not matter: a scheduler leaves each job another time.
    """
    unfinished = [study for state in _UNFINISHED for study in store.list_studies(state=state)]
    same = [
        study
        for study in unfinished
        if replace(study.request, budget_s=0.0) == replace(request, budget_s=0.0)
    ]
    return max((study.id for study in same), default=None)


def _notices(events: Sequence[Event]) -> Iterator[str]:
    """Why trials are tried again, or not at all."""
    for event in events:
        if event.kind == BASELINE_LEFT_OUT:
            yield f"{event.payload['name']} is not measured: {event.payload['reason']}"
        if event.kind == EventKind.CANDIDATE_RULED_OUT:
            yield f"ruled out: {event.payload['candidate']}: {event.payload['reason']}"
        if event.kind == "trial.waiting":
            yield f"trial {event.payload['number']} waits: {event.payload['reason']}"
        if event.kind == "device.quarantined":
            yield f"device {event.payload['device']} is in quarantine: {event.payload['reason']}"
        if event.kind == "source.fetching":
            arrived = format_bytes(event.payload["arrived_bytes"])
            yield f"fetching {event.payload['source']} from the hub: {arrived} so far"
        if event.kind == "extensions.building":
            yield f"building DeepSpeed's {event.payload['extension']}, once on this machine: a minute or more"
        if event.kind in (EventKind.TRIAL_DISTURBED, EventKind.TRIAL_LOST):
            what = "disturbed" if event.kind == EventKind.TRIAL_DISTURBED else "lost"
            number, attempt = event.payload["number"], event.payload["attempt"]
            yield f"trial {number}, attempt {attempt}, {what}: {event.payload['reason']}"


def is_run_elsewhere(store: Store, study_id: str, home: Home) -> bool:
    """Whether a supervisor of another home, on whatever machine, has the study in hand."""
    holder = store.holder_of(study_id)
    return holder is not None and holder.place != place_of(home)


class _Keeper:
    """Sees to it that one supervisor has the study in hand: somebody else's, or one of our own."""

    def __init__(
        self, home: Home, study_id: str, on_notice: Callable[[str], None], *, allow_remote_code: bool
    ) -> None:
        self.fruitless_starts = 0
        self._home = home
        self._study_id = study_id
        self._on_notice = on_notice
        self._allow_remote_code = allow_remote_code
        self._announced_pid: int | None = None
        self._process: SupervisorProcess | None = None

    def has_supervisor(self) -> bool:
        """Whether a supervisor runs that works on the study, or that ours must wait for."""
        if self._process is not None and self._process.is_alive():
            return True
        holder = lock_holder(self._home)
        if holder is None:
            return False
        self.fruitless_starts = 0
        is_busy_elsewhere = holder.mode == "study" and holder.study_id != self._study_id
        if is_busy_elsewhere and holder.pid != self._announced_pid:
            self._announced_pid = holder.pid
            self._on_notice(f"waiting for process {holder.pid}, which runs study {holder.study_id}")
        return True

    def start_supervisor(self) -> None:
        if self.fruitless_starts == MAX_FRUITLESS_STARTS:
            raise RunnerError(
                f"the supervisor of study {self._study_id} ended {MAX_FRUITLESS_STARTS} times in a row "
                "without any progress",
                next_step=f"read the logs in {self._home.logs}",
            )
        self.fruitless_starts += 1
        self._process = SupervisorProcess.start(
            self._home, study_id=self._study_id, allow_remote_code=self._allow_remote_code
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
