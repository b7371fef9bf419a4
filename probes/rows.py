"""File to rows: streams a CSV or JSON-lines file, one dict a row, and names the line that cannot be read.

Uses the standard library only. Knows nothing of which column means what.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
MAX_LINE_BYTES = 64 * 1024 * 1024


class RowError(ValueError):
    """A row that cannot be read."""

    def __init__(self, path: Path, line: int, cause: str) -> None:
        super().__init__(f"{path}, line {line}: {cause}")
        self.path = path
        self.line = line
        self.cause = cause


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, holding one at a time; blank lines are skipped.

    ``.csv`` and ``.tsv`` start with a header, and every cell is a string. All other files hold one JSON
    object a line, whose values are whatever JSON has. UTF-8, with or without a byte order mark.

    Raises:
        RowError: for the first line that cannot be read.
    """
    return _csv_rows(path) if path.suffix.lower() in CSV_SUFFIXES else _json_rows(path)


def row_text(row: Mapping[str, Any], column: str) -> str:
    """Return a cell as text: a string as it is, "" for null or a missing cell, JSON for anything else."""
    value = row.get(column)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(raw) > MAX_LINE_BYTES:
                raise RowError(path, number, f"the line is longer than {MAX_LINE_BYTES} bytes")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                cause = f"byte {error.start + 1} of the line is not UTF-8 ({error.reason})"
                raise RowError(path, number, cause) from None
            if "\0" in line:
                raise RowError(path, number, "the line holds a NUL character")
            yield line


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    records = _csv_records(path)
    line, cells = next(records, (1, []))
    header = [name.strip() for name in cells]
    if not header:
        raise RowError(path, line, "no header line")
    name, count = Counter(header).most_common(1)[0]
    if count > 1:
        raise RowError(path, line, f"{count} columns are named {name!r}")
    for line, cells in records:
        if len(cells) != len(header):
            raise RowError(path, line, f"{len(cells)} cells where the header has {len(header)}")
        yield dict(zip(header, cells, strict=True))


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the line that the record starts on, cells)."""
    header = next((line for line in _lines(path) if line.strip()), "")
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(MAX_LINE_BYTES)
    # Without ``strict``, a quote left open silently takes the rest of the file into its cell.
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RowError(path, line, str(error)) from None
        if "".join(cells).strip() or len(cells) > 1:
            yield line, cells


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is JSON but not Unicode
        except (ValueError, RecursionError) as error:
            raise RowError(path, number, f"not one JSON object a line ({error})") from None
        if not isinstance(row, dict):
            raise RowError(path, number, f"a JSON {type(row).__name__} where one object a line is needed")
        yield row
