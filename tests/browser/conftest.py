"""A real Chromium before the dashboard: what it loads, says and refuses is watched in every test.

Each file has a browser of its own; all share one server with seeded studies. Screenshots lie below
build/screenshots.
"""

from __future__ import annotations

import faulthandler
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.api.app import create_app
from rankwise.api.server import Server
from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.optimizer.domain import StudyState
from rankwise.store import Store

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from seeded_study import run_of, seed_study, shapes  # noqa: E402

__all__ = ["run_of", "shapes"]

SCREENSHOTS = REPOSITORY / "build" / "screenshots"
INSTALL = "apt-get update && apt-get install -y chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000
"""How long something may take to appear; how fast it is, benchmarks/dashboard.py tells."""
SMALL, LARGE = 220, 5000
SCRIPT = "<script>document.title='run'</script>"
IMAGE = "<img src=x onerror=document.title='run'>"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
AXE = "async (rules) => (await axe.run(document, { runOnly: rules })).violations"
VIEWS = (("light", 1280, 900), ("dark", 390, 844))
WATCH_POLICY = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


def chromium() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed after each file: while Playwright runs, no other test of its process can have an event loop."""
    path = chromium()
    if path is None:
        pytest.skip(f"THE DASHBOARD IS NOT TESTED: there is no Chromium. As root: {INSTALL}")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


@dataclass
class World:
    """A server with studies, and the store behind it."""

    url: str
    store: Store
    home: Home
    ids: dict[str, str] = field(default_factory=dict)


END_S = 30.0
"""For a server to end after its last test; streams and answers have five seconds."""


@contextmanager
def serving(settings: ServerSettings) -> Iterator[str]:
    """The application in a thread, without a supervisor: what is seeded is not touched."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(create_app(settings, supervise=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(END_S)
        if thread.is_alive():  # all tests are over: told with what it waits for, and not waited for
            faulthandler.dump_traceback(all_threads=True)
        listener.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = Home(tmp_path_factory.mktemp("home")).create()
    store = Store.open(home.database)
    ids = {
        "large": seed_study(store, trials=LARGE, seed=1),
        "evil": seed_study(store, trials=100, seed=2, is_running=True, model=f"models/{IMAGE}"),
        "small": seed_study(store, trials=SMALL),
        "running": seed_study(store, trials=100, seed=3, is_running=True),
    }
    _write_markup(store, ids["evil"])
    with serving(ServerSettings(home=home)) as url:
        yield World(url, store, home, ids)
    store.close()


def _write_markup(store: Store, study_id: str) -> None:
    """Markup wherever strangers can write: columns, events, the reason of a failure."""
    claim = run_of(store, study_id)
    facts = claim.study.facts
    assert facts is not None
    store.save_facts(claim, replace(facts, dataset=replace(facts.dataset, columns=(SCRIPT, IMAGE))))
    store.append_event(claim, "trial.lost", {"number": 1, "attempt": 1, "reason": SCRIPT})
    store.finish_study(claim, StudyState.FAILED, f"RunnerError: {SCRIPT}")


@dataclass
class Watched:
    """A page, with all that went wrong in it."""

    page: Any
    origin: str
    wrong: list[str] = field(default_factory=list)

    def open(self, path: str, heading: str | None = None) -> Any:
        self.page.goto(self.origin + path)
        self.page.get_by_role("heading", level=1).wait_for()
        if heading is not None:
            self.page.get_by_role("heading", name=heading, level=1).wait_for()
        return self.page

    def settle(self) -> None:
        """Wait until nothing says any more that it is being loaded."""
        loading = self.page.locator(".loading")
        while loading.count():
            loading.first.wait_for(state="detached")

    def find_barriers(self, name: str) -> list[str]:
        """What axe finds on the page as it is, light on a desk and dark on a phone; keeps pictures."""
        package = pytest.importorskip("axe_playwright_python")
        found = []
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        for scheme, width, height in VIEWS:
            self.page.set_viewport_size({"width": width, "height": height})
            self.page.emulate_media(color_scheme=scheme)
            self.page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png")
            self.page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text())
            for violation in self.page.evaluate(AXE, RULES):
                nodes = [node["html"][:160] for node in violation["nodes"]][:3]
                found.append(f"{name}, {scheme}: {violation['id']}: {violation['help']}: {nodes}")
        self.page.set_viewport_size({"width": VIEWS[0][1], "height": VIEWS[0][2]})
        self.page.emulate_media(color_scheme=VIEWS[0][0])
        return found

    def check(self) -> None:
        """Nothing was thrown, no policy broken, no other origin asked."""
        assert self.page.evaluate("violations") == []
        assert self.wrong == []


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Opens pages of an origin; at the end each is looked at for what went wrong."""
    opened: list[tuple[Any, Watched]] = []

    def new(origin: str, *, scheme: str = "light", width: int = 1280, height: int = 900) -> Watched:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(WATCH_POLICY)
        page = context.new_page()
        watched = Watched(page, origin)
        page.on("pageerror", lambda error: watched.wrong.append(f"thrown: {error}"))
        page.on("request", lambda request: watched.wrong.extend(_foreign(request.url, origin)))
        opened.append((context, watched))
        return watched

    yield new
    for context, watched in opened:
        watched.check()
        context.close()


def _foreign(url: str, origin: str) -> list[str]:
    is_own = url.startswith((f"{origin}/", f"blob:{origin}/", "data:"))
    return [] if is_own else [f"another origin: {url}"]
