"""The HTTP application on a real store, with files that a study may name. No supervisor runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api.app import create_app
from rankwise.api.settings import ServerSettings
from rankwise.home import Home


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The one folder that studies may read."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def body(root: Path) -> dict[str, Any]:
    """A body that is accepted; its files exist, as far as a server looks before the study runs."""
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (model / "model.safetensors").write_bytes(b"")
    dataset = root / "reviews.csv"
    dataset.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 8)
    return {"model": str(model), "dataset": str(dataset)}


@pytest.fixture
def app(home: Home, root: Path) -> FastAPI:
    return create_app(ServerSettings(home=home, allowed_roots=(root,)), supervise=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1:8321", raise_server_exceptions=False) as opened:
        yield opened
