"""Real trials in the real warm server: what they measure, and how they end."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from rankwise.home import Home
from rankwise.optimizer.codec import from_json, to_json
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    HeldoutScores,
    Level,
    Measurement,
    Method,
    Recipe,
    StudyFacts,
    StudyRequest,
)
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.runners.guard import Limits
from rankwise.runners.jobs import read_facts, start_prepare
from rankwise.runners.messages import TrialSpec
from rankwise.runners.warm_client import Job, WarmServer, read_tail

PATIENCE_S = 120.0
HIDDEN, FEEDFORWARD, LAYERS, LABELS = 384, 1536, 6, 2
HEAD_PARAMS = HIDDEN * LABELS + LABELS

LORA = Adapter(
    method=Method.LORA, rank=8, alpha=16, targets=("query", "value"), trained_modules=("classifier",)
)
IA3 = Adapter(
    method=Method.IA3,
    targets=("key", "output.dense", "value"),
    feedforward=("output.dense",),
    trained_modules=("classifier",),
)
FULL = Adapter(method=Method.FULL)
LLAMA_LORA = Adapter(method=Method.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj"))
RECIPE = Recipe(max_length=64, effective_batch=8)


@pytest.fixture(scope="module")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    server = WarmServer(tmp_path_factory.mktemp("warm") / "warm.log", ["prepare", "trial"])
    yield server
    server.stop()


@pytest.fixture(scope="module")
def prepare(
    warm_server: WarmServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path, Path], StudyFacts]:
    """Run the prepare job for a model and a dataset."""

    def run(model: Path, dataset: Path) -> StudyFacts:
        home = Home(tmp_path_factory.mktemp("home")).create()
        request = StudyRequest(model=str(model), dataset=str(dataset), max_length=RECIPE.max_length)
        job = start_prepare(warm_server, home, request, home.root / "prepare", allow_remote_code=False)
        job.wait(PATIENCE_S)
        return read_facts(job)

    return run


@pytest.fixture(scope="module")
def reviews(prepare: Callable[[Path, Path], StudyFacts], minilm_path: Path, reviews_csv: Path) -> StudyFacts:
    return prepare(minilm_path, reviews_csv)


@pytest.fixture(scope="module")
def texts(prepare: Callable[[Path, Path], StudyFacts], tiny_llama: Path, texts_jsonl: Path) -> StudyFacts:
    return prepare(tiny_llama, texts_jsonl)


def make_candidate(adapter: Adapter, **changes: Any) -> Candidate:
    candidate = Candidate(adapter=adapter, level=Level(), recipe=RECIPE, micro_batch=8, learning_rate=1e-3)
    return dataclasses.replace(candidate, **changes)


def make_spec(facts: StudyFacts, candidate: Candidate, **changes: Any) -> TrialSpec:
    spec = TrialSpec(
        model_path=facts.model.path,
        tokens_path=facts.tokens_path,
        task=to_json(facts.dataset.task),
        candidate=to_json(candidate),
        adapter_config=adapter_config(
            candidate, task_kind=facts.dataset.task.kind, base_model=facts.model.source, total_steps=100
        ),
        rung="train",
        total_steps=4,
        pad_id=facts.pad_id,
        seed=11,
        order_seed=12,
        threads=1,  # two would wait for each other wherever other work runs beside them
    )
    return dataclasses.replace(spec, **changes)


@pytest.fixture
def launch(warm_server: WarmServer, tmp_path: Path) -> Callable[[TrialSpec], Job]:
    """Start a trial without waiting for it."""

    def start(spec: TrialSpec) -> Job:
        folder = tmp_path / f"trial-{time.monotonic_ns()}"
        return warm_server.start("trial", spec.to_mapping(), folder, Limits(time_s=PATIENCE_S, grace_s=1))

    return start


@pytest.fixture
def measure(launch: Callable[[TrialSpec], Job]) -> Callable[[TrialSpec], Measurement]:
    """Run a trial that goes well, and give what it measured."""

    def run(spec: TrialSpec) -> Measurement:
        job = launch(spec)
        job.wait(PATIENCE_S)
        result = job.last("result")
        assert result, (job.messages, read_tail(job.log_path))
        return from_json(Measurement, result["measurement"])

    return run


Measure = Callable[[TrialSpec], Measurement]
Launch = Callable[[TrialSpec], Job]


def expected_tokens(facts: StudyFacts, spec: TrialSpec) -> int:
    """Tokens of the rows that the steps take, counted from the token file."""
    from rankwise.runners.recipe import step_rows
    from rankwise.runners.tokens import TokenFile

    rows = TokenFile(Path(facts.tokens_path) / "train.arrow")
    batch = spec.candidate["recipe"]["effective_batch"]
    order = step_rows(len(rows), effective_batch=batch, seed=spec.order_seed)
    return sum(len(rows[row].input_ids) for step in islice(order, spec.total_steps) for row in step)


def lora_params(rank: int, *shapes: tuple[int, int]) -> int:
    return sum(rank * (inputs + outputs) for inputs, outputs in shapes)


TRAINABLE = {
    "lora": (LORA, lora_params(8, *[(HIDDEN, HIDDEN)] * 2 * LAYERS) + HEAD_PARAMS),
    # "output.dense" is both the attention's and the block's; feed-forward modules are scaled at the input.
    "ia3": (IA3, LAYERS * (HIDDEN + HIDDEN + HIDDEN + FEEDFORWARD) + HEAD_PARAMS),
    "full": (FULL, None),
}


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_a_classifier(reviews: StudyFacts, measure: Measure, name: str) -> None:
    adapter, trainable = TRAINABLE[name]
    spec = make_spec(reviews, make_candidate(adapter))
    found = measure(spec)
    if trainable is None:
        assert found.trainable_params == found.total_params == reviews.model.parameters
    else:
        assert found.trainable_params == trainable
        assert found.total_params is not None
        # PEFT keeps the head's original beside the copy that it trains.
        assert found.total_params == reviews.model.parameters + trainable
    assert found.steps_measured == len(found.train_losses) == 4
    assert found.trained_tokens == expected_tokens(reviews, spec)
    assert found.heldout_rows == reviews.heldout_rows
    assert found.heldout_loss is not None
    assert 0.3 < found.heldout_loss < 1.5
    assert found.heldout_loss_se is not None
    assert 0 < found.heldout_loss_se < 0.3
    assert found.metric_name == "accuracy"
    assert found.metric_value is not None
    assert found.metric_value * reviews.heldout_rows == pytest.approx(
        round(found.metric_value * reviews.heldout_rows)
    )
    assert found.peak_process_bytes is not None
    assert found.peak_process_bytes > 4 * reviews.model.parameters
    assert found.measured_s > 0
    assert found.peak_allocated_bytes is found.peak_device_bytes is None


def test_a_training_tells_every_rows_loss(texts: StudyFacts, launch: Launch) -> None:
    """In the order of the held-out file."""
    from rankwise.runners.tokens import TokenFile

    job = launch(make_spec(texts, make_candidate(LLAMA_LORA)))
    job.wait(PATIENCE_S)
    result = job.last("result")
    assert result
    scores = from_json(HeldoutScores, result["heldout"])
    assert scores.items == tuple(
        len(row.input_ids) - 1 for row in TokenFile(Path(texts.tokens_path) / "heldout.arrow")
    )
    assert scores.loss == pytest.approx(result["measurement"]["heldout_loss"])


def test_a_short_training_is_judged_on_a_part_of_the_rows(reviews: StudyFacts, launch: Launch) -> None:
    job = launch(make_spec(reviews, make_candidate(LORA), heldout_rows=5))
    job.wait(PATIENCE_S)
    result = job.last("result")
    assert result
    assert reviews.heldout_rows > 5
    assert result["measurement"]["heldout_rows"] == len(result["heldout"]["losses"]) == 5
    assert 0 < result["measurement"]["evaluation_s"] < job.elapsed_s()


def test_the_speed_of_a_training_is_that_of_its_later_steps(reviews: StudyFacts, measure: Measure) -> None:
    found = measure(make_spec(reviews, make_candidate(LORA), total_steps=6))
    assert found.steps_measured == 6
    assert found.step_s_mean is not None
    assert found.tokens_per_s is not None
    assert found.samples_per_s == pytest.approx(8 / found.step_s_mean)
    assert 3 * found.step_s_mean < found.measured_s
    too_short = measure(make_spec(reviews, make_candidate(LORA), total_steps=3))
    assert too_short.speed is too_short.step_s_mean is None


JUDGE = """
import json, os, sys
names = sorted(os.listdir(sys.argv[-1]))
assert os.environ["HF_HUB_OFFLINE"] == "1"
print("some words first")
print(len(names) if sys.argv[1] == "count" else names)
"""


def judged_by(tmp_path: Path, *command: str, lower_is_better: bool = False) -> dict[str, Any]:
    return {
        "command": [sys.executable, "-c", *command],
        "folder": str(tmp_path / "judged" / "trained"),
        "limit_s": PATIENCE_S,
        "lower_is_better": lower_is_better,
    }


@pytest.mark.parametrize(("adapter", "files"), [(LORA, 3), (FULL, 2)], ids=["lora", "full"])
def test_a_command_judges_what_was_trained(
    reviews: StudyFacts, measure: Measure, tmp_path: Path, adapter: Adapter, files: int
) -> None:
    judge = judged_by(tmp_path, JUDGE, "count")
    found = measure(make_spec(reviews, make_candidate(adapter), judge=judge))
    assert (found.own_metric, found.own_loss) == (files, -files)
    assert found.heldout_loss is not None
    assert not (tmp_path / "judged" / "trained").exists(), "it may be large"


def test_a_command_that_fails_makes_the_trial_invalid(
    reviews: StudyFacts, launch: Launch, tmp_path: Path
) -> None:
    judge = judged_by(tmp_path, JUDGE, "names")
    job = launch(make_spec(reviews, make_candidate(LORA), judge=judge))
    job.wait(PATIENCE_S)
    failure = job.last("failure")
    assert failure
    assert failure["outcome"] == "invalid"
    assert (
        "exit code 0, and its last line is \"['adapter_config.json', 'adapter_model.sa" in failure["reason"]
    )


def test_a_command_ends_with_its_trial(reviews: StudyFacts, launch: Launch, tmp_path: Path) -> None:
    script = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    job = launch(make_spec(reviews, make_candidate(LORA), judge=judged_by(tmp_path, script)))
    deadline_s = time.monotonic() + PATIENCE_S
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline_s
        deque(job.poll(0.1), maxlen=0)
    pid = int((tmp_path / "pid").read_text())
    job.cancel()
    job.wait(PATIENCE_S)
    assert not Path(f"/proc/{pid}").exists()


def test_training_a_language_model(texts: StudyFacts, measure: Measure) -> None:
    spec = make_spec(texts, make_candidate(LLAMA_LORA))
    found = measure(spec)
    assert found.trainable_params == lora_params(4, *[(64, 64), (64, 32)] * 2)
    assert found.trained_tokens == expected_tokens(texts, spec)
    assert found.heldout_loss is not None
    assert found.heldout_loss == pytest.approx(math.log(1_000), rel=0.1)  # it is random
    assert (found.metric_name, found.metric_value) == (
        "perplexity",
        pytest.approx(math.exp(found.heldout_loss)),
    )


def test_probing_a_classifier(reviews: StudyFacts, measure: Measure) -> None:
    found = measure(make_spec(reviews, make_candidate(LORA, micro_batch=4), rung="probe"))
    assert 5 <= found.steps_measured <= 40
    assert found.steps_per_s is not None
    assert found.samples_per_s == pytest.approx(8 * found.steps_per_s)
    assert found.step_s_mean == pytest.approx(1 / found.steps_per_s)
    assert found.measured_s == pytest.approx(found.step_s_mean * found.steps_measured)
    assert found.tokens_per_s is not None
    assert found.tokens_per_s_rel_halfwidth is not None
    assert found.peak_tensor_bytes is not None
    # At least the weights; LoRA's gradients, moments and a few short rows are far less than another two.
    assert 4 * reviews.model.parameters < found.peak_tensor_bytes < 12 * reviews.model.parameters
    assert found.heldout_loss is found.trained_tokens is None
    assert found.train_losses == ()


def test_a_trial_can_be_repeated(reviews: StudyFacts, measure: Measure) -> None:
    """Head, adapter, dropout and the order of rows come from the spec's two seeds alone."""
    spec = make_spec(reviews, make_candidate(LORA))
    first, again = measure(spec), measure(spec)
    other = measure(dataclasses.replace(spec, order_seed=13))
    assert first.train_losses == pytest.approx(again.train_losses, abs=1e-6)
    assert first.heldout_loss == pytest.approx(again.heldout_loss, abs=1e-6)
    assert first.train_losses != pytest.approx(other.train_losses, abs=1e-6)


