"""Who may look: the login page, the session's cookie, and what becomes of a page whose session has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from rankwise.api.credentials import digest_of, new_token
from rankwise.api.settings import ServerSettings
from rankwise.roles import Role
from rankwise.store import Store

from .conftest import Watched, World, serving

Opener = Callable[..., Watched]


@pytest.fixture
def guarded(world: World) -> Iterator[str]:
    """The same studies, behind tokens."""
    with serving(ServerSettings(home=world.home, require_token=True)) as url:
        yield url


def make_token(store: Store, name: str, role: Role, *, lasts_s: float = 3600.0) -> str:
    secret = new_token()
    expires_at = datetime.now(UTC) + timedelta(seconds=lasts_s)
    store.create_token(name=name, role=role, digest=digest_of(secret), expires_at=expires_at)
    return secret


def log_in(watched: Watched, secret: str) -> None:
    watched.page.get_by_label("Token").fill(secret)
    watched.page.get_by_role("button", name="Log in").click()


def test_a_token_begins_a_session_that_no_script_can_read(
    open_page: Opener, guarded: str, world: World
) -> None:
    secret = make_token(world.store, "ada", Role.READER)
    watched = open_page(guarded)
    page = watched.open(f"/studies/{world.ids['small']}", "Log in")
    log_in(watched, "nonsense")
    page.locator("#token-error").wait_for()
    log_in(watched, secret)
    page.locator(".board tbody tr").first.wait_for()  # back where one wanted to be
    page.get_by_text("ada, reader").wait_for()
    assert "rankwise_session" not in page.evaluate("document.cookie")
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert secret not in page.content()
    assert page.get_by_role("link", name="Clone").count() == 0  # a reader starts nothing


def test_a_page_whose_token_was_revoked_asks_to_log_in(open_page: Opener, guarded: str, world: World) -> None:
    secret = make_token(world.store, "eve", Role.SUBMITTER)
    watched = open_page(guarded)
    page = watched.open("/login", "Log in")
    log_in(watched, secret)
    page.locator(".studies article").first.wait_for()
    page.context.clear_cookies()  # as when it has expired
    # Not by its link: the page that is open asks by itself, and may show the login before that is clicked.
    page.goto(f"{guarded}/devices")
    page.get_by_role("heading", name="Log in", level=1).wait_for()
    log_in(watched, secret)
    page.get_by_role("heading", name="Devices", level=1).wait_for()
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("heading", name="Log in", level=1).wait_for()
    watched.open("/", "Log in")


def test_a_page_that_only_listens_asks_to_log_in_once_its_token_has_expired(
    open_page: Opener, guarded: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.api.lookout.HEARTBEAT_S", 0.5)
    secret = make_token(world.store, "kim", Role.READER, lasts_s=8)
    watched = open_page(guarded)
    page = watched.open(f"/studies/{world.ids['running']}", "Log in")
    log_in(watched, secret)
    page.get_by_text("live", exact=True).wait_for()
    page.get_by_role("heading", name="Log in", level=1).wait_for()
    assert page.url.endswith(f"/login?next=%2Fstudies%2F{world.ids['running']}")
    log_in(watched, make_token(world.store, "kim", Role.READER))
    page.get_by_text("live", exact=True).wait_for()


def test_the_login_leads_to_no_other_site(open_page: Opener, guarded: str, world: World) -> None:
    secret = make_token(world.store, "bob", Role.READER)
    watched = open_page(guarded)
    page = watched.open("/login?next=//evil.example/", "Log in")
    log_in(watched, secret)
    page.get_by_role("heading", name="Studies", level=1).wait_for()
    assert page.url == f"{guarded}/"
