"""Dockerfile and docker-compose.yml, held against their own languages: no engine is needed, and none runs."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dockerfile
import pathspec
import pytest
import uvicorn
import yaml

from rankwise import __version__
from rankwise.api.app import create_app
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.store.backends import database_url

REPOSITORY = Path(__file__).parents[2]
COMPOSE = REPOSITORY / "docker-compose.yml"
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|KEY", re.IGNORECASE)
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
PUBLISHED = {"server", "server-gpu", "db"}


@pytest.fixture(scope="module")
def stages() -> dict[str, list[Any]]:
    """Name of a stage → its instructions, in order; those before the first stage under an empty name."""
    found: dict[str, list[Any]] = {"": []}
    name = ""
    for command in dockerfile.parse_file(str(REPOSITORY / "Dockerfile")):
        if command.cmd.upper() == "FROM":
            assert command.value[1].upper() == "AS"
            name = command.value[2]
            found[name] = []
        found[name].append(command)
    return found


@pytest.fixture(scope="module")
def services() -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    return found


def default_of(text: str) -> str:
    """With every variable at its default."""
    return VARIABLE.sub(lambda match: match[2] or "", text)


def test_compose_files_follow_the_specification() -> None:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    good = subprocess.run([*command, COMPOSE], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout + good.stderr


def test_the_specification_knows_a_wrong_name(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text(encoding="utf-8").replace("read_only: true\n", "readonly: true\n", 1))
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    assert subprocess.run([*command, wrong], capture_output=True, check=False).returncode == 1


def test_a_database_is_started_alone_and_a_server_by_its_profile(services: Mapping[str, Any]) -> None:
    assert set(services) == PUBLISHED
    assert "profiles" not in services["db"]
    assert "depends_on" not in services["db"]
    assert (services["server"]["profiles"], services["server-gpu"]["profiles"]) == (["cpu"], ["gpu"])
    (device,) = services["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert services["server"]["depends_on"]["db"]["condition"] == "service_healthy"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_services_have_no_more_rights_than_they_need(services: Mapping[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in ("", "root", "0", "0:0")
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert all(default_of(port).startswith("127.0.0.1:") for port in service["ports"])
    assert "healthcheck" in service
    assert "docker.sock" not in yaml.safe_dump(service)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_images_have_a_version_and_can_be_pinned(services: Mapping[str, Any], name: str) -> None:
    image = services[name]["image"]
    assert VARIABLE.fullmatch(image), "a variable, so that a digest can stand in its place"
    tag = default_of(image).rpartition(":")[2]
    assert re.match(r"\d", tag)
    if name != "db":
        assert tag == __version__


def test_no_secret_is_written_down(services: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    for service in services.values():
        for name, value in service["environment"].items():
            if SECRET.search(name):
                assert VARIABLE.fullmatch(value)
                assert default_of(value) == ""
    for command in (command for stage in stages.values() for command in stage):
        if command.cmd.upper() in ("ENV", "ARG", "LABEL"):
            assert not SECRET.search(command.original.replace("org.opencontainers", ""))


def test_a_password_may_be_left_out(services: Mapping[str, Any]) -> None:
    """An address with an empty one is an address still."""
    address = default_of(services["server"]["environment"]["RANKWISE_DATABASE_URL"])
    assert database_url(address).render_as_string(hide_password=False).endswith("@db:5432/rankwise")


def test_state_outlives_containers(services: Mapping[str, Any], stages: Mapping[str, list[Any]]) -> None:
    declared = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["volumes"]
    (volumes,) = (command.value for command in stages["runtime"] if command.cmd.upper() == "VOLUME")
    for name in ("server", "server-gpu"):
        named = [each for each in services[name]["volumes"] if isinstance(each, str)]
        assert {each.partition(":")[0] for each in named} <= set(declared)
        assert {each.partition(":")[2] for each in named} == set(volumes)


def test_the_image_runs_as_nobody_in_particular(stages: Mapping[str, list[Any]]) -> None:
    assert list(stages) == ["", "build", "runtime"]
    last = stages["runtime"]
    users = [command.value[0] for command in last if command.cmd.upper() == "USER"]
    assert users == ["10001:10001"]
    after = last[[command.cmd.upper() for command in last].index("USER") :]
    assert not [command for command in after if command.cmd.upper() in ("RUN", "COPY", "ADD")]
    assert [command.flags for command in last if command.cmd.upper() == "COPY"] == [("--from=build",)]
    for command in last:
        if command.cmd.upper() in ("ENTRYPOINT", "CMD"):
            assert command.json, "no shell between the signal and the server"


def test_base_images_have_a_version_and_can_be_pinned(stages: Mapping[str, list[Any]]) -> None:
    (argument,) = stages[""][-1:]
    name, _, image = argument.value[0].partition("=")
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", image)
    assert {stages[stage][0].value[0] for stage in ("build", "runtime")} == {f"${{{name}}}"}
    commands = [command for stage in stages.values() for command in stage]
    assert not [command for command in commands if command.cmd.upper() in ("ADD", "MAINTAINER", "ONBUILD")]
    for command in commands:
        if "apt-get install" in command.original:
            assert "--no-install-recommends" in command.original
            assert "rm -rf /var/lib/apt/lists/*" in command.original


def test_the_command_is_one_that_rankwise_takes(stages: Mapping[str, list[Any]], run_help: str) -> None:
    (entry,) = (command.value for command in stages["runtime"] if command.cmd.upper() == "ENTRYPOINT")
    (arguments,) = (command.value for command in stages["runtime"] if command.cmd.upper() == "CMD")
    assert (entry, arguments[0]) == (("rankwise",), "serve")
    for word in arguments:
        if word.startswith("--"):
            assert f"{word} " in run_help


@pytest.fixture(scope="module")
def run_help() -> str:
    command = [Path(sys.executable).with_name("rankwise"), "serve", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def port(home: Home) -> Iterator[int]:
    """Of a server without a supervisor."""
    config = uvicorn.Config(create_app(ServerSettings(home=home), supervise=False), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def test_the_health_check_tells_a_server_from_none(
    stages: Mapping[str, list[Any]], services: Mapping[str, Any], port: int
) -> None:
    (command,) = (command for command in stages["runtime"] if command.cmd.upper() == "HEALTHCHECK")
    kind, *words = command.value
    assert (kind, command.json) == ("CMD", True)
    for name in ("server", "server-gpu"):
        assert services[name]["healthcheck"]["test"] == ["CMD", *words]

    def checked(where: int) -> int:
        asked = [word.replace("8321", str(where)) for word in words[1:]]
        return subprocess.run([sys.executable, *asked], capture_output=True, check=False).returncode

    assert checked(port) == 0
    assert checked(9) != 0


def test_the_image_is_built_from_the_package_and_from_nothing_private(repository_files: list[Path]) -> None:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    # Docker's patterns are anchored at the top unless they begin with **.
    ignored = pathspec.PathSpec.from_lines(
        "gitignore", [line if line.startswith(("#", "**")) else f"/{line}" for line in lines if line]
    )
    taken = {str(path) for path in repository_files if not ignored.match_file(path)}
    packages = {"api", "migrations", "optimizer", "probes", "runners", "store"}
    needed = {
        str(path)
        for path in repository_files
        if path.parts[0] in packages or (len(path.parts) == 1 and path.suffix == ".py")
    } | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "py.typed"}
    assert needed <= taken
    for private in (".git/config", ".env", ".venv/bin/python", "secrets/token", "data/rows.csv"):
        assert ignored.match_file(private)
