from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("openapi_tool", REPOSITORY / ".ci" / "openapi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_checked_in_is_what_is_served_and_nothing_of_it_breaks(tool: ModuleType) -> None:
    known, now = json.loads(tool.DESCRIPTION.read_text()), tool.described()
    assert tool.breaking_changes(known, now) == []
    assert tool.DESCRIPTION.read_text() == tool.as_text(now), "run `make openapi`"


DESCRIPTION: dict[str, Any] = {
    "paths": {
        "/things": {
            "get": {
                "parameters": [{"in": "query", "name": "limit", "schema": {"type": "integer", "maximum": 9}}],
                "responses": {
                    "200": {
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}
                    }
                },
            },
            "post": {
                "requestBody": {
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}},
                    "required": True,
                },
                "responses": {"202": {"content": {"application/json": {"schema": {"type": "object"}}}}},
            },
        }
    },
    "components": {
        "schemas": {
            "Thing": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "state": {"type": "string", "enum": ["queued", "done"]},
                    "size": {"type": "integer"},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}},
                    "reason": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["id", "state"],
            },
            "Ask": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "model": {"type": "string"},
                    "kind": {"type": "string", "enum": ["a", "b"]},
                    "size": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "rows": {"type": "integer", "minimum": 1},
                },
                "required": ["model"],
            },
        }
    },
}
Change = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Any]


def changed(change: Change) -> dict[str, Any]:
    new = copy.deepcopy(DESCRIPTION)
    change(new["paths"]["/things"], *(new["components"]["schemas"][name] for name in ("Thing", "Ask")))
    return new


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path, _, __: path.pop("post"), "POST /things is gone"),
        (lambda path, _, __: path["get"]["parameters"].clear(), "parameter limit is gone"),
        (lambda path, _, __: path["get"]["parameters"][0].update(required=True), "limit is demanded"),
        (lambda path, _, __: path["get"]["parameters"][0]["schema"].update(maximum=5), "maximum is 5"),
        (lambda path, _, __: path["get"]["responses"].pop("200"), "the answer 200 is gone"),
        (lambda _, thing, __: thing["properties"].pop("size"), ".size is gone"),
        (lambda _, thing, __: thing["required"].remove("id"), ".id is no longer always there"),
        (lambda _, thing, __: thing["properties"]["size"].update(type="string"), "was integer and is string"),
        (lambda _, thing, __: thing["properties"]["size"].update(type="number"), "was integer and is number"),
        (lambda _, thing, __: thing["properties"]["state"]["enum"].remove("done"), "the value done is gone"),
        (
            lambda _, thing, __: thing["properties"].update(
                size={"anyOf": [{"type": "integer"}, {"type": "null"}]}
            ),
            "may now be null",
        ),
        (lambda _, __, ask: ask["properties"].pop("rows"), ".rows is gone"),
        (lambda _, __, ask: ask["required"].append("kind"), ".kind is demanded"),
        (lambda _, __, ask: ask["properties"]["kind"]["enum"].remove("a"), "the value a is gone"),
        (lambda _, __, ask: ask["properties"]["size"]["anyOf"].pop(), "takes no string any more"),
        (lambda _, __, ask: ask["properties"]["rows"].update(minimum=2), "minimum is 2, and was 1"),
        (lambda _, __, ask: ask["properties"]["model"].update(pattern="^a"), "must match ^a"),
    ],
)
def test_what_breaks_clients_is_told(tool: ModuleType, change: Change, told: str) -> None:
    found = tool.breaking_changes(DESCRIPTION, changed(change))
    assert any(told in each for each in found), found


@pytest.mark.parametrize(
    "change",
    [
        lambda _, __, ___: None,
        lambda path, _, __: path.update(delete={"responses": {"204": {}}}),
        lambda path, _, __: path["get"]["parameters"].append(
            {"in": "query", "name": "q", "schema": {"type": "string"}}
        ),
        lambda path, _, __: path["get"]["parameters"][0]["schema"].update(maximum=20),
        lambda _, thing, __: thing["properties"].update(more={"type": "string"}),
        lambda _, thing, __: thing["required"].append("size"),
        lambda _, thing, __: thing["properties"]["state"]["enum"].append("lost"),
        lambda _, thing, __: thing["properties"]["reason"]["anyOf"].pop(),
        lambda _, __, ask: ask["properties"].update(more={"type": "string"}),
        lambda _, __, ask: ask["required"].clear(),
        lambda _, __, ask: ask["properties"]["kind"]["enum"].append("c"),
        lambda _, __, ask: ask["properties"]["size"]["anyOf"].append({"type": "null"}),
        lambda _, __, ask: ask["properties"]["rows"].update(type="number"),
        lambda _, __, ask: ask["properties"]["rows"].pop("minimum"),
    ],
)
def test_what_breaks_none_is_not(tool: ModuleType, change: Change) -> None:
    assert tool.breaking_changes(DESCRIPTION, changed(change)) == []
