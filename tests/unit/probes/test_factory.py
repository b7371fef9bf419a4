"""Which factories are found, and which may run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.errors import ModelError, PathNotAllowed
from rankwise.probes.factory import is_factory, resolve_factory
from rankwise.probes.model_source import resolve_model


@pytest.mark.parametrize("source", ["lab.models:tiny", "lab:Net.build", "a:b"])
def test_a_name_with_a_colon_is_a_factory(source: str) -> None:
    assert is_factory(source)


@pytest.mark.parametrize(
    "source", ["org/model", "./folder", "lab.models", "C:\\x", "a:b:c", "a:1", "lab/x.py:f"]
)
def test_anything_else_is_none(source: str) -> None:
    assert not is_factory(source)


def test_a_package_beside_the_caller_is_found(tmp_path: Path) -> None:
    (tmp_path / "lab_here.py").write_text("raise SystemExit('imported')")
    found = resolve_factory("lab_here:tiny", arguments={"depth": 2}, folder=str(tmp_path), allowed=None)
    assert (found.name, found.folder, dict(found.arguments)) == ("lab_here:tiny", str(tmp_path), {"depth": 2})


def test_a_package_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs the package lab_nowhere"):
        resolve_factory("lab_nowhere.models:tiny", arguments={}, folder=str(tmp_path), allowed=None)


def test_only_listed_factories_may_run(tmp_path: Path) -> None:
    (tmp_path / "lab_here.py").touch()
    ask = {"arguments": {}, "folder": str(tmp_path)}
    assert resolve_factory("lab_here:tiny", **ask, allowed=("lab_here:*",))
    with pytest.raises(PathNotAllowed, match="not among those that may run here"):
        resolve_factory("lab_here:tiny", **ask, allowed=("lab_here:other", "lab_there:*"))
    with pytest.raises(PathNotAllowed, match=r"\(none\)"):
        resolve_factory("lab_here:tiny", **ask, allowed=())


def test_arguments_are_for_factories_only(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model arguments depth were given"):
        resolve_model(str(tmp_path), allowed_roots=None, arguments={"depth": 2})
