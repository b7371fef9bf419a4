"""Commands as pages write them, held against what rankwise really takes, without running any."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import click
import jsonschema
import typer

from rankwise.api.app import create_app
from rankwise.api.cli.main import app
from rankwise.api.settings import ServerSettings
from rankwise.home import Home

from .pages import REPOSITORY

_COMMENT = re.compile(r"(?:^|(?<=\s))#[^\n]*")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1(?P<rest>[^\n]*)\n.*?^\s*\2$", re.DOTALL | re.MULTILINE)
_ASIDE = {"cd", "git", "pip", "ls", "cat", "mkdir", "which"}
_ELLIPSIS = {"…", "..."}


class Wrong(Exception):
    """A command that could not be run as it stands."""


def simple_commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a shell script, less comments, redirections and here-documents."""
    script = _HEREDOC.sub(lambda match: match["rest"], script)
    script = _COMMENT.sub("", script.replace("\\\n", " ")).replace("$(", " ; ").replace("`", " ; ")
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";()<>|&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    is_target = False
    for token in lexer:
        if is_target:
            is_target = False
        elif set(token) <= set("<>&") and set(token) & set("<>"):
            if words and words[-1].isdigit():
                words.pop()
            is_target = True
        elif set(token) <= set(";()|&\n"):
            if words:
                yield words
            words = []
        else:
            words.append(token)
    if words:
        yield words


def check_script(script: str) -> int:
    """Check what a shell script says to rankwise, its service and make; returns how many commands that were.

    Raises:
        Wrong: a command, option, path, field or target does not exist.
    """
    checked = 0
    for words in simple_commands(script):
        for name, check in CHECKS.items():
            if name in words and words[0] not in _ASIDE:
                check(words[words.index(name) + 1 :])
                checked += 1
                break
    return checked


def check_rankwise(arguments: list[str], is_example: bool = False) -> None:
    """Parse the arguments as the command line would; a last option's value may be missing from an example.

    Raises:
        Wrong: it would refuse them.
    """
    arguments = [word for word in arguments if word not in _ELLIPSIS]
    command: Any = typer.main.get_command(app)
    context = command.make_context("rankwise", [], resilient_parsing=True)
    while arguments and isinstance(command, click.Group | typer.core.TyperGroup):
        if arguments[0].startswith("-"):
            break
        name, command = command.resolve_command(context, arguments)[:2]
        if command is None:
            raise Wrong(f"rankwise has no command {arguments[0]!r}")
        arguments = arguments[1:]
        context = type(context)(command, parent=context, info_name=name, resilient_parsing=True)
    try:
        _parse(command, context, arguments)
    except Wrong:
        if not is_example or not arguments or not arguments[-1].startswith("-"):
            raise
        _parse(command, context, [*arguments, "value"])


def _parse(command: Any, context: Any, arguments: list[str]) -> None:
    context.resilient_parsing = False
    try:
        _, rest, _ = command.make_parser(context).parse_args(args=list(arguments))
    except Exception as error:  # typer may bring its own click, whose errors are other classes
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        raise Wrong(f"rankwise {context.info_name}: {message}") from error
    if rest:
        raise Wrong(f"rankwise {context.info_name} takes no argument {rest[0]!r}")


@cache
def _openapi() -> Mapping[str, Any]:
    return create_app(ServerSettings(home=Home(REPOSITORY / "build")), supervise=False).openapi()


def check_curl(arguments: list[str]) -> None:
    """Look the request up in the service's own description.

    Raises:
        Wrong: path, method, parameter or body are not in it.
    """
    method, body, url = "", None, ""
    words = iter(arguments)
    for word in words:
        if word in {"-X", "--request"}:
            method = next(words)
        elif word in {"-d", "--data", "--json"}:
            body = next(words)
        elif word in {"-H", "-o", "--retry", "--max-time", "-w", "--header", "--output", "--retry-delay"}:
            next(words)
        elif not word.startswith("-"):
            url = word
    if not re.match(r"(https?://)?(localhost|127\.0\.0\.1|\$\w+)", url):
        return
    split = urlsplit(url if "//" in url else f"http://{url}")
    check_request(method or ("GET" if body is None else "POST"), split.path, split.query, body)


def check_request(method: str, path: str, query: str = "", body: str | None = None) -> None:
    """Look a request up in the service's description; a part of the path that begins with ``$`` fits any.

    Raises:
        Wrong: it is not there.
    """
    if path == "/openapi.json":
        return
    operation = _operation(method.lower(), path)
    known = {parameter["name"] for parameter in operation.get("parameters", ())}
    for name, _ in parse_qsl(query):
        if name not in known:
            raise Wrong(f"{method} {path} has no parameter {name!r}")
    if body is not None and not body.startswith("@"):
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        _validate(json.loads(body), schema, f"{method} {path}")


def _operation(method: str, path: str) -> Mapping[str, Any]:
    for template, operations in _openapi()["paths"].items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path.rstrip("/")):
            if method not in operations:
                raise Wrong(f"{path} takes no {method.upper()}")
            found: Mapping[str, Any] = operations[method]
            return found
    raise Wrong(f"the service has no path {path!r}")


def _validate(value: object, schema: Mapping[str, Any], what: str) -> None:
    whole = {**schema, "components": _openapi()["components"]}
    try:
        jsonschema.validate(value, whole)
    except jsonschema.ValidationError as error:
        raise Wrong(f"{what}: {error.message}") from error


def check_make(arguments: list[str]) -> None:
    """Look targets up in the Makefile.

    Raises:
        Wrong: one is not there.
    """
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for word in arguments:
        if not word.startswith("-") and "=" not in word and word not in targets:
            raise Wrong(f"the Makefile has no target {word!r}")


def check_python(arguments: list[str]) -> None:
    """Look for the file or module that Python is to run, where it is one of the repository.

    Raises:
        Wrong: it is not there.
    """
    if not arguments:
        return
    name = f"{arguments[1].replace('.', '/')}.py" if arguments[0] == "-m" else arguments[0]
    if name.startswith(("examples/", "benchmarks/")) and not (REPOSITORY / name).exists():
        raise Wrong(f"the repository has no {name}")


CHECKS = {"rankwise": check_rankwise, "curl": check_curl, "make": check_make, "python": check_python}
"""First word of a command → what checks the others."""


def check_code(source: str) -> None:
    """Compile Python and look for everything that it takes from rankwise.

    Raises:
        Wrong: it does not compile, or rankwise has no such name.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise Wrong(f"not Python: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rankwise":
            for alias in node.names:
                _find(node.module or "", alias.name)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rankwise":
            _find("rankwise", node.attr)


def _find(module: str, name: str) -> None:
    if not hasattr(importlib.import_module(module), name):
        raise Wrong(f"{module} has no {name!r}")


@cache
def options() -> frozenset[str]:
    """Every option of every command of rankwise."""
    found: set[str] = set()

    def collect(command: Any) -> None:
        for parameter in command.params:
            found.update((*parameter.opts, *parameter.secondary_opts))
        for child in getattr(command, "commands", {}).values():
            collect(child)

    collect(typer.main.get_command(app))
    return frozenset(found)
