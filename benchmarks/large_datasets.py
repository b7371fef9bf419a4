"""Gigabytes of rows, profiled: how long it takes, how much memory at most, and which counts are exact.

    python benchmarks/large_datasets.py [--gigabytes 5] [--kinds jsonl csv parquet] [--folder /tmp]

Each file is written, dropped from the page cache, profiled twice (from the disk, then from memory) in a
process of its own, and deleted before the next one is written. On a machine that others use too, CPU seconds
(those of imports and of hashing included) say more than seconds. Exits 1 if a profile took more than a minute
or 500 MB. Needs Linux and as much free disk as one file takes.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LIMIT_S = 60.0
LIMIT_BYTES = 500_000_000
SPARE_BYTES = 2_000_000_000
"""Of the disk, left free."""
BLOCK_ROWS = 20_000
WORDS = "a film that is good bad long short naïve 日本 Привет 🙂 and so on, but then".split()  # noqa: SIM905


def main() -> int:
    """Measure all kinds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gigabytes", type=float, default=5.0, help="size of each file (default: %(default)s)"
    )
    parser.add_argument("--kinds", nargs="+", choices=sorted(WRITERS), default=["jsonl", "csv", "parquet"])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to write them"
    )
    parser.add_argument("--profile", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.profile:
        print(json.dumps(measure(arguments.profile)))
        return 0
    size = int(arguments.gigabytes * 1e9)
    free = shutil.disk_usage(arguments.folder).free - SPARE_BYTES
    if size > free:
        parser.error(
            f"{arguments.folder} has room for {max(0, free) / 1e9:.1f} GB: pass --gigabytes or --folder"
        )
    print(
        f"{'kind':20} {'GB':>6} {'read from':>9} {'seconds':>8} "
        f"{'CPU s':>6} {'peak MB':>8} {'rows':>12}  counts"
    )
    within = [is_within for kind in arguments.kinds for is_within in try_one(kind, size, arguments)]
    return int(not all(within))


def try_one(kind: str, size: int, arguments: argparse.Namespace) -> Iterator[bool]:
    """Write a file, profile it twice, and tell for each time whether it kept within the limits."""
    folder = Path(tempfile.mkdtemp(prefix="large-", dir=arguments.folder))
    try:
        path = WRITERS[kind](folder, size)
        for place in ("disk", "memory"):
            if place == "disk":
                drop_from_cache(path)
            command = [sys.executable, __file__, "--profile", str(path)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(
                f"{kind:20} {path.stat().st_size / 1e9:6.2f} {place:>9} {found['seconds']:8.1f} "
                f"{found['cpu_s']:6.1f} {found['peak_bytes'] / 1e6:8.0f} {found['rows']:12,}  "
                f"{found['counts']}",
                flush=True,
            )
            yield found["seconds"] <= LIMIT_S and found["peak_bytes"] <= LIMIT_BYTES
    finally:
        shutil.rmtree(folder)


def measure(path: Path) -> dict[str, Any]:
    """Profile a file in this process, which did nothing else before."""
    from rankwise.probes.dataset import check_dataset, profile_dataset

    started = time.monotonic()
    check_dataset(path)
    found = profile_dataset(path, source=str(path))
    seconds = time.monotonic() - started
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    exact = found.every_nth_row == 1
    return {
        "seconds": seconds,
        "cpu_s": time.process_time(),
        "peak_bytes": int(peak_kib) * 1024,
        "rows": found.rows,
        "counts": "all exact" if exact else f"rows exact, others estimated from one in {found.every_nth_row}",
    }


def drop_from_cache(path: Path) -> None:
    """Let the next reader fetch the file from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_rows(count: int = BLOCK_ROWS, words: int = 60) -> list[dict[str, Any]]:
    """Rows of a few hundred bytes, the same ones each time."""
    random = Random(0)
    return [
        {
            "id": number,
            "text": " ".join(random.choices(WORDS, k=random.randint(1, 2 * words))),
            "label": random.choice(["pos", "neg"]),
        }
        for number in range(count)
    ]


def repeated(path: Path, size: int, block: bytes, *, head: bytes = b"", tail: bytes = b"") -> Path:
    """A file of a block over and over, up to about ``size`` bytes."""
    with path.open("wb") as file:
        file.write(head)
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.write(tail)
    return path


def jsonl(folder: Path, size: int) -> Path:
    """One object a line."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows())
    return repeated(folder / "data.jsonl", size, "".join(lines).encode())


def json_array(folder: Path, size: int) -> Path:
    """One array of objects."""
    elements = (json.dumps(row) + ",\n" for row in make_rows())
    path = folder / "data.json"
    return repeated(path, size, "".join(elements).encode(), head=b"[", tail=b'{"text": "a", "label": "pos"}]')


def csv_rows(folder: Path, size: int, rows: list[dict[str, Any]] | None = None) -> Path:
    """With quoted cells."""
    file = io.StringIO(newline="")
    rows = rows or make_rows()
    csv.DictWriter(file, list(rows[0])).writerows(rows)
    head = ",".join(rows[0]).encode() + b"\r\n"
    return repeated(folder / "data.csv", size, file.getvalue().encode(), head=head)


def csv_many_rows(folder: Path, size: int) -> Path:
    """Of a few words each."""
    return csv_rows(folder, size, make_rows(words=3))


def csv_many_columns(folder: Path, size: int) -> Path:
    """Of small numbers, beside a text."""
    random = Random(0)
    numbers = [{f"n{column}": random.randrange(100) for column in range(500)} for _ in range(1000)]
    rows = [row | more for row, more in zip(make_rows(1000), numbers, strict=True)]
    return csv_rows(folder, size, rows)


def csv_open_quote(folder: Path, size: int) -> Path:
    """Cells of quoted lines, a megabyte each."""
    cell = '"' + "words of a book\n" * 60_000 + '",pos\n'
    return repeated(folder / "data.csv", size, (cell + "a film,neg\n").encode(), head=b"text,label\n")


def parquet(folder: Path, size: int) -> Path:
    """Row groups of some 100 MB."""
    path = folder / "data.parquet"
    random = Random(0)
    rows = make_rows(4 * BLOCK_ROWS)
    # Compression would find rows that repeat: with random letters among the words it hardly does.
    for row in rows:
        row["text"] = f"{random.randbytes(150).hex()} {row['text']}"
    table = pa.Table.from_pylist(rows)
    with pq.ParquetWriter(path, table.schema, use_dictionary=["label"]) as writer:
        while path.stat().st_size < size:
            writer.write_table(table)
    return path


def arrow(folder: Path, size: int) -> Path:
    """As ``datasets`` saves it, a thousand rows a batch."""
    path = folder / "data.arrow"
    table = pa.Table.from_pylist(make_rows())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        while path.stat().st_size < size:
            writer.write_table(table, max_chunksize=1000)
    return path


def arrow_large_batches(folder: Path, size: int) -> Path:
    """In batches of half a gigabyte."""
    path = folder / "data.arrow"
    table = pa.Table.from_pylist(make_rows())
    table = pa.concat_tables([table] * max(1, 500_000_000 // table.nbytes)).combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        while path.stat().st_size < size:
            writer.write_table(table)
    return path


def text(folder: Path, size: int) -> Path:
    """One text a line."""
    lines = (row["text"] + "\n" for row in make_rows())
    return repeated(folder / "data.txt", size, "".join(lines).encode())


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    function.__name__: function
    for function in (
        jsonl, json_array, csv_many_rows, csv_many_columns, csv_open_quote, parquet, arrow,
        arrow_large_batches, text,
    )
} | {"csv": csv_rows}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
