"""The warm server: a process that has imported the slow libraries and forks a job for each request.

``python -m rankwise.runners.warm FD JOB…`` imports what the named jobs need, and serves requests for any
job from the Unix socket FD (SOCK_SEQPACKET), one message a job: JSON ``{"job", "spec_path", "log_path",
"limits"}`` with the job's own socket attached. It answers nothing there but one ``ready`` message; everything
about a job travels on the job's socket.

It never runs an operation (a thread pool started here would be missing in the children) and never
initialises CUDA (no child could use it then). Dies with its parent. Knows nothing about studies.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import RankwiseError
from .guard import PR_SET_CHILD_SUBREAPER, Limits, die_with_parent, guard, prctl
from .messages import Report

JOBS = {
    "estimate": "rankwise.runners.estimate",
    "estimate-trials": "rankwise.runners.estimate_trials",
    "extensions": "rankwise.runners.extensions",
    "inspect": "rankwise.runners.inspect_model",
    "prepare": "rankwise.runners.prepare",
    "trial": "rankwise.runners.trial.job",
}
"""Job name → module with ``run(spec, report)``."""

PRELOADED = ("torch", "pyarrow", "accelerate", "transformers", "transformers.modeling_utils")
BUILDERS = ("trial", "estimate", "estimate-trials", "inspect")
"""Jobs that put adapters on models, by :data:`BUILT_WITH`."""

BUILT_WITH = ("peft", "transformers.optimization")
"""Both import bitsandbytes, which asks a CUDA device for its capability and so initialises CUDA: where there
is one, these are imported in each child. They take over a second, in which the job that reads the data can
run already: elsewhere they are imported before the first builder, or when there is nothing to do."""

WITHOUT_GPU = ("estimate", "inspect")
"""Jobs that need no device. A server for these alone sees none, and may import everything."""

MAX_REQUEST_BYTES = 65536

GUARDS_GRACE_S = 10.0
"""Longer than a guard gives its job between SIGTERM and SIGKILL."""


def preload(jobs: Collection[str], *, cuda_driver: bool) -> list[str]:
    """Import what children would otherwise import each; returns the names.

    Args:
        jobs: what is imported for.
        cuda_driver: there may be a CUDA device, which nothing may touch.

    Raises:
        RuntimeError: CUDA was initialised on the way. The caller must not serve from this process.
    """
    names = [*PRELOADED]
    if not cuda_driver:
        names += [JOBS[job] for job in jobs]
    import_for_children(names)
    import torch

    if torch.cuda.is_initialized():
        raise RuntimeError("preloading initialised CUDA: no forked trial could use it")
    return names


def preload_builders() -> None:
    """Import what builders would otherwise import each, once. Not beside a CUDA driver."""
    if not all(name in sys.modules for name in BUILT_WITH):
        import_for_children(BUILT_WITH)


def import_for_children(names: Iterable[str]) -> None:
    """Import, and keep the collector from going through it: it would copy every page that children share."""
    gc.disable()  # imports make hardly any garbage, and a sixth of their time went on looking for it
    for name in names:
        importlib.import_module(name)
    fill_caches()
    gc.collect()
    gc.freeze()
    gc.enable()


def fill_caches() -> None:
    """Have transformers (5.23) work out what it keeps from the first model that it builds.

    That is how names in weight files are translated: a thousand regular expressions.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("")


def has_cuda_driver() -> bool:
    """A CUDA driver is loaded on this machine; asked without touching CUDA."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def serve(control: socket.socket, jobs: Collection[str]) -> None:
    """Fork a guard for each request until the other side closes."""
    started_s = time.perf_counter()
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of a killed guard come here, and are killed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    needs_gpu = not set(jobs) <= set(WITHOUT_GPU)
    if not needs_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cuda_driver = needs_gpu and has_cuda_driver()
    modules = preload(jobs, cuda_driver=cuda_driver)
    builds = not cuda_driver and not set(BUILDERS).isdisjoint(jobs)
    ready = {"type": "ready", "modules": modules, "preload_s": time.perf_counter() - started_s}
    control.send(json.dumps(ready).encode())
    guards: set[int] = set()
    control.settimeout(0.5)
    try:
        while True:
            reap(guards)
            try:
                message, fds, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 1)
            except TimeoutError:
                if builds:
                    preload_builders()
                continue
            if not message:
                return
            request = json.loads(message)
            if builds and request["job"] in BUILDERS:
                preload_builders()
            connection = socket.socket(fileno=fds[0])
            guards.add(fork_guard(request, connection, control))
            connection.close()
            if builds:
                preload_builders()
    finally:
        end_guards(guards)


def end_guards(guards: set[int]) -> None:
    """Have every guard end its job, and return when they are gone: this process is their last witness."""
    for pid in guards:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + GUARDS_GRACE_S
    while guards and time.monotonic() < deadline_s:
        reap(guards)
        time.sleep(0.02)


def reap(guards: set[int]) -> None:
    """Collect finished children, and kill those that are no guard: orphans of a guard that was killed."""
    with suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            guards.discard(pid)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for pid in {int(child) for child in children} - guards:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def fork_guard(request: dict[str, Any], connection: socket.socket, control: socket.socket) -> int:
    """Fork the guard of one job; returns its pid (in the server only)."""
    server_pid = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent(server_pid)
        control.close()
        guard(
            lambda: run_job(request["job"], Path(request["spec_path"]), Report(connection.fileno())),
            connection,
            Path(request["log_path"]),
            Limits(**request["limits"]),
        )
    except BaseException:  # noqa: BLE001 - the process's edge: nothing may return into the server's loop
        traceback.print_exc()
        os._exit(1)


def run_job(name: str, spec_path: Path, report: Report) -> None:
    """Load the spec and run the job, in the job's own process. Refusals become an ``error`` line."""
    warnings.simplefilter("default")
    module = importlib.import_module(JOBS[name])
    spec = json.loads(spec_path.read_text(encoding="utf-8"))
    try:
        module.run(spec, report)
    except RankwiseError as error:
        report("error", kind=type(error).__name__, message=error.message, next_step=error.next_step)


def main() -> None:
    """Entry point of the process."""
    die_with_parent(os.getppid())
    control = socket.socket(fileno=int(sys.argv[1]))
    if not has_hung_up(control):  # the parent may have died while this interpreter started
        serve(control, sys.argv[2:])


def has_hung_up(control: socket.socket) -> bool:
    """Nobody is at the other side any more."""
    poller = select.poll()
    poller.register(control, select.POLLHUP)
    return bool(poller.poll(0))


if __name__ == "__main__":
    main()
