from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.api.submission import InvalidRequest, check_request
from rankwise.errors import DatasetError, InputError, ModelError, PathNotAllowed
from rankwise.optimizer.domain import Complexity, LossMask, Method, Quantization, StudyRequest, Weights
from rankwise.probes.host import read_host
from rankwise.probes.profiles import GpuProfile, HardwareProfile


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def request_in(root: Path) -> StudyRequest:
    """A request that can be served; its files exist, as far as the check looks."""
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (model / "model.safetensors").write_bytes(b"")
    dataset = root / "reviews.csv"
    dataset.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 8)
    return StudyRequest(model=str(model), dataset=str(dataset))


def test_paths_come_back_absolute(
    request_in: StudyRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    written = dataclasses.replace(request_in, model="./model", dataset="../root/reviews.csv")
    assert check_request(written, roots=[root]) == request_in


def test_a_task_on_arrays_is_refused_for_a_table(request_in: StudyRequest) -> None:
    asked = dataclasses.replace(request_in, task="image-classification")
    with pytest.raises(InputError, match="of which the task image-classification learns nothing"):
        check_request(asked, roots=None)


def test_rows_that_are_no_text_have_no_length(request_in: StudyRequest) -> None:
    asked = dataclasses.replace(request_in, task="forecasting", max_length=64)
    with pytest.raises(InputError, match="rows of the task forecasting have no tokens"):
        check_request(asked, roots=None)


def test_a_command_comes_back_as_it_can_be_run_elsewhere(
    request_in: StudyRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "judge.py").write_text("print(1)\n")
    monkeypatch.chdir(root)
    asked = dataclasses.replace(request_in, eval_command=(sys.executable, "judge.py", "--rows", "9"))
    checked = check_request(asked, roots=None)
    assert checked.eval_command == (sys.executable, str(root / "judge.py"), "--rows", "9")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"eval_command": ("no-such-program", "x")}, "'no-such-program' of the evaluation command is not"),
        ({"eval_lower_is_better": True}, "no number of which lower is better"),
    ],
)
def test_a_command_that_cannot_be_run(request_in: StudyRequest, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_request(dataclasses.replace(request_in, **asked), roots=None)


def test_a_hub_id_is_left_to_the_study(request_in: StudyRequest) -> None:
    request = dataclasses.replace(request_in, model="some-org/some-model")
    assert check_request(request, roots=None).model == "some-org/some-model"


def test_code_of_a_model_needs_the_operators_consent(request_in: StudyRequest, root: Path) -> None:
    (root / "model" / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "code.Model"}}))
    with pytest.raises(ModelError, match="auto_map"):
        check_request(request_in, roots=[root])
    assert check_request(request_in, roots=[root], allow_remote_code=True) == request_in


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "model-that-is-nowhere"}, ModelError),
        ({"model": "nul\0byte"}, InputError),
        ({"dataset": "missing.csv"}, DatasetError),
        ({"dataset": "x" * 5000}, InputError),
        ({"label_column": "lable"}, DatasetError),
        ({"text_column": "txt"}, DatasetError),
        ({"task": "poetry"}, InputError),
        ({"budget_s": 0.0}, InputError),
        ({"budget_s": math.nan}, InputError),
        ({"max_trials": 0}, InputError),
        ({"memory_limit_bytes": 0}, InputError),
        ({"max_length": 7}, InputError),
        ({"effective_batch": 0}, InputError),
        ({"epochs": 0.0}, InputError),
        ({"seed": -1}, InputError),
        ({"weights": Weights(speed=0, memory=0, quality=0)}, InputError),
        ({"weights": Weights(speed=-1, memory=1, quality=1)}, InputError),
        ({"weights": Weights(speed=1, memory=math.nan, quality=1)}, InputError),
        ({"weights": Weights(speed=math.inf, memory=1, quality=1)}, InputError),
        ({"complexity": Complexity.SIMPLE}, InputError),
        ({"methods": (Method.FULL,), "quantizations": (Quantization.NF4, Quantization.INT8)}, InputError),
        ({"packing": True, "task": "text-classification"}, InputError),
        ({"loss_mask": LossMask.ASSISTANT, "task": "text-classification"}, InputError),
        ({"loss_mask": LossMask.COMPLETION, "task": "causal-lm"}, InputError),
        ({"chat_template": "missing.jinja"}, InputError),
        ({"processes": 0}, InputError),
    ],
)
def test_one_problem_is_raised_as_what_it_is(
    request_in: StudyRequest, change: dict[str, object], error: type[InputError]
) -> None:
    with pytest.raises(error) as caught:
        check_request(dataclasses.replace(request_in, **change), roots=None)
    assert not isinstance(caught.value, InvalidRequest)
    assert caught.value.next_step


def test_all_problems_are_reported_at_once(request_in: StudyRequest) -> None:
    wrong = dataclasses.replace(request_in, model="nowhere", dataset="gone.csv", epochs=-1, max_trials=0)
    with pytest.raises(InvalidRequest) as caught:
        check_request(wrong, roots=None)
    assert {problem.field for problem in caught.value.problems} == {
        "model",
        "dataset",
        "epochs",
        "max_trials",
    }
    for part in ("nowhere", "gone.csv", "epochs -1", "max_trials 0"):
        assert part in caught.value.message


