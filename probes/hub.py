"""What is taken from the hub: into its cache, at one commit, going on where a broken download ended.

The one place that talks to the hub, and so the one that uses its token: called in a process that holds it
(``runners/fetch.py``). Under ``HF_HUB_OFFLINE=1`` the cache is all there is. The hub's library is slow to
import, so that waits until something is fetched. Knows nothing of what is in the files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

RESUMED_BYTES = 8 * 2**20
"""Smaller files are rather fetched again than gone on with."""
PATIENCE = 5
"""Tries without a single new byte before a download is given up."""
PAUSE_S = 1.0
TIMEOUT_S = 30.0
"""Without a byte: then the connection is taken to be broken."""
CHUNK_BYTES = 2**20

_NAME = re.compile(r"[a-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII | re.IGNORECASE)
_REVISION = re.compile(r"\w[\w./-]{0,199}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A repository on the hub, as people write it: ``org/name`` or ``org/name@revision``."""

    name: str
    revision: str | None
    """A branch, a tag or a commit; None for the newest commit."""

    @classmethod
    def parse(cls, source: str) -> HubName | None:
        """None for what has another form, and for relative paths: a folder here is called ``org``."""
        name, at, revision = source.partition("@")
        if not _NAME.fullmatch(name) or Path(name).parent.is_dir():
            return None
        if at and not _REVISION.fullmatch(revision):
            return None
        return cls(name=name, revision=revision or None)


class HubFailure(Exception):
    """Nothing can be had.

    Args:
        cause: why, in a clause.
        kind: ``gated``, ``missing``, ``revision``, ``unreachable``, ``space`` or ``failed``.
    """

    def __init__(self, cause: str, kind: str) -> None:
        super().__init__(cause)
        self.cause, self.kind = cause, kind


def download(
    hub_name: HubName,
    *,
    repo_type: str,
    patterns: Sequence[str],
    ignored: Sequence[str] = (),
) -> Path:
    """The folder of a commit with its files that match, which is named after the commit.

    Raises:
        HubFailure: it cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted: dict[str, Any] = {
        "repo_type": repo_type,
        "revision": hub_name.revision,
        "allow_patterns": list(patterns),
        "ignore_patterns": list(ignored),
    }
    try:
        if not constants.HF_HUB_OFFLINE:
            _fetch_large_files(hub_name, wanted)
        return Path(snapshot_download(hub_name.name, **wanted))
    except GatedRepoError:
        raise HubFailure("the hub gives it only to accounts that accepted its terms", "gated") from None
    except RevisionNotFoundError:
        raise HubFailure(f"the hub has no revision {hub_name.revision!r} of it", "revision") from None
    except RepositoryNotFoundError:
        raise HubFailure("the hub has none of this name, or it is private", "missing") from None
    except LocalEntryNotFoundError:
        raise HubFailure(
            "it is not in the hub's cache, and the hub cannot be reached", "unreachable"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise HubFailure(f"the download failed: {without_token(str(error))}", "failed") from None


def without_token(text: str) -> str:
    """A message in which no token stands, should the library have put one there."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "<token>") if token else text


def cache_folder(hub_name: HubName, repo_type: str) -> Path:
    """Where a repository lies in the hub's cache, whether or not it is there."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_name.name, repo_type=repo_type)


def _fetch_large_files(hub_name: HubName, wanted: dict[str, Any]) -> None:
    """Put what is large into the cache, where the library then finds it.

    The library itself begins a file anew when its process ends, or the connection is reset.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot_download(hub_name.name, **wanted, dry_run=True)
    except DryRunError as error:
        if error.__cause__ is not None and "Gated" in type(error.__cause__).__name__:
            raise error.__cause__ from None
        return  # the hub cannot be reached, or knows no such thing: the cache may still have it
    missing = [file for file in files if file.will_download]
    folder = cache_folder(hub_name, wanted["repo_type"])
    _require_space(folder, sum(file.file_size or 0 for file in missing))
    for file in missing:
        if (file.file_size or 0) >= RESUMED_BYTES:
            _fetch_resuming(hub_name, wanted["repo_type"], file.filename, file.commit_hash, folder / "blobs")


def _require_space(folder: Path, needed_bytes: int) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_bytes = shutil.disk_usage(there).free
    if needed_bytes > free_bytes:
        needed, free = (f"{count / 2**30:.1f} GiB" for count in (needed_bytes, free_bytes))
        raise HubFailure(
            f"{needed} of it are missing in the hub's cache, and the disk has {free} free", "space"
        )


def _fetch_resuming(hub_name: HubName, repo_type: str, filename: str, commit: str, blobs: Path) -> None:
    """Fetch one file, from where an earlier try ended. What is in Xet storage the library fetches."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(hub_name.name, filename, repo_type=repo_type, revision=commit)
    metadata = get_hf_file_metadata(url)
    if metadata.xet_file_data is not None or metadata.etag is None or metadata.size is None:
        return
    blobs.mkdir(parents=True, exist_ok=True)
    finished, partial = blobs / metadata.etag, blobs / f"{metadata.etag}.partial"
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # whoever fetches the same file waits, and then finds it
        if not finished.exists():
            _go_on(url, file, metadata.size)
            if _SHA256.fullmatch(metadata.etag) and _sha256(partial) != metadata.etag:
                partial.unlink()
                raise HubFailure(f"the download failed: {filename} arrived damaged", "failed")
            partial.replace(finished)
    partial.unlink(missing_ok=True)


def _go_on(url: str, file: BinaryIO, size: int) -> None:
    """Append what is missing, through however many broken connections."""
    import httpx2
    from huggingface_hub import get_token

    token = get_token()
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    tries = PATIENCE
    while (have := os.fstat(file.fileno()).st_size) < size:
        # Where the hub sends us elsewhere, the token does not go along: httpx2 sees to that.
        headers = {**authorization, "Range": f"bytes={have}-", "Accept-Encoding": "identity"}
        try:
            with httpx2.stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S
            ) as answer:
                if answer.status_code == httpx2.codes.OK:  # the server knows no ranges
                    file.truncate(0)
                answer.raise_for_status()
                file.writelines(answer.iter_raw(CHUNK_BYTES))
        except httpx2.HTTPError as error:
            file.flush()
            tries = PATIENCE if os.fstat(file.fileno()).st_size > have else tries - 1
            if not tries or isinstance(error, httpx2.HTTPStatusError):
                raise HubFailure(f"the download failed: {without_token(str(error))}", "failed") from None
            time.sleep(PAUSE_S)
        file.flush()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
