"""Processes that claim the same trials at once, and writers that race: who wins, and whether only one does.

    python benchmarks/claims.py                                      SQLite, in a temporary folder
    python benchmarks/claims.py --url postgresql://USER@HOST/NAME    an empty database of PostgreSQL

Eight processes each try to claim all of 400 trials, in orders of their own: each must be claimed once, and
none may fail. Then, 200 times, one process claims a queued study and ends it while another cancels it: each
must end in one final state, told by one event, and stay there. Prints the figures as JSON; the exit code is 1
when something of this does not hold. Takes about half a minute on two cores that have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rankwise.errors import Conflict
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Level,
    Method,
    Recipe,
    Rung,
    StudyRequest,
    StudyState,
    TrialPlan,
)
from rankwise.store import Store, StudyClaim, Worker

REQUEST = StudyRequest(model="models/tiny", dataset="reviews.csv")
PACE_S = 0.03
SPREAD_S = 0.02
"""A claim and an end take 5 to 15 ms, so that either side comes first at times, and between the two."""
WORKER = Worker(name="benchmark", place="here")


def start_study(store: Store) -> StudyClaim:
    """A running study."""
    claim = store.claim_study(WORKER, only=store.create_study(REQUEST).id)
    if claim is None:
        raise RuntimeError("somebody else uses this database")
    return claim


def plan_trials(store: Store, study: StudyClaim, count: int) -> list[str]:
    """The ids of so many queued trials."""
    ids = []
    for number in range(1, count + 1):
        candidate = Candidate(
            adapter=Adapter(method=Method.LORA, rank=8, alpha=16, targets=("q_proj",)),
            level=Level(),
            recipe=Recipe(max_length=128),
            micro_batch=4,
            learning_rate=1e-6 * number,
        )
        ids.append(store.plan_trial(study, TrialPlan(candidate=candidate, rung=Rung.PROBE)).id)
    return ids


def claim_all(store: Store, study_id: str, fence: int) -> dict[str, Any]:
    """Claim every trial of a study that nobody else claims first."""
    study = StudyClaim(study=store.get_study(study_id), fence=fence, moved=False)
    trials = in_own_order([trial.id for trial in store.list_trials(study_id)])
    wait_for_start()
    claimed, errors = [], []
    for trial_id in trials:
        try:
            claim = store.claim_trial(study, trial_id, devices=[f"device of {trial_id}"], worker="w")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            errors.append(f"{type(error).__name__}: {error}")
        else:
            if claim is not None:
                claimed.append((trial_id, claim.fence))
    return {"claimed": claimed, "errors": errors}


def race(store: Store, finishes: bool, studies: Sequence[str]) -> dict[str, Any]:
    """Claim each study and end it, or cancel it; how often nothing was left to do.

    Both sides meet at each study within a few milliseconds: else whoever is quicker is soon far ahead.
    """
    wait_for_start()
    late, started_s = 0, time.monotonic()
    for number, study_id in enumerate(studies):
        meet_s = started_s + PACE_S * number + random.uniform(0.0, SPREAD_S)
        time.sleep(max(0.0, meet_s - time.monotonic()))
        try:
            if not finishes:
                store.request_cancel(study_id)
            elif claim := store.claim_study(WORKER, only=study_id):
                store.finish_study(claim, StudyState.FAILED, "it was measured")
            else:
                late += 1
        except Conflict:
            late += 1
    return {"late": late}


def in_own_order(ids: Sequence[str]) -> list[str]:
    """So that no process is always the first: others begin elsewhere, and nobody is far ahead."""
    blocks = [ids[start : start + 8] for start in range(0, len(ids), 8)]
    return [each for block in blocks for each in random.sample(block, len(block))]


def wait_for_start() -> None:
    """Until the parent has seen that all are ready."""
    print("ready", flush=True)
    sys.stdin.readline()


def run_at_once(url: str, parts: Sequence[Sequence[str]]) -> tuple[list[dict[str, Any]], float]:
    """What processes that begin together print in the end, and how long they took."""
    command = [sys.executable, __file__, "--url", url, "--part"]
    pipe = subprocess.PIPE
    running = [subprocess.Popen([*command, *part], stdin=pipe, stdout=pipe, text=True) for part in parts]
    for process in running:
        assert process.stdout is not None  # noqa: S101 - as asked for above
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("a process did not get ready")
    started_s = time.monotonic()
    for process in running:
        assert process.stdin is not None  # noqa: S101 - as asked for above
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [json.loads(process.communicate()[0]) for process in running]
    return printed, time.monotonic() - started_s


def measure_claims(url: str, *, processes: int, trials: int) -> dict[str, Any]:
    """Many claim the same trials."""
    with closing(Store.open(url)) as store:
        study = start_study(store)
        plan_trials(store, study, trials)
    part = ["claim", study.id, str(study.fence)]
    printed, seconds = run_at_once(url, [part] * processes)
    claimed = [trial for each in printed for trial, _ in each["claimed"]]
    fences = [fence for each in printed for _, fence in each["claimed"]]
    return {
        "trials": trials,
        "processes": processes,
        "claims": len(claimed),
        "distinct": len(set(claimed)),
        "distinct_fences": len(set(fences)),
        "by_process": [len(each["claimed"]) for each in printed],
        "errors": [error for each in printed for error in each["errors"]],
        "seconds": round(seconds, 2),
    }


def measure_races(url: str, *, races: int) -> dict[str, Any]:
    """One ends studies, another cancels them, in turns from either end of the list."""
    with closing(Store.open(url)) as store:
        studies = [store.create_study(REQUEST).id for _ in range(races)]
    printed, seconds = run_at_once(url, [["finish", *studies], ["cancel", *studies]])
    with closing(Store.open(url)) as store:
        ends: Counter[str] = Counter()
        wrong = []
        for study_id in studies:
            state = store.get_study(study_id).state
            told = [event for event in store.events_after(study_id, 0) if event.kind == "study.finished"]
            ends[state] += 1
            if not state.is_final or [event.payload["state"] for event in told] != [state]:
                wrong.append(study_id)
    return {
        "races": races,
        "ends": dict(ends),
        "late": {"finishing": printed[0]["late"], "cancelling": printed[1]["late"]},
        "wrong": wrong,
        "seconds": round(seconds, 2),
    }


def main() -> int:
    """Run it as the first lines say."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--url", help="an empty database; a file of SQLite if left out")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        what, *arguments = options.part
        with closing(Store.open(options.url)) as store:
            if what == "claim":
                print(json.dumps(claim_all(store, arguments[0], int(arguments[1]))))
            else:
                print(json.dumps(race(store, what == "finish", arguments)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{Path(folder) / 'rankwise.db'}"
        claims = measure_claims(url, processes=options.processes, trials=options.trials)
        races = measure_races(url, races=options.races)
    print(json.dumps({"claims": claims, "races": races}, indent=2))
    is_sound = claims["claims"] == claims["distinct"] == claims["distinct_fences"] == options.trials
    return 0 if is_sound and not claims["errors"] and not races["wrong"] else 1


if __name__ == "__main__":
    sys.exit(main())
