"""The site is built strictly: links and anchors lead somewhere, and a page fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from .pages import REPOSITORY

FETCHING = {
    "audio": {"src"},
    "embed": {"src"},
    "iframe": {"src"},
    "img": {"src", "srcset"},
    "link": {"href"},
    "object": {"data"},
    "script": {"src"},
    "source": {"src", "srcset"},
    "use": {"href", "xlink:href"},
    "video": {"src", "poster"},
}
"""Element → attributes whose address a browser asks for by itself. `a` is not among them."""
ELSEWHERE = re.compile(r"^\s*(?:https?:)?//")


def build(configuration: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", configuration, "-d", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(REPOSITORY / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of what the site is made of, to break."""
    for name in (
        "mkdocs.yml",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
        "pyproject.toml",
    ):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    (tmp_path / "benchmarks").symlink_to(REPOSITORY / "benchmarks")
    return tmp_path


class Fetched(HTMLParser):
    """Collects what a browser would ask others for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "link" and told.get("rel") in {"canonical", "next", "prev"}:
            return
        for name in FETCHING.get(tag, ()):
            if ELSEWHERE.match(told.get(name) or ""):
                self.found.append(f"<{tag} {name}={told[name]}>")


def fetched_by(page: str) -> list[str]:
    parser = Fetched()
    parser.feed(page)
    return parser.found


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    found = {page.name: fetched_by(page.read_text(encoding="utf-8")) for page in pages}
    assert not {name: wanted for name, wanted in found.items() if wanted}


def test_styles_fetch_nothing_from_elsewhere(site: Path) -> None:
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^"')]+""", text), style.name


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://unpkg.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="https://badge.example/b.svg">',
    ],
)
def test_what_would_be_fetched_is_found(page: str) -> None:
    assert fetched_by(page)
    assert not fetched_by('<a href="https://example.org">a link</a><script src="assets/x.js"></script>')


def test_the_repositorys_own_pages_are_on_the_site(site: Path) -> None:
    assert 'href="contributing.html"' in (site / "manual.html").read_text(encoding="utf-8")
    assert 'href="decisions/' in (site / "contributing.html").read_text(encoding="utf-8")
    assert "examples/judge.py" in (site / "evaluation.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "link", "complaint"),
    [
        ("docs/faq.md", "[x](no-such-page.md)", "no-such-page"),
        ("docs/faq.md", "[x](adapters.md#no-such-heading)", "no-such-heading"),
        ("docs/faq.md", "[x](../examples/no_such.py)", "no_such.py"),
        ("CONTRIBUTING.md", "[x](tests/no_such.py)", "no_such.py"),
    ],
)
def test_a_link_to_nothing_fails_the_build(copied: Path, file: str, link: str, complaint: str) -> None:
    with (copied / file).open("a", encoding="utf-8") as page:
        page.write(f"\n\n{link}\n")
    built = build(copied / "mkdocs.yml", copied / "site")
    assert built.returncode != 0
    assert complaint in built.stderr


def test_code_that_looks_like_a_link_is_left_alone(copied: Path) -> None:
    with (copied / "docs" / "faq.md").open("a", encoding="utf-8") as page:
        page.write("\n\n`[x](../nowhere.py)`\n\n```text\n[x](../nowhere.py)\n```\n")
    built = build(copied / "mkdocs.yml", copied / "site")
    assert built.returncode == 0, built.stderr


def test_pictures_are_small() -> None:
    pictures = sorted((REPOSITORY / "docs" / "assets").glob("*.png"))
    assert pictures
    assert all(10_000 < picture.stat().st_size < 400_000 for picture in pictures)
