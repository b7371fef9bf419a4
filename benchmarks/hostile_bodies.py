"""What strangers can make a server do with large and slow bodies: a real server, sockets, memory from /proc.

Run ``python benchmarks/hostile_bodies.py`` (half a minute; ``--mebibytes 8 --clients 2`` for a quick one).
Ends with 1 if a body was not refused, if memory grew by 10 MB or more, or if a slow connection was kept.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_GROWTH_BYTES = 10_000_000
BLOCK = b"x" * 65_536


@contextmanager
def served(home: Path, *, patience_s: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that demands tokens, and its port."""
    environment = {**os.environ, "RANKWISE_HOME": str(home)}
    environment.pop("RANKWISE_DATABASE_URL", None)
    run = [sys.executable, "-c", f"import rankwise.api.connections as c; c.PATIENCE_S = {patience_s}; "]
    run[-1] += "from rankwise.api.cli.main import main; main()"
    subprocess.run(
        [*run, "tokens", "create", "--role", "admin"], env=environment, check=True, capture_output=True
    )
    process = subprocess.Popen(
        [*run, "serve", "--port", "0", "--require-token", "--rate-limit", "0"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            said = process.stderr.readline() if process.stderr else ""
            found = re.search(r"http://[\d.]+:(\d+)", said)
            if found is None:
                raise RuntimeError(f"the server did not start: {said}")
            yield process, int(found[1])
        finally:
            process.terminate()


def peak_bytes(process: subprocess.Popen[str]) -> int:
    """The server's high-water mark; what it starts has its own."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def sized(port: int, path: str, size_bytes: int) -> bytes:
    """Send a body whose size is told; returns the first line of the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size_bytes}\r\n\r\n"
    return _sent(port, head.encode(), (BLOCK for _ in range(size_bytes // len(BLOCK))))


def chunked(port: int, path: str, size_bytes: int) -> bytes:
    """The same with its size untold."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = f"{len(BLOCK):x}\r\n".encode() + BLOCK + b"\r\n"
    return _sent(port, head.encode(), (chunk for _ in range(size_bytes // len(BLOCK))), b"0\r\n\r\n")


def _sent(port: int, head: bytes, blocks: Iterator[bytes], end: bytes = b"") -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head)
        try:
            for block in blocks:
                connection.sendall(block)
            connection.sendall(end)
        except OSError:
            pass  # it was closed; the answer may have come all the same
        try:
            return connection.makefile("rb").readline()
        except OSError:
            return b"(reset)"


def long_head(port: int) -> bytes:
    """What is said to a request whose address is longer than a head may be."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /" + b"x" * 20_000)  # and no end yet, but enough
        return connection.makefile("rb").read()


def slow_ends(port: int, first: bytes, patience_s: float) -> float:
    """Seconds until a connection that says this and then little more is closed."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s / 4) as connection:
        connection.sendall(first)
        while time.monotonic() - began < 4 * patience_s + 5:
            try:
                if not connection.recv(65_536):
                    break
            except TimeoutError:
                pass
            except OSError:
                break
            try:
                connection.sendall(b"x")
            except OSError:
                break
    return time.monotonic() - began


def main() -> int:
    """Attack, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--clients", type=int, default=4, help="that send at the same time")
    parser.add_argument("--patience", type=float, default=4.0, help="of the server, in seconds")
    options = parser.parse_args()
    is_good = True
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), patience_s=options.patience) as (
            process,
            port,
        ),
    ):
        sized(port, "/v1/studies", len(BLOCK))
        before = peak_bytes(process)
        for send in (sized, chunked):
            for path in ("/v1/studies", "/v1/datasets?filename=x.csv", "/no/such/path"):
                answers = _at_once(options.clients, lambda: send(port, path, options.mebibytes * 2**20))  # noqa: B023
                refused = all(answer.startswith(b"HTTP/1.1 401") for answer in answers)
                is_good &= refused
                what = f"{send.__name__:8} {options.mebibytes} MiB × {options.clients} to {path}"
                print(f"{what}: {sorted(set(answers))}")
        said = long_head(port)
        is_good &= said.startswith(b"HTTP/1.1 400") and b"application/problem+json" in said
        print(f"a head of 20,000 bytes: {said[:24]!r}")
        grown = peak_bytes(process) - before
        is_good &= grown < MOST_GROWTH_BYTES
        print(f"memory of the server, at its peak: {before / 1e6:.1f} MB before, {grown / 1e6:+.1f} MB")
        for name, first in (
            ("nothing but silence", b""),
            ("a head without an end", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "),
            (
                "a refused body without an end",
                b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n",
            ),
        ):
            seconds = slow_ends(port, first, options.patience)
            is_good &= seconds < 3 * options.patience + 5
            print(f"{name}: closed after {seconds:.1f} s, with a patience of {options.patience:g} s")
    print("all refused" if is_good else "NOT all refused")
    return 0 if is_good else 1


def _at_once(count: int, call: Callable[[], bytes]) -> list[bytes]:
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


if __name__ == "__main__":
    sys.exit(main())
