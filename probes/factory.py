"""Models that Python code makes: how ``package.module:factory`` is written, and whose code may run.

Imports no torch, and nothing that is named: that happens where a model is built.
"""

from __future__ import annotations

import fnmatch
import importlib.machinery
import importlib.util
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError, PathNotAllowed
from .profiles import Factory

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_factory(source: str) -> bool:
    """``source`` has the form ``package.module:factory``."""
    return _NAME.fullmatch(source) is not None


def resolve_factory(
    source: str,
    *,
    arguments: Mapping[str, Any],
    folder: str | None = None,
    allowed: Collection[str] | None,
) -> Factory:
    """The factory of this name, once its code may run and its package is there.

    Args:
        source: ``package.module:factory``.
        arguments: keyword arguments that it is called with, plain JSON data.
        folder: put first where its package is looked for; None is the working directory.
        allowed: names that may be called, with ``*`` for any part (``lab.models:*``); None allows all.

    Raises:
        PathNotAllowed: the operator did not list it.
        ModelError: there is no such package.
    """
    if allowed is not None and not any(fnmatch.fnmatchcase(source, pattern) for pattern in allowed):
        listed = ", ".join(sorted(allowed)) or "none"
        raise PathNotAllowed(
            f"the factory {source} is not among those that may run here ({listed})",
            next_step="name one of these, or have the operator list it with rankwise serve --allow-factory",
        )
    place = Path.cwd() if folder is None else Path(folder)
    package = source.partition(":")[0].partition(".")[0]
    if not _is_importable(package, place):
        raise ModelError(
            f"the factory {source} needs the package {package}, which is neither in {place} nor installed",
            next_step="start rankwise in the folder that holds it, or install it",
        )
    return Factory(name=source, folder=str(place), arguments=dict(arguments))


def _is_importable(package: str, folder: Path) -> bool:
    """Looked for without importing anything."""
    spec = importlib.machinery.PathFinder.find_spec(package, [str(folder)])
    return spec is not None or importlib.util.find_spec(package) is not None
