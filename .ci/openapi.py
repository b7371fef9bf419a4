"""The description of the HTTP interface that is checked in, and what would break the programs that use it.

    python .ci/openapi.py check                   exits 1 where docs/openapi.json is not current
    python .ci/openapi.py write                   brings it up to date; refuses what would break a client
    python .ci/openapi.py write --break "why"     does so all the same, and notes the reason

A client breaks where what it sends is refused, or what it reads is missing or of another kind: so bodies and
parameters must not narrow, and answers must not widen. New paths, optional parameters, new fields of answers
and new values of their enumerations are no break (docs/decisions/0040).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
DESCRIPTION = DOCS / "openapi.json"
BREAKS = DOCS / "openapi-breaks.json"
METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")

Schema = dict[str, Any]


class Direction(Enum):
    """Who writes what a schema describes."""

    SENT = "sent"
    ANSWERED = "answered"


class Comparison:
    """Two descriptions of one interface."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old
        self._new = new
        self._assumed: set[tuple[str, str, Direction]] = set()

    def breaks(self) -> list[str]:
        """What would break a client, in sentences."""
        return list(dict.fromkeys(self._of_paths()))

    def _of_paths(self) -> Iterator[str]:
        for path, old_item in self._old["paths"].items():
            new_item = self._new["paths"].get(path, {})
            for method in METHODS:
                if method not in old_item:
                    continue
                place = f"{method.upper()} {path}"
                if method not in new_item:
                    yield f"{place} is gone"
                    continue
                yield from self._of_operation(place, old_item[method], new_item[method])

    def _of_operation(self, place: str, old: Schema, new: Schema) -> Iterator[str]:
        before = {(each["in"], each["name"]): each for each in old.get("parameters", ())}
        after = {(each["in"], each["name"]): each for each in new.get("parameters", ())}
        for key, parameter in before.items():
            if key not in after:
                yield f"{place}: the parameter {key[1]} is gone"
            else:
                where = f"{place}: the parameter {key[1]}"
                yield from self._of_schema(
                    where, parameter.get("schema", {}), after[key].get("schema", {}), Direction.SENT
                )
        for key, parameter in after.items():
            was_required = before.get(key, {}).get("required", False)
            if parameter.get("required") and not was_required:
                yield f"{place}: the parameter {key[1]} is demanded"
        yield from self._of_bodies(place, old.get("requestBody"), new.get("requestBody"))
        for status, answer in old.get("responses", {}).items():
            if status not in new["responses"]:
                if status < "400":
                    yield f"{place}: the answer {status} is gone"
                continue
            now = new["responses"][status].get("content", {})
            for media_type, content in answer.get("content", {}).items():
                where = f"{place}: the answer {status}"
                if media_type not in now:
                    yield f"{where} is no longer {media_type}"
                    continue
                yield from self._of_schema(
                    where, content.get("schema", {}), now[media_type].get("schema", {}), Direction.ANSWERED
                )

    def _of_bodies(self, place: str, old: Schema | None, new: Schema | None) -> Iterator[str]:
        if new and new.get("required") and not (old and old.get("required")):
            yield f"{place}: a body is demanded"
        if not old:
            return
        now = (new or {}).get("content", {})
        for media_type, content in old["content"].items():
            if media_type not in now:
                yield f"{place}: a body of {media_type} is no longer taken"
                continue
            yield from self._of_schema(
                f"{place}: the body",
                content.get("schema", {}),
                now[media_type].get("schema", {}),
                Direction.SENT,
            )

    def _of_schema(self, place: str, old: Schema, new: Schema, direction: Direction) -> Iterator[str]:
        key = (json.dumps(old, sort_keys=True), json.dumps(new, sort_keys=True), direction)
        if "$ref" in key[0] or "$ref" in key[1]:
            if key in self._assumed:
                return  # it is being compared, or was
            self._assumed.add(key)
        before, after = self._alternatives(old, self._old), self._alternatives(new, self._new)
        if len(before) == len(after) == 1:
            yield from self._of_one(place, before[0], after[0], direction)
            return
        wanted, offered = (before, after) if direction is Direction.SENT else (after, before)
        for each in wanted:
            pairs = [(each, other) if direction is Direction.SENT else (other, each) for other in offered]
            found = [list(self._of_one(place, *pair, direction)) for pair in pairs]
            if all(found):
                fewest = min(found, key=len)
                alike = [
                    breaks
                    for breaks, (was, now) in zip(found, pairs, strict=True)
                    if _kind(was) == _kind(now)
                ]
                if alike:
                    yield from min(alike, key=len)
                elif direction is Direction.SENT:
                    yield f"{place} takes no {_kind(each)} any more"
                else:
                    yield f"{place} may now be {_kind(each)}" if _kind(each) else fewest[0]

    def _of_one(self, place: str, old: Schema, new: Schema, direction: Direction) -> Iterator[str]:
        if (not new and direction is Direction.SENT) or (not old and direction is Direction.ANSWERED):
            return  # anything goes
        if _kind(old) != _kind(new) and {_kind(old), _kind(new)} != {"integer", "number"}:
            yield f"{place} was {_kind(old) or 'anything'} and is {_kind(new) or 'anything'}"
            return
        widens = (_kind(old), _kind(new)) == ("integer", "number")
        if _kind(old) != _kind(new) and widens != (direction is Direction.SENT):
            yield f"{place} was {_kind(old)} and is {_kind(new)}"
        yield from _of_values(place, old, new, direction)
        if direction is Direction.SENT:
            yield from _of_bounds(place, old, new)
        if "items" in old:
            yield from self._of_schema(f"{place}[]", old["items"], new.get("items", {}), direction)
        was, now = old.get("additionalProperties"), new.get("additionalProperties")
        if isinstance(was, dict) and isinstance(now, dict):
            yield from self._of_schema(f"{place}.*", was, now, direction)
        elif now is False and was is not False and direction is Direction.SENT:
            yield f"{place} takes no further fields"
        yield from self._of_fields(place, old, new, direction)

    def _of_fields(self, place: str, old: Schema, new: Schema, direction: Direction) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        demanded, promised = set(new.get("required", ())), set(old.get("required", ()))
        for name, schema in before.items():
            if name not in after:
                yield f"{place}.{name} is gone"
            else:
                yield from self._of_schema(f"{place}.{name}", schema, after[name], direction)
        if direction is Direction.SENT:
            yield from (f"{place}.{name} is demanded" for name in sorted(demanded - promised))
        else:
            yield from (
                f"{place}.{name} is no longer always there"
                for name in sorted((promised - demanded) & {*after})
            )

    def _alternatives(self, schema: Schema, of: Schema) -> list[Schema]:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self._alternatives(of["components"]["schemas"][name], of)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return [each for part in schema[word] for each in self._alternatives(part, of)]
        if isinstance(schema.get("type"), list):
            return [schema | {"type": kind} for kind in schema["type"]]
        return [schema]


