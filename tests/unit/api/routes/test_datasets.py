from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.api import uploads
from rankwise.api.app import create_app
from rankwise.api.credentials import digest_of, new_token
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.roles import Role
from rankwise.store import Store

CSV = b"text,label\n" + b"a fine film,good\na dull film,bad\n" * 8
LIMIT_BYTES = 100_000


@pytest.fixture
def app(home: Home, root: Path) -> FastAPI:
    settings = ServerSettings(home=home, allowed_roots=(root,), upload_limit_bytes=LIMIT_BYTES)
    return create_app(settings, supervise=False)


def send(client: TestClient, content: Any, filename: str = "reviews.csv", **headers: str) -> Any:
    return client.post("/v1/datasets", params={"filename": filename}, content=content, headers=headers)


def left(home: Home) -> set[str]:
    """The files that uploads have left."""
    return {str(path.relative_to(home.uploads)) for path in home.uploads.rglob("*") if path.is_file()} - {
        ".lock"
    }


def test_a_dataset_is_kept_by_its_content_and_a_study_can_name_it(
    client: TestClient, home: Home, body: dict[str, Any]
) -> None:
    sent = send(client, CSV)
    assert sent.status_code == 201, sent.text
    found = sent.json()
    upload_id = f"{hashlib.sha256(CSV).hexdigest()}.csv"
    assert (found["id"], found["dataset"]) == (upload_id, f"upload:{upload_id}")
    assert (found["owner"], found["filename"], found["size_bytes"]) == ("local", "reviews.csv", len(CSV))
    assert (home.uploads / upload_id).read_bytes() == CSV
    assert client.get(sent.headers["Location"]).json()["id"] == upload_id
    study = client.post("/v1/studies", json={**body, "dataset": found["dataset"]})
    assert study.status_code == 202, study.text
    assert study.json()["request"]["dataset"] == str(home.uploads / upload_id)


def test_the_same_twice_is_one(client: TestClient, home: Home) -> None:
    first, second = send(client, CSV), send(client, iter([CSV[:50], CSV[50:]]), "other name.csv")
    assert first.json() == second.json()
    assert len(client.get("/v1/datasets").json()["datasets"]) == 1
    assert left(home) == {first.json()["id"]}


def test_many_at_the_same_moment(client: TestClient, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: send(client, CSV), range(12)))
    assert {answer.status_code for answer in answers} <= {201, 503}
    assert [answer.status_code for answer in answers].count(201) >= 4
    assert len(left(home)) == 1


@pytest.mark.parametrize("is_chunked", [False, True])
def test_one_that_is_too_large_is_refused_and_leaves_nothing(
    client: TestClient, home: Home, is_chunked: bool
) -> None:
    content = b"text\n" + b"x" * LIMIT_BYTES
    refused = send(client, iter([content[:50_000], content[50_000:]]) if is_chunked else content)
    assert refused.status_code == 413
    assert "--upload-limit" in refused.json()["next_step"]
    assert left(home) == set()
    assert send(client, b"text\n" + b"x\n" * ((LIMIT_BYTES - 5) // 2)).status_code == 201


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(name, content)
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("data.csv", b""),
        ("data.csv", b"text,label\n"),
        ("data.csv", pickle.dumps({"text": ["a"]})),
        ("data.jsonl", pickle.dumps([1])),
        ("data.parquet", pickle.dumps([1])),
        ("data.parquet", parquet()[:-10]),
        ("data.csv", parquet()),
        ("data.csv", "text\nä\n".encode("utf-16")),
        ("data.csv", b"text,label\na,b,c\n"),
        ("data.csv", b"<!doctype html><html></html>"),
        ("data.csv", zipped("data.csv", CSV)),
        ("data.npz", CSV),
        ("data.npz", archive(x=np.array([{"a": 1}], dtype=object))),
        ("data.npz", archive(x=np.zeros((LIMIT_BYTES, 1)))),
        ("data.npz", zipped("x.npy", b"\0" * 10 * LIMIT_BYTES)),
        ("data.jsonl", b"[" * 100_000),
        ("data.jsonl", b'{"text": "a"}\nnonsense\n'),
        ("data.pkl", pickle.dumps([1])),
        ("data.pt", b"PK\3\4"),
        ("data.csv.gz", b"\x1f\x8b"),
        ("data", CSV),
        (".csv", CSV),
        ("../../evil.py", b"print()"),
    ],
)
def test_what_is_no_dataset_is_refused_with_a_next_step_and_leaves_nothing(
    client: TestClient, home: Home, filename: str, content: bytes
) -> None:
    refused = send(client, content, filename)
    assert refused.status_code == 422, refused.text
    assert refused.json()["next_step"]
    assert left(home) == set()
    assert client.get("/v1/datasets").json()["datasets"] == []


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("data.jsonl", b'{"text": "a", "label": 1}\n' * 3),
        ("data.json", json.dumps([{"text": "a"}] * 3).encode()),
        ("data.txt", b"one\ntwo\n"),
        ("data.tsv", b"text\tlabel\na\tb\n"),
        ("data.parquet", parquet()),
        ("DATA.CSV", CSV),
        ("data.npz", archive(x=np.zeros((5, 3), dtype=np.float32), y=np.arange(5))),
    ],
)
def test_every_format_is_taken(client: TestClient, filename: str, content: bytes) -> None:
    sent = send(client, content, filename)
    assert sent.status_code == 201, sent.text
    assert sent.json()["id"].endswith(Path(filename).suffix.lower())


