from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.api import python
from rankwise.api.applying import read_choice
from rankwise.api.python import recommend
from rankwise.errors import InputError, NothingFits
from rankwise.optimizer.domain import Method, Objective, Quantization, Rung, StudyRequest
from rankwise.optimizer.trainers.writing import ExportRefused


@pytest.fixture
def asked(script, store, monkeypatch) -> list[StudyRequest]:
    """Lets ``recommend`` get the scripted study instead of running one; collects what was asked for."""
    requests: list[StudyRequest] = []

    def check(request: StudyRequest, *, roots: None, allow_remote_code: bool) -> StudyRequest:
        requests.append(request)
        return request

    monkeypatch.setattr(python, "check_request", check)
    monkeypatch.setattr(python, "follow", lambda *_, **__: store.get_study(script.id))
    return requests


def test_a_recommendation_explains_itself(script, asked):
    script.play()

    best = recommend("models/MiniLM", "data/reviews.csv")

    assert best.candidate.adapter.method is Method.LORA
    assert best.evidence.heldout_loss == 0.4123
    assert [trial.number for trial in best.trials] == [1, 2, 3]
    assert best.explain().endswith(
        "It learnt as much as the others in less time. Full fine-tuning did not fit."
    )
    document = best.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["recommendation"]["score"] == 87.5


def test_the_peft_config_is_the_recommended_adapter(script, asked):
    script.play()

    config = recommend("models/MiniLM", "data/reviews.csv").to_peft_config()

    assert type(config).__name__ == "LoraConfig"
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32.0, 0.1)
    assert set(config.target_modules) == {"query", "value"}
    assert config.modules_to_save == ["classifier"]
    assert config.task_type == "SEQ_CLS"


def test_full_fine_tuning_has_no_peft_config(script, asked, candidates, trained):
    script.begin()
    script.recommend(script.run(candidates[1], Rung.TRAIN, trained))

    assert recommend("models/MiniLM", "data/reviews.csv").to_peft_config() is None


def test_arguments_become_a_request(script, asked):
    script.play()

    recommend(
        Path("models/MiniLM"),
        Path("data/reviews.csv"),
        objective="quality",
        memory_limit="2GiB",
        budget="90s",
        methods=["lora", Method.IA3],
    )

    assert asked == [
        StudyRequest(
            model="models/MiniLM",
            dataset="data/reviews.csv",
            objective=Objective.QUALITY,
            memory_limit_bytes=2 * 2**30,
            budget_s=90.0,
            methods=(Method.LORA, Method.IA3),
        )
    ]


def test_one_method_may_be_a_text_in_any_case(script, asked):
    script.play()

    recommend("models/MiniLM", "data/reviews.csv", methods="LoRA", quantizations="nf4")

    assert (asked[0].methods, asked[0].quantizations) == ((Method.LORA,), (Quantization.NF4,))


@pytest.mark.parametrize("wrong", [{"objective": "cheap"}, {"scoring": "golf"}, {"methods": ["adaline"]}])
def test_an_unknown_choice_is_named_with_what_there_is(home, wrong):
    with pytest.raises(InputError, match="unknown") as caught:
        recommend("m", "d", **wrong)
    assert caught.value.next_step.startswith("use one of ")


def test_a_failed_study_raises_its_error(script, asked):
    script.begin()
    script.fail("NothingFits: 22 GiB are needed — take a smaller model")

    with pytest.raises(NothingFits, match="22 GiB") as caught:
        recommend("m", "d")
    assert caught.value.next_step == "take a smaller model"


def test_files_are_saved(script, asked, tmp_path: Path):
    script.play()

    best = recommend("models/MiniLM", "data/reviews.csv", out=tmp_path / "now")
    paths = best.save(tmp_path / "later")

    assert {path.name for path in paths} == {
        "recommendation.json",
        "adapter_config.json",
        "training_args.json",
        "report.html",
        "train.py",
    }
    for path in paths:
        assert path.read_text() == (tmp_path / "now" / path.name).read_text()


def test_the_entry_imports_neither_torch_nor_peft():
    program = (
        "import sys; from rankwise import recommend, Recommendation\n"
        "sys.exit(', '.join({'torch', 'transformers', 'peft', 'fastapi'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_applied_is_the_same_from_object_and_files(script, asked, tmp_path):
    script.play()
    best = recommend("models/MiniLM", "data/reviews.csv", out=tmp_path)

    choice = read_choice(best)

    assert choice.candidate["adapter"]["targets"] == ["query", "value"]
    assert read_choice(tmp_path) == read_choice(tmp_path / "recommendation.json") == choice


def test_what_an_older_version_wrote_can_be_applied(script, asked, tmp_path):
    script.play()
    best = recommend("models/MiniLM", "data/reviews.csv", out=tmp_path)
    file = tmp_path / "recommendation.json"
    document = json.loads(file.read_text())
    del document["recommended"]["adapter"]["unfrozen"]
    file.write_text(json.dumps(document))

    assert read_choice(tmp_path) == read_choice(best)


def test_full_fine_tuning_is_applied_without_an_adapter(script, asked, candidates, trained, tmp_path):
    script.begin()
    script.recommend(script.run(candidates[1], Rung.TRAIN, trained))
    recommend("models/MiniLM", "data/reviews.csv", out=tmp_path)

    assert read_choice(tmp_path).adapter_config is None


@pytest.mark.parametrize("text", ["{", "[]", '{"recommended": null}', '{"recommended": {"adapter": {}}}'])
def test_files_that_recommend_nothing_are_refused(text, tmp_path):
    (tmp_path / "recommendation.json").write_text(text)
    with pytest.raises(InputError, match=r"recommendation\.json"):
        read_choice(tmp_path)


def test_a_recommendation_is_exported_and_written_if_asked(script, asked, tmp_path: Path):
    script.play()
    best = recommend("models/MiniLM", "data/reviews.csv")

    exported = best.export("accelerate", tmp_path / "here")
    assert exported.trial_id == best.choice.trial_id
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == sorted(exported.files)

    with pytest.raises(ExportRefused, match="text-classification"):
        best.export("llamafactory", tmp_path / "there")
    assert not (tmp_path / "there").exists()
