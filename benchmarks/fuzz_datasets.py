"""Broken and odd datasets, each resolved, checked and profiled: the answer is a profile, or an error of ours.

    python benchmarks/fuzz_datasets.py [--count 800] [--seed 0] [--kind NAME]

Every file is tried in a process of its own. A traceback, an error without a next step, a crash, more than
1 GB of memory beyond that of the libraries, or more than a minute is a failure. Prints a table by kind; exits
1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from broken_datasets import KINDS

from rankwise.errors import InputError
from rankwise.optimizer.codec import to_json
from rankwise.probes.dataset import check_dataset, profile_dataset, resolve_dataset
from rankwise.runners.samples import read_samples

LIMIT_S = 60.0
LIMIT_BYTES = 1_000_000_000
LONGEST_MESSAGE = 10_000
NO_LABELS = ("", "nan", "inf", "infinity")
ADDRESS_SPACE_BYTES = 8_000_000_000
"""Keeps a failure from taking the machine with it."""


class Outcome(NamedTuple):
    """How one dataset was answered."""

    word: str
    """``profile``, ``refused`` or ``FAILED``."""
    text: str
    peak_bytes: int
    seconds: float


def main() -> int:
    """Try all files; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=800, help="how many datasets (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(KINDS), help="only this kind")
    parser.add_argument("--show", action="store_true", help="print every answer")
    arguments = parser.parse_args()
    names = [arguments.kind] if arguments.kind else sorted(KINDS)
    found: dict[str, list[Outcome]] = defaultdict(list)
    for number in range(arguments.count):
        name = names[number % len(names)]
        outcome = try_one(name, f"{arguments.seed}/{number}")
        found[name].append(outcome)
        if outcome.word == "FAILED" or arguments.show:
            print(f"{name} --seed {arguments.seed}, number {number}: {outcome.word}: {outcome.text}")
    print_table(found)
    return int(any(outcome.word == "FAILED" for outcomes in found.values() for outcome in outcomes))


def try_one(name: str, seed: str) -> Outcome:
    """Make a dataset and profile it, each in a child process: neither memory nor a crash stays."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
    try:
        made = in_child(lambda: str(KINDS[name](Random(seed), folder)))
        if made.word == "FAILED" and "bytes at its peak" not in made.text:
            return made._replace(text=f"could not be made: {made.text}")
        return in_child(lambda: profile(made.text))
    finally:
        shutil.rmtree(folder)


def profile(source: str) -> str:
    """What a study does with its data before any model is there, and the samples that trials will take."""
    path = resolve_dataset(source, allowed_roots=None)
    check_dataset(path)
    found = profile_dataset(path, source=source)
    if not 0 < found.usable_rows <= found.rows:
        raise AssertionError(f"{found.usable_rows} usable of {found.rows} rows")
    if set(found.label_counts) != set(found.task.labels):
        raise AssertionError(f"counts of {set(found.label_counts)} for the labels {found.task.labels}")
    if not {label.strip().lower().lstrip("+-") for label in found.task.labels}.isdisjoint(NO_LABELS):
        raise AssertionError(f"no classes: {found.task.labels}")
    if bool(found.notes) != (found.usable_rows < found.rows):
        raise AssertionError(f"{found.usable_rows} of {found.rows} rows, announced as {found.notes}")
    samples = 0
    for sample in read_samples(path, every=found.every_nth_row, task=to_json(found.task)):
        sample.split_key.encode()
        samples += 1
    if found.every_nth_row == 1 and samples != found.usable_rows:
        raise AssertionError(f"{found.usable_rows} usable rows, {samples} samples")
    text = json.dumps(to_json(found), allow_nan=False)
    return f"{found.task.kind} from {found.rows} rows: {found.task.reason} ({len(text)} bytes)"


def in_child(work: Callable[[], str]) -> Outcome:
    """Run in a forked process and judge how it went."""
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        with os.fdopen(writer, "w", encoding="utf-8", errors="surrogatepass") as pipe:
            pipe.write(answer(work))
        os._exit(0)
    os.close(writer)
    timer = threading.Timer(LIMIT_S, os.kill, (child, signal.SIGKILL))
    timer.start()
    with os.fdopen(reader, encoding="utf-8", errors="surrogatepass") as pipe:
        word, _, text = pipe.read().partition(" ")
    _, status, usage = os.wait4(child, 0)
    timer.cancel()
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, peak = time.monotonic() - started, max(0, usage.ru_maxrss - inherited) * 1024
    if status:
        word, text = "FAILED", f"ended with status {status} after {seconds:.0f} s {text}"
    elif peak > LIMIT_BYTES:
        word, text = "FAILED", f"{peak} bytes at its peak; {text}"
    return Outcome(word, text, peak, seconds)


def answer(work: Callable[[], str]) -> str:
    """The word of the outcome, then its text; never raises."""
    try:
        return f"profile {work()}"
    except InputError as error:
        if not error.next_step or len(str(error)) > LONGEST_MESSAGE:
            return f"FAILED no next step, or {len(str(error))} characters long: {str(error)[:500]}"
        return f"refused {error}"
    except BaseException:  # noqa: BLE001 - this is what is looked for
        return f"FAILED {traceback.format_exc()}"


def print_table(found: Mapping[str, Sequence[Outcome]]) -> None:
    """One line a kind, then all."""
    everything = [outcome for outcomes in found.values() for outcome in outcomes]
    print(
        f"{'kind':24} {'files':>6} {'profile':>8} {'refused':>8} {'FAILED':>7} "
        f"{'peak MB':>8} {'slowest s':>9}"
    )
    for name, outcomes in [*sorted(found.items()), ("all", everything)]:
        words = Counter(outcome.word for outcome in outcomes)
        peak = max(outcome.peak_bytes for outcome in outcomes) / 1e6
        slowest = max(outcome.seconds for outcome in outcomes)
        print(
            f"{name:24} {len(outcomes):6} {words['profile']:8} {words['refused']:8} {words['FAILED']:7}"
            f" {peak:8.0f} {slowest:9.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
