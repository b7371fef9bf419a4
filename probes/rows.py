"""Files to rows: streams CSV, JSON, Parquet, Arrow and text files, one dict a row; says what a cell holds.

Names the line or row that cannot be read. Needs the standard library, for Parquet and Arrow pyarrow too.
Knows nothing of which column means what.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TextIO

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".arrow": "arrow",
}
"""Extension → format."""
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_COLUMNS = 1000
MAX_FOLDER_ENTRIES = 20_000
BLOCK_BYTES = 1024 * 1024
BATCH_BYTES = 16 * 1024 * 1024
"""What a batch of Parquet rows may take on average …"""
DICTIONARY_BYTES = 128 * 1024 * 1024
"""… and at most, if every row held all that the file keeps once for many rows."""
ARRAY_SIGN = re.compile(r"\s*([\[,\]])\s*")
TRAIN_WORDS = frozenset(("train", "training"))
OTHER_SPLIT_WORDS = frozenset(
    ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation", "heldout", "holdout")
)
NO_DATA_STEMS = frozenset(
    ("readme", "license", "licence", "notice", "citation", "requirements", "state", "dataset_infos")
)
"""Files beside the data that have a data file's extension."""
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""The names that OpenAI's and ShareGPT's forms give to who speaks → the roles of chat templates."""


class RowError(ValueError):
    """A row, or a whole file, that cannot be read."""

    def __init__(
        self, path: Path, line: int | None, cause: str, *, unit: str = "line", next_step: str = ""
    ) -> None:
        place = "" if line is None else f", {unit} {line}"
        super().__init__(f"{path}{place}: {cause}")
        self.path = path
        self.line = line
        """None where the cause lies in no single line."""
        self.unit = unit
        """What ``line`` counts from 1: ``line`` or, where a file has no lines, ``row``."""
        self.cause = cause
        self.next_step = next_step
        """Empty where correcting the line is all there is to do."""


class RowStream(Iterator[dict[str, Any]]):
    """The rows of one dataset, holding a few at a time; see :func:`read_rows`."""

    def __init__(self, path: Path, every: int) -> None:
        self.passed = 0
        """Rows met so far, skipped ones included; all of them once the stream is at its end."""
        self._every = every
        self._rows = self._read(path)

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        kind, files = data_files(path)
        readers = {
            "csv": self._csv_rows,
            "jsonl": self._json_rows,
            "parquet": self._parquet_rows,
            "text": self._text_rows,
            "arrow": self._arrow_rows,
        }
        for file in files:
            yield from readers[kind](file)

    def _wanted(self) -> bool:
        """Count one row, and tell whether it is one to look at."""
        self.passed += 1
        return (self.passed - 1) % self._every == 0

    def _csv_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        records = CsvRecords(path)
        line, cells = next(records, (1, []))
        header = [name.strip() for name in cells]
        if not header:
            raise RowError(path, line, "no header line")
        _check_names(header, path, line)
        while True:
            self.passed += records.skip(-self.passed % self._every)
            line, cells = next(records, (0, []))
            if not line:
                return
            if not self._wanted():
                continue
            if len(cells) != len(header):
                raise RowError(path, line, f"{len(cells)} cells where the header has {len(header)}")
            yield dict(zip(header, cells, strict=True))

    def _text_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        for number, raw in _lines(path):
            if raw and not raw.isspace() and self._wanted():
                yield {"text": _decoded(raw, path, number).rstrip("\r")}

    def _json_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        if _starts_with_bracket(path):
            for number, row in _array_elements(path):
                if self._wanted():
                    yield _json_object(row, path, number)
            return
        for number, raw in _lines(path):
            if raw and not raw.isspace() and self._wanted():
                line = _decoded(raw, path, number)
                try:
                    row = json.loads(line)
                    if "\\u" in line:
                        _refuse_half_pairs(row)
                except (ValueError, RecursionError) as error:
                    raise RowError(path, number, f"not one JSON object a line ({_cause(error)})") from None
                yield _json_object(row, path, number)

    def _parquet_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        from pyarrow import ArrowException

        try:
            file = open_parquet(path)
            names = file.schema_arrow.names
            _check_names(names, path, None)
            for group in range(file.num_row_groups):
                rows = _rows_per_batch(file.metadata.row_group(group))
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False):
                    yield from self._batch_rows(batch, names, path)
        except (ArrowException, OSError, MemoryError, OverflowError) as error:
            raise RowError(path, None, f"not readable as Parquet ({_cause(error)})") from None

    def _arrow_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        from pyarrow import ArrowException, OSFile
        from pyarrow.ipc import open_file, open_stream

        try:
            with OSFile(str(path)) as source:
                is_file = source.read(6) == b"ARROW1"
                source.seek(0)
                reader = open_file(source) if is_file else open_stream(source)
                names = reader.schema.names
                _check_names(names, path, None)
                batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
                for batch in batches:
                    # A damaged file could otherwise send the reader to memory that is not its own.
                    batch.validate(full=True)
                    yield from self._batch_rows(batch, names, path)
        except (ArrowException, OSError, MemoryError, OverflowError) as error:
            raise RowError(path, None, f"not readable as Arrow ({_cause(error)})") from None

    def _batch_rows(self, batch: Any, names: list[str], path: Path) -> Iterator[dict[str, Any]]:
        first = -self.passed % self._every
        before = self.passed
        self.passed += batch.num_rows
        if self._every > 1:
            batch = batch.take(list(range(first, batch.num_rows, self._every)))
        # Python's strings are copies: of long rows, few at a time.
        step = max(1, min(batch.num_rows, batch.num_rows * BATCH_BYTES // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, step):
            try:
                columns = [_plain_cells(column) for column in batch.slice(start, step).columns]
            except (ValueError, OverflowError, RecursionError) as error:
                row = before + first + start * self._every + 1
                raise RowError(path, row, _cause(error), unit="row") from None
            for cells in zip(*columns, strict=True):
                yield dict(zip(names, cells, strict=True))


class CsvRecords(Iterator[tuple[int, list[str]]]):
    """The records of a CSV file that are not blank: (number of the line it starts on, cells)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = _lines(path)
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._number = 0
        header = next(((number, raw) for number, raw in self._lines if raw.strip()), None)
        first = _decoded(header[1], path, header[0]) if header else ""
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" and "\t" in first else _delimiter(first)
        self._is_record = _record_pattern(self._delimiter.encode()).fullmatch
        if header:
            self._waiting.append(header)
        csv.field_size_limit(MAX_LINE_BYTES)
        # Without ``strict``, a quote left open silently takes the rest of the file into its cell.
        self._reader = csv.reader(self._texts(), delimiter=self._delimiter, strict=True)

    def __next__(self) -> tuple[int, list[str]]:
        while True:
            line = self._waiting[0][0] if self._waiting else self._number + 1
            try:
                cells = next(self._reader)
            except csv.Error as error:
                raise RowError(self._path, line, str(error)) from None
            if len(cells) > 1 or "".join(cells).strip():
                return line, cells

    def skip(self, count: int) -> int:
        """Pass over so many records without parsing them; returns after how many that is no longer safe.

        It is where quotes leave no doubt about a record's end.
        """
        skipped = 0
        if self._waiting:
            return skipped
        for line in islice(self._lines, count):
            number, raw = line
            if b'"' not in raw and raw and not raw.isspace():
                self._number = number
                skipped += 1
                continue
            lines, length = [line], len(line[1])
            # Lines are counted, not matched over and over: a cell may have a million of them.
            is_open = line[1].count(b'"') % 2 == 1
            while is_open and length <= MAX_LINE_BYTES and (more := next(self._lines, None)):
                lines.append(more)
                length += len(more[1])
                is_open ^= more[1].count(b'"') % 2 == 1
            record = b"\n".join(raw for _, raw in lines)
            if is_open or not record or record.isspace() or not self._is_record(record):
                self._waiting.extend(lines)
                break
            self._number = lines[-1][0]
            skipped += 1
        return skipped

    def _texts(self) -> Iterator[str]:
        while line := self._waiting.popleft() if self._waiting else next(self._lines, None):
            self._number = line[0]
            yield _decoded(line[1], self._path, line[0]) + "\n"


