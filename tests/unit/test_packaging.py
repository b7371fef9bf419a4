"""What users get: every file of the package, and a package that starts without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NOT_SHIPPED = {".ci", "benchmarks", "docs", "examples", "tests"}
TORCH_FREE_ROOMS = ("api", "optimizer", "store")
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets"}


def is_shipped(path: Path) -> bool:
    """Everything in the rooms of the package; of the files beside them only modules and the type marker."""
    if len(path.parts) == 1:
        return path.suffix == ".py" or path.name == "py.typed"
    return path.parts[0] not in NOT_SHIPPED


@pytest.fixture(scope="module")
def wheel_files(repository_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from a copy, so that nothing stale in the work tree gets in."""
    copy = tmp_path_factory.mktemp("source")
    for path in repository_files:
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPOSITORY / path).read_bytes())
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = (copy / "dist").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_exactly_the_package(wheel_files: set[str], repository_files: list[Path]) -> None:
    expected = {f"rankwise/{path.as_posix()}" for path in repository_files if is_shipped(path)}
    shipped = {name for name in wheel_files if name.startswith("rankwise/")}
    assert not expected - shipped, "missing: name the folder under packages or package-data in pyproject.toml"
    assert not shipped - expected


def test_wheel_holds_licence_and_types(wheel_files: set[str]) -> None:
    assert "rankwise/py.typed" in wheel_files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_files)


def test_migrations_are_shipped_with_their_template(wheel_files: set[str]) -> None:
    assert "rankwise/migrations/script.py.mako" in wheel_files


def heavy_modules_after(statements: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after the statements."""
    program = f"{statements}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return HEAVY & set(json.loads(result.stdout))


def test_import_is_light() -> None:
    assert heavy_modules_after("import rankwise") == set()


def test_heavy_modules_are_seen() -> None:
    assert "torch" in heavy_modules_after("import torch")


@pytest.mark.parametrize("room", TORCH_FREE_ROOMS)
def test_room_is_torch_free(room: str, repository_files: list[Path]) -> None:
    modules = [
        ".".join(("rankwise", *path.with_suffix("").parts)).removesuffix(".__init__")
        for path in repository_files
        if path.parts[0] == room and path.suffix == ".py" and path.stem != "__main__"
    ]
    assert heavy_modules_after("\n".join(f"import {module}" for module in modules)) == set()
