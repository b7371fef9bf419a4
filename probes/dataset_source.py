"""A dataset's files: found or downloaded, checked to be readable in principle, and hashed.

Nothing outside the allowed roots is read, and nothing but data files is downloaded: no scripts. Knows
nothing of rows and columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import DatasetError
from .array_sources import array_files
from .file_kinds import file_kind, is_pointer
from .hub import HubFailure, HubName, download
from .paths import nearest_names, require_inside, resolve_path
from .rows import FORMATS, RowError, data_files

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".xlsx", ".xls")


def resolve_dataset(source: str, *, allowed_roots: Sequence[Path] | None) -> Path:
    """Return the absolute path of a dataset that exists and has a format that we read.

    Args:
        source: a file or a folder of files (see :func:`.rows.data_files`), else a hub name ``org/name``, or
            ``org/name@revision``. The latter's data files are downloaded into the hub's cache, or only looked
            up there under ``HF_HUB_OFFLINE=1``; the cache need not lie inside the roots.
        allowed_roots: folders that local data must lie in; None allows every path.

    Raises:
        PathNotAllowed: a file lies outside the roots.
        InputError: no file system can have this path.
        DatasetError: there is no such dataset, or it is of another kind.
    """
    if is_hub_dataset(source):
        path = _download(source)
        check_files(path)
        return path
    path = resolve_path(source, allowed_roots)
    for file in check_files(path):
        if allowed_roots is not None:
            require_inside(file, allowed_roots)
    return path


def is_hub_dataset(source: str) -> bool:
    """``source`` is ``org/name`` or ``org/name@revision``, and neither a path here nor a file's name."""
    name = source.partition("@")[0]
    is_file_name = Path(name).suffix.lower() in (*FORMATS, ".npz", *PACKED_SUFFIXES)
    return HubName.parse(name) is not None and not is_file_name


def hub_commit(path: Path) -> str | None:
    """Return the commit of a dataset in the hub's cache; None for any other path."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("datasets--"):
        return path.name
    return None


def check_files(path: Path) -> list[Path]:
    """Return the dataset's files; they exist, have one supported format, and are not empty.

    Raises:
        DatasetError: they do not.
    """
    with errors_about(path):
        if not path.exists():
            raise DatasetError("it does not exist", next_step=nearest_names(path) or "check the path")
        if not path.is_dir() and not path.is_file():
            raise DatasetError("it is not a regular file", next_step="copy its rows into a file")
        files = (array_files(path) or data_files(path))[1]
        for file in files:
            if file.stat().st_size > 0 and is_pointer(file):
                raise RowError(file, None, "it has no rows")
        if not any(file.stat().st_size for file in files):
            raise DatasetError("it is empty", next_step="name a file that has rows")
        return files


def content_sha256(path: Path, files: Sequence[Path]) -> str:
    """Return the hash of a file's content; for a folder, of its files' names and hashes."""
    if files == [path]:
        return _file_sha256(path)
    listing = (f"{_file_sha256(file)}  {file.relative_to(path)}\n" for file in files)
    return hashlib.sha256("".join(listing).encode(errors="surrogateescape")).hexdigest()


@contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a dataset into a DatasetError that names it, the cause and what to do."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"dataset {path.name}: {error.message}", next_step=error.next_step) from None
    except RowError as error:
        raise _explained(error) from None
    except OSError as error:
        raise DatasetError(
            f"dataset {path.name} cannot be read ({error.strerror or error})",
            next_step="check its permissions",
        ) from None


def _explained(error: RowError) -> DatasetError:
    name = error.path.name
    place = name if error.line is None else f"{name}, {error.unit} {error.line}"
    kind = None if error.next_step else file_kind(error.path)
    if kind is not None:
        message = f"dataset {place}: {error.cause}; it looks like {kind.looks_like}"
        return DatasetError(message, next_step=kind.next_step)
    if error.next_step:
        next_step = error.next_step
    elif error.line is not None:
        next_step = f"correct or remove that {error.unit}"
    else:
        next_step = f"bring the rows as {', '.join(FORMATS)}, .npz or images in folders"
    return DatasetError(f"dataset {place}: {error.cause}", next_step=next_step)


def _file_sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _download(source: str) -> Path:
    """The folder of a hub dataset's commit, which is named after the commit."""
    hub_name = HubName.parse(source)
    if hub_name is None:
        raise DatasetError(
            f"dataset {source}: what stands after the @ can be no revision",
            next_step="name a branch, a tag or a commit after the @, or leave it out",
        )
    name = hub_name.name
    try:
        return download(hub_name, repo_type="dataset", patterns=[f"*{suffix}" for suffix in FORMATS])
    except HubFailure as failure:
        cause, next_step = failure.cause, "try again, or name a local file"
        match failure.kind:
            case "gated":
                next_step = (
                    f"accept them on https://huggingface.co/datasets/{name}, then set HF_TOKEN or run "
                    "`hf auth login`"
                )
            case "missing":
                cause = "there is neither such a path here nor such a dataset on the hub, or it is private"
                next_step = "check the spelling, or set HF_TOKEN or run `hf auth login` for a private dataset"
            case "revision":
                next_step = "name a branch, a tag or a commit after the @, or leave it out"
            case "unreachable":
                cause = f"there is no such path here, {cause}"
                next_step = (
                    f"run `hf download --repo-type dataset {name}` where there is a network, or name a "
                    "local file"
                )
            case "space":
                next_step = "free the rest, or set HF_HUB_CACHE to a folder on a larger disk"
    raise DatasetError(f"dataset {source}: {cause}", next_step=next_step)
