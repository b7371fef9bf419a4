"""How fast a server answers with many trials stored, and that repeated requests make one study.

Stores 100,000 trials in 900 or so studies (one of 5,000 trials, some of 1,000, the rest of 100: copies of
few, with ids of their own), starts ``rankwise serve`` on them and reads at 200 requests a second, as they
come due: an answer that is late makes no later request wait. Then 1,000 POSTs at once with 100 keys.
Four minutes, three of them for storing:

    python benchmarks/api_load.py
    python benchmarks/api_load.py --home /tmp/many --seconds 60     # stored once, used again
    python benchmarks/api_load.py --home /tmp/more --database-url postgresql://localhost/many

Exits 1 where a promise is not kept: reads 25 ms at the 99th percentile, lists and leaderboards 50 ms, 100
studies, 150 MB idle, no torch. With ``--untimed`` the times are told and not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import random
import re
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import sqlalchemy as sa
from seeded_study import seed_study

from rankwise.home import Home
from rankwise.store import Store
from rankwise.store.tables import Row

CONNECTIONS = 32
WARM_UP_S = 2.0
READ_P99_S = 0.025
PAGE_P99_S = 0.050
IDLE_BYTES = 150_000_000
POSTS_PER_KEY = 10
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PAGES = ("studies", "studies by change", "studies by text", "leaderboard", "leaderboard, 5,000 trials")
"""Kinds of reads that are pages of lists."""


# Storing


def store_trials(home: Home, trials: int) -> None:
    """So many trials, a little more."""
    with closing(Store.open(home.database)) as store:
        seeded = [seed_study(store, trials=min(5000, trials // 2))]
        print(f"stored {seeded[0]}", flush=True)
        seeded += [seed_study(store, trials=1000, seed=seed + 1) for seed in range(min(5, trials // 8000))]
        templates = [seed_study(store, trials=100, seed=seed + 100) for seed in range(3)]
        counts = store.count_trials([*seeded, *templates])
        sizes = {study_id: sum(count.values()) for study_id, count in counts.items()}
        stored = sum(sizes.values())
        for number, template in enumerate(itertools.cycle(templates)):
            if stored >= trials:
                break
            _copy(store, template, number)
            stored += sizes[template]


def _copy(store: Store, study_id: str, number: int) -> None:
    """A study again, under other ids."""
    tail = "".join(ALPHABET[number // 32**place % 32] for place in (3, 2, 1, 0))

    def renamed(text: str) -> str:
        return re.sub(r"\b[0-9A-Z]{22}(?=[0-9A-Z]{4}\b)....", lambda found: found[0][:22] + tail, text)

    table = Row.metadata.tables
    with store._write() as transaction:
        session = transaction.session
        study = dict(
            session.execute(sa.select(table["study"]).where(table["study"].c.ulid == study_id))
            .mappings()
            .one()
        )
        old_key = study.pop("id")
        study |= {"ulid": renamed(study["ulid"]), "model": f"models/copy-{number}"}
        new_key = session.execute(sa.insert(table["study"]).values(study)).inserted_primary_key[0]
        new_estimates: dict[int, int] = {}
        for name in ("estimate", "trial"):
            own = table[name]
            rows = session.execute(sa.select(own).where(own.c.study_id == old_key)).mappings().all()
            new_rows = [{**row, "study_id": new_key} for row in rows]
            for row in new_rows:
                del row["id"]
                if name == "trial":
                    row["ulid"] = renamed(row["ulid"])
                    row["estimate_id"] = new_estimates[row["estimate_id"]]
            insert = sa.insert(own).returning(own.c.id, sort_by_parameter_order=True)
            new_keys = session.scalars(insert, new_rows)
            if name == "estimate":
                new_estimates = {row["id"]: key for row, key in zip(rows, new_keys, strict=True)}
        for name in ("event", "recommendation"):
            own = table[name]
            rows = session.execute(sa.select(own).where(own.c.study_id == old_key)).mappings().all()
            document = "payload" if name == "event" else "snapshot"
            session.execute(
                sa.insert(own),
                [
                    dict(row)
                    | {"study_id": new_key, document: json.loads(renamed(json.dumps(row[document])))}
                    for row in rows
                ],
            )


# Asking


class Connection:
    """One connection that is kept, as lean as can be: what it costs would count against the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, path: str, *, method: str = "GET", body: bytes = b"", headers: str = ""
    ) -> tuple[int, bytes]:
        """The status and the body of one answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{headers}"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        return int(answer[9:12]), await reader.readexactly(int(length[1])) if length else b""

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()


@dataclass
class Found:
    """How long answers of one kind took, from when they were due."""

    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def at(self, share: float) -> float:
        """The time within which so many were answered."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def reads(ids: Sequence[str], large: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Kinds of reads and their paths, without end."""
    orders = ("number", "-speed", "memory", "loss")
    while True:
        study = rng.choice(ids)
        yield rng.choice(
            [
                ("study", f"/v1/studies/{study}"),
                ("study", f"/v1/studies/{study}"),
                ("trials", f"/v1/studies/{study}/trials?limit=20&sort={rng.choice(orders)}"),
                ("trials, of 5,000", f"/v1/studies/{large}/trials?limit=20&sort={rng.choice(orders)}"),
                ("events", f"/v1/studies/{study}/events?limit=50&after={rng.randrange(100)}"),
                ("recommendation", f"/v1/studies/{study}/recommendation"),
                ("studies", "/v1/studies?limit=20"),
                ("studies by change", "/v1/studies?limit=20&sort=-updated&state=succeeded"),
                ("studies by text", f"/v1/studies?limit=20&q=copy-{rng.randrange(100)}"),
                ("leaderboard", f"/v1/studies/{study}/leaderboard?limit=20"),
                ("leaderboard, 5,000 trials", f"/v1/studies/{large}/leaderboard?limit=20"),
                ("health", "/healthz"),
            ]
        )


