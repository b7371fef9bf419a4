"""The page for operators speaks of every metric that there is, and of none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api.app import create_app
from rankwise.api.settings import ServerSettings
from rankwise.home import Home

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"


def served(app: FastAPI) -> set[str]:
    with TestClient(app, base_url="http://127.0.0.1:8321") as client:
        client.get("/healthz")
        text = client.get("/metrics").text
    names = set(re.findall(r"^# TYPE (rankwise_\w+) ", text, flags=re.MULTILINE))
    return {name for name in names if not name.endswith("_created")}


def test_the_page_has_every_metric(home: Home) -> None:
    listed = re.findall(r"^\| `(rankwise_\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == served(create_app(ServerSettings(home=home), supervise=False))
