from __future__ import annotations

import socket
import sysconfig
from pathlib import Path

import psutil
import pytest

from rankwise.api.settings import ServerSettings
from rankwise.errors import InputError
from rankwise.home import Home


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_addresses_are_accepted_and_may_be_addressed(home: Home, host: str) -> None:
    assert host in ServerSettings(home=home, host=host).allowed_hosts


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_server_that_only_this_machine_reaches_demands_no_token_unless_told(home: Home, host: str) -> None:
    assert not ServerSettings(home=home, host=host).require_token
    assert ServerSettings(home=home, host=host, require_token=True).require_token


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "", "127.0.0.1.example.org"])  # noqa: S104
def test_a_server_that_others_reach_demands_a_token_whatever_it_is_told(home: Home, host: str) -> None:
    assert ServerSettings(home=home, host=host).require_token


@pytest.mark.parametrize("name", ["rankwise.example.org", "*"])
def test_a_name_of_its_own_means_that_others_reach_it_through_a_proxy(home: Home, name: str) -> None:
    settings = ServerSettings(home=home, allowed_hosts=(name,))
    assert settings.require_token
    assert {name, "localhost"} <= set(settings.allowed_hosts)
    assert not ServerSettings(home=home, allowed_hosts=("[::1]", "127.0.0.7")).require_token


def test_a_server_on_every_address_goes_by_all_names_of_the_machine(home: Home) -> None:
    addresses = {each.address for each in psutil.net_if_addrs()["lo"] if each.family == socket.AF_INET}
    allowed = ServerSettings(home=home, host="0.0.0.0").allowed_hosts  # noqa: S104
    assert {socket.gethostname().lower(), *addresses} <= set(allowed)


def test_a_port_that_does_not_exist_is_refused(home: Home) -> None:
    with pytest.raises(InputError, match="65536"):
        ServerSettings(home=home, port=65536)


def test_files_may_lie_here_in_the_home_and_in_installed_packages(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    installed = Path(sysconfig.get_path("purelib")).resolve()
    assert {tmp_path.resolve(), home.root.resolve(), installed} <= set(
        ServerSettings(home=home).allowed_roots
    )


def test_roots_of_the_operators_replace_the_default_ones(home: Home, tmp_path: Path) -> None:
    allowed = ServerSettings(home=home, allowed_roots=(tmp_path / "a" / "..",)).allowed_roots
    assert allowed == (tmp_path.resolve(), home.uploads.resolve())


def test_strangers_name_nothing_but_what_the_operator_listed_and_uploads(home: Home, tmp_path: Path) -> None:
    assert ServerSettings(home=home, require_token=True).allowed_roots == (home.uploads.resolve(),)
    assert ServerSettings(home=home, host="0.0.0.0", allowed_roots=(tmp_path,)).allowed_roots == (  # noqa: S104
        tmp_path.resolve(),
        home.uploads.resolve(),
    )