def _kind(schema: Schema) -> str:
    return str(schema.get("type", ""))


def _of_values(place: str, old: Schema, new: Schema, direction: Direction) -> Iterator[str]:
    before, after = (
        set(map(str, schema.get("enum", [schema["const"]] if "const" in schema else ())))
        for schema in (old, new)
    )
    for value in sorted(before - after) if after else ():
        yield f"{place}: the value {value} is gone"
    if after and not before and direction is Direction.SENT:
        yield f"{place} takes only {', '.join(sorted(after))}"


def _of_bounds(place: str, old: Schema, new: Schema) -> Iterator[str]:
    for name in LOWER_BOUNDS:
        if name in new and (name not in old or new[name] > old[name]):
            yield f"{place}: {name} is {new[name]}, and was {old.get(name, 'not limited')}"
    for name in UPPER_BOUNDS:
        if name in new and (name not in old or new[name] < old[name]):
            yield f"{place}: {name} is {new[name]}, and was {old.get(name, 'not limited')}"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield f"{place} must match {new['pattern']}"


def breaking_changes(old: Schema, new: Schema) -> list[str]:
    """What of the new description would break a client that was written for the old one."""
    return Comparison(old, new).breaks()


def described() -> Schema:
    """The interface as the code has it, without the version, which changes by itself."""
    from rankwise.api.app import create_app
    from rankwise.api.settings import ServerSettings
    from rankwise.home import Home

    with tempfile.TemporaryDirectory() as folder:
        app = create_app(ServerSettings(home=Home(Path(folder))), supervise=False)
        description: Schema = app.openapi()
    description["info"]["version"] = "1"
    return description


def as_text(description: Schema) -> str:
    """One key a line, in a fixed order."""
    return json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("check", "write"))
    parser.add_argument("--break", dest="reason", help="why clients must break")
    options = parser.parse_args()
    now = described()
    known = json.loads(DESCRIPTION.read_text()) if DESCRIPTION.exists() else now
    breaks = breaking_changes(known, now)
    for each in breaks:
        print(f"breaks clients: {each}", file=sys.stderr)
    if options.task == "check":
        is_current = DESCRIPTION.exists() and DESCRIPTION.read_text() == as_text(now)
        if not is_current:
            print("docs/openapi.json is not current: run `make openapi`", file=sys.stderr)
        return 0 if is_current else 1
    if breaks and not options.reason:
        print("nothing was written; a break needs a reason: --break", file=sys.stderr)
        return 1
    if breaks:
        noted = json.loads(BREAKS.read_text()) if BREAKS.exists() else []
        BREAKS.write_text(json.dumps([*noted, {"reason": options.reason, "breaks": breaks}], indent=1) + "\n")
    DESCRIPTION.write_text(as_text(now))
    return 0


if __name__ == "__main__":
    sys.exit(main())