def read_rows(path: Path, *, every: int = 1) -> RowStream:
    """Yield the rows of a file or a folder of files, holding a few at a time; blank lines are skipped.

    ``.csv`` and ``.tsv`` start with a header, and every cell is a string. ``.txt`` has one row a line, in the
    column ``text``. ``.json``, ``.jsonl`` and ``.ndjson`` hold one JSON object a line, or one JSON array of
    objects; values are whatever JSON has. ``.parquet`` and ``.arrow`` give plain Python values: dates and
    decimals as text, bytes that are no text as None. Text is UTF-8, with or without a byte order mark. For
    folders see :func:`data_files`.

    Args:
        path: the file or folder.
        every: look only at rows 0, n, 2n, …; the others are counted, and what is wrong in them may go unseen.

    Raises:
        RowError: on reaching the first line that cannot be read.
    """
    return RowStream(path, every)


def data_files(path: Path) -> tuple[str, list[Path]]:
    """Return the format (a value of :data:`FORMATS`) and the files, in their order, of a dataset.

    A folder is one that ``datasets`` saved (of several splits, the one named ``train``), or holds data files
    of one format: those with ``train`` in their path if there are any, else those that name no other split.

    Raises:
        RowError: the extension is unknown, or the folder's files make no one dataset.
    """
    if path.is_dir():
        return _folder_files(path)
    if path.suffix.lower() not in FORMATS:
        raise RowError(path, None, f"unsupported extension {path.suffix!r}")
    return FORMATS[path.suffix.lower()], [path]


