"""Studies on a real server, of whose processes one after the other is killed, at random and without warning.

    python benchmarks/soak.py --kills 200

kills the server, its supervisor, the warm server, a guard or a trial (SIGKILL), starts the server again where
need be, and keeps studies coming. Afterwards every study must have ended; what the server acknowledged
(studies, finished trials, events) must be there as it was told; no trial may have counted twice; 10 s after a
process was killed nothing that depended on it may run; and the database must be whole. Prints the figures as
JSON; the exit code is 1 when something of this does not hold. Takes some 25 minutes on two cores. Model and
data are those of ``make demo``, unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from rankwise.home import Home
from rankwise.runners.strays import home_id, marker_of

ROLES = ("server", "supervisor", "warm server", "guard", "trial")
GONE_WITHIN_S = 10.0
START_LIMIT_S = 120.0
END_LIMIT_S = 900.0
"""For the studies that are left when the killing is over."""
LONGEST_PAUSE_S = 6.0
ROLE_LIMIT_S = 60.0
"""For a process of the role whose turn it is."""
STUDIES_AT_ONCE = 2
FINAL = ("succeeded", "failed", "cancelled")


@dataclass(kw_only=True)
class Soak:
    """The server under fire, and what it has promised so far."""

    home: Home
    model: Path
    data: Path
    port: int
    random: random.Random
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Acknowledged, by id, as last seen."""
    finished: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """Trials that the server once told to be finished, by study and id."""
    events: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    outlived: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    """Until the last dependent of a killed process was gone."""
    _server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [str(Path(sys.executable).with_name("rankwise")), "serve", "--port", str(self.port)]
        folders = (self.model, self.data.parent)
        roots = [option for folder in folders for option in ("--allow-root", str(folder))]
        with (self.home.logs / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [*command, *roots],
                env={**os.environ, "RANKWISE_HOME": str(self.home.root)},
                stdout=log,
                stderr=log,
            )
        started = self._server
        until(
            lambda: self.get("/healthz") is not None or started.poll() is not None,
            START_LIMIT_S,
            "the server to answer",
        )
        if started.poll() is not None:
            sys.exit(f"the server did not start: {(self.home.logs / 'server.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End the server as an operator would."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)

    def get(self, path: str, **parameters: Any) -> Any:
        """The answer's document; None where there is none: the server was killed."""
        with suppress(httpx.TransportError):
            answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", params=parameters, timeout=30)
            if answer.status_code == 200:
                return answer.json()
        return None

    def submit(self) -> None:
        """A small study; only what was acknowledged is held against the server."""
        request = {
            "model": str(self.model),
            "dataset": str(self.data),
            "budget": {"seconds": 3600, "max_trials": 3},
            "constraints": {"max_length": 16 + 8 * self.random.randrange(4)},
            "methods": ["lora"],
            "seed": self.random.randrange(10**6),
        }
        with suppress(httpx.TransportError):
            answer = httpx.post(f"http://127.0.0.1:{self.port}/v1/studies", json=request, timeout=60)
            if answer.is_success:
                self.studies[answer.json()["id"]] = answer.json()
            elif answer.status_code < 500:
                sys.exit(f"the study is refused: {answer.text}")

    def going_on(self) -> list[str]:
        """Studies that have not ended, as far as is known."""
        return [study_id for study_id, study in self.studies.items() if study["state"] not in FINAL]

    def look(self) -> None:
        """Note what the server tells of studies that go on."""
        for study_id in self.going_on():
            study = self.get(f"/v1/studies/{study_id}")
            trials = self.get(f"/v1/studies/{study_id}/trials")
            seen = max((seq for study, seq in self.events if study == study_id), default=0)
            events = self.get(f"/v1/studies/{study_id}/events", after=seen)
            if study is None or trials is None or events is None:
                return
            self.finished |= {
                (study_id, trial["id"]): trial for trial in trials["trials"] if trial["state"] == "finished"
            }
            self.events |= {(study_id, event["seq"]): event for event in events["events"]}
            self.studies[study_id] = study

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Who lives now, by role."""
        found: dict[str, list[psutil.Process]] = {role: [] for role in ROLES}
        with suppress(psutil.NoSuchProcess):
            found["server"] = [psutil.Process(self._server.pid)] if self._server else []
            found["supervisor"] = children_of(found["server"], "rankwise.runners.supervisor")
            found["warm server"] = children_of(found["supervisor"], "rankwise.runners.warm")
            found["guard"] = children_of(found["warm server"], "")
            found["trial"] = children_of(found["guard"], "")
        return found

    def kill_one(self) -> None:
        """Kill a process of some role, once there is one, and see what depended on it go."""
        role = self.random.choice(ROLES)
        deadline_s = time.monotonic() + ROLE_LIMIT_S
        while not (present := self.processes())[role] and time.monotonic() < deadline_s:
            self.look()
            time.sleep(0.2)
        if not present[role]:  # all studies have ended meanwhile, or prepare for long
            role = "server"
        victim = self.random.choice(present[role])
        with suppress(psutil.NoSuchProcess):
            dependents = victim.children(recursive=True)
            victim.kill()
            self.kills[role] += 1
            began_s = time.monotonic()
            while left := [process for process in dependents if is_alive(process)]:
                if time.monotonic() - began_s > GONE_WITHIN_S:
                    self.outlived.append(f"{len(left)} processes outlived a killed {role}")
                    break
                time.sleep(0.05)
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        if role == "server" and self._server is not None:
            self._server.wait()
            self.start()

    def run(self, kills: int, limit_s: float) -> None:
        """Kill so often, or for so long, then let all studies come to their end."""
        self.start()
        over_s = time.monotonic() + limit_s
        while sum(self.kills.values()) < kills and time.monotonic() < over_s:
            while len(self.going_on()) < STUDIES_AT_ONCE:
                self.submit()
            until_s = time.monotonic() + self.random.uniform(0.2, LONGEST_PAUSE_S)
            while time.monotonic() < until_s:
                self.look()
                time.sleep(0.2)
            self.kill_one()
            if sum(self.kills.values()) % 10 == 0:
                print(f"{sum(self.kills.values())} kills, {self.told()}", file=sys.stderr, flush=True)

        def all_ended() -> bool:
            self.look()
            return not self.going_on()

        until(all_ended, END_LIMIT_S, "the studies to end")
        problems = self.broken_promises()
        self.stop()
        until(lambda: not self.left_running(), GONE_WITHIN_S, "the last process to end")
        problems += self.database_problems()
        print(json.dumps(self.figures(problems), indent=2))
        if problems:
            sys.exit(1)

    def told(self) -> str:
        """Where things stand, in a few words."""
        states = Counter(study["state"] for study in self.studies.values())
        return ", ".join(f"{count} {state}" for state, count in states.items())

    def broken_promises(self) -> list[str]:
        """What the server does not tell any more as it once did, or tells twice."""
        problems = list(self.outlived)
        for study_id in self.studies:
            trials = {trial["id"]: trial for trial in self.get(f"/v1/studies/{study_id}/trials")["trials"]}
            for (of_study, trial_id), trial in self.finished.items():
                if of_study == study_id and trials.get(trial_id) != trial:
                    problems.append(f"trial {trial_id} is not what it was when it was finished")
            events = self.all_events(study_id)
            if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
                problems.append(f"events of study {study_id} have gaps")
            for (of_study, seq), event in self.events.items():
                if of_study == study_id and events[seq - 1] != event:
                    problems.append(f"event {seq} of study {study_id} is not what it was")
            ends = Counter(
                event["payload"]["trial_id"] for event in events if event["kind"] == "trial.finished"
            )
            if ends != Counter(dict.fromkeys(trials, 1)):
                problems.append(f"trials of study {study_id} ended other than once: {ends}")
            same = ("candidate_id", "rung", "train_steps", "replicate")
            if len({tuple(trial[name] for name in same) for trial in trials.values()}) != len(trials):
                problems.append(f"study {study_id} has a trial twice")
        return problems

    def all_events(self, study_id: str) -> list[dict[str, Any]]:
        """The whole history of a study, page by page."""
        events: list[dict[str, Any]] = []
        while page := self.get(f"/v1/studies/{study_id}/events", after=len(events))["events"]:
            events += page
        return events

    def left_running(self) -> list[int]:
        """Processes that belong to this home."""
        here = home_id(self.home)
        markers = ((pid, marker_of(pid)) for pid in psutil.pids())
        return [pid for pid, marker in markers if marker is not None and marker.home == here]

    def database_problems(self) -> list[str]:
        """What the file itself says once nobody uses it."""
        with sqlite3.connect(self.home.database) as connection:
            checks = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            checks += [f"foreign key: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
            twice = connection.execute(
                "SELECT trial_id FROM attempt WHERE outcome = 'ok' GROUP BY trial_id HAVING count(*) > 1"
            ).fetchall()
            open_attempts = connection.execute("SELECT fence FROM attempt WHERE outcome IS NULL").fetchall()
            leases = connection.execute("SELECT device FROM device_lease").fetchall()
        problems = [check for check in checks if check != "ok"]
        problems += [f"trial {row[0]} was measured twice" for row in twice]
        problems += [f"attempt {row[0]} never ended" for row in open_attempts]
        return problems + [f"device {row[0]} is still taken" for row in leases]

    def figures(self, problems: Sequence[str]) -> dict[str, Any]:
        """What happened."""
        with sqlite3.connect(self.home.database) as connection:
            attempts = dict(
                connection.execute("SELECT outcome, count(*) FROM attempt GROUP BY outcome").fetchall()
            )
            trials = dict(
                connection.execute("SELECT outcome, count(*) FROM trial GROUP BY outcome").fetchall()
            )
        return {
            "kills": dict(self.kills),
            "studies": dict(Counter(study["state"] for study in self.studies.values())),
            "reasons": sorted({study["reason"] for study in self.studies.values() if study.get("reason")}),
            "trials": trials,
            "attempts": attempts,
            "events_acknowledged": len(self.events),
            "longest_until_dependents_gone_s": round(self.longest_s, 2),
            "problems": list(problems),
        }


def children_of(parents: Sequence[psutil.Process], part: str) -> list[psutil.Process]:
    """Living children whose command line has this part."""
    found = []
    for parent in parents:
        with suppress(psutil.NoSuchProcess):
            found += [child for child in parent.children() if is_alive(child) and part in command_of(child)]
    return found


def command_of(process: psutil.Process) -> str:
    """Empty for one that has ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


def is_alive(process: psutil.Process) -> bool:
    """It runs; what nobody has waited for yet does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    """Wait for something to become true.

    Raises:
        TimeoutError: it did not.
    """
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
        time.sleep(0.2)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=240.0, help="stop killing after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=Path("build/demo/model"))
    parser.add_argument("--data", type=Path, default=Path("build/demo/reviews.csv"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(
            home=Home(Path(folder)).create(),
            model=arguments.model.resolve(),
            data=arguments.data.resolve(),
            port=free_port(),
            random=random.Random(arguments.seed),
        )
        try:
            soak.run(arguments.kills, 60 * arguments.minutes)
        finally:
            soak.stop()


if __name__ == "__main__":
    main()
