"""What somebody trains with now becomes a candidate, measured as it is and trained as the finalists are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rankwise.api.baseline import baseline_in, frame_of, read_baseline, sources_in
from rankwise.api.baseline_outcome import changes
from rankwise.api.trainer_files import load_trainer_file, read_trainer_text
from rankwise.errors import InputError
from rankwise.optimizer.baseline import NOT_WORTHWHILE, REASON, place
from rankwise.optimizer.domain import OBJECTIVE_WEIGHTS, Candidate, Method, Objective, Outcome, Rung, Trial
from rankwise.optimizer.rules import RULES
from rankwise.optimizer.search import RunTrial, SearchLimits, Stop, next_step

TRAINER = """\
{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 2e-4, "bf16": false,
 "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "weight_decay": 0.01, "num_train_epochs": 2}"""
ADAPTER = '{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "lora_dropout": 0.2, "target_modules": ["query"]}'
LIMITS = SearchLimits(
    memory_limit_bytes=None, max_trials=60, budget_s=2000.0, spent_s=0.0, full_steps=400, probe_s_guess=10.0
)


@pytest.fixture
def baseline(tmp_path) -> Any:
    (tmp_path / "training_args.json").write_text(TRAINER)
    (tmp_path / "adapter_config.json").write_text(ADAPTER)
    return read_baseline(tmp_path)


def test_it_is_placed_as_it_is_on_the_studys_rows(build, baseline) -> None:
    facts = build.facts()
    candidate = place(baseline, facts).candidate
    assert candidate is not None
    adapter, recipe = candidate.adapter, candidate.recipe
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.targets) == (4, 4.0, 0.2, ("query",))
    assert (candidate.micro_batch, candidate.learning_rate) == (4, 2e-4)
    assert (recipe.schedule, recipe.warmup_ratio, recipe.weight_decay) == ("cosine", 0.1, 0.01)
    assert (recipe.max_length, recipe.effective_batch) == (
        facts.recipe.max_length,
        facts.recipe.effective_batch,
    )
    assert adapter.trained_modules == ("classifier",)


def test_how_its_adapter_starts_is_kept(build, baseline) -> None:
    told = replace(baseline, settings={**baseline.settings, "init_weights": "pissa"})
    candidate = place(told, build.facts()).candidate
    assert candidate is not None
    assert candidate.adapter.init_weights == "pissa"


def test_it_frames_the_study_where_nobody_says_otherwise(baseline) -> None:
    assert frame_of(baseline) == {"effective_batch": 8, "epochs": 2.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "vera"}, "'vera' is not known"),
        ({"zero_stage": 2}, "divides the training"),
        ({"targets": ["nowhere"]}, "no module 'nowhere'"),
        ({"attention": "flash_attention_2"}, "half precision only"),
        ({"quantization": "nf4"}, "bitsandbytes"),
        ({"trained_modules": ["embed_tokens", "classifier"]}, "it trains embed_tokens beside its adapter"),
    ],
)
def test_what_cannot_run_here_is_told_and_not_tried(build, baseline, changes, words: str) -> None:
    said = (*baseline.said, *changes)
    other = replace(baseline, settings={**baseline.settings, **changes}, said=said)
    placed = place(other, build.facts())
    assert placed.candidate is None
    assert words in (placed.reason or "")


def test_rules_that_are_passed_over_exist() -> None:
    assert {rule.name for rule in RULES} >= NOT_WORTHWHILE


def test_a_trainer_without_an_adapters_file_trains_everything(build) -> None:
    baseline = baseline_in(read_trainer_text(TRAINER, "args"))
    candidate = place(baseline, build.facts()).candidate
    assert candidate is not None
    assert candidate.adapter.method is Method.FULL


@pytest.mark.parametrize(
    "text",
    ['{"peft_type": "LORA"}', '{"zero_optimization": {"stage": 1}}', '{"learning_rate": [1], "bf16": true}'],
)
def test_what_is_no_training_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        baseline_in(read_trainer_text(text, "file"))


