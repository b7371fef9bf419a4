"""Routes of the dashboard: one page for every address that it knows, and the files that it loads.

The page holds no data: it asks the API for them. Knows nothing of what it shows.
"""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request, Response

from ..page_files import PageFile, PageFiles

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Nothing inline, no ``eval``, no other host."""
PAGE_HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-cache"}
FOR_GOOD = "public, max-age=31536000, immutable"
FILES = "/login/files"
"""Below the login page, so that they are served to those who have not logged in yet."""

router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/login")
@router.get("/new")
@router.get("/devices")
@router.get("/estimate")
async def read_page(request: Request) -> Response:
    """The page; its own script looks at the address."""
    return _sent(_files(request).page(), request, dict(PAGE_HEADERS))


@router.get("/studies/{study_id}")
async def read_study_page(request: Request, study_id: str) -> Response:
    """The same, with what is to be loaded for a study: its trials, too, are asked for at once."""
    board = f"/v1/studies/{quote(study_id, safe='')}/board"
    headers = {**PAGE_HEADERS, "Link": f"<{board}>; rel=preload; as=fetch; crossorigin=anonymous"}
    return _sent(_files(request).page("study.js"), request, headers)


@router.get(FILES + "/{version}/{name:path}")
async def read_file(request: Request, version: str, name: str) -> Response:
    """A page that was left open over an upgrade still finds what it loads late; that is not kept."""
    files = _files(request)
    found = files.find(name)
    if found is None:
        raise HTTPException(404, f"the dashboard has no file {name!r:.80}")
    return _sent(found, request, {"Cache-Control": FOR_GOOD if version == files.version else "no-store"})


def _files(request: Request) -> PageFiles:
    files: PageFiles = request.app.state.page_files
    return files


def _sent(file: PageFile, request: Request, headers: dict[str, str]) -> Response:
    headers["Vary"] = "Accept-Encoding"
    accepted = request.headers.get("accept-encoding", "")
    if "gzip" in accepted and (compressed := file.compressed):
        headers["Content-Encoding"] = "gzip"
        return Response(compressed, 200, headers, file.media_type)
    return Response(file.content, 200, headers, file.media_type)
