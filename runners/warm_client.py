"""The supervisor's side of the warm server: start it, hand it jobs, read what they report.

Imports no torch. One thread only.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from .. import errors
from ..errors import InputError, RunnerError
from ..home import Home
from ..probes.host import SPEED_VARIABLES
from .extensions import own_tools_first
from .guard import Limits
from .keeping import put_aside
from .line_reader import LineReader
from .messages import last_line
from .strays import VARIABLE, Marker

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.2
LOG_TAIL_BYTES = 4096
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "VIRTUAL_ENV",
    "TORCH_EXTENSIONS_DIR",
    "CC",
    "CXX",
    "MAX_JOBS",
    "TZ",
    "RANKWISE_HOME",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONHASHSEED",
    "PYTHONUTF8",
    "PYTHONIOENCODING",
    "PYTHONWARNINGS",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONNOUSERSITE",
    "PYTHONFAULTHANDLER",
)
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "KEY")
"""No variable with one of these in its name is passed on, whatever it begins with."""

_ENDED_BY_GUARD = {
    "timeout": "it took longer than it may",
    "memory-limit": "it needed more memory than it may",
    "host-memory": "this machine has run out of memory",
    "disk-limit": "it wrote more than it may",
    "disk-space": "the disk below RANKWISE_HOME has run out of space",
}


def trial_environment() -> dict[str, str]:
    """What trials may know of our environment: an allow-list, and no way to the network's hubs.

    Of the hub they have the cache. Its library looks for a token in files beside it, too: where trials look
    there is none.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON
        or (name.startswith(SPEED_VARIABLES) and not any(word in name.upper() for word in SECRET_WORDS))
    }
    return {
        # OpenMP's threads spin while they wait for each other. With anything else on the cores that costs
        # a trial thirtyfold; with a short spin it shares the cores fairly, and alone it is about as fast
        # (figures in docs/decisions/0004-processes.md).
        "GOMP_SPINCOUNT": "1000",
        **kept,
        "PATH": own_tools_first(kept.get("PATH")),
        "HF_HOME": str(Home.from_environment().root / "cache" / "huggingface"),
        "HF_HUB_CACHE": str(hub_cache()),
        "HF_TOKEN_PATH": os.devnull,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def hub_cache() -> Path:
    """Where the hub's library keeps what it fetched; told without importing it."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(os.path.expandvars(named)).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or str(Path(xdg) / "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


class Killed(RunnerError):
    """Somebody ended a process of ours: what it was to do can be asked for again."""


KILLS = (signal.SIGKILL, signal.SIGTERM)
"""No process of ours sends itself these."""


class WarmServer:
    """A running warm server. Ends with :meth:`stop`, or with this process."""

    def __init__(
        self,
        log_path: Path,
        jobs: Sequence[str],
        jobs_lock: IO[str] | None = None,
        *,
        home: Home | None = None,
    ) -> None:
        """Start the process; :meth:`wait_ready` waits for it.

        Args:
            log_path: where its output goes.
            jobs: those that start in milliseconds; others import first what they need.
            jobs_lock: a lock that the server and all its jobs are to hold; the caller closes its own copy.
            home: whose supervisor ends what this process leaves running; None where nobody does.
        """
        self.name = secrets.token_hex(8)
        environment = trial_environment()
        if home is not None:
            environment[VARIABLE] = str(Marker.of_mine(home, self.name))
        shared = [jobs_lock.fileno()] if jobs_lock else []
        put_aside(log_path)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rankwise.runners.warm", str(theirs.fileno()), *jobs],
                pass_fds=[theirs.fileno(), *shared],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=log_path.parent,
            )
        self._log_path = log_path
        self.modules: tuple[str, ...] = ()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """The process has not ended."""
        return self._process.poll() is None

    def wait_ready(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait until the libraries are imported, calling ``check`` meanwhile; it may raise to give up.

        Raises:
            Killed: somebody ended it.
            RunnerError: it ended or did not answer in time; with the end of its log.
        """
        if self.modules:
            return
        deadline_s = time.monotonic() + START_TIMEOUT_S
        readable: list[Any] = []
        while not readable and time.monotonic() < deadline_s:
            check()
            readable, _, _ = select.select([self._control], [], [], POLL_S)
        message = self._control.recv(65536) if readable else b""
        if not message:
            code = self._end_of_process() if readable else None
            self.stop()
            if code is not None and -code in KILLS:
                raise Killed("the warm server was killed while it started")
            cause = last_line(read_tail(self._log_path)) or "no output"
            raise RunnerError(
                f"the warm server did not start: {cause}",
                next_step=f"read {self._log_path}; trials need: pip install 'rankwise[train]'",
            )
        self.modules = tuple(json.loads(message)["modules"])

    def start(self, job: str, spec: Mapping[str, Any], folder: Path, limits: Limits) -> Job:
        """Write the spec into ``folder`` and fork the job.

        Raises:
            Killed: the server is gone.
        """
        self.wait_ready()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec_path, log_path = folder / f"{job}.json", folder / f"{job}.log"
        spec_path.write_text(json.dumps(spec, allow_nan=False), encoding="utf-8")
        log_path.unlink(missing_ok=True)
        request = {
            "job": job,
            "spec_path": str(spec_path),
            "log_path": str(log_path),
            "limits": asdict(limits),
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise Killed(f"the warm server is gone: {error}") from error
        return Job(connection=ours, log_path=log_path)

    def _end_of_process(self) -> int | None:
        """The exit code of a server that has closed its socket; None if it lives on."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=1.0)
        return None

    def stop(self) -> None:
        """End the server and, through their guards, all its jobs."""
        self._control.close()
        if not self.modules:  # it has no jobs yet, and does not hear us before its imports are done
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=STOP_TIMEOUT_S)
            return
        self._process.kill()
        self._process.wait()


@dataclass(kw_only=True)
class Job:
    """One job in flight, and what it has said so far."""

    connection: socket.socket
    log_path: Path
    started_s: float = field(default_factory=time.monotonic)
    messages: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False
    _reader: LineReader = field(default_factory=LineReader)

    def poll(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """New messages, waiting up to ``timeout_s`` for the first. ``closed`` turns True after the last."""
        readable, _, _ = select.select([self.connection], [], [], timeout_s)
        if not readable:
            return
        try:
            data = self.connection.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            self.connection.close()
            return
        for message in self._reader.read(data):
            self.messages.append(message)
            yield message

    def cancel(self) -> None:
        """Ask the guard to end the job; its last lines can still be read."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)

    def wait(self, timeout_s: float) -> None:
        """Read until the guard has said its last word: only then is nothing of the job left running."""
        deadline_s = time.monotonic() + timeout_s
        while not self.closed and time.monotonic() < deadline_s:
            for _ in self.poll(0.1):
                pass

    def last(self, kind: str) -> dict[str, Any] | None:
        """The latest message of a type."""
        return next((item for item in reversed(self.messages) if item["type"] == kind), None)

    def elapsed_s(self) -> float:
        """Seconds since the launch."""
        return time.monotonic() - self.started_s


def read_tail(path: Path, size_bytes: int = LOG_TAIL_BYTES) -> str:
    """The end of a log; empty when there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size_bytes))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def answer_of(job: Job, doing: str) -> dict[str, Any]:
    """What a finished job reported as its result.

    Raises:
        InputError: it refused what it was given.
        Killed: somebody ended it.
        RunnerError: it ended without an answer; with the end of its log.
    """
    if result := job.last("result"):
        return result
    if error := job.last("error"):
        kind = getattr(errors, error["kind"], InputError)
        raise kind(error["message"], next_step=error["next_step"])
    end = job.last("exit")
    if end is None or end["cause"] == "cancelled" or (end["signal"] in KILLS and end["cause"] == "finished"):
        raise Killed(f"{doing} failed: its process was killed", next_step=f"read {job.log_path}")
    cause = _ENDED_BY_GUARD.get(end["cause"])
    cause = cause or last_line(read_tail(job.log_path)) or f"exit code {end['exit_code']}, no output"
    raise RunnerError(f"{doing} failed: {cause}", next_step=f"read {job.log_path}")
