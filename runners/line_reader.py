"""Bytes of a socket to the JSON messages in them. Knows nothing about what messages mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


class LineReader:
    """Takes bytes as they come, and gives whole messages."""

    def __init__(self) -> None:
        self._partial = b""

    def read(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The messages that these bytes complete.

        A line that is none is left out: its writer was killed in the middle, and the next starts afresh.
        """
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in filter(None, lines):
            try:
                yield json.loads(line)
            except ValueError:
                continue
