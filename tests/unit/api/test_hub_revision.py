"""A model of the hub is handed over at the commit that was measured, and read back at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from rankwise.api.trainer_files import read_trainer_text
from rankwise.api.trainer_options import model_of
from rankwise.optimizer.domain import Adapter, Level, Method, Study
from rankwise.optimizer.trainers.formats import Format, outline
from rankwise.optimizer.trainers.settings import Training
from rankwise.probes.profiles import TaskKind
from rankwise.runners.handed_over import training_of

from .conftest import finished_study

COMMIT = "5d602fdbf1e0c2a4b6d8e0f1a2b3c4d5e6f70819"


@pytest.fixture
def training() -> Training:
    """Of a language model that was asked for by a tag."""
    done = finished_study()
    facts = done.study.facts
    assert facts is not None
    facts = replace(
        facts,
        model=replace(facts.model, source="lab/tiny@v1.0", revision=COMMIT, path="/cache/snapshots/5d60"),
        dataset=replace(facts.dataset, task=replace(facts.dataset.task, kind=TaskKind.CHAT)),
    )
    study: Study = replace(done.study, facts=facts)
    trial = done.trials[0]
    return training_of(study, trial, trial.candidate, trial.measurement)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (Format.TRL, ("model_name_or_path", "model_revision")),
        (Format.AXOLOTL, ("base_model", "revision_of_model")),
        (Format.LLAMA_FACTORY, ("model_name_or_path", "model_revision")),
    ],
)
def test_trainers_are_told_the_commit_and_it_is_read_back(
    training: Training, form: Format, names: tuple[str, str]
) -> None:
    adapter = Adapter(method=Method.LORA, rank=8, alpha=8.0, targets=("q_proj",))
    half = Level(weight_dtype="bfloat16", compute_dtype="bfloat16")
    gpu = replace(training, candidate=replace(training.candidate, adapter=adapter, level=half), on_cpu=False)
    files = outline(gpu, form).files
    text = next(text for name, text in files.items() if name.endswith(".yaml"))
    keys: dict[str, Any] = yaml.safe_load(text)
    assert tuple(keys[name] for name in names) == ("lab/tiny", COMMIT)
    assert model_of(read_trainer_text(text, "t.yaml"), None) == f"lab/tiny@{COMMIT}"


@pytest.mark.parametrize("form", [Format.PYTORCH, Format.LIGHTNING])
def test_snippets_load_it_at_the_commit(training: Training, form: Format) -> None:
    text = outline(training, form).files["snippet.py"]
    assert text.count("revision=REVISION") == 2
    assert f"MODEL = 'lab/tiny'\nREVISION = '{COMMIT}'" in text


def test_the_adapter_says_what_it_belongs_to(training: Training) -> None:
    config = training.adapter_config
    assert config is not None
    assert (config["base_model_name_or_path"], config["revision"]) == ("lab/tiny", COMMIT)


def test_a_folder_has_no_revision() -> None:
    done = finished_study()
    made = training_of(done.study, done.trials[0], done.trials[0].candidate, None)
    assert (made.model, made.model_revision) == ("models/MiniLM", None)
    assert made.adapter_config is not None
    assert "revision" not in made.adapter_config
