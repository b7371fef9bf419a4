"""What trainers make of exports: docs/exports.md, written from the table and from what the trainers said.

    python benchmarks/consumers.py          # exports all cases, has them read, writes the page: a minute
    python benchmarks/consumers.py --check  # exits with 1 if the page is not up to date

The trainers' own parsers read the files (``consumer_parts/read_*.py``), on a machine without a GPU: nothing
is trained. ``make install`` lays the trainers out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from consumer_parts.cases import cases
from consumer_parts.page import page
from consumer_parts.reading import read_all

PAGE = Path(__file__).resolve().parent.parent / "docs" / "exports.md"


def main() -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = page(read_all(cases(), Path(folder)))
    if arguments.check:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
