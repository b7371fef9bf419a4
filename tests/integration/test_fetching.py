"""Models and data on the hub are fetched at one commit, by the one process that has the token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankwise.errors import DatasetError, ModelError, RankwiseError
from rankwise.home import Home
from rankwise.optimizer.domain import StudyRequest
from rankwise.runners.fetching import Fetched, fetch, start_fetch
from rankwise.runners.study import StudyRun
from rankwise.runners.warm_client import WarmServer, trial_environment
from rankwise.store import Store, Worker

from ..fake_hub import FakeHub, fake_hub

TOKEN = "hf_" + "s3cret" * 6
CONFIG = json.dumps({"model_type": "bert", "hidden_size": 12, "vocab_size": 100}).encode()
LARGE = os.urandom(12 * 2**20)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty hub that fetching processes ask, with a token, and an empty cache."""
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        yield hub


def got(home: Home, **what: str) -> Fetched:
    return fetch(home, home.root / "fetch", **what)


def weightless() -> dict[str, bytes]:
    return {"config.json": CONFIG}


def test_what_is_local_needs_no_process(home: Home, tiny_llama: Path, texts_jsonl: Path) -> None:
    assert start_fetch(home, home.root, model=str(tiny_llama), dataset=str(texts_jsonl)) is None


def test_a_model_is_pinned_to_the_commit_of_its_revision(home: Home, hub: FakeHub) -> None:
    first = hub.add("models/org/model", weightless() | {"notes.txt": b"1"})
    hub.refs["models/org/model", "v1"] = first
    second = hub.add("models/org/model", weightless() | {"notes.txt": b"2"})
    for source, commit in (
        ("org/model", second),
        ("org/model@v1", first),
        (f"org/model@{first}", first),
    ):
        model = got(home, model=source).model
        assert model is not None
        assert (model.source, model.revision, model.path.name) == ("org/model", commit, commit)
        assert (model.path / "notes.txt").read_bytes() == (b"1" if commit == first else b"2")
    with pytest.raises(ModelError, match="no revision 'v9'") as caught:
        got(home, model="org/model@v9")
    assert "leave it out" in caught.value.next_step


def test_data_of_a_revision_and_nothing_but_data(home: Home, hub: FakeHub) -> None:
    files = {"train.csv": b"text,label\na,b\n", "loader.py": b"import os"}
    commit = hub.add("datasets/org/data", files, ref="v2")
    folder = got(home, dataset="org/data@v2").dataset
    assert folder is not None
    assert folder.name == commit
    assert [path.name for path in folder.iterdir()] == ["train.csv"]


@pytest.mark.parametrize(("kind", "error"), [("model", ModelError), ("dataset", DatasetError)])
def test_a_gated_repository_says_where_to_ask(
    home: Home, hub: FakeHub, kind: str, error: type[RankwiseError]
) -> None:
    hub.add(f"{kind}s/org/gated", weightless() | {"train.csv": b"text\na\n"})
    hub.gated.add(f"{kind}s/org/gated")
    with pytest.raises(error, match="accepted its terms") as caught:
        got(home, **{kind: "org/gated"})
    page = (
        "https://huggingface.co/org/gated" if kind == "model" else "https://huggingface.co/datasets/org/gated"
    )
    assert page in caught.value.next_step
    assert "HF_TOKEN" in caught.value.next_step


