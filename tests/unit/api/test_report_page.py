"""What the page shows, that it loads and runs nothing, and that nothing in a study gets out of its text."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from rankwise.api.report_page import CONTENT_SECURITY_POLICY, report_page
from rankwise.api.report_page.plots import nice_ticks, smoothed
from rankwise.optimizer.domain import Measurement, Relation

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, their attributes and text; fails where what was opened is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page_of(finished, **changes: object) -> str:
    parts = {"trials": finished.trials, "recommendation": finished.recommendation, "study": finished.study}
    parts |= changes
    return report_page(
        parts["study"],  # type: ignore[arg-type]
        parts["trials"],  # type: ignore[arg-type]
        finished.estimates,
        parts["recommendation"],  # type: ignore[arg-type]
        enumerated=finished.enumerated,
        adapter_config={"peft_type": "LORA", "r": 16},
    )


def test_every_section_is_there_with_its_figures(finished):
    page = Page(page_of(finished))

    for heading in (
        "Settings",
        "Why this one",
        "From the same trials",
        "Compared",
        "How candidates became few",
        "Speed and memory",
        "Training loss",
        "Held-out loss against learning rate",
        "Estimated and measured",
        "Time and cost",
        "What was not measured",
        "Model, data, environment",
    ):
        assert heading in page.text
    assert "412 candidates" in page.text
    assert "worse by 0.042 … 0.081" in page.text
    assert "your 3 epochs (2,400 steps): 2 h 10 m (2 h 05 m … 2 h 16 m), about 5.42" in page.text
    assert "compared after 60 of its 2,400 steps" in page.text
    plots = [attributes for tag, attributes in page.elements if attributes.get("class") == "plot"]
    assert len(plots) == 7


def test_nothing_is_loaded_and_nothing_runs(finished):
    page = Page(page_of(finished))

    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            assert name not in {"src", "srcset", "action", "data"}
            if name in {"href", "xlink:href"}:
                assert (value or "").startswith("#")
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert {link[1:] for link in links if link} <= anchors
    assert "url(" not in page_of(finished)


def test_the_policy_knows_the_style_by_its_hash(finished):
    text = page_of(finished)
    [style] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert f"'sha256-{digest}'" in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    [policy] = [
        attributes["content"]
        for _, attributes in Page(text).elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == CONTENT_SECURITY_POLICY


def test_what_a_model_or_a_column_is_called_stays_text(finished):
    facts = finished.study.facts
    task = replace(facts.dataset.task, reason=f"the column {EVIL}")
    facts = replace(
        facts,
        model=replace(facts.model, architecture=EVIL, source=EVIL),
        dataset=replace(facts.dataset, task=task, notes=(EVIL,)),
    )
    study = replace(
        finished.study, facts=facts, request=replace(finished.study.request, model=EVIL, dataset=EVIL)
    )
    adapter = replace(finished.recommendation.candidate.adapter, target_set=EVIL, targets=(EVIL,))
    trials = tuple(
        replace(
            trial,
            reason=EVIL,
            plan=replace(trial.plan, candidate=replace(trial.candidate, adapter=adapter)),
        )
        for trial in finished.trials
    )
    named = tuple(replace(each, reason=EVIL, name=EVIL) for each in finished.recommendation.named)
    candidate = replace(finished.recommendation.candidate, adapter=adapter)
    best = replace(finished.recommendation, candidate=candidate, reasons=(EVIL,), named=named, stopped=EVIL)

    text = page_of(finished, study=study, trials=trials, recommendation=best)

    page = Page(text)
    assert page.count("script") == 0
    assert page.count("img") == 0
    assert EVIL in "".join(page.texts)
    assert "<script" not in text.lower()


def test_every_plot_has_a_title_a_description_and_a_table(finished):
    text = page_of(finished)
    for plot in re.findall(r'<svg class="plot".*?</svg>', text, re.DOTALL):
        title, description = re.findall(r'aria-labelledby="(\S+) (\S+)"', plot)[0]
        assert re.search(rf'<title id="{title}">[^<]+</title>', plot)
        assert re.search(rf'<desc id="{description}">[^<]+</desc>', plot)
    identifiers = re.findall(r' id="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert text.count("The same as a table") == text.count('<svg class="plot"')


def test_a_study_without_quality_says_so(finished):
    bare = Measurement(tokens_per_s=100.0, peak_process_bytes=2**28)
    trials = tuple(replace(trial, measurement=bare, estimate=None) for trial in finished.trials[:4])
    ranking = tuple(
        replace(
            scored, trial_id=trial.id, number=trial.number, heldout_loss=None, replicates=(), finish_s=None
        )
        for scored, trial in zip(finished.recommendation.ranking, trials, strict=False)
    )
    best = replace(
        finished.recommendation,
        trial_id=trials[0].id,
        evidence=bare,
        ranking=ranking,
        comparisons=(),
        named=(),
        finish=None,
        stopped=None,
        estimate=None,
        confidence=None,
        quality_measured=False,
    )
    page = Page(page_of(finished, trials=trials, recommendation=best))

    assert "speed and memory decided alone" in page.text
    assert "Nothing was estimated" in page.text
    assert "Training loss" not in page.text


def test_an_end_of_an_interval_that_is_unknown_is_left_out(finished):
    comparisons = tuple(
        replace(each, low=None, high=None, relation=Relation.UNKNOWN)
        for each in finished.recommendation.comparisons
    )
    best = replace(finished.recommendation, comparisons=comparisons)
    assert "None" not in Page(page_of(finished, recommendation=best)).text


def test_what_too_few_seeds_leave_open_is_not_known(finished):
    """The interval is then hundreds of losses wide: shown, it would shrink all others to points."""
    comparisons = tuple(
        replace(each, low=-1500.0, high=1500.0, relation=Relation.UNKNOWN)
        for each in finished.recommendation.comparisons
    )
    text = Page(
        page_of(finished, recommendation=replace(finished.recommendation, comparisons=comparisons))
    ).text
    assert text.count("not known") >= 2 * len(comparisons)
    assert "1500" not in text
    assert "No difference: none was found" not in text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (0.38, 0.52, [0.4, 0.45, 0.5]),
        (-0.03, 0.09, [-0.025, 0, 0.025, 0.05, 0.075]),
        (950, 2600, [1000, 1500, 2000, 2500]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_curves_are_smoothed_and_thinned() -> None:
    noisy = [1.0 - step / 2000 + (0.2 if step % 2 else -0.2) for step in range(1000)]
    points = smoothed(noisy)

    assert len(points) <= 162
    assert (points[0][0], points[-1][0]) == (1.0, 1000.0)
    middle = [value for _, value in points[5:-5] if value is not None]
    assert all(abs(a - b) < 0.03 for a, b in pairwise(middle))
    assert smoothed([None, None, 1.0])[0][1] is None


def test_each_trainer_has_its_command_or_a_reason(finished):
    page = Page(page_of(finished))
    assert f"rankwise export {finished.study.id} --format transformers" in page.text
    assert "TRL's SFT trains causal language models, and the task is text-classification." in page.text


def test_without_the_recommended_trial_there_is_no_table_of_trainers(finished):
    others = tuple(t for t in finished.trials if t.id != finished.recommendation.trial_id)
    assert "--format transformers" not in Page(page_of(finished, trials=others)).text
