"""The route that inspects a model: answered while the client waits, as estimates are.

Knows nothing of how methods are tried.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ...errors import InputError
from ...optimizer.selection import pattern_in
from ...probes.host import read_hardware
from ...probes.profiles import TaskKind
from ..inspection import inspection_document
from ..own_lora import simple_expression
from ..problems import problem_docs
from ..response_schemas.inspections import InspectionDocument
from .dependencies import InquiriesDep, SettingsDep
from .turns import Turns, busy

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get(
    "/inspect",
    response_model=InspectionDocument,
    summary="What a model is made of, and which methods it takes",
    responses=problem_docs(403, 422, 503),
)
def inspect_model(
    request: Request,
    settings: SettingsDep,
    inquiries: InquiriesDep,
    model: Annotated[
        str,
        Query(
            min_length=1,
            max_length=4096,
            description="Folder, config.json, hub id, or a factory that the operator listed.",
        ),
    ],
    arguments: Annotated[
        str | None,
        Query(max_length=65536, description="Of a factory: keyword arguments, as a JSON object."),
    ] = None,
    task: Annotated[TaskKind | None, Query(description="What the model was made for, if left out.")] = None,
    targets: Annotated[
        list[str] | None,
        Query(max_length=50, description="What would be adapted there; may be repeated."),
    ] = None,
) -> dict[str, Any] | Response:
    """Each method is tried on tiny input. 503 while as many others are worked on as may be."""
    for each in targets or ():
        if (pattern := pattern_in(each)) is not None:
            simple_expression(pattern)  # it is held against names here, in the server
    turns: Turns = request.app.state.turns
    with turns.one() as is_ours:
        if not is_ours:
            return busy(request)
        inspection = inquiries.inspect(
            model,
            task=task,
            arguments=_arguments(arguments),
            allowed_roots=settings.allowed_roots,
            allow_remote_code=settings.allow_remote_code,
            allowed_factories=settings.allowed_factories,
        )
    return inspection_document(inspection, read_hardware(settings.home.root), targets or ())


def _arguments(text: str | None) -> dict[str, Any]:
    """The keyword arguments.

    Raises:
        InputError: they are no JSON object.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"the arguments {text!r:.80} are no JSON object", next_step='write them like {"depth": 4}'
        )
    return value