def row_text(row: Mapping[str, Any], column: str) -> str:
    """Return a cell as text: a string as it is, "" for null, NaN or a missing cell, else JSON."""
    value = cell(row, column)
    if value is None or value != value:  # NaN, which tables have in place of null, equals nothing
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cell(row: Mapping[str, Any], column: str) -> Any:
    """Return a cell's value, None if it is missing; ``pair.en`` is ``en`` in the object in ``pair``."""
    if column not in row and "." in column:
        outer, _, inner = column.partition(".")
        nested = row.get(outer)
        return nested.get(inner) if isinstance(nested, dict) else None
    return row.get(column)


def row_number(row: Mapping[str, Any], column: str) -> float | None:
    """Return a cell's number, which may be written as a string; None if it is none, or not finite."""
    value = cell(row, column)
    if not isinstance(value, (int, float, str)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def row_label(row: Mapping[str, Any], column: str) -> str | None:
    """Return a cell as the name of a class; None where it is missing: null, white space, NaN or infinity."""
    text = row_text(row, column)
    name = text.strip()[:20].lower().lstrip("+-")
    return None if name in ("", "nan", "inf", "infinity") else text


def conversation(row: Mapping[str, Any], column: str) -> list[dict[str, str]] | None:
    """Return a cell's turns as ``role`` and ``content``, or None if they are no conversation to learn from.

    Takes lists of ``role``/``content`` and of ShareGPT's ``from``/``value``, also as JSON in a string;
    content that is a list of text parts is joined. Every role must be one of :data:`ROLES`, every content
    text, and at least one turn of the assistant more than white space.
    """
    turns = cell(row, column)
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        try:
            text, turns = turns, json.loads(turns)
            if "\\u" in text:
                _refuse_half_pairs(turns)
        except (ValueError, RecursionError):
            return None
    if not isinstance(turns, list):
        return None
    found = []
    for turn in turns:
        if not isinstance(turn, dict):
            return None
        said_by, said = (
            (turn["role"], turn.get("content")) if "role" in turn else (turn.get("from"), turn.get("value"))
        )
        role = ROLES.get(said_by.strip().lower()) if isinstance(said_by, str) else None
        content = _content(said)
        if role is None or content is None:
            return None
        found.append({"role": role, "content": content})
    answered = any(turn["role"] == "assistant" and turn["content"].strip() for turn in found)
    return found if answered else None


def open_parquet(path: Path) -> Any:
    """Return pyarrow's ``ParquetFile``, set to hold parts of row groups; pyarrow's errors pass through."""
    from pyarrow.parquet import ParquetFile, read_metadata

    columns = read_metadata(path).num_columns
    return ParquetFile(path, pre_buffer=False, buffer_size=max(2**14, 2**26 // max(64, columns)))


def _content(said: Any) -> str | None:
    if not isinstance(said, list):
        return said if isinstance(said, str) else None
    parts = [part.get("text") if isinstance(part, dict) else part for part in said]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts and len(texts) == len(parts) else None


def _folder_files(folder: Path) -> tuple[str, list[Path]]:
    if (folder / "dataset_dict.json").is_file():
        saved = sorted(file.parent.name for file in folder.glob("*/state.json"))
        if "train" not in saved:
            step = f"name the folder of one of them: {folder / saved[0]}" if saved else "save it again"
            raise RowError(folder, None, f"no split 'train' (it has: {', '.join(saved)})", next_step=step)
        return "arrow", _saved_files(folder / "train")
    if (folder / "state.json").is_file():
        return "arrow", _saved_files(folder)
    files = _walk(folder)
    kinds = Counter(FORMATS[file.suffix.lower()] for file in files)
    if not kinds:
        raise RowError(
            folder, None, "a folder without data files", next_step=f"put {', '.join(FORMATS)} files into it"
        )
    if len(kinds) > 1:
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise RowError(
            folder,
            None,
            f"files of several formats ({counted})",
            next_step="name one file, or one format's folder",
        )
    parts = {file: file.relative_to(folder).parts for file in files}
    chosen = [file for file in files if _words(*parts[file]) & TRAIN_WORDS]
    # What precedes the word "train" tells datasets apart: first/train.csv, second/train.csv.
    before = sorted({"/".join(takewhile(_names_no_training, parts[file])) for file in chosen})
    if len(before) > 1:
        raise RowError(
            folder,
            None,
            f"several datasets ({', '.join(before[:10])})",
            next_step=f"name one of them: {folder / before[-1]}",
        )
    chosen = chosen or [file for file in files if not _words(*parts[file]) & OTHER_SPLIT_WORDS]
    if not chosen:
        raise RowError(
            folder, None, "no files to train on, only other splits", next_step=f"name a file: {files[0]}"
        )
    return next(iter(kinds)), chosen


def _words(*parts: str) -> set[str]:
    return set(re.split(r"[^a-z]+", "/".join(parts).lower()))


def _names_no_training(part: str) -> bool:
    return not _words(part) & TRAIN_WORDS


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder that ``datasets.save_to_disk`` wrote, in their order."""
    again = "save it again with save_to_disk"
    try:
        names = [file["filename"] for file in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise RowError(folder / "state.json", None, "it lists no data files", next_step=again) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise RowError(folder / "state.json", None, f"there is no file {name!r}", next_step=again)
    if not names:
        raise RowError(folder, None, "it has no rows", next_step="save a dataset that has some")
    return [folder / name for name in names]


def _walk(folder: Path) -> list[Path]:
    """All data files below a folder, sorted; hidden ones and linked folders are left out."""
    found, entries = [], 0
    for parent, folders, names in os.walk(folder, onerror=_raise):
        entries += len(names) + len(folders)
        if entries > MAX_FOLDER_ENTRIES:
            raise RowError(
                folder,
                None,
                f"more than {MAX_FOLDER_ENTRIES} files",
                next_step="name a folder with the data only, or join the files",
            )
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found += [
            path
            for path in paths
            if path.suffix.lower() in FORMATS and path.stem.lower() not in NO_DATA_STEMS and path.is_file()
        ]
    return sorted(found)


def _raise(error: OSError) -> None:
    """A folder that may not be read would be left out without a word."""
    raise error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) without its end: LF, or CR where the beginning has no LF; CR LF leaves CR."""
    number = 1
    with path.open("rb") as file:
        block = file.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
        end = b"\r" if b"\r" in block and b"\n" not in block else b"\n"
        rest = b""
        while block:
            lines = (rest + block).split(end)
            rest = lines.pop()
            yield from enumerate(lines, start=number)
            number += len(lines)
            if len(rest) > MAX_LINE_BYTES:
                raise RowError(path, number, f"the line is longer than {MAX_LINE_BYTES} bytes")
            block = file.read(BLOCK_BYTES)
    if rest:
        yield number, rest


def _decoded(raw: bytes, path: Path, number: int) -> str:
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        cause = f"byte {error.start + 1} of the line is not UTF-8 ({error.reason})"
        raise RowError(path, number, cause) from None
    if "\0" in line:
        raise RowError(path, number, "the line holds a NUL character")
    return line


def _delimiter(header: str) -> str:
    return max(",;\t|", key=header.count)


def _record_pattern(delimiter: bytes) -> re.Pattern[bytes]:
    """Matches what is surely one record: each quote opens or closes a cell, or is one of a pair in it."""
    sign = re.escape(delimiter)
    one = rb'(?:(?:"[^"]*+")++|[^"' + sign + rb"]*+)"
    return re.compile(one + rb"(?:" + sign + one + rb")*+\r?")


def _check_names(names: Iterable[str], path: Path, line: int | None) -> None:
    counts = Counter(names)
    if counts.total() > MAX_COLUMNS:
        raise RowError(
            path,
            line,
            f"it has more than {MAX_COLUMNS} columns",
            next_step="keep the text, the label and little else",
        )
    if counts and counts.most_common(1)[0][1] > 1:
        name, count = counts.most_common(1)[0]
        raise RowError(
            path, line, f"{count} columns are named {name[:200]!r}", next_step="name them differently"
        )


def _starts_with_bracket(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _array_elements(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number of the line it starts on, element) of a JSON array, a block at a time."""
    buffer, at, line, sign = "", 0, 1, "["
    with path.open(encoding="utf-8-sig") as file:
        while True:
            try:
                found = _element_after(sign, buffer, at)
            except (ValueError, RecursionError) as error:
                # Cut off, or broken: only more text can tell.
                left = len(buffer) - at
                more = _read_text(file, max(BLOCK_BYTES, left), path) if left <= MAX_LINE_BYTES else ""
                if not more:
                    line += buffer.count("\n", at, getattr(error, "pos", at))
                    raise RowError(path, line, f"not a JSON array of objects ({_cause(error)})") from None
                buffer, at = buffer[at:] + more, 0
                continue
            if found is None:
                return
            start, end, element = found
            line += buffer.count("\n", at, start)
            yield line, element
            line += buffer.count("\n", start, end)
            at, sign = end, ","


def _element_after(sign: str, buffer: str, at: int) -> tuple[int, int, Any] | None:
    """Return (start, end, element) of what follows the opening or separating sign; None at the end."""
    before = ARRAY_SIGN.match(buffer, at)
    if before is None or (before[1] != sign and sign + before[1] != ",]"):
        raise json.JSONDecodeError(f"Expecting {sign!r}", buffer, at)
    start = before.end()
    if before[1] == "]" or (sign == "[" and buffer.startswith("]", start)):
        return None
    element, end = json.JSONDecoder().raw_decode(buffer, start)
    if "\\u" in buffer[start:end]:
        _refuse_half_pairs(element)
    return start, end, element


def _read_text(file: TextIO, characters: int, path: Path) -> str:
    try:
        return file.read(characters)
    except UnicodeDecodeError as error:
        raise RowError(path, None, f"it is not UTF-8 ({error.reason})") from None


def _json_object(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        cause = f"a JSON {type(row).__name__} where an object with the columns is needed"
        raise RowError(path, number, cause)
    return row


def _refuse_half_pairs(value: Any) -> None:
    """Raise UnicodeEncodeError, a ValueError, for half a surrogate pair: it is JSON but not Unicode."""
    json.dumps(value, ensure_ascii=False).encode()


def _rows_per_batch(group: Any) -> int:
    """As many rows of a Parquet row group as fit into memory, even where a few bytes stand for long texts."""
    most = BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)
    for number in range(group.num_columns):
        column = group.column(number)
        if column.has_dictionary_page and column.dictionary_page_offset:
            compressed = column.data_page_offset - column.dictionary_page_offset
            growth = column.total_uncompressed_size / max(1, column.total_compressed_size)
            most = min(most, int(DICTIONARY_BYTES / max(1.0, compressed * growth)))
    return max(1, min(most, 1024))


def _plain_cells(column: Any) -> list[Any]:
    from pyarrow import ArrowException, string, types

    kind = column.type
    if types.is_temporal(kind) or types.is_decimal(kind):
        try:
            column = column.cast(string())
        except ArrowException:
            return [None] * len(column)
    cells: list[Any] = column.to_pylist()
    is_plain = types.is_string(column.type) or types.is_primitive(column.type)
    return cells if is_plain else list(map(_plain, cells))


def _plain(value: Any) -> Any:
    match value:
        case None | str() | bool() | int() | float():
            return value
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return str(value)


def _cause(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return text.splitlines()[0][:300]
