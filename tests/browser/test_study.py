"""The page of one study: table, ranking by other weights, plots, comparison, files; and while it runs."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rankwise.optimizer.domain import Measurement, Outcome, Rung, StudyState, TrialPlan, Weights
from rankwise.optimizer.scorer import Aim, rank

from .conftest import LARGE, SMALL, Watched, World, run_of, shapes

Opener = Callable[..., Watched]

RERANK = """
async ([path, weights, within]) => {
  const script = document.querySelector("script[type=module]").src;
  const { prepared, rerank } = await import(new URL("rank.js", script).href);
  const standings = prepared(await (await fetch(path)).json());
  return rerank(standings, weights, within).map((place) =>
    [place.trial_id, place.score, place.is_as_good, place.tied_with_best]);
}
"""


def study(open_page: Opener, world: World, name: str, **options: Any) -> Any:
    page = open_page(world.url, **options).open(f"/studies/{world.ids[name]}")
    page.locator(".board tbody tr").nth(3).wait_for()
    return page


def column(page: Any, name: str) -> list[str]:
    heads = [text.strip(" ▲▼") for text in page.locator(".board thead th").all_inner_texts()]
    place = heads.index(name)
    rows = page.locator(".board tbody tr:not(.space)")
    return [
        rows.nth(index).locator("th, td").nth(place).inner_text() for index in range(min(8, rows.count()))
    ]


def test_the_recommended_trial_leads_and_is_marked(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "small")
    best = world.store.get_recommendation(world.ids["small"])
    first = page.locator(".board tbody tr.winner")
    first.wait_for()
    assert f"#{world.store.get_trial(best.trial_id).number}" in first.inner_text()
    assert page.get_by_text(best.reasons[0]).first.is_visible()


def test_the_table_is_sorted_filtered_and_saved(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "small")
    page.get_by_role("button", name="memory", exact=True).click()
    sizes = [float(text.split()[0]) for text in column(page, "memory")]
    assert sizes == sorted(sizes)
    page.get_by_role("button", name="memory", exact=True).click()
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("memory")
    page.get_by_label("Filter").fill("nf4 dora")
    assert all("nf4" in text for text in column(page, "settings"))
    assert all("DoRA" in text for text in column(page, "adapter"))
    page.get_by_label("Outcome", exact=True).select_option("oom")
    page.get_by_text("Columns", exact=True).click()
    page.get_by_role("checkbox", name="reason").check()
    assert "the limit of 72.0 GiB was exceeded" in column(page, "reason")[0]
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    trials = world.store.list_trials(world.ids["small"])
    expected = [t for t in trials if t.outcome is Outcome.OOM and "nf4" in t.candidate.describe()]
    assert {int(row["trial"]) for row in rows} == {t.number for t in expected if t.candidate.adapter.use_dora}


def test_five_thousand_trials_are_few_rows_of_the_page(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "large")
    page.get_by_text(f"{LARGE:,} trials").first.wait_for()
    assert page.locator(".board tbody tr").count() < 60
    page.get_by_role("button", name="trial", exact=True).click()
    assert column(page, "trial")[0] == f"#{LARGE}"
    page.locator(".board").evaluate("element => element.scrollTo(0, element.scrollHeight)")
    page.get_by_role("button", name="#1", exact=True).wait_for()
    assert page.locator("table[aria-rowcount]").get_attribute("aria-rowcount") == str(LARGE + 1)


def test_weights_rank_as_the_scorer_does(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "small")
    study_id = world.ids["small"]
    asked = world.store.get_study(study_id)
    trials = world.store.list_trials(study_id, with_heldout=True)
    path = f"/v1/studies/{study_id}/standings"
    lets_pass = page.evaluate("async (path) => (await (await fetch(path)).json()).lets_pass", path)
    rng = random.Random(4)
    cases = [Weights(speed=0.0, memory=0.0, quality=0.0)] + [
        Weights(speed=rng.random(), memory=rng.random(), quality=rng.random()) for _ in range(8)
    ]
    for weights in cases:
        for place, within in enumerate(lets_pass):
            aim = replace(Aim.of(asked), weights=weights, quality_within=within)
            expected = [
                [s.trial_id, s.score, s.is_as_good, s.tied_with_best] for s in rank(trials, aim).scored
            ]
            weighed = {"speed": weights.speed, "memory": weights.memory, "quality": weights.quality}
            found = page.evaluate(RERANK, [path, weighed, place])
            assert [each[0] for each in found] == [each[0] for each in expected]
            assert [each[1] for each in found] == pytest.approx([each[1] for each in expected], rel=1e-12)
            assert [each[2:] for each in found] == [each[2:] for each in expected]


def test_sliders_rank_anew_at_once(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "small")
    slider = page.get_by_role("slider", name="memory")
    slider.wait_for()
    page.get_by_role("slider", name="speed").fill("0")
    page.get_by_role("slider", name="quality").fill("0")
    slider.fill("1")
    smallest = min(
        world.store.get_recommendation(world.ids["small"]).ranking, key=lambda scored: -scored.parts["memory"]
    )
    page.get_by_text(f"First now: trial {smallest.number}.").wait_for()
    page.get_by_role("button", name="As the study has it").click()
    best = world.store.get_recommendation(world.ids["small"]).ranking[0].number
    page.get_by_text(f"First now: trial {best}.").wait_for()


def test_two_trials_stand_side_by_side(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "small")
    ranking = world.store.get_recommendation(world.ids["small"]).ranking
    for scored in ranking[:2]:
        page.get_by_label(f"Compare trial {scored.number}", exact=True).check()
    page.get_by_role("button", name="Compare the two chosen").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("tr.differs").first.wait_for()
    equal = dialog.locator("tbody tr:not(.differs)")
    assert equal.count() == 0
    dialog.get_by_label("Also what is equal").check()
    assert equal.count() > 5
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


def test_plots_have_tables_and_open_trials(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "small")
    page.locator("canvas").nth(2).wait_for()
    best = world.store.get_recommendation(world.ids["small"])
    for name in ("pareto", "memory", "losses"):
        section = page.locator(f"section[aria-labelledby={name}]")
        section.get_by_text("The same as a table").click()
        section.locator("tbody tr").nth(len(best.ranking) - 1).wait_for(state="attached")  # drawn when idle
    page.get_by_label("Show").nth(1).select_option("training")
    page.get_by_text("Smoothed over a twentieth").wait_for()
    page.get_by_role("button", name="#1", exact=True).or_(page.locator(".board .link").first).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("heading", name="Estimated and measured").wait_for()


def test_files_are_shown_and_saved(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "small")
    section = page.locator("section[aria-labelledby=files]")
    section.get_by_text("adapter_config.json").first.wait_for()
    with page.expect_download() as saved:
        section.get_by_role("button", name="Download adapter_config.json").click()
    assert '"peft_type": "LORA"' in saved.value.path().read_text()
    section.get_by_label("Trainer").select_option("peft")
    section.get_by_role("button", name="Copy adapter_config.json").nth(1).wait_for()


def test_a_new_trial_shows_without_a_reload(open_page: Opener, world: World) -> None:
    page = study(open_page, world, "running")
    page.get_by_text("live", exact=True).wait_for()
    shape = next(iter(shapes(99)))
    plan = TrialPlan(candidate=shape.candidate, rung=Rung.PROBE, reason="it was asked for by a test")
    run = run_of(world.store, world.ids["running"])
    trial = world.store.plan_trial(run, plan)
    page.get_by_role("button", name="trial", exact=True).click()
    page.get_by_role("button", name=f"#{trial.number}", exact=True).wait_for()
    claim = world.store.claim_trial(run, trial.id, devices=["cpu"], worker="test")
    assert claim is not None
    measured = Measurement(tokens_per_s=123_456.0, peak_device_bytes=2**30)
    world.store.finish_attempt(claim, outcome=Outcome.OK, measurement=measured, wall_s=1.0)
    page.get_by_text("123,456").first.wait_for()


def test_a_study_is_cancelled_cloned_and_resumed(open_page: Opener, world: World) -> None:
    own = world.store.create_study(
        replace(world.store.get_study(world.ids["small"]).request, seed=7, epochs=2.0)
    )
    watched = open_page(world.url)
    page = watched.open(f"/studies/{own.id}")
    page.get_by_role("button", name="Cancel study").click()
    page.get_by_role("button", name="Cancel the study").click()
    page.locator(".title .state.cancelled").wait_for()
    assert world.store.get_study(own.id).state is StudyState.CANCELLED
    page.get_by_role("link", name="Clone").click()
    page.get_by_role("heading", name="Clone a study").wait_for()
    assert page.get_by_label("Model", exact=True).input_value() == "models/Llama-3.1-8B"
    assert page.get_by_label("Memory at most").input_value() == "72 GiB"
    page.go_back()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("alert").wait_for()  # its model is nowhere: the answer says so
    assert "support.jsonl" in page.get_by_role("alert").inner_text()


def test_seeded_trials_are_as_many_as_asked(world: World) -> None:
    assert len(world.store.list_trials(world.ids["small"])) == SMALL
