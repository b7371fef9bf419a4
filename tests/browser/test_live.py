"""A study from the form to its files, on a real server that is restarted on the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise.home import Home

from .conftest import SCREENSHOTS, Watched

LONGEST_MS = 200_000


class Served:
    """``rankwise serve``, which can be ended and started again at the same port."""

    def __init__(self, roots: tuple[str, ...]) -> None:
        self.roots = roots
        self.port = "0"
        self.process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("rankwise")), "serve", "--port", self.port]
        for root in self.roots:
            command += ["--allow-root", root]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        assert self.process.stderr is not None
        found = re.search(r"http://[\d.]+:(\d+)", self.process.stderr.readline())
        assert found is not None
        self.url, self.port = found[0], found[1]

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.stderr is not None
            with self.process.stderr:
                assert self.process.wait(timeout=60) in (0, -15)
            self.process = None


@pytest.fixture
def served(home: Home, reviews_csv: Path, browser: Any) -> Iterator[Served]:
    server = Served((str(reviews_csv.parent), sysconfig.get_path("purelib")))
    server.start()
    yield server
    server.stop()


@pytest.mark.timeout(600)
def test_a_study_from_the_form_to_its_files(
    open_page: Callable[..., Watched], served: Served, minilm_path: Path, reviews_csv: Path
) -> None:
    watched = open_page(served.url)
    watched.page.context.set_default_timeout(LONGEST_MS)
    page = watched.open("/new", "New study")
    page.get_by_label("Model", exact=True).fill(str(minilm_path))
    page.get_by_role("cell", name="…").first.wait_for()  # what will fit, told while one types
    found = watched.find_barriers("form-told")
    page.get_by_label("Dataset", exact=True).fill(str(reviews_csv))
    page.get_by_label("Time", exact=True).fill("3m")
    page.get_by_label("Trials at most").fill("2")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Tokens a row at most").fill("32")
    page.get_by_role("button", name="Start the study").click()
    page.get_by_role("heading", name=f"{minilm_path.name} on reviews.csv", level=1).wait_for()

    page.locator(".board tbody tr").first.wait_for()  # a trial, without a reload
    served.stop()
    page.get_by_text("connecting …", exact=True).wait_for()
    served.start()
    page.get_by_text("live", exact=True).or_(page.get_by_text("ended", exact=True)).wait_for()

    page.get_by_role("heading", name=re.compile("^Recommended:")).wait_for()
    page.locator(".title .state.succeeded").wait_for()
    page.locator(".board tr.winner").wait_for()
    section = page.locator("section[aria-labelledby=files]")
    section.get_by_label("Trainer").select_option("rankwise")
    section.get_by_text("train.py").first.wait_for()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "real-study.png", full_page=True)

    watched.open("/estimate", "Estimate")
    page.get_by_label("Model", exact=True).fill(str(minilm_path))
    page.get_by_role("button", name="Estimate").click()  # its model reads 512 tokens, and nobody has to know
    page.get_by_text("Fits on A100").wait_for()
    page.get_by_role("button", name="memory", exact=True).click()
    assert page.get_by_role("rowheader").first.inner_text() == "MI325X 256GB"
    page.get_by_text(re.compile(r"^[\d,]+ rows$")).wait_for()
    found += watched.find_barriers("estimate-answer")
    assert not found, "\n".join(found)
