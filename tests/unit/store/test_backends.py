from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.errors import StoreError
from rankwise.store.backends import database_url, described


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (Path("/some %41/x.db"), "/some %41/x.db"),
        ("relative.db", "relative.db"),
        ("sqlite:////absolute.db", "/absolute.db"),
        ("postgresql://me:secret@db:5433/runs?sslpassword=secret", "postgresql://me:***@db:5433/runs"),
        ("postgresql+psycopg://me:secret@db/runs", "postgresql://me:***@db/runs"),
        ("postgres://me:secret@db/runs", "postgresql://me:***@db/runs"),
        ("postgresql:///runs?host=/run/postgresql&password=secret", "postgresql:///runs"),
    ],
)
def test_addresses_are_shown_without_secrets(address: Path | str, shown: str) -> None:
    assert described(address) == shown


@pytest.mark.parametrize(
    "address",
    ["sqlite://", "sqlite:///:memory:", "mysql://a:secret@b/c", "postgresql://me:secret@db:port/runs", "://"],
)
def test_others_are_refused_without_telling_secrets(address: str) -> None:
    with pytest.raises(StoreError) as caught:
        database_url(address)
    assert "secret" not in str(caught.value)
    assert "postgresql://USER@HOST" in caught.value.next_step
