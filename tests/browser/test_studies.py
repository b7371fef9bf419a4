"""The pages beside the study's: list, form, devices, estimate; and all pages before axe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.api.routes import host
from rankwise.optimizer.codec import from_json
from rankwise.probes.profiles import GpuProfile
from rankwise.store.devices import QuarantineCause

from .conftest import IMAGE, SCREENSHOTS, SCRIPT, Watched, World

Opener = Callable[..., Watched]


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


def test_gpus_show_who_holds_their_memory_and_what_is_wrong(
    open_page: Opener, world: World, fake_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's library is loaded once in a process, so that another one asks it."""
    code = (
        "import json\n"
        "from rankwise.optimizer.codec import to_json\n"
        "from rankwise.probes.gpu import read_gpus\n"
        "print(json.dumps([to_json(each) for each in read_gpus()[0]]))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": str(fake_driver)},
        check=True,
        capture_output=True,
    )
    gpus = tuple(from_json(GpuProfile, each) for each in json.loads(asked.stdout))
    real = host.read_hardware
    monkeypatch.setattr(host, "read_hardware", lambda folder: replace(real(folder), gpus=gpus, gpu_note=None))
    world.store.quarantine_device(gpus[1].uuid, QuarantineCause.HEALTH, "the driver has lost the device")
    watched = open_page(world.url)
    page = watched.open("/devices", "Devices")
    first = page.get_by_role("region", name="GPU 0")
    first.get_by_text("process 100").wait_for()
    first.get_by_text("driver and others").wait_for()
    held = page.get_by_role("region", name="GPU 1").get_by_text("In quarantine since")
    assert "The driver has lost the device." in held.locator("..").inner_text()
    page.locator("section[aria-labelledby=timeline] canvas").wait_for()
    found = watched.find_barriers("gpus")
    watched.open(f"/studies/{world.ids['running']}")
    page.get_by_role("heading", name="GPUs in the last hour").wait_for()
    world.store.lift_quarantine(gpus[1].uuid)
    assert not found, "\n".join(found)


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
    for _ in range(40):
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
    assert "no study" in watched.page.get_by_role("alert").inner_text().lower()


PAGES = {
    "studies": "/",
    "running": "/studies/{running}",
    "devices": "/devices",
    "estimate": "/estimate",
    "login": "/login",
    "nowhere": "/studies/01ARZ3NDEKTSV4RRFFQ69G5FAV",
}


def test_axe_finds_nothing_on_any_page(open_page: Opener, world: World) -> None:
    watched = open_page(world.url)
    found = []
    for name, path in PAGES.items():
        watched.open(path.format(**world.ids))
        watched.settle()
        found += watched.find_barriers(name)
    assert not found, "\n".join(found)


def test_axe_finds_nothing_in_dialogs_and_tables(open_page: Opener, world: World) -> None:
    watched = open_page(world.url)
    page = watched.open(f"/studies/{world.ids['small']}")
    page.locator("canvas").nth(2).wait_for()
    for summary in page.get_by_text("The same as a table").all():
        summary.click()
    found = watched.find_barriers("study")
    for box in page.get_by_label("Compare trial").all()[:2]:
        box.check()
    page.get_by_role("button", name="Compare the two chosen").click()
    page.locator("dialog tr.differs").first.wait_for()
    found += watched.find_barriers("compare")
    page.keyboard.press("Escape")
    page.locator(".board .link").first.click()
    page.get_by_role("dialog").get_by_label("Trainer").select_option("transformers")
    page.get_by_role("dialog").locator(".file").first.wait_for()
    found += watched.find_barriers("trial")
    watched.open(f"/studies/{world.ids['running']}")
    page.get_by_role("button", name="Cancel study").click()
    found += watched.find_barriers("cancel")
    assert not found, "\n".join(found)


def test_axe_finds_nothing_where_something_is_wrong(open_page: Opener, world: World) -> None:
    watched = open_page(world.url)
    page = watched.open("/new", "New study")
    rows = {"name": "films.csv", "mimeType": "text/csv", "buffer": b"no table at all"}
    page.get_by_label("Or send a file from here").set_input_files(rows)
    page.locator(".error[role=status]").wait_for()
    page.get_by_label("Model", exact=True).fill("no/such/folder/at/all")
    page.get_by_text("No estimate:").wait_for()
    page.get_by_label("Dataset", exact=True).fill("/etc/passwd")
    page.get_by_label("Time", exact=True).fill("soon")
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Start the study").click()
    page.locator("#seconds-error").wait_for()
    found = watched.find_barriers("new")
    watched.open("/estimate")
    page.get_by_label("Model", exact=True).fill("no/such/folder/at/all")
    page.get_by_role("button", name="Estimate").click()
    page.locator("#model-error").wait_for()
    found += watched.find_barriers("estimate-error")
    page.route("**/v1/studies?*", lambda route: route.abort())
    watched.open("/", "Studies")
    page.get_by_text("The server cannot be reached.").wait_for()
    found += watched.find_barriers("unreachable")
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
