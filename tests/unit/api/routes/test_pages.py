from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from rankwise.api.page_files import FOLDER, PAGE, VERSION, PageFiles

PAGES = ("/", "/login", "/new", "/devices", "/estimate", "/studies/01ARZ3NDEKTSV4RRFFQ69G5FAV")
MOST_LINES = 400


def test_one_page_is_served_for_every_address(client: TestClient) -> None:
    # Only what browsers are told to load beside it differs.
    answers = {re.sub(r'<link rel="modulepreload".*\n', "", client.get(path).text) for path in PAGES}
    assert len(answers) == 1
    assert "{{" not in answers.pop()


def test_the_page_allows_nothing_inline_and_no_other_host(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"<script(?! type=\"module\" src=)|<style|\sstyle=|\son\w+=", answer.text)
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("page", "module", "later"), [("/", "studies.js", "study.js"), ("/studies/x", "study.js", "create.js")]
)
def test_what_the_page_loads_is_there_and_kept_for_good(
    client: TestClient, page: str, module: str, later: str
) -> None:
    paths = re.findall(r'(?:src|href)="([^"]+)"', client.get(page).text)
    names = [path.split("/", 4)[-1] for path in paths]
    assert {module, "app.js", "vendor/htm-preact.js", "live.js"} < set(names)
    assert later not in names  # until somebody goes there
    for path in paths:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]


def test_modules_import_only_what_is_there(client: TestClient) -> None:
    for path in FOLDER.glob("*.js"):
        for name in re.findall(r'(?:from|import\()\s*"\./([^"]+)"', path.read_text()):
            assert (FOLDER / name).is_file(), f"{path.name} imports {name}"


def test_files_come_compressed_to_those_who_can_read_it(client: TestClient) -> None:
    version = PageFiles().version
    path = f"/login/files/{version}/vendor/echarts.js"
    packed = client.get(path, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == "Accept-Encoding"
    plain = client.get(path, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.content == packed.content == (FOLDER / "vendor" / "echarts.js").read_bytes()


def test_a_page_of_an_earlier_version_still_finds_its_files_and_keeps_none(client: TestClient) -> None:
    answer = client.get("/login/files/0123456789abcdef/vendor/echarts.js")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "name", ["index.html", "no.js", "../page_files.py", "%2e%2e/page_files.py", "__init__.py"]
)
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/login/files/x/{name}").status_code == 404


def test_the_version_changes_with_any_file(tmp_path: Path) -> None:
    (tmp_path / PAGE).write_text(f"<p>{VERSION}</p>")
    (tmp_path / "app.js").write_text("1;")
    before = PageFiles(tmp_path)
    (tmp_path / "app.js").write_text("2;")
    after = PageFiles(tmp_path)
    assert before.version != after.version
    assert after.version.encode() in after.page().content


def test_large_files_are_compressed_and_small_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / PAGE).write_text("<p></p>")
    (tmp_path / "app.js").write_text("let long = 1;\n" * 200)
    files = PageFiles(tmp_path)
    found = files.find("app.js")
    assert found is not None
    assert found.compressed is not None
    assert gzip.decompress(found.compressed) == found.content
    assert files.page().compressed is None


def test_vendored_files_are_those_of_their_packages() -> None:
    folder = FOLDER / "vendor"
    versions = json.loads((folder / "versions.json").read_text())
    expected = {
        name: entry["sha256"] for about in versions.values() for name, entry in about["files"].items()
    }
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - {"versions.json"} == set(expected)
    for name, digest in expected.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_own_scripts_are_small_modules() -> None:
    long = {
        path.name: lines
        for path in FOLDER.glob("*.js")
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert not long


@pytest.mark.parametrize(
    "forbidden", [r"\beval\(", r"new Function\(", "innerHTML", "dangerouslySet", "https?://"]
)
def test_own_scripts_make_no_code_of_text_and_ask_no_other_host(forbidden: str) -> None:
    for path in FOLDER.glob("*.js"):
        assert not re.search(forbidden, path.read_text()), path.name