def test_the_nearest_name_is_offered(request_in: StudyRequest, root: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        check_request(dataclasses.replace(request_in, dataset=str(root / "review.csv")), roots=[root])
    assert "reviews.csv" in caught.value.next_step


@pytest.mark.parametrize(
    "change",
    [
        {"complexity": Complexity.SIMPLE, "use_tiers": True},
        {"methods": (Method.FULL, Method.LORA), "quantizations": (Quantization.NF4,)},
        {"methods": (Method.FULL,), "quantizations": (Quantization.NONE, Quantization.NF4)},
        {"methods": (Method.FULL,)},
        {"packing": False, "task": "text-classification"},
        {"loss_mask": LossMask.ALL, "task": "causal-lm"},
    ],
)
def test_choices_that_go_together_are_accepted(request_in: StudyRequest, change: dict[str, object]) -> None:
    asked = dataclasses.replace(request_in, **change)
    assert check_request(asked, roots=None) == asked


def test_a_chat_template_comes_back_absolute(
    request_in: StudyRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    monkeypatch.chdir(root)
    asked = dataclasses.replace(request_in, chat_template="chat.jinja")
    assert check_request(asked, roots=[root]).chat_template == str(root / "chat.jinja")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\xff\xfe{{", "UTF-8"), (b"x" * 100_001, "larger than 100,000 bytes")],
)
def test_what_can_be_no_chat_template_is_refused(
    request_in: StudyRequest, root: Path, content: bytes, message: str
) -> None:
    template = root / "chat.jinja"
    template.write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_request(dataclasses.replace(request_in, chat_template=str(template)), roots=[root])


def test_a_folder_is_no_chat_template(request_in: StudyRequest, root: Path) -> None:
    with pytest.raises(InputError, match="is no file"):
        check_request(dataclasses.replace(request_in, chat_template=str(root)), roots=[root])


def test_a_chat_template_needs_conversations(request_in: StudyRequest, root: Path) -> None:
    (root / "chat.jinja").write_text("{{ messages }}")
    asked = dataclasses.replace(request_in, chat_template=str(root / "chat.jinja"), task="causal-lm")
    with pytest.raises(InputError, match="no conversations"):
        check_request(asked, roots=[root])


def test_a_hub_dataset_is_left_to_the_study(request_in: StudyRequest) -> None:
    request = dataclasses.replace(request_in, dataset="some-org/some-data")
    assert check_request(request, roots=None).dataset == "some-org/some-data"


@pytest.mark.parametrize("field", ["dataset", "chat_template"])
@pytest.mark.parametrize("way_out", ["../secret.csv", "link.csv", "/etc/hostname", "~/secret.csv"])
def test_no_way_leads_out_of_the_roots(
    request_in: StudyRequest,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    way_out: str,
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("text,label\na,b\n")
    (root / "link.csv").symlink_to(secret)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(root)
    with pytest.raises(PathNotAllowed):
        check_request(dataclasses.replace(request_in, **{field: way_out}), roots=[root])


def machine(*gpus: str, cores: int = 4) -> HardwareProfile:
    """One with GPUs of these names."""
    found = tuple(
        GpuProfile(uuid=f"GPU-{index}", index=index, name=name, total_bytes=2**34, free_bytes=2**33 - index)
        for index, name in enumerate(gpus)
    )
    return HardwareProfile(host=dataclasses.replace(read_host(Path("/")), logical_cores=cores), gpus=found)


@pytest.mark.parametrize(
    ("hardware", "processes", "refusal"),
    [
        (machine("A", "A"), 2, None),
        (machine("A", "A"), 4, "4 processes are asked for, and this machine has 2 GPUs alike"),
        (machine("A", "B"), 2, "2 processes are asked for, and this machine has 1 GPU alike"),
        (machine(), 4, None),
        (machine(), 8, "8 processes are asked for, and this machine has 4 cores, and no GPU"),
        (machine(cores=16), 5, "16 rows per optimizer step cannot be shared out evenly to 5 processes"),
    ],
)
def test_a_training_is_spread_over_devices_alike_or_cores(
    request_in: StudyRequest,
    monkeypatch: pytest.MonkeyPatch,
    hardware: HardwareProfile,
    processes: int,
    refusal: str | None,
) -> None:
    monkeypatch.setattr("rankwise.api.submission.read_hardware", lambda _: hardware)
    asked = dataclasses.replace(request_in, processes=processes)
    if refusal is None:
        assert check_request(asked, roots=None) == asked
        return
    with pytest.raises(InputError, match=refusal) as caught:
        check_request(asked, roots=None)
    assert not isinstance(caught.value, InvalidRequest)


def test_a_single_process_asks_nothing_of_the_machine(
    request_in: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.api.submission.read_hardware", lambda _: pytest.fail("it was asked"))
    assert check_request(dataclasses.replace(request_in, processes=1), roots=None).processes == 1
