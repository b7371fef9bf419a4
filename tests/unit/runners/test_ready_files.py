from __future__ import annotations

import ast
import py_compile
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from rankwise.runners.ready_files import PROGRAMS, compose_program, format_imports, split_source

VALUES: dict[str, Any] = {
    "description": "a candidate; recommended by rankwise, study 01ABC",
    "model": 'models/é "quoted" \\ name',
    "dataset": "data.csv",
    "on_cpu": True,
    "has_weights": True,
    "task": {"kind": "text-classification", "labels": ["no", "yes"], "arrays": None},
    "trial": {"steps": 3, "first_losses": [0.1, 1e-9]},
}


@pytest.fixture(scope="module", params=PROGRAMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def script(name: str) -> str:
    return compose_program(name, VALUES)


@pytest.fixture(scope="module")
def tree(script: str) -> ast.Module:
    return ast.parse(script)


def top_level_names(tree: ast.Module) -> list[str]:
    """Every name that the file's statements bind, imports left out."""
    names: list[str] = []
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Assign(targets=targets):
                names += [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case _:
                pass
    return names


def relative_imports(name: str) -> list[ast.ImportFrom]:
    sources = (files("rankwise").joinpath(path).read_text("utf-8") for path in PROGRAMS[name].sources)
    return [
        node
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def test_compiles(script: str, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(script, encoding="utf-8")
    py_compile.compile(str(path), doraise=True)


def test_stands_alone(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert not (node.module or "").startswith("rankwise")
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("rankwise") for alias in node.names)


def test_every_relatively_imported_name_is_in_the_file(name: str, tree: ast.Module) -> None:
    defined = set(top_level_names(tree))
    for node in relative_imports(name):
        assert node.module, "a whole module cannot be imported: there are none in the script"
        for alias in node.names:
            assert alias.asname is None
            assert alias.name in defined


def test_sources_share_one_namespace_without_clashes(tree: ast.Module) -> None:
    assert [name for name, count in Counter(top_level_names(tree)).items() if count > 1] == []


def test_imports_stand_at_the_top(tree: ast.Module) -> None:
    kinds = [isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body[1:]]
    assert kinds == sorted(kinds, reverse=True)


def test_values_are_written_in(tree: ast.Module) -> None:
    written = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VALUES"
    )
    assert ast.literal_eval(written) == VALUES


def test_knows_every_name_that_it_uses(script: str, tmp_path: Path) -> None:
    """A module imported whole in one source and by names in another would be missing, for one."""
    path = tmp_path / "program.py"
    path.write_text(script, encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F811", path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_holds_no_source_that_it_does_not_use(name: str) -> None:
    """Each source but the last gives a name to one that follows."""
    wanted = {(node.module or "").rpartition(".")[2] for node in relative_imports(name)}
    *others, _ = (Path(path).stem for path in PROGRAMS[name].sources)
    assert set(others) <= wanted


@pytest.mark.parametrize("package", ["lightning", "trl"])
def test_tells_what_to_install(package: str, script: str, tree: ast.Module) -> None:
    """These are no part of what rankwise itself needs."""
    assert (package in (ast.get_docstring(tree) or "")) == (f"\nimport {package}\n" in script)


def test_help_runs(tmp_path: Path) -> None:
    """The whole file is executed up to the reading of its arguments."""
    path = tmp_path / "train.py"
    path.write_text(compose_program("train.py", VALUES), encoding="utf-8")
    command = [sys.executable, "-I", path, "--help"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


def test_a_model_without_weights_has_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(compose_program("train.py", {**VALUES, "has_weights": False}), encoding="utf-8")
    command = [sys.executable, "-I", path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert "--model" in done.stderr


def test_split_takes_docstring_and_imports_away() -> None:
    source = (
        '"""Doc."""\nfrom __future__ import annotations\nimport os\nfrom .near import (\n    x,\n)\n\ny = x\n'
    )
    imports: dict[str, set[str]] = {"collections": {"deque"}}
    title, body = split_source(source, imports)
    assert title == "Doc."
    assert imports == {"collections": {"deque"}, "os": set()}
    assert format_imports(imports) == ["import os", "from collections import deque", ""]
    assert body.strip() == "y = x"
