"""What must never be in a file of the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MAX_FILE_BYTES = 2 * 1024**2

FORBIDDEN = {
    "a path of one machine": re.compile(rb"(?<![\w.}])/(?:work|root|opt/wheels)\b"),
    "the host of a package registry": re.compile(
        rb"\bpypi\.org\b|\bpythonhosted\.org\b|\bnpmjs\.(?:org|com)\b"
    ),
    "a marker of unfinished work": re.compile(rb"\b(?:TO[D]O|FIX[M]E|XX[X])\b"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_has(what: str, repository_files: list[Path]) -> None:
    found = [
        f"{path}:{number}: {line.decode(errors='replace').strip()}"
        for path in repository_files
        if path.suffix != ".png"  # compressed bytes spell any short word by chance
        for number, line in enumerate((REPOSITORY / path).read_bytes().splitlines(), start=1)
        if FORBIDDEN[what].search(line)
    ]
    assert not found, "\n".join([what, *found])


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", b"cd /" + b"work/main"),
        ("a path of one machine", b"HOME=/" + b"root"),
        ("the host of a package registry", b"https://pypi" + b".org/simple"),
        ("a marker of unfinished work", b"# TO" + b"DO: later"),
    ],
)
def test_forbidden_text_is_recognised(what: str, line: bytes) -> None:
    assert FORBIDDEN[what].search(line)


def test_no_file_is_large(repository_files: list[Path]) -> None:
    large = [str(path) for path in repository_files if (REPOSITORY / path).stat().st_size > MAX_FILE_BYTES]
    assert not large
