"""How fast the dashboard is in Chromium, and how much it loads: two minutes, with nothing beside it.

    python benchmarks/dashboard.py

A server with seeded studies (``seeded_study.py``) runs in this process, and the browser beside it. The first
paint is useful once a study's name is drawn; the table of 5,000 trials counts from going to the page until a
click has sorted it and that is drawn; ranking by other weights from a slider's event until two frames later;
a new trial from its being stored until it stands in the table. Medians of tries, the worst in brackets.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from browser.conftest import FLAGS, chromium, serving
from seeded_study import run_of, seed_study, shapes

from rankwise.api.settings import ServerSettings
from rankwise.home import Home
from rankwise.optimizer.domain import Rung, TrialPlan
from rankwise.store import Store

TRIES = 7
LARGE = 5000
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
USEFUL = """() => new Promise((done) => {
  const look = () =>
    document.querySelector(".studies h2 a") ? done(performance.now()) : requestAnimationFrame(look);
  look();
})"""
MOVE = """(value) => new Promise((done) => {
  const slider = document.querySelector("#weight-memory");
  const started = performance.now();
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - started)));
})"""
SENT = """performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
  .reduce((sum, entry) => sum + entry.transferSize, 0)"""
SORT = """() => new Promise((done) => {
  const look = () => {
    const heads = [...document.querySelectorAll(".board thead button")];
    const button = heads.find((each) => each.innerText.startsWith("memory"));
    if (!button) return requestAnimationFrame(look);
    button.click();
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
  };
  look();
})"""
APPEARS = """(text) => new Promise((done) => {
  const look = () => {
    const known = [...document.querySelectorAll(".board th button")];
    known.some((each) => each.innerText === text) ? done(Date.now()) : requestAnimationFrame(look);
  };
  look();
})"""


def told(name: str, values: Sequence[float], unit: str, limit: float) -> None:
    """One line of figures."""
    print(f"| {name} | {statistics.median(values):,.0f} {unit} ({max(values):,.0f}) | {limit:,.0f} {unit} |")


def measure(browser: Any, url: str, store: Store, ids: dict[str, str]) -> None:
    def fresh(path: str) -> Any:
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.goto(url + path)
        return page

    def tries(once: Callable[[], float]) -> list[float]:
        return [once() for _ in range(TRIES)]

    paints, sent, study_sent = [], [], []
    for _ in range(TRIES):
        page = fresh("/")
        paints.append(max(page.evaluate(USEFUL), page.evaluate(PAINT)))
        sent.append(page.evaluate(SENT) / 1000)
        page.context.close()
    for _ in range(2):
        page = fresh(f"/studies/{ids['small']}")
        page.locator("canvas").nth(2).wait_for()
        page.wait_for_timeout(500)
        study_sent.append(page.evaluate(SENT) / 1000)
        page.context.close()
    told("list of studies: first useful paint", paints, "ms", 1000)
    told("list of studies: transferred at first", sent, "kB", 600)
    told("a study of 300 trials with all plots: transferred at first", study_sent, "kB", 600)

    def interactive() -> float:
        page = fresh(f"/studies/{ids['large']}")
        value = float(page.evaluate(SORT))
        page.context.close()
        return value

    cold = [interactive()]
    told(f"table of {LARGE:,} trials: sorted by a click after", tries(interactive), "ms", 1500)
    told("the same, when nothing of it was read since the server's start", cold, "ms", 1500)

    page = fresh(f"/studies/{ids['large']}")
    page.locator("#weight-memory").wait_for()
    page.locator("canvas").nth(2).wait_for()
    page.wait_for_timeout(1000)
    large_sent = [page.evaluate(SENT) / 1000]
    told(f"a study of {LARGE:,} trials with all plots: transferred at first", large_sent, "kB", 600)
    told(
        "ranking by a slider, drawn",
        [page.evaluate(MOVE, str(0.1 * step)) for step in range(1, 10)],
        "ms",
        50,
    )
    page.context.close()

    page = fresh(f"/studies/{ids['running']}")
    page.locator(".board tbody tr").first.wait_for()
    page.locator(".live:not(.waiting)").wait_for()
    page.get_by_role("button", name="trial", exact=True).click()
    page.wait_for_timeout(1000)
    seen = []
    for shape in list(shapes(99))[:TRIES]:
        plan = TrialPlan(candidate=shape.candidate, rung=Rung.PROBE, reason="to be seen")
        stored_s = time.time()
        trial = store.plan_trial(run_of(store, ids["running"]), plan)
        seen.append(page.evaluate(APPEARS, f"#{trial.number}") - 1000 * stored_s)
    told("a new trial stands in the table after", seen, "ms", 1000)
    page.context.close()


def main() -> None:
    path = chromium()
    if path is None:
        raise SystemExit("there is no Chromium")
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder)).create()
        with closing(Store.open(home.database)) as store:
            ids = {
                "large": seed_study(store, trials=LARGE, seed=1),
                "small": seed_study(store, trials=300),
                "running": seed_study(store, trials=100, seed=3, is_running=True),
            }
            print("| what | median (worst) | at most |\n|---|---|---|")
            with serving(ServerSettings(home=home)) as url, sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
                measure(browser, url, store, ids)
                browser.close()


if __name__ == "__main__":
    main()
