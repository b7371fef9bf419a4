"""What the site takes from the repository beside docs/, and what becomes of links that leave docs/.

MkDocs calls the two functions with ``on_`` (``hooks`` in mkdocs.yml). CONTRIBUTING.md and CHANGELOG.md
are pages of the site without being copied. A link to another file of the repository goes to
where it is published; one to nothing is a warning, which ends a strict build.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

REPOSITORY = Path(__file__).parents[2]
TAKEN_IN = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Page of the site → file of the repository."""

LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
CODE_SPAN = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")

log = logging.getLogger("mkdocs.hooks.repository")


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages of ``TAKEN_IN``."""
    for page, name in TAKEN_IN.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Point links that leave docs/, or come from outside it, to where the site has their target."""
    source = TAKEN_IN.get(page.file.src_uri, posixpath.join("docs", page.file.src_uri))
    published = config.extra["repository"]
    lines, fence = [], ""
    for line in markdown.split("\n"):
        bare = line.lstrip()
        if bare.startswith(("```", "~~~")) and (not fence or bare.startswith(fence)):
            fence = "" if fence else bare[:3]
        lines.append(line if fence else _relinked(line, source, page.file.src_uri, published))
    return "\n".join(lines)


def _relinked(line: str, source: str, page: str, published: str) -> str:
    spans = [match.span() for match in CODE_SPAN.finditer(line)]

    def replaced(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in spans):
            return match[0]
        return site_target(match["target"], source, page, published) + (match["anchor"] or "")

    return LINK.sub(replaced, line)


def site_target(target: str, source: str, page: str, published: str) -> str:
    """Return what a link of ``source``, a file of the repository, is called on the site's page ``page``."""
    meant = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    pages = {file: name for name, file in TAKEN_IN.items()}
    if meant in pages or meant.startswith("docs/"):
        there = pages.get(meant, meant.removeprefix("docs/"))
        return posixpath.relpath(there, posixpath.dirname(page) or ".")  # mkdocs looks whether it is there
    found = REPOSITORY / meant
    if meant.startswith("..") or not found.exists():
        log.warning("%s: a link to %r, which the repository does not have", source, target)
        return target
    return f"{published}/{'tree' if found.is_dir() else 'blob'}/main/{meant.replace(os.sep, '/')}"
