from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from rankwise.api.settings import ServerSettings
from rankwise.errors import InputError
from rankwise.home import Home


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_addresses_are_accepted_and_may_be_addressed(home: Home, host: str) -> None:
    assert host in ServerSettings(home=home, host=host).allowed_hosts


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "", "127.0.0.1.example.org"])  # noqa: S104
def test_addresses_that_others_reach_are_refused(home: Home, host: str) -> None:
    with pytest.raises(InputError, match="access tokens are not there yet"):
        ServerSettings(home=home, host=host)


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
    assert ServerSettings(home=home, allowed_roots=(tmp_path / "a" / "..",)).allowed_roots == (
        tmp_path.resolve(),
    )
