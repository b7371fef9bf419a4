from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.errors import InputError, PathNotAllowed
from rankwise.probes.paths import nearest_names, require_inside, resolve_path


def test_paths_are_made_absolute_with_links_and_home_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert resolve_path("a/../b", None) == tmp_path / "b"
    assert resolve_path("~/b", None) == tmp_path / "b"
    assert resolve_path("link", None) == tmp_path / "target"


@pytest.mark.parametrize(
    "source", ["", "  ", "a\0b", "x" * 5000, "/" + "x" * 300, "~nobody-here/x", "\ud800"]
)
def test_impossible_paths_are_refused(source: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_path(source, None)
    assert len(caught.value.message) < 1000
    assert caught.value.next_step


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop"):
        resolve_path(str(tmp_path / "loop"), None)


def test_only_paths_inside_a_root_are_allowed(tmp_path: Path) -> None:
    root, other, sibling = tmp_path / "root", tmp_path / "other", tmp_path / "root-2"
    for folder in (root, other, sibling):
        folder.mkdir()
    (root / "out").symlink_to(sibling)
    (tmp_path / "alias").symlink_to(root)
    for path in (root, root / "a" / "b", other / "a", tmp_path / "alias" / "a"):
        require_inside(path, [tmp_path / "alias", other])
    for path in (tmp_path, sibling, root / "..", root / "out" / "a"):
        with pytest.raises(PathNotAllowed) as caught:
            require_inside(path, [root, other])
        assert f"({root}, {other})" in caught.value.message
    with pytest.raises(PathNotAllowed, match=r"\(none\)"):
        require_inside(root, [])


def test_missing_names_are_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").touch()
    assert nearest_names(tmp_path / "revews.csv") == f"did you mean '{tmp_path / 'reviews.csv'}'?"
    assert nearest_names(tmp_path / "zzz") == ""
    assert nearest_names(tmp_path / "no" / "folder") == ""