async def read(port: int, ids: Sequence[str], large: str, *, rate: float, seconds: float) -> dict[str, Found]:
    """Ask for so long, at this rate, and tell how long the answers took."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(Connection(port))
    found: dict[str, Found] = {}
    loop = asyncio.get_running_loop()

    async def one(kind: str, path: str, due: float, *, counts: bool) -> None:
        connection = await free.get()
        try:
            status, body = await connection.ask(path)
        finally:
            free.put_nowait(connection)
        if status != 200:
            raise SystemExit(f"{path} was answered {status}: {body[:300]!r}")
        if counts:
            kept = found.setdefault(kind, Found())
            kept.seconds.append(loop.time() - due)
            kept.sizes.append(len(body))

    begin = loop.time()
    async with asyncio.TaskGroup() as group:
        for number, (kind, path) in enumerate(reads(ids, large, random.Random(1))):
            due = begin + number / rate
            if due > begin + WARM_UP_S + seconds:
                break
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(one(kind, path, due, counts=due > begin + WARM_UP_S))
    while not free.empty():
        free.get_nowait().close()
    return found


async def post(port: int, body: bytes, *, posts: int) -> tuple[dict[int, int], set[str], float]:
    """Answers by status, distinct studies, and seconds of so many POSTs at once."""
    statuses: dict[int, int] = {}
    studies: set[str] = set()
    run = secrets.token_hex(8)

    async def one(number: int) -> None:
        connection = Connection(port)
        key = f"{run}-{number % (posts // POSTS_PER_KEY)}"
        headers = f"Content-Type: application/json\r\nIdempotency-Key: {key}\r\n"
        status, answer = await connection.ask("/v1/studies", method="POST", body=body, headers=headers)
        connection.close()
        statuses[status] = statuses.get(status, 0) + 1
        if status == 202:
            studies.add(json.loads(answer)["id"])

    began = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(posts)))
    return statuses, studies, time.monotonic() - began


@contextmanager
def serving(home: Home, root: Path, *, supervised: bool) -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of a server; without a supervisor, nobody works on what is asked for."""
    program = str(Path(sys.executable).with_name("rankwise"))
    command = [program, "serve", "--port", "0", "--allow-root", str(root)]
    if not supervised:
        command = [sys.executable, __file__, "--serve", str(root)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "RANKWISE_HOME": str(home.root)}
    )
    try:
        errors = process.stderr or io.StringIO()
        line = errors.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line}{errors.read()}")
        yield int(found[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def serve_alone(root: Path) -> None:
    """A server that runs no studies."""
    import socket

    from rankwise.api.app import create_app
    from rankwise.api.server import Server
    from rankwise.api.settings import ServerSettings

    settings = ServerSettings(home=Home.from_environment(), allowed_roots=(root,))
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        Server(create_app(settings, supervise=False)).run(sockets=[listener])


def request_body(root: Path) -> bytes:
    """A study that is accepted, of files that are there."""
    (root / "model").mkdir(exist_ok=True)
    (root / "model" / "config.json").write_text('{"model_type": "bert"}')
    (root / "model" / "model.safetensors").write_bytes(b"")
    (root / "reviews.csv").write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 8)
    return json.dumps({"model": str(root / "model"), "dataset": str(root / "reviews.csv")}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--posts", type=int, default=1000)
    parser.add_argument("--home", type=Path, help="keep what is stored there")
    parser.add_argument("--database-url", help="of an empty database, or of one that this program filled")
    parser.add_argument("--store-only", action="store_true")
    parser.add_argument(
        "--untimed", action="store_true", help="times keep no promise: others use the machine"
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_alone(options.serve)
        return
    if options.database_url:
        os.environ["RANKWISE_DATABASE_URL"] = options.database_url
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        home = Home(options.home or root / "home").create()
        if not sizes_of_studies(home):
            store_trials(home, options.trials)
        if not options.store_only:
            raise SystemExit(0 if measure(home, root, options) else 1)


def sizes_of_studies(home: Home) -> dict[str, int]:
    """Studies that have trials, and how many."""
    study, trial = (Row.metadata.tables[name] for name in ("study", "trial"))
    counted = (
        sa.select(study.c.ulid, sa.func.count())
        .join(trial, trial.c.study_id == study.c.id)
        .group_by(study.c.ulid)
    )
    with closing(Store.open(home.database)) as store, store._read() as connection:
        return dict(connection.execute(counted).all())


def measure(home: Home, root: Path, options: argparse.Namespace) -> bool:
    """Print what was found; whether all promises were kept."""
    sizes = sizes_of_studies(home)
    large = max(sizes, key=lambda each: sizes[each])
    print(f"{sum(sizes.values())} trials of {len(sizes)} studies; one has {sizes[large]}")
    kept = in_time = True
    with serving(home, root, supervised=True) as (port, process):
        asyncio.run(Connection(port).ask("/healthz"))
        time.sleep(3)
        idle = process.memory_info().rss
        has_torch = "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
        kept &= idle <= IDLE_BYTES and not has_torch
        print(f"idle server: {idle / 1e6:.0f} MB, torch imported: {has_torch}")
        before_s = sum(process.cpu_times()[:2])
        found = asyncio.run(read(port, list(sizes), large, rate=options.rate, seconds=options.seconds))
        spent_s = sum(process.cpu_times()[:2]) - before_s
        asked = options.rate * (WARM_UP_S + options.seconds)
        print(f"after reading: {process.memory_info().rss / 1e6:.0f} MB", end="; ")
        print(f"the server took {1000 * spent_s / asked:.1f} ms of a processor for a request")
    everything = Found([each for kind in found.values() for each in kind.seconds])
    print(f"{'':30}{'answers':>8}{'kB':>7}{'median':>9}{'p99':>9}{'most':>9}  ms")
    for kind, each in (*sorted(found.items()), ("all", everything)):
        size = sum(each.sizes) / len(each.sizes) / 1000 if each.sizes else 0.0
        times = "".join(f"{1000 * each.at(share):9.1f}" for share in (0.5, 0.99, 1.0))
        limit = PAGE_P99_S if kind in PAGES else READ_P99_S
        in_time &= each.at(0.99) <= limit
        verdict = "" if each.at(0.99) <= limit else "  too slow"
        print(f"{kind:30}{len(each.seconds):8}{size:7.1f}{times}{verdict}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with serving(home, root, supervised=False) as (port, _):
        statuses, studies, took_s = asyncio.run(post(port, request_body(root), posts=options.posts))
    keys = options.posts // POSTS_PER_KEY
    kept &= statuses == {202: options.posts} and len(studies) == keys
    print(
        f"{options.posts} POSTs with {keys} keys: {len(studies)} studies in {took_s:.1f} s, "
        f"answers {statuses}"
    )
    with closing(Store.open(home.database)) as store:
        for study_id in studies:  # or the next run's supervisor would work on them
            store.request_cancel(study_id)
    return kept and (in_time or options.untimed)


if __name__ == "__main__":
    main()
