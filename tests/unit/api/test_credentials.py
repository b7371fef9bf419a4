from __future__ import annotations

import anyio
import pytest

from rankwise.api.credentials import (
    SECRET,
    Credentials,
    digest_of,
    new_session,
    new_token,
    without_secrets,
)
from rankwise.errors import StoreError
from rankwise.roles import Credential, Role
from rankwise.store import Store


def test_secrets_are_long_alike_in_form_and_never_the_same() -> None:
    made = [new_token() for _ in range(200)]
    assert len(set(made)) == 200
    assert all(SECRET.fullmatch(secret) and len(secret) == 46 for secret in made)
    assert len({character for secret in made for character in secret[3:]}) == 62
    assert SECRET.fullmatch(new_session())


@pytest.mark.parametrize("secret", [new_token(), new_session()], ids=["token", "session"])
def test_secrets_are_taken_out_of_text(secret: str) -> None:
    text = f'GET /v1/x?token={secret} "{secret}", then {secret}.'
    assert secret[4:] not in without_secrets(text)
    assert without_secrets(text).startswith("GET /v1/x?token=rw")


def test_other_text_stays() -> None:
    text = "rw_short draw_" + "x" * 50 + " rankwise_session"
    assert without_secrets(text) == text


class CountingStore:
    """Counts how often the tokens are read."""

    def __init__(self, store: Store) -> None:
        self.store, self.looks = store, 0

    def list_credentials(self) -> list[Credential]:
        self.looks += 1
        return self.store.list_credentials()


def test_many_questions_read_the_store_seldom_wrong_secrets_included(store: Store) -> None:
    secret = new_token()
    store.create_token(name="ci", role=Role.READER, digest=digest_of(secret))
    counting = CountingStore(store)

    async def main() -> list[str | None]:
        credentials = Credentials(counting)  # type: ignore[arg-type]
        names: list[str | None] = []

        async def ask(text: str) -> None:
            caller = await credentials.caller_of(text)
            names.append(caller.name if caller else None)

        async with anyio.create_task_group() as tasks:
            for number in range(300):
                tasks.start_soon(ask, secret if number % 3 == 0 else new_token() if number % 3 == 1 else "no")
        return names

    names = anyio.run(main)
    assert names.count("ci") == 100
    assert counting.looks <= 3


def test_use_is_noted(store: Store) -> None:
    secret = new_token()
    store.create_token(name="ci", role=Role.READER, digest=digest_of(secret))

    async def main() -> None:
        credentials = Credentials(store)
        await credentials.caller_of(secret)
        credentials.note_uses()

    anyio.run(main)
    assert store.list_tokens()[0].last_used_at is not None


def test_a_database_that_fails_accepts_nobody(store: Store) -> None:
    secret = new_token()
    store.create_token(name="ci", role=Role.READER, digest=digest_of(secret))

    async def main() -> None:
        credentials = Credentials(store)
        assert await credentials.caller_of(secret) is not None

        def broken() -> list[Credential]:
            raise StoreError("the disk is gone")

        store.list_credentials = broken  # type: ignore[method-assign]
        credentials.forget()
        with pytest.raises(StoreError):
            await credentials.caller_of(secret)

    anyio.run(main)