def test_a_private_model_is_had_with_the_token_only(
    home: Home, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("models/org/private", weightless())
    hub.private["models/org/private"] = TOKEN
    assert got(home, model="org/private").model
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    monkeypatch.setenv("HF_HOME", str(home.root / "empty"))
    with pytest.raises(ModelError, match="or it is private") as caught:
        got(home, model="org/private")
    assert "hf_other" not in str(caught.value)


def test_a_broken_download_goes_on_where_it_ended(home: Home, hub: FakeHub) -> None:
    hub.add("datasets/org/data", {"rows.txt": LARGE})
    hub.break_after["rows.txt"] = 5 * 2**20
    folder = got(home, dataset="org/data").dataset
    assert folder is not None
    assert (folder / "rows.txt").read_bytes() == LARGE
    first, second = hub.gets("rows.txt")
    assert first.get("Range", "bytes=0-") == "bytes=0-"
    assert second["Range"] == f"bytes={5 * 2**20}-"


def test_a_killed_download_goes_on_where_it_ended(home: Home, hub: FakeHub, tmp_path: Path) -> None:
    hub.add("datasets/org/data", {"rows.txt": LARGE})
    blobs = tmp_path / "hf" / "hub" / "datasets--org--data" / "blobs"
    hub.break_after["rows.txt"] = 5 * 2**20
    job = start_fetch(home, home.root / "fetch", dataset="org/data")
    assert job is not None
    deadline_s = time.monotonic() + 60
    while not any(path.stat().st_size == 5 * 2**20 for path in blobs.glob("*.partial")):
        assert time.monotonic() < deadline_s
    job.process.kill()  # while it waits before it tries again
    job.finish()
    assert not list(blobs.parent.glob("snapshots/*/rows.txt"))
    folder = got(home, dataset="org/data").dataset
    assert folder is not None
    assert (folder / "rows.txt").read_bytes() == LARGE
    assert hub.gets("rows.txt")[-1]["Range"] == f"bytes={5 * 2**20}-"
    assert list(blobs.glob("*.partial")) == []


def test_what_arrives_damaged_is_not_used(home: Home, hub: FakeHub, tmp_path: Path) -> None:
    hub.add("datasets/org/data", {"rows.txt": LARGE})
    blobs = tmp_path / "hf" / "hub" / "datasets--org--data" / "blobs"
    hub.break_after["rows.txt"] = 5 * 2**20
    job = start_fetch(home, home.root / "fetch", dataset="org/data")
    assert job is not None
    deadline_s = time.monotonic() + 60
    while not any(path.stat().st_size == 5 * 2**20 for path in blobs.glob("*.partial")):
        assert time.monotonic() < deadline_s
    job.process.kill()
    job.finish()
    (partial,) = blobs.glob("*.partial")
    with partial.open("r+b") as file:
        file.write(b"damaged")
    with pytest.raises(DatasetError, match="damaged"):
        got(home, dataset="org/data")
    assert got(home, dataset="org/data").dataset


def test_cancelling_ends_a_fetch(home: Home, hub: FakeHub) -> None:
    hub.add("datasets/org/data", {"rows.txt": LARGE})
    hub.break_after["rows.txt"] = 2**20
    job = start_fetch(home, home.root / "fetch", dataset="org/data")
    assert job is not None
    while not hub.gets("rows.txt"):
        time.sleep(0.01)
    job.cancel()
    job.wait(30)
    assert job.closed
    job.finish()
    assert job.last("result") is None


def test_a_token_reaches_the_hub_and_nobody_else(
    home: Home, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of a model and data on the hub, by a token in a file; then whoever is asked what they know."""
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    commit = hub.add("models/org/model", weightless())
    data = hub.add("datasets/org/data", {"train.csv": b"text,label\n" + b"good,a\nbad,b\n" * 40})
    for repo in ("models/org/model", "datasets/org/data"):
        hub.private[repo] = TOKEN
    store = Store.open(home.database)
    request = StudyRequest(model="org/model", dataset="org/data")
    store.create_study(request)
    study = store.claim_study(Worker(name="test", place="here"))
    assert study is not None
    server = WarmServer(home.logs / "warm.log", ["prepare"], home=home)
    try:
        server.wait_ready()
        environment = Path(f"/proc/{server.pid}/environ").read_bytes()
        run = StudyRun(
            store=store,
            home=home,
            claim=study,
            warm_server=lambda: server,
            should_stop=lambda: False,
            worker="test",
        )
        facts = run.prepare()
    finally:
        server.stop()
    assert facts.model.source == "org/model"
    assert facts.model.revision == commit
    assert facts.dataset.revision == data
    told = [event.payload for event in store.events_after(study.id, 0) if event.kind == "source.fetched"]
    assert [(each["kind"], each["revision"]) for each in told] == [("model", commit), ("dataset", data)]
    store.close()
    assert any(
        headers.get("authorization") == f"Bearer {TOKEN}" or TOKEN in str(headers)
        for _, _, headers in hub.asked
    )
    assert TOKEN.encode() not in environment
    for path in home.root.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_a_trial_is_told_nothing_secret(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    secrets = {
        "HF_TOKEN": TOKEN,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HUGGING_FACE_HUB_TOKEN": TOKEN,
        "HF_HOME_TOKEN": TOKEN,
        "PYTHONANYWHERE_API_TOKEN": TOKEN,
        "PYTHON_KEYRING": TOKEN,
        "OMP_API_KEY": TOKEN,
        "NCCL_SECRET": TOKEN,
        "AWS_SECRET_ACCESS_KEY": TOKEN,
        "RANKWISE_TOKEN": TOKEN,
        "RANKWISE_DATABASE_URL": f"postgresql://user:{TOKEN}@host/db",
        "HTTPS_PROXY": f"http://user:{TOKEN}@proxy",
        "WANDB_API_KEY": TOKEN,
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment = trial_environment()
    assert not [name for name, value in environment.items() if TOKEN in value]
    assert not environment.keys() & (secrets.keys() - {"HF_TOKEN_PATH"})
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HF_HUB_CACHE"] == str(tmp_path / "hub")
    assert environment["HF_HUB_OFFLINE"] == "1"
    # What the hub's library makes of it, in a process of its own.
    ask = "import huggingface_hub as hub; print(hub.get_token(), hub.constants.HF_HUB_CACHE)"
    told = subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["None", str(tmp_path / "hub")]
