"""What a file that cannot be read as a dataset really is, and what to do about it.

Looks at its beginning only, and only to word an error. Knows nothing of rows.
"""

from __future__ import annotations

import codecs
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HEAD_BYTES = 256 * 1024


class FileKind(NamedTuple):
    """An explanation for an error."""

    looks_like: str
    """The end of a sentence: it looks like …"""
    next_step: str


def _convert(command: str) -> Callable[[Path], str]:
    return lambda path: f"unpack it: {command} {shlex.quote(path.name)}"


def _export(path: Path) -> str:
    return f"export the table as CSV (UTF-8), for example as {path.stem}.csv"


def _rename(suffix: str) -> Callable[[Path], str]:
    return lambda path: f"rename it to {path.stem}{suffix}"


SIGNATURES: tuple[tuple[bytes, str, Callable[[Path], str]], ...] = (
    (b"\x1f\x8b", "a gzip archive", _convert("gunzip")),
    (b"BZh", "a bzip2 archive", _convert("bunzip2")),
    (b"\xfd7zXZ\0", "an xz archive", _convert("unxz")),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", _convert("unzstd")),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _convert("7z x")),
    (b"PK\x03\x04", "a ZIP archive", _convert("unzip")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook of the old format", _export),
    (b"PAR1", "Parquet", _rename(".parquet")),
    (b"ARROW1", "Arrow", _rename(".arrow")),
    (b"\xff\xff\xff\xff", "an Arrow stream", _rename(".arrow")),
    (b"SQLite format 3\0", "an SQLite database", _export),
    (b"%PDF", "a PDF document", lambda _: "extract its text into a .txt file"),
    (b"\x89HDF\r\n", "HDF5", lambda _: "convert it to Parquet"),
    (b"\x80\x04\x95", "a Python pickle, which can run any code", lambda _: "convert it to Parquet"),
    (b"\x80\x05\x95", "a Python pickle, which can run any code", lambda _: "convert it to Parquet"),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS in place of the data",
        lambda _: "fetch the data with git lfs pull",
    ),
)
FORMAT_NAMES = {".parquet": ("Parquet",), ".arrow": ("Arrow", "an Arrow stream")}
ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""The first two begin with the last two, or are no others' beginning."""


def is_pointer(path: Path) -> bool:
    """Git LFS left a small text in place of the file."""
    with path.open("rb") as file:
        return file.read(24).startswith(b"version https://git-lfs")


def file_kind(path: Path) -> FileKind | None:
    """Return what the file looks like instead of what its extension says; None where that is unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    suffix = path.suffix.lower()
    for signature, name, next_step in SIGNATURES:
        if head.startswith(signature):
            if name in FORMAT_NAMES.get(suffix, ()):
                return FileKind(f"{name} that was cut short or damaged", "copy or write the file again")
            if name == "a ZIP archive" and b"xl/" in head:
                return FileKind("an Excel workbook", _export(path))
            return FileKind(name, next_step(path))
    if suffix in FORMAT_NAMES:
        return None
    return _encoding(path, head) or _other_text(path, head)


def _encoding(path: Path, head: bytes) -> FileKind | None:
    """The encoding of a text that is not UTF-8."""
    for mark, name in ENCODINGS:
        if head.startswith(mark):
            return _in_encoding(path, name)
    # Latin letters in UTF-16 have a zero byte each, always on the same side.
    for side, name in ((0, "UTF-16BE"), (1, "UTF-16LE")):
        if len(head) >= 4 and head[side::2].count(0) > 0.4 * len(head) / 2 > 2 * head[1 - side :: 2].count(0):
            return _in_encoding(path, name)
    if b"\0" in head:
        return FileKind(
            "a binary file",
            f"convert it to CSV, JSON Lines or Parquet, or remove the zero bytes: "
            f"tr -d '\\000' < {shlex.quote(path.name)}",
        )
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError as error:
        if any(byte > 127 for byte in head[: error.start]):
            return FileKind(
                "UTF-8 with a damaged byte",
                f"drop such bytes: iconv -c -f UTF-8 -t UTF-8 {shlex.quote(path.name)}",
            )
        windows = any(0x80 <= byte < 0xA0 for byte in head)
        return _in_encoding(path, "Windows-1252" if windows else "Latin-1")
    return None


def _in_encoding(path: Path, name: str) -> FileKind:
    code = "ISO-8859-1" if name == "Latin-1" else name.upper().replace("WINDOWS-", "CP")
    old, new = shlex.quote(path.name), shlex.quote(f"{path.stem}.utf8{path.suffix}")
    return FileKind(f"{name} text", f"convert it: iconv -f {code} -t UTF-8 {old} > {new}")


def _other_text(path: Path, head: bytes) -> FileKind | None:
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:200].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return FileKind("a web page or XML", "download the data itself, or convert it to JSON Lines")
    if not path.suffix.lower().startswith((".json", ".ndjson")):
        return None
    old, new = shlex.quote(path.name), shlex.quote(f"{path.stem}.jsonl")
    if not start.startswith((b"{", b"[", b'"')):
        return FileKind("no JSON at all", "give the file the extension of its format: .csv, .tsv or .txt")
    if start.startswith(b"{") and start[1:].lstrip(b" \t\r").startswith(b"\n"):
        return FileKind(
            "a JSON object over several lines",
            f"write one object a line: jq -c . {old} > {new} (jq -c '.data[]' for rows under data)",
        )
    return None
