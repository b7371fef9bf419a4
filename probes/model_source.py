"""A model's folder: found or downloaded, checked to be safe to load, the headers of its weights read.

A configuration alone is a model, too: one without weights. Safe means: no pickle, no code of its own,
nothing outside the allowed roots. Imports no torch. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ModelError
from .configuration import check_model_type, check_sizes
from .factory import is_factory, resolve_factory
from .hub import HubFailure, HubName, download
from .paths import nearest_names, require_inside, resolve_path
from .profiles import Factory

WEIGHT_SAMPLES = 64
WEIGHT_SAMPLE_BYTES = 4096

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
OTHER_SUFFIXES = (".safetensors", ".gguf", ".h5", ".msgpack")
"""Files of weights under a name, or in a format, that is not read."""
DOWNLOADED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is fetched from the hub: weights, configuration, the tokenizer's files."""
NOT_DOWNLOADED = ("consolidated*", "original/*", "onnx/*")
"""Second copies of the weights in other layouts."""
MAX_JSON_BYTES = 100_000_000
"""The safetensors format's own limit for a header, held for all JSON of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model folder that passed the checks."""

    source: str
    """What the user wrote."""
    path: Path
    revision: str | None
    """Commit on the hub, None for a local folder."""
    factory: Factory | None = None
    """What makes it; then ``path`` is where its package is looked for."""


class TensorHeader(NamedTuple):
    """What a weight file says about one tensor."""

    dtype: str
    """As the format spells it: ``F32``, ``BF16``, ``I64``, …"""
    shape: tuple[int, ...]
    stored_bytes: int


def resolve_model(
    source: str,
    *,
    allowed_roots: Sequence[Path] | None,
    allow_remote_code: bool = False,
    fetch_weights: bool = True,
    arguments: Mapping[str, Any] | None = None,
    folder: str | None = None,
    allowed_factories: Collection[str] | None = None,
) -> ResolvedModel:
    """Find a model and check that it is safe to load.

    Args:
        source: a folder, its ``config.json``, a factory, else a hub id ``org/name`` or ``org/name@revision``.
            The latter is downloaded into the hub's cache, or only looked up there under ``HF_HUB_OFFLINE=1``;
            the cache need not lie inside the roots. A folder may lack weights.
        allowed_roots: folders that a local model must lie in; None allows every path.
        allow_remote_code: accept a model that names Python code of its own.
        fetch_weights: False leaves the weights of a hub model where they are; those in the cache are used.
        arguments, folder, allowed_factories: of a factory, see :func:`~.factory.resolve_factory`.

    Raises:
        InputError: no file system can have this path.
        PathNotAllowed: the folder, or a file that it links to, lies outside the roots.
        ModelError: there is no such model, or it is unsafe or incomplete.
    """
    if is_factory(source):
        found = resolve_factory(source, arguments=arguments or {}, folder=folder, allowed=allowed_factories)
        return ResolvedModel(source=source, path=Path(found.folder), revision=None, factory=found)
    if arguments:
        raise ModelError(
            f"model arguments {', '.join(arguments)} were given, and {source} is no package.module:factory",
            next_step="leave them out, or name a factory",
        )
    if (hub_name := HubName.parse(source)) is not None:
        path = _download(hub_name, fetch_weights=fetch_weights)
        revision = path.name
    else:
        # Before links are followed: in the hub's cache config.json is one.
        named = Path(source).parent if Path(source).name == CONFIG_FILE else source
        path = resolve_path(str(named), allowed_roots)
        revision = None
        for file in _folder_files(path):
            if allowed_roots is not None:
                require_inside(file, allowed_roots)
    config = _check_configuration(path, allow_remote_code=allow_remote_code)
    if not has_weights(path):
        _check_weightless(path, config)
        if hub_name is not None and fetch_weights:
            _require_no_weights_on_hub(hub_name.name, path)
    return ResolvedModel(source=source, path=path, revision=revision)


def is_hub_id(source: str) -> bool:
    """``source`` is ``org/name`` or ``org/name@revision``, and no path: no folder here is called ``org``."""
    return HubName.parse(source) is not None


