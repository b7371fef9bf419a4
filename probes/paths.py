"""Paths that users name: resolved, held against the allowed roots, looked up with a hint when missing.

Knows nothing of what the files hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ..errors import InputError, PathNotAllowed


def resolve_path(source: str, roots: Sequence[Path] | None) -> Path:
    """Return the absolute path with ``~`` and symbolic links resolved; it need not exist.

    Args:
        source: as the user wrote it; relative paths start at the working directory.
        roots: folders that the path must lie in; None allows every path.

    Raises:
        InputError: no file system can have this path.
        PathNotAllowed: it lies outside ``roots``.
    """
    if not source.strip():
        raise InputError("the path is empty", next_step="name a file or a folder")
    try:
        path = Path(source).expanduser().resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the path {_shorten(source)} cannot be used ({_cause(error)})",
            next_step="name an existing file or folder",
        ) from None
    if roots is not None:
        require_inside(path, roots)
    return path


def require_inside(path: Path, roots: Sequence[Path]) -> None:
    """Check that a path, symbolic links resolved, is one of the roots or lies below one.

    Raises:
        PathNotAllowed: it does not.
    """
    target = path.resolve()
    if not any(target.is_relative_to(root.resolve()) for root in roots):
        allowed = ", ".join(map(str, roots)) or "none"
        raise PathNotAllowed(
            f"{target} lies outside the allowed folders ({allowed})",
            next_step="move it below one of them, or have its folder allowed when the server is started",
        )


def nearest_names(path: Path) -> str:
    """Return ``did you mean 'x', 'y'?`` from the names beside a missing path, or ""."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    found = get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"did you mean {', '.join(repr(str(path.parent / name)) for name in found)}?" if found else ""


def _shorten(source: str) -> str:
    return repr(source) if len(source) <= 200 else f"{source[:200]!r}… ({len(source)} characters)"


def _cause(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