def test_the_micro_batch_changes_no_loss(texts: StudyFacts, measure: Measure) -> None:
    """Rows of different lengths are weighted by their tokens, however they are grouped (no dropout here)."""
    recipe = dataclasses.replace(RECIPE, effective_batch=16)
    whole, quarters, uneven = (
        measure(
            make_spec(texts, make_candidate(LLAMA_LORA, recipe=recipe, micro_batch=size, learning_rate=0.1))
        )
        for size in (16, 4, 3)
    )
    for parts in (quarters, uneven):
        assert whole.train_losses == pytest.approx(parts.train_losses, abs=1e-4)
        assert whole.heldout_loss == pytest.approx(parts.heldout_loss, abs=1e-4)
    assert whole.train_losses[0] != pytest.approx(whole.train_losses[-1], abs=1e-3)  # it has moved


def test_checkpointing_saves_memory_and_changes_no_loss(
    texts: StudyFacts, measure: Measure, tmp_path: Path
) -> None:
    from rankwise.runners.recipe import Example
    from rankwise.runners.tokens import write_token_files

    long_rows = (Example(array("i", [2 + (7 * row + at) % 900 for at in range(400)])) for row in range(12))
    write_token_files(tmp_path / "long", ((example, row >= 10) for row, example in enumerate(long_rows)))
    facts = dataclasses.replace(texts, tokens_path=str(tmp_path / "long"))
    recipe = dataclasses.replace(RECIPE, max_length=400, effective_batch=4)
    plain, checkpointed = (
        make_candidate(LLAMA_LORA, micro_batch=4, recipe=recipe, level=Level(gradient_checkpointing=on))
        for on in (False, True)
    )
    peaks = [
        measure(make_spec(facts, each, rung="probe")).peak_tensor_bytes for each in (plain, checkpointed)
    ]
    assert peaks[1] < 0.9 * peaks[0]
    losses = [measure(make_spec(facts, each)).train_losses for each in (plain, checkpointed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_too_high_a_learning_rate_diverges(texts: StudyFacts, launch: Launch) -> None:
    job = launch(make_spec(texts, make_candidate(FULL, learning_rate=1e30), total_steps=8))
    job.wait(PATIENCE_S)
    failure = job.last("failure")
    assert failure, (job.messages, read_tail(job.log_path))
    assert failure["outcome"] == "diverged"
    assert "optimizer step" in failure["reason"]
    assert job.last("result") is None


@pytest.mark.parametrize("rung", ["probe", "train"])
def test_a_missing_model_is_reported(reviews: StudyFacts, launch: Launch, tmp_path: Path, rung: str) -> None:
    spec = make_spec(reviews, make_candidate(LORA), model_path=str(tmp_path / "nowhere"), rung=rung)
    job = launch(spec)
    job.wait(PATIENCE_S)
    end = job.last("exit")
    assert end
    assert (end["cause"], end["exit_code"]) == ("finished", 1)
    assert job.last("result") is None
    assert "nowhere" in read_tail(job.log_path)


def test_a_killed_trial_ends_with_its_signal(texts: StudyFacts, launch: Launch) -> None:
    job = launch(endless(texts))
    pid = wait_until_training(job)
    os.kill(pid, signal.SIGKILL)
    job.wait(PATIENCE_S)
    end = job.last("exit")
    assert end
    assert (end["cause"], end["signal"]) == ("finished", signal.SIGKILL)


def test_a_killed_warm_server_takes_its_trial_along(texts: StudyFacts, tmp_path: Path) -> None:
    server = WarmServer(tmp_path / "warm.log", ["trial"])
    try:
        job = server.start("trial", endless(texts).to_mapping(), tmp_path / "trial", Limits(grace_s=1))
        pid = wait_until_training(job)
        os.kill(server.pid, signal.SIGKILL)
        job.wait(PATIENCE_S)
    finally:
        server.stop()
    end = job.last("exit")
    assert end
    assert end["cause"] == "cancelled"
    assert not Path(f"/proc/{pid}").exists()


def endless(facts: StudyFacts) -> TrialSpec:
    """A trial that does not end by itself while a test runs."""
    recipe = dataclasses.replace(RECIPE, warmup_ratio=0.0)
    return make_spec(facts, make_candidate(LLAMA_LORA, recipe=recipe), total_steps=1_000_000)


def wait_until_training(job: Job) -> int:
    """Give the trial's pid once it has taken some steps."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not job.closed and time.monotonic() < deadline_s:
        for message in job.poll(0.1):
            if message.get("phase") == "train":
                started = job.last("started")
                assert started
                return int(started["pid"])
    raise AssertionError((job.messages, read_tail(job.log_path)))
