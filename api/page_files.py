"""The dashboard's files, read once, under an address that changes with what is in them.

So a browser keeps them for good, and never mixes those of two versions. Knows nothing of routes.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

FOLDER = Path(__file__).parent / "dashboard"
PAGE = "index.html"
VERSION = "{{version}}"
"""Stands in the page where the version of the files belongs."""
MODULES = "{{modules}}"
"""Stands in the page where the modules that it begins with belong."""
FIRST = "app.js"
IMPORT = re.compile(rb'^import [^"]*"\./([^"]+)";$', re.MULTILINE)

MEDIA_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
LEAST_COMPRESSED = 512
"""Smaller files do not get smaller."""


class PageFile:
    """One file, as it is and compressed."""

    def __init__(self, name: str, content: bytes) -> None:
        self.content = content
        self.media_type = MEDIA_TYPES[Path(name).suffix]

    @cached_property
    def compressed(self) -> bytes | None:
        """By gzip; None where that is of no use."""
        if len(self.content) < LEAST_COMPRESSED:
            return None
        return gzip.compress(self.content, 9, mtime=0)


class PageFiles:
    """All files of the folder that browsers may ask for."""

    def __init__(self, folder: Path = FOLDER) -> None:
        found = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in MEDIA_TYPES
        }
        digest = hashlib.sha256()
        for name, content in found.items():
            digest.update(f"{name} {len(content)}\n".encode() + content)
        self.version = digest.hexdigest()[:16]
        self._page = found.pop(PAGE).decode()
        self._pages: dict[str, PageFile] = {}
        self._files = {name: PageFile(name, content) for name, content in found.items()}

    def page(self, module: str = FIRST) -> PageFile:
        """The page, which lets the browser load at once all that this module and the first one import.

        Else it would find them one after another, a round trip each time.
        """
        if module not in self._pages:
            names = dict.fromkeys([*self._imported_by(FIRST), *self._imported_by(module), module])
            links = [
                f'<link rel="modulepreload" href="/login/files/{VERSION}/{name}">'
                for name in names
                if name != FIRST
            ]
            page = self._page.replace(MODULES, "\n".join(links)).replace(VERSION, self.version)
            self._pages[module] = PageFile(PAGE, page.encode())
        return self._pages[module]

    def find(self, name: str) -> PageFile | None:
        """The file of this name, relative to the folder; None where there is none."""
        return self._files.get(name)

    def _imported_by(self, module: str) -> list[str]:
        found: list[str] = []
        left = [module]
        while left:
            file = self._files.get(left.pop())
            imported = [match.decode() for match in IMPORT.findall(file.content)] if file else []
            left += [name for name in imported if name not in found]
            found += [name for name in imported if name not in found]
        return found