def has_weights(folder: Path) -> bool:
    """The folder of a model that passed the checks holds its weights, not a configuration alone."""
    return (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()


def weight_headers(folder: Path) -> dict[str, TensorHeader]:
    """Return the header of every tensor in a model folder, from its one weight file or all its shards.

    Raises:
        ModelError: a file is missing, cut short or corrupt.
    """
    headers: dict[str, TensorHeader] = {}
    for file in _weight_files(folder):
        try:
            headers |= _file_headers(file)
        except OSError as error:
            raise ModelError(
                f"weight file {file} cannot be read ({error.strerror})",
                next_step="check that all files of the model are there",
            ) from None
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ModelError(
                f"weight file {file} is corrupt ({error})", next_step="download or save the model again"
            ) from None
    return headers


def sample_weights(folder: Path) -> str:
    """Hash what tells weights of one structure apart, without reading all of them: a part of each file.

    Training moves nearly every number, so a few hundred thousand bytes at equal distances meet the change.

    Raises:
        ModelError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in _weight_files(folder):
        try:
            size = file.stat().st_size
            digest.update(f"{file.name}\0{size}\0".encode())
            with file.open("rb") as weights:
                for sample in range(WEIGHT_SAMPLES):
                    weights.seek(sample * max(0, size - WEIGHT_SAMPLE_BYTES) // (WEIGHT_SAMPLES - 1))
                    digest.update(weights.read(WEIGHT_SAMPLE_BYTES))
        except OSError as error:
            raise ModelError(
                f"weight file {file} cannot be read ({error.strerror})",
                next_step="check that all files of the model are there",
            ) from None
    return digest.hexdigest()


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in one of a model's files.

    Raises:
        ModelError: it is missing, unreadable, too large, or holds something else.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__}, not an object")
    except OSError as error:
        cause = error.strerror
    except (RecursionError, ValueError) as error:
        cause = str(error)
    else:
        return content
    raise ModelError(f"{file} cannot be read ({cause})", next_step="download or save the model again")


def _download(source: HubName, *, fetch_weights: bool) -> Path:
    """The folder of a hub model's commit, which is named after the commit."""
    patterns = DOWNLOADED if fetch_weights else DOWNLOADED[1:]
    ignored = NOT_DOWNLOADED if fetch_weights else (*NOT_DOWNLOADED, INDEX_FILE)
    try:
        return download(source, repo_type="model", patterns=patterns, ignored=ignored)
    except HubFailure as failure:
        cause, next_step = failure.cause, "try again, or name a local folder"
        match failure.kind:
            case "gated":
                next_step = (
                    f"accept them on https://huggingface.co/{source.name}, then set HF_TOKEN or run "
                    "`hf auth login`"
                )
            case "missing":
                cause = "there is neither such a folder here nor such a model on the hub, or it is private"
                next_step = "check the spelling, or set HF_TOKEN or run `hf auth login` for a private model"
            case "revision":
                next_step = "name a branch, a tag or a commit after the @, or leave it out"
            case "unreachable":
                cause = f"there is no such folder here, {cause}"
                next_step = (
                    f"run `hf download {source.name}` where there is a network, or name a local folder"
                )
            case "space":
                next_step = "free the rest, or set HF_HUB_CACHE to a folder on a larger disk"
    raise ModelError(f"model {source.name}: {cause}", next_step=next_step)


def _folder_files(path: Path) -> list[Path]:
    if not path.exists():
        raise ModelError(
            f"model folder {path} does not exist",
            next_step=nearest_names(path)
            or "name a folder with config.json and weights, a config.json alone, or a hub id org/name",
        )
    if not path.is_dir():
        raise ModelError(
            f"model {path} is a file, and not called {CONFIG_FILE}",
            next_step=f"name its folder ({path.parent}), or a configuration called {CONFIG_FILE}",
        )
    try:
        return list(path.iterdir())
    except OSError as error:
        raise ModelError(
            f"model folder {path} cannot be read ({error.strerror})", next_step="check its permissions"
        ) from None


def _check_configuration(path: Path, *, allow_remote_code: bool) -> dict[str, Any]:
    """Return the content of config.json."""
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ModelError(
            f"{path} holds a PEFT adapter, not a model", next_step="name the adapter's base model"
        )
    if not (path / "config.json").is_file():
        raise ModelError(
            f"model folder {path} has no config.json", next_step="name the folder that save_pretrained wrote"
        )
    config = read_json_object(path / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if not allow_remote_code and (path / name).is_file() and "auto_map" in read_json_object(path / name):
            raise ModelError(
                f"model {path} brings Python code of its own (auto_map in {name}), which is refused",
                next_step="choose a model that needs none or, trusting its author, pass --allow-remote-code",
            )
    check_sizes(config)
    check_model_type(config)
    return config


def _check_weightless(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder that does have weights, which are not in files that are read."""
    files = sorted(file.name for file in path.iterdir())
    pickles = [name for name in files if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise ModelError(
            f"model {path} has its weights in pickle files only ({', '.join(pickles)}), "
            "which can run any code",
            next_step="convert it where you trust it, then copy the rest: "
            f"{_conversion_command(path, config)}",
        )
    others = [name for name in files if name.endswith(OTHER_SUFFIXES)]
    if others:
        raise ModelError(
            f"model {path} has weights ({', '.join(others)}), but neither {SINGLE_FILE} nor {INDEX_FILE}",
            next_step="name a folder with weights as save_pretrained writes them, or put config.json alone "
            "into a folder to go without",
        )


def _require_no_weights_on_hub(source: str, path: Path) -> None:
    """Refuse a hub model whose weights were not fetched: it has some of another kind, or nobody can tell."""
    from huggingface_hub import snapshot_download

    without = f"name {path / CONFIG_FILE} to measure speed and memory on random weights"
    patterns = [f"*{suffix}" for suffix in (*PICKLE_SUFFIXES, *OTHER_SUFFIXES)]
    try:
        found = snapshot_download(source, revision=path.name, allow_patterns=patterns, dry_run=True)
    except OSError:
        raise ModelError(
            f"model {source}: only its configuration is in the hub's cache, and the hub cannot be reached",
            next_step=f"run `hf download {source}` where there is a network, or {without}",
        ) from None
    if found:
        names = ", ".join(file.filename for file in found[:3])
        raise ModelError(
            f"model {source} has its weights in {names}, and not in {SINGLE_FILE}",
            next_step=f"choose a model with weights in the safetensors format, or {without}",
        )


def _conversion_command(path: Path, config: Mapping[str, Any]) -> str:
    """A shell command that saves the model's weights as safetensors beside it."""
    # The name goes into a command that people will run: nothing but a class name may get there.
    match config.get("architectures"):
        case [str(name), *_] if name.isidentifier():
            model_class = name
        case _:
            model_class = "AutoModel"
    pickled, converted = (
        json.dumps(f"{path}{suffix}", ensure_ascii=False) for suffix in ("", "-safetensors")
    )
    code = (
        f"from transformers import {model_class} as Model; "
        f"Model.from_pretrained({pickled}).save_pretrained({converted})"
    )
    return f"python -c {shlex.quote(code)}"


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    shards = read_json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index} has no weight_map", next_step="download or save the model again")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{index} names {name!r}, which is no file beside it", next_step="do not use it")
    return [folder / name for name in names]


def _file_headers(file: Path) -> dict[str, TensorHeader]:
    """Parse one header: its length in 8 bytes (little-endian), then JSON, then the tensors' bytes.

    Format: https://github.com/huggingface/safetensors#format
    """
    with file.open("rb") as opened:
        data_bytes = file.stat().st_size - 8
        header_bytes = int.from_bytes(opened.read(8), "little")
        if header_bytes > min(data_bytes, MAX_JSON_BYTES):
            raise ValueError(f"a header of {header_bytes} bytes in a file of {data_bytes + 8}")
        header = json.loads(opened.read(header_bytes))
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    header.pop("__metadata__", None)
    return {name: _tensor_header(name, entry, data_bytes - header_bytes) for name, entry in header.items()}


def _tensor_header(name: str, entry: dict[str, Any], data_bytes: int) -> TensorHeader:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(size, int) and size >= 0 for size in (begin, end, *shape)) or begin > end:
        raise ValueError(f"tensor {name} has the offsets {begin}, {end} and the shape {shape}")
    if end > data_bytes:
        raise ValueError(f"cut short: tensor {name} ends at byte {end} of {data_bytes}")
    return TensorHeader(str(entry["dtype"]), shape, end - begin)
