"""``rankwise compare`` and ``rankwise report``, on studies that are scripted through a real store."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.optimizer.domain import Candidate, Measurement, Rung, StudyFacts, StudyRequest
from rankwise.store import Store

Run = Callable[..., Any]


@pytest.fixture
def second(script, store: Store, probed: Measurement, trained: Measurement) -> Callable[..., str]:
    """Plays a second study with another torch and at another speed; returns its id."""

    def play(*, torch: str = "9.9", factor: float = 1.5, structure: str | None = None) -> str:
        facts: StudyFacts = store.get_study(script.id).facts  # type: ignore[assignment]
        host = replace(facts.hardware.host, libraries={"torch": torch} if torch else {})
        facts = replace(facts, hardware=replace(facts.hardware, host=host))
        if structure:
            facts = replace(facts, model=replace(facts.model, structure_sha256=structure))
        candidate: Candidate = script.candidate(learning_rate=5e-4)
        script.id = store.create_study(StudyRequest(model="models/MiniLM", dataset="data/reviews.csv")).id
        store.save_facts(script.take(), facts)
        faster = replace(probed, tokens_per_s=(probed.tokens_per_s or 0) * factor)
        script.run(candidate, Rung.PROBE, faster)
        script.recommend(script.run(candidate, Rung.TRAIN, trained))
        return script.id  # type: ignore[no-any-return]

    return play


def test_two_studies_are_compared_by_shape(run: Run, script, second):
    script.play()
    older = script.id
    newer = second()

    result = run("compare", older, newer)

    assert result.code == 0
    assert "torch: – → 9.9" in result.out
    assert re.search(r"tokens/s +2,346 ± 2\.1% → 3,518 ± 2\.1% +50\.0% faster", result.out)
    assert re.search(r"memory +430 MiB … 441 MiB → 430 MiB … 441 MiB +no difference", result.out)
    assert "The recommendation is the same: float32 + LORA r=16" in result.out


def test_one_study_is_compared_with_the_latest_in_another_environment(run: Run, script, second):
    script.play()
    older = script.id
    second()
    newest = second(factor=2.0)

    result = run("compare", newest, "--json")

    document = result.document
    assert (document["then_id"], document["now_id"]) == (older, newest)
    assert document["shapes"][0]["speed_ratio"] == pytest.approx(2.0)
    assert document["shapes"][0]["speed"] == "more"
    assert document["recommendation_changed"] is False
    assert f"compared with the latest before it in another environment: {older}" in run("compare", newest).err


def test_equal_environments_are_said_to_be_equal(run: Run, script, second):
    script.play()
    older = script.id
    newer = second(torch="", factor=1.0)

    result = run("compare", older, newer)

    assert "The environment is the same" in result.out
    assert "no difference" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{older}", "{newer}"), "whose structures differ"),
        (("{newer}",), "no study before"),
        (("{newer}", "{newer}"), "is compared with itself"),
        (("{newer}", "NOBODY"), "NOBODY"),
    ],
)
def test_what_cannot_be_compared_is_told_with_a_next_step(
    run: Run, script, second, arguments: tuple[str, ...], message: str
):
    script.play()
    older = script.id
    newer = second(structure="1" * 64)

    result = run("compare", *(each.format(older=older, newer=newer) for each in arguments))

    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "→" in result.err


def test_a_report_is_written_where_it_is_asked_for(run: Run, script, tmp_path: Path):
    script.play()
    path = tmp_path / "new" / "page.html"

    result = run("report", script.id, "--out", str(path))

    assert result.code == 0
    assert str(path) in result.out.replace("\n", "")
    assert path.read_text().startswith("<!doctype html>")
    assert "LORA r=16 α=32 minimal" in path.read_text()


def test_a_report_of_an_unfinished_study_is_refused(run: Run, script, tmp_path: Path):
    script.begin()

    result = run("report", script.id, "--out", str(tmp_path / "page.html"))

    assert result.code == 2
    assert script.id in result.err
    assert not (tmp_path / "page.html").exists()


def test_a_report_that_cannot_be_written_is_told(run: Run, script, tmp_path: Path):
    script.play()
    (tmp_path / "file").touch()

    result = run("report", script.id, "--out", str(tmp_path / "file" / "page.html"))

    assert result.code == 2
    assert "cannot write" in result.err