def test_what_is_stored_of_it_reads_back(baseline) -> None:
    stored = {
        "name": baseline.name,
        "trainer": baseline.trainer,
        "settings": dict(baseline.settings),
        "said": list(baseline.said),
    }
    assert read_baseline(stored) == baseline


def test_local_model_and_data_are_taken_from_the_file(tmp_path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "d.jsonl").write_text("{}")
    path = tmp_path / "a.yaml"
    path.write_text("base_model: m\nadapter: lora\ndatasets:\n  - path: d.jsonl\n    type: alpaca\n")
    assert sources_in(load_trainer_file(path)) == {
        "model": str(tmp_path / "m"),
        "dataset": str(tmp_path / "d.jsonl"),
    }


class Machine:
    """Runs what the search asks for."""

    def __init__(self, build: Any, candidates: tuple[Candidate, ...], baseline: Candidate) -> None:
        self.build, self.candidates, self.baseline = build, candidates, baseline
        self.trials: list[Trial] = []
        self.fails = False

    def run(self, limits: SearchLimits = LIMITS) -> str:
        while True:
            spent_s = sum(trial.wall_s or 0.0 for trial in self.trials)
            step = next_step(
                self.candidates,
                self.trials,
                replace(limits, spent_s=spent_s),
                OBJECTIVE_WEIGHTS[Objective.BALANCED],
                baseline=self.baseline,
            )
            if isinstance(step, Stop):
                return step.reason
            assert isinstance(step, RunTrial)
            plan, is_own = step.plan, step.plan.candidate.id == self.baseline.id
            figures = (
                {"tokens_per_s": 500.0, "peak_process_bytes": 2**30}
                if plan.rung is Rung.PROBE
                else {"heldout_loss": 0.7 if is_own else 0.5 + plan.candidate.learning_rate}
            )
            trial = self.build.trial(
                plan.candidate,
                len(self.trials) + 1,
                rung=plan.rung,
                outcome=Outcome.OOM if is_own and self.fails else Outcome.OK,
                train_steps=plan.train_steps,
                wall_s=10.0,
                **figures,
            )
            self.trials.append(replace(trial, plan=plan))

    def own(self, rung: Rung) -> list[Trial]:
        return [t for t in self.trials if t.candidate.id == self.baseline.id and t.plan.rung is rung]


@pytest.fixture
def machine(build, baseline) -> Machine:
    candidate = place(baseline, build.facts()).candidate
    assert candidate is not None
    return Machine(build, build.candidates(), candidate)


def test_it_is_probed_first_and_trained_as_far_as_the_finalists(machine: Machine) -> None:
    machine.run()
    first = machine.trials[0]
    assert (first.candidate.id, first.plan.rung, first.plan.reason) == (
        machine.baseline.id,
        Rung.PROBE,
        REASON,
    )
    trainings = [t for t in machine.trials if t.plan.rung is Rung.TRAIN]
    longest = max(t.plan.train_steps for t in trainings)
    own = machine.own(Rung.TRAIN)
    assert {t.plan.train_steps for t in own} == {longest}
    others = [t for t in trainings if t.candidate.id != machine.baseline.id and t.plan.train_steps == longest]
    assert {t.plan.replicate for t in own} == {t.plan.replicate for t in others}


def test_the_study_goes_on_where_it_does_not_fit(machine: Machine) -> None:
    machine.fails = True
    machine.run()
    assert len(machine.own(Rung.PROBE)) == 1
    assert machine.own(Rung.TRAIN) == []
    assert any(t.plan.rung is Rung.TRAIN for t in machine.trials)


def test_a_budget_for_it_alone_says_so(machine: Machine) -> None:
    reason = machine.run(replace(LIMITS, budget_s=11.0))
    assert (reason, len(machine.trials)) == (
        "only the present configuration could be measured within the limits",
        1,
    )


def test_changes_are_named_in_words(machine: Machine) -> None:
    other = replace(machine.baseline, learning_rate=1e-3, micro_batch=8)
    assert [(c.setting, c.now, c.then) for c in changes(machine.baseline, other)] == [
        ("micro-batch", "4", "8"),
        ("learning rate", "0.0002", "0.001"),
    ]