@pytest.mark.parametrize(
    "filename", ["../../x.csv", "/etc/passwd/x.csv", "a\\..\\x.csv", "..%2fx.csv", "\0x.csv"]
)
def test_a_name_leads_nowhere(client: TestClient, home: Home, filename: str) -> None:
    sent = send(client, CSV, filename)
    assert sent.status_code == 201, sent.text
    assert left(home) == {sent.json()["id"]}
    assert "/" not in sent.json()["filename"]


def test_forms_and_compressed_bodies_are_not_what_is_asked_for(client: TestClient) -> None:
    assert send(client, CSV, **{"Content-Type": "multipart/form-data; boundary=x"}).status_code == 415
    assert send(client, CSV, **{"Content-Encoding": "gzip"}).status_code == 415
    assert send(client, CSV, **{"Content-Type": "application/x-www-form-urlencoded"}).status_code == 201


def test_a_full_disk_is_said_before_anything_is_written(
    client: TestClient, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "RESERVE_BYTES", 2**62)
    refused = send(client, CSV)
    assert refused.status_code == 507
    assert left(home) == set()


def test_a_sender_that_falls_silent_or_leaves_leaves_nothing(
    client: TestClient, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.05)

    folder = uploads.UploadFolder(home.uploads)

    async def silent() -> AsyncIterator[bytes]:
        yield CSV
        await anyio.sleep(60)

    async def leaving() -> AsyncIterator[bytes]:
        yield CSV
        raise ConnectionResetError

    async def main() -> None:
        with pytest.raises(uploads.UploadTooSlow):
            await folder.receive(silent(), "a.csv", announced=None, note=lambda received: received)
        with pytest.raises(uploads.DiskFull):
            await folder.receive(leaving(), "a.csv", announced=None, note=lambda received: received)

    anyio.run(main)
    assert left(home) == set()


def test_deleting(client: TestClient, home: Home, body: dict[str, Any]) -> None:
    found = send(client, CSV).json()
    study = client.post("/v1/studies", json={**body, "dataset": found["dataset"]}).json()
    refused = client.delete(f"/v1/datasets/{found['id']}")
    assert refused.status_code == 409
    assert study["id"] in refused.json()["detail"]
    assert client.delete(f"/v1/studies/{study['id']}").status_code == 202
    assert client.delete(f"/v1/datasets/{found['id']}").status_code == 204
    assert left(home) == set()
    assert client.delete(f"/v1/datasets/{found['id']}").status_code == 404
    gone = client.post("/v1/studies", json={**body, "dataset": found["dataset"]})
    assert gone.status_code == 422
    assert gone.json()["errors"][0]["pointer"] == "/dataset"


class TestOwners:
    @pytest.fixture
    def app(self, home: Home) -> FastAPI:
        return create_app(ServerSettings(home=home, require_token=True), supervise=False)

    @pytest.fixture
    def headers(self, client: TestClient, store: Store) -> dict[str, dict[str, str]]:
        made = {}
        for name, role in (("ada", Role.SUBMITTER), ("bob", Role.SUBMITTER), ("root", Role.ADMIN)):
            secret = new_token()
            store.create_token(name=name, role=role, digest=digest_of(secret))
            made[name] = {"Authorization": f"Bearer {secret}"}
        return made

    def test_a_dataset_goes_with_the_last_who_sent_it(
        self, client: TestClient, home: Home, headers: dict[str, dict[str, str]]
    ) -> None:
        found = send(client, CSV, **headers["ada"]).json()
        path = f"/v1/datasets/{found['id']}"
        assert client.delete(path, headers=headers["bob"]).status_code == 403
        send(client, CSV, **headers["bob"])
        assert client.delete(path, headers=headers["ada"]).status_code == 204
        assert left(home) == {found["id"]}
        assert client.get(path, headers=headers["ada"]).json()["owner"] == "bob"
        send(client, CSV, **headers["ada"])
        assert client.delete(path, headers=headers["root"]).status_code == 204
        assert left(home) == set()
