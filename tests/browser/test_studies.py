"""The pages beside the study's: list, form, devices, estimate; and all pages before axe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import IMAGE, SCREENSHOTS, SCRIPT, Watched, World

Opener = Callable[..., Watched]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
AXE = "async (rules) => (await axe.run(document, { runOnly: rules })).violations"


def axe_source() -> str:
    package = pytest.importorskip("axe_playwright_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text()


def cards(page: Any) -> Any:
    return page.locator(".studies article")


def test_studies_are_searched_and_filtered(open_page: Opener, world: World) -> None:
    page = open_page(world.url).open("/", "Studies")
    cards(page).nth(3).wait_for()
    page.get_by_label("Search").fill(world.ids["running"][:20])
    page.get_by_text("1 study").wait_for()
    assert "running" in cards(page).inner_text()
    page.get_by_label("Search").fill("no such model")
    page.get_by_text("No study is like that").wait_for()
    assert page.url.endswith("/?q=no%20such%20model")
    page.get_by_label("Search").fill("")
    page.get_by_label("State").select_option("succeeded")
    page.get_by_text("2 studies").wait_for()
    page.get_by_label("State").select_option("queued")
    page.get_by_text("No study is like that").wait_for()


def test_older_studies_are_shown_when_they_are_asked_for(open_page: Opener, world: World) -> None:
    watched = open_page(world.url)
    watched.page.route(
        "**/v1/studies?limit=100*", lambda route: route.continue_(url=route.request.url.replace("100", "2"))
    )
    page = watched.open("/", "Studies")
    page.get_by_text("2 studies, and older ones").wait_for()
    page.get_by_role("button", name="Show older ones").click()
    cards(page).nth(3).wait_for()
    names = page.locator(".studies a").evaluate_all("links => links.map((link) => link.href)")
    assert len(set(names)) == len(names)


def test_what_strangers_named_stays_text(open_page: Opener, world: World) -> None:
    page = open_page(world.url).open("/", "Studies")
    page.get_by_role("link", name=IMAGE).wait_for()
    page.get_by_text(SCRIPT).first.wait_for()
    page.get_by_role("link", name=IMAGE).click()
    page.get_by_role("heading", name=IMAGE, level=1).wait_for()
    page.get_by_text(f"trial 1 lost its process: {SCRIPT}").wait_for()
    page.get_by_text(f"{SCRIPT}, {IMAGE}").wait_for()  # the columns
    assert page.locator(".failure").get_by_text(SCRIPT).is_visible()
    assert page.title() != "run"
    assert page.locator("main script, main img").count() == 0


def test_devices_show_the_host_and_the_queue(open_page: Opener, world: World) -> None:
    page = open_page(world.url).open("/devices", "Devices")
    page.get_by_role("heading", name="Queue").wait_for()
    page.get_by_role("link", name="Llama-3.1-8B on support.jsonl").wait_for()


def test_a_study_that_cannot_be_is_told_field_by_field(open_page: Opener, world: World) -> None:
    page = open_page(world.url).open("/new", "New study")
    page.get_by_label("Model").fill("no/such/folder/at/all")
    page.get_by_label("Dataset", exact=True).fill("/etc/passwd")
    page.get_by_label("Time").fill("soon")
    page.get_by_role("button", name="Start the study").click()
    page.locator("#seconds-error").wait_for()
    assert page.get_by_label("Time").get_attribute("aria-invalid") == "true"


def test_a_dataset_is_sent_from_the_form(open_page: Opener, world: World) -> None:
    page = open_page(world.url).open("/new", "New study")
    rows = b"text,label\n" + b"a fine film,good\na dull film,bad\n" * 8
    page.get_by_label("Or send a file from here").set_input_files(
        {"name": "films.csv", "mimeType": "text/csv", "buffer": rows}
    )
    page.get_by_text("films.csv is on the server").wait_for()
    (upload,) = world.store.list_uploads()
    assert upload.filename == "films.csv"
    assert upload.id in page.get_by_label("Dataset", exact=True).input_value()


def test_pages_are_reached_by_keyboard_alone(open_page: Opener, world: World) -> None:
    page = open_page(world.url).open("/", "Studies")
    page.keyboard.press("Tab")
    for _ in range(12):
        if page.evaluate("document.activeElement.textContent") == "Estimate":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Estimate", level=1).wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H1"


def test_an_address_that_is_none_says_so(open_page: Opener, world: World) -> None:
    watched = open_page(world.url)
    watched.page.goto(f"{world.url}/studies/01ARZ3NDEKTSV4RRFFQ69G5FAV")
    watched.page.get_by_role("alert").wait_for()
    assert "no study" in watched.page.get_by_role("alert").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Opener, world: World, scheme: str) -> None:
    watched = open_page(world.url, scheme=scheme)
    page = watched.page
    found = []
    pages = {
        "studies": "/",
        "study": f"/studies/{world.ids['small']}",
        "running": f"/studies/{world.ids['running']}",
        "new": "/new",
        "devices": "/devices",
        "estimate": "/estimate",
        "login": "/login",
        "nowhere": "/studies/01ARZ3NDEKTSV4RRFFQ69G5FAV",
    }
    source = axe_source()
    for name, path in pages.items():
        page.goto(world.url + path)
        page.get_by_role("heading", level=1).wait_for()
        watched.settle()
        if name == "study":
            page.locator("canvas").nth(2).wait_for()
            for summary in page.get_by_text("The same as a table").all():
                summary.click()
        page.evaluate(source)
        for violation in page.evaluate(AXE, RULES):
            nodes = [node["html"][:160] for node in violation["nodes"]][:3]
            found.append(f"{name}: {violation['id']}: {violation['help']}: {nodes}")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("width", [360, 1920])
def test_nothing_is_wider_than_the_screen(open_page: Opener, world: World, width: int) -> None:
    watched = open_page(world.url, width=width)
    for path in ("/", f"/studies/{world.ids['small']}", "/new", "/devices", "/estimate"):
        watched.open(path)
        watched.settle()
        beyond = watched.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert beyond <= 0, path
    watched.page.goto(f"{world.url}/studies/{world.ids['small']}")
    watched.page.locator("canvas").nth(2).wait_for()
    watched.page.screenshot(path=SCREENSHOTS / f"study-{width}.png")
