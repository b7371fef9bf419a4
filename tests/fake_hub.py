"""A hub on this machine, that speaks enough of the hub's HTTP interface for ``huggingface_hub``."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

sha1 = partial(hashlib.sha1, usedforsecurity=False)

LFS_BYTES = 2**20
"""Files from this size on have the hash of their content for an ETag, as large files have on the hub."""


@dataclass
class FakeHub:
    """What the hub holds, and what it was asked for."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """``models/org/name`` or ``datasets/org/name`` → commit → file → content."""
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    """(Repository, branch or tag) → commit."""
    gated: set[str] = field(default_factory=set)
    """Repositories whose files nobody gets."""
    private: dict[str, str] = field(default_factory=dict)
    """Repository → the token that opens it."""
    break_after: dict[str, int] = field(default_factory=dict)
    """File → bytes after which the connection breaks, once."""
    asked: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    """Method, path and headers of each request."""
    url: str = ""

    def add(self, repo: str, files: Mapping[str, bytes], *, ref: str = "main") -> str:
        """Commit files to a branch; returns the commit."""
        listing = "".join(f"{name}{sha1(body).hexdigest()}" for name, body in sorted(files.items()))
        commit = sha1(f"{repo}{listing}".encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.refs[repo, ref] = commit
        return commit

    def gets(self, filename: str) -> list[Mapping[str, str]]:
        """The headers of each request for a file's content."""
        return [
            headers
            for method, path, headers in self.asked
            if method == "GET" and path.endswith(f"/{filename}") and "/resolve/" in path
        ]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers until the block ends."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path, dict(self.headers)))
        api = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        resolve = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            self._describe(api[1], api[2], api[3] or "main")
        elif resolve:
            repo = resolve[1] if resolve[1].startswith("datasets/") else f"models/{resolve[1]}"
            self._send_file(repo, resolve[2], resolve[3])
        else:
            self._reply(404, b"", {})

    def _commit(self, repo: str, revision: str) -> str | None:
        """The commit, once all questions of who may have it are answered; else an answer is on its way."""
        token = self.hub.private.get(repo)
        if repo not in self.hub.repos or (
            token is not None and self.headers.get("Authorization") != f"Bearer {token}"
        ):
            self._reply(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit = self.hub.refs.get((repo, revision), revision)
        if commit not in self.hub.repos[repo]:
            self._reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _describe(self, repo: str, what: str | None, revision: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        files = self.hub.repos[repo][commit]
        if what == "tree":
            answer: Any = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(body),
                    "oid": sha1(body).hexdigest(),
                    **(
                        {
                            "lfs": {
                                "oid": hashlib.sha256(body).hexdigest(),
                                "size": len(body),
                                "pointerSize": 134,
                            }
                        }
                        if len(body) >= LFS_BYTES
                        else {}
                    ),
                }
                for name, body in files.items()
            ]
        else:
            name = repo.partition("/")[2]
            answer = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        self._reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_file(self, repo: str, revision: str, name: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        if repo in self.hub.gated:
            message = f"Access to {repo} is restricted and you are not in the authorized list."
            self._reply(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
            return
        body = self.hub.repos[repo][commit].get(name)
        if body is None:
            self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        etag = (hashlib.sha256 if len(body) >= LFS_BYTES else sha1)(body).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        ends = self.hub.break_after.pop(name, None) if self.command == "GET" else None
        self._reply(206 if asked else 200, body[start:], headers, ends=ends)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str], ends: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:ends])
        if ends is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
