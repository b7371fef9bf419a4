from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rankwise.api.credentials import SECRET, digest_of
from rankwise.home import Home
from rankwise.roles import Role
from rankwise.store import Store

Run = Callable[..., Any]


def test_a_token_is_printed_alone_once_and_kept_as_a_hash(run: Run, home: Home, store: Store) -> None:
    made = run("tokens", "create", "--role", "submitter", "--name", "ci", "--expires", "30d")
    assert made.code == 0, made.err
    secret = made.out.strip()
    assert SECRET.fullmatch(secret)
    assert secret.startswith("rw_")
    [credential] = store.list_credentials()
    assert credential.digest == digest_of(secret)
    assert (credential.token.name, credential.token.role) == ("ci", Role.SUBMITTER)
    assert credential.expires_at is not None
    assert credential.expires_at - datetime.now(UTC) > timedelta(days=29, hours=23)
    store.close()
    with closing(sqlite3.connect(home.database)) as connection:
        assert not any(secret in line for line in connection.iterdump())
    listed = run("tokens", "list", "--json")
    assert secret not in listed.out
    assert listed.document["tokens"][0]["name"] == "ci"


def test_revoking(run: Run) -> None:
    made = run("tokens", "create", "--role", "admin", "--json").document
    assert (made["role"], made["name"], made["expires_at"]) == ("admin", "admin", None)
    assert run("tokens", "revoke", made["id"]).code == 0
    assert run("tokens", "list", "--json").document["tokens"] == []
    [kept] = run("tokens", "list", "--all", "--json").document["tokens"]
    assert kept["revoked_at"] is not None
    assert "revoked" in run("tokens", "list", "--all").out
    assert run("tokens", "revoke", "none").code == 2


@pytest.mark.parametrize("name", ["local", "a b", "-x", "x" * 65, "ü", "a\n"])
def test_names_that_are_none_are_refused(run: Run, store: Store, name: str) -> None:
    refused = run("tokens", "create", "--role", "reader", "--name", name)
    assert refused.code == 2
    assert store.list_tokens() == []


def test_a_server_that_others_reach_does_not_start_without_a_token(run: Run) -> None:
    for arguments in (["--host", "0.0.0.0"], ["--require-token"], ["--allow-host", "rankwise.example.org"]):  # noqa: S104
        assert run("tokens", "create", "--role", "reader").code == 0
        refused = run("serve", "--port", "0", *arguments)
        assert refused.code == 2
        assert "rankwise tokens create --role admin" in refused.err
