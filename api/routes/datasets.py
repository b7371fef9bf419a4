"""Routes about datasets that are sent: streamed to disk, listed, deleted. Knows nothing of their checks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from starlette.requests import ClientDisconnect

from ...store.uploads import Upload
from ..access import DATASETS_PATH, ReaderDep, Role, SubmitterDep, refusal
from ..problems import problem_docs
from ..response_schemas.uploads import UploadDocument, UploadEntry, UploadList
from ..uploads import Received
from .dependencies import StoreDep, UploadsDep
from .turns import Turns

AT_ONCE = 4
"""Uploads of one server at a time."""

router = APIRouter(prefix=DATASETS_PATH, tags=["datasets"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "",
    status_code=201,
    response_model=UploadDocument,
    summary="Send a dataset",
    openapi_extra=_BODY,
    responses=problem_docs(403, 408, 413, 415, 422, 507),
)
async def upload_dataset(
    request: Request,
    response: Response,
    caller: SubmitterDep,
    store: StoreDep,
    uploads: UploadsDep,
    filename: Annotated[
        str,
        Query(min_length=1, max_length=255, description="Its extension says the format: ``reviews.csv``."),
    ],
) -> UploadDocument | Response:
    """The body is the file as it is, of any size up to the server's limit: ``curl -T reviews.csv -X POST …``.
    A study names it by the answer's ``dataset``. The same content sent twice is kept once."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the file is to be sent as it is, not compressed"
        )
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is to be the file alone, not a form")
    length = request.headers.get("content-length", "")

    def note(received: Received) -> Upload:
        return store.add_upload(
            received.id, owner=caller.name, filename=received.filename, size_bytes=received.size_bytes
        )

    turns: Turns = request.app.state.upload_turns
    with turns.one() as is_ours:
        if not is_ours:
            raise HTTPException(503, f"{AT_ONCE} other datasets are being sent", {"Retry-After": "10"})
        try:
            upload = await uploads.receive(
                _chunks(request), filename, announced=int(length) if length.isdecimal() else None, note=note
            )
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
    response.headers["Location"] = f"{DATASETS_PATH}/{upload.id}"
    return UploadDocument(**UploadEntry.of(upload).model_dump())


@router.get("", summary="List uploaded datasets")
def list_datasets(_caller: ReaderDep, store: StoreDep) -> UploadList:
    """Newest first, everybody's."""
    return UploadList(datasets=tuple(map(UploadEntry.of, store.list_uploads())))


@router.get("/{dataset_id}", summary="One uploaded dataset", responses=problem_docs(404))
def read_dataset(dataset_id: str, _caller: ReaderDep, store: StoreDep) -> UploadDocument:
    """What is known of it, from who sent it first. The content is not handed out."""
    return UploadDocument(**UploadEntry.of(store.find_upload(dataset_id)[0]).model_dump())


@router.delete(
    "/{dataset_id}",
    status_code=204,
    summary="Delete an uploaded dataset",
    responses=problem_docs(403, 404, 409),
)
def delete_dataset(dataset_id: str, caller: SubmitterDep, store: StoreDep, uploads: UploadsDep) -> None:
    """Yours, or as an admin everybody's. The file goes with the last who sent it; not while a study that has
    not ended reads it."""
    path = uploads.path_of(dataset_id)
    owners = {upload.owner for upload in store.find_upload(dataset_id)}
    is_admin = caller.role.includes(Role.ADMIN)
    if caller.name not in owners and not is_admin:
        raise HTTPException(403, refusal(caller, Role.ADMIN, f"what {', '.join(sorted(owners))} sent"))
    owner = None if is_admin else caller.name
    uploads.remove(dataset_id, forget=lambda: store.remove_upload(dataset_id, owner=owner, path=str(path)))


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk
