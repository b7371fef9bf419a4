"""Paths and ids that lead out of the allowed folders, sent to every route that takes one: nothing is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api.app import create_app
from rankwise.api.settings import ServerSettings
from rankwise.home import Home

SECRET = "the-canary-sings"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path, root: Path) -> Path:
    """A folder beside the root with a dataset, a model and a template, and links to them within the root."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.csv").write_text(f"text,label\n{SECRET},1\nother,0\n" * 4)
    (folder / "config.json").write_text(f'{{"model_type": "bert", "{SECRET}": 1}}')
    (folder / "secret.yaml").write_text(f"base_model: {SECRET}\n")
    (root / "link.csv").symlink_to(folder / "secret.csv")
    (root / "link").symlink_to(folder)
    (root / "reviews.csv").write_text("text,label\na,1\nb,0\n")
    return folder


@pytest.fixture
def client(home: Home, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.chdir(root)
    app = create_app(ServerSettings(home=home, allowed_roots=(root,)), supervise=False)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as opened:
        yield opened


def ways(target: Path, root: Path) -> list[str]:
    """How somebody might name a file beside the root."""
    name = f"{target.parent.name}/{target.name}"
    return [
        str(target),
        f"../{name}",
        f"{root}/../{name}",
        f"{root}//..//{name}",
        f"./../root/../{name}",
        f"%2e%2e/{name}",
        f"%252e%252e%252f{name}",
        f"..%2f{name}",
        f"..\\{target.parent.name}\\{target.name}",
        f"..%5c{name}",
        f"{root}/reviews.csv\0/../../{name}",
        f"../{name}\0.csv",
        f"link/{target.name}",
        f"{root}/link/../{name}",
        f"file://{target}",
        f"upload:../../{name}",
        f"upload:{target}",
        "upload:" + "../" * 12 + str(target).lstrip("/"),
        f"~/../..{target}",
    ]


def refused(answer: Any, status: int = 400) -> None:
    assert status <= answer.status_code < 500, answer.text
    assert SECRET not in answer.text


def test_datasets_models_and_templates_of_a_study(client: TestClient, root: Path, outside: Path) -> None:
    good = {"model": str(root / "model"), "dataset": str(root / "reviews.csv")}
    for field, target in (
        ("dataset", outside / "secret.csv"),
        ("model", outside / "config.json"),
        ("chat_template", outside / "secret.csv"),
    ):
        for way in [*ways(target, root), "link.csv"]:
            refused(client.post("/v1/studies", json={**good, field: way}))
    assert client.get("/v1/studies").json()["studies"] == []


def test_models_of_estimates_checks_and_inspections(client: TestClient, root: Path, outside: Path) -> None:
    for way in ways(outside / "config.json", root):
        refused(client.post("/v1/estimates", json={"model": way}))
        refused(client.get("/v1/models/inspect", params={"model": way}))
        text = f"base_model: {way!r}\nadapter: lora\n"
        answer = client.post("/v1/check", json={"text": text, "format": "axolotl"})
        assert answer.status_code < 500, answer.text
        assert SECRET not in answer.text


def id_routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            if "{" in path and not path.endswith(
                "/stream"
            ):  # which would never end where an address is short
                yield method.upper(), path
    yield "GET", "/login/files/{version}/{name}"
    yield "GET", "/studies/{study_id}"


def test_ids_in_addresses(client: TestClient, root: Path, outside: Path) -> None:
    app: Any = client.app
    names = [*ways(outside / "secret.csv", root), "..", "%2e%2e", "../rankwise.db"]
    written = {quote(name, safe="") for name in names} | {quote(name) for name in names[:3]}
    for method, path in id_routes(app):
        for name in sorted(written):
            filled = "/".join(name if part.startswith("{") else part for part in path.split("/"))
            answer = client.request(method, filled)
            assert answer.status_code < 500, (method, filled, answer.text)
            assert SECRET not in answer.text
            assert "SQLite format" not in answer.text
    assert (outside / "secret.csv").exists()
    assert client.get("/v1/studies").status_code == 200
