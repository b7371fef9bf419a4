"""The repository's pages, and the blocks of code in them with what a test is told about each.

A comment before a block says how it is tested; `CONTRIBUTING.md` lists what there is:

    <!-- test: skip needs a GPU -->
    <!-- test: budget 20s -->
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

REPOSITORY = Path(__file__).parents[2]
SHELLS = {"bash", "console", "sh"}
LANGUAGES = SHELLS | {"dockerfile", "json", "python", "text", "toml", "yaml"}
DIRECTIVES = {"after", "before", "budget", "exit", "needs", "skip"}
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        REPOSITORY / "examples" / "README.md",
        REPOSITORY / "benchmarks" / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
    )
)

_DIRECTIVE = re.compile(r"<!--\s*test:\s*(?P<name>[a-z]+)\b(?P<rest>.*?)-->", re.DOTALL)
_PROMPT = re.compile(r"^\$ ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of code, and the directives before it."""

    page: str
    line: int
    """Of the fence, from 1."""
    language: str
    text: str
    directives: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in SHELLS

    @property
    def script(self) -> str:
        """What is typed: all of the block, or the lines behind ``$`` where it shows output too."""
        if not _PROMPT.search(self.text):
            return self.text
        lines = iter(self.text.splitlines())
        return "".join(f"{_continued(line[2:], lines)}\n" for line in lines if line.startswith("$ "))


def _continued(command: str, rest: Iterator[str]) -> str:
    while command.endswith("\\"):
        command = f"{command}\n{next(rest)}"
    return command


def tokens_of(text: str) -> Sequence[Token]:
    """The page as the Markdown parser sees it."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page in order.

    Raises:
        ValueError: a directive is unknown, or stands before nothing.
    """
    found: list[Block] = []
    directives: dict[str, str] = {}
    for token in tokens_of(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            for match in _DIRECTIVE.finditer(token.content):
                if match["name"] not in DIRECTIVES:
                    raise ValueError(f"{page}:{line}: no directive is called {match['name']!r}")
                directives[match["name"]] = textwrap.dedent(match["rest"].strip(" ")).strip()
        elif token.type == "fence":
            language = token.info.split()[0] if token.info.strip() else ""
            found.append(
                Block(page=page, line=line, language=language, text=token.content, directives=directives)
            )
            directives = {}
        elif directives and token.level == 0 and token.type.endswith("_open"):
            raise ValueError(f"{page}:{line}: a directive stands before no block of code")
    return found


def read(page: str) -> str:
    """The text of a page, named relative to the repository."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in PAGES for block in blocks_of(page, read(page))]


def code_spans(text: str) -> Iterator[tuple[int, str]]:
    """Each piece of code within a sentence, with the line that its paragraph begins at."""
    for token in tokens_of(text):
        for child in token.children or ():
            if child.type == "code_inline":
                yield (token.map[0] + 1 if token.map else 0), child.content
