from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.api.estimates import CHOICES, Ask, answer, read_question
from rankwise.api.submission import InvalidRequest
from rankwise.errors import PathNotAllowed
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Estimate,
    Level,
    Measurement,
    Method,
    Outcome,
    Quantization,
    Recipe,
    Rung,
    Trial,
    TrialPlan,
    TrialState,
)
from rankwise.optimizer.estimates.gpus import find_gpu
from rankwise.probes.profiles import TaskKind

GIB = 2**30
LORA = Candidate(
    adapter=Adapter(method=Method.LORA, rank=16, targets=("q_proj",)),
    level=Level(),
    recipe=Recipe(max_length=128),
    micro_batch=4,
    learning_rate=5e-4,
)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama"}))
    return str(path)


def problems(model: str, **options: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        read_question(model, **options)
    assert all(problem.error.next_step for problem in caught.value.problems)
    return {problem.field: problem.error.message for problem in caught.value.problems}


def measured_on_a100(tokens_per_s: float) -> Trial:
    """A probe that was as large as its estimate, and this fast where 1,000 tokens/s had been told."""
    told = Estimate(
        device="A100 SXM 80GB",
        peak_allocated_bytes=GIB,
        peak_reserved_bytes=GIB,
        tokens_per_s=1_000.0,
        flops={"bfloat16": 10**15},
        moved_bytes=10**12,
        kernels=10_000,
        step_tokens=4_096.0,
    )
    found = Measurement(peak_allocated_bytes=GIB, peak_reserved_bytes=GIB, tokens_per_s=tokens_per_s)
    return Trial(
        id="T",
        study_id="S",
        number=1,
        plan=TrialPlan(candidate=LORA, rung=Rung.PROBE),
        state=TrialState.FINISHED,
        outcome=Outcome.OK,
        measurement=found,
        estimate=told,
    )


def test_trials_on_the_gpu_count(config: str, dry_run: Ask) -> None:
    question = read_question(config, gpu="A100-80GB")
    asked: list[str] = []

    def trials_on(device: str) -> list[Trial]:
        asked.append(device)
        return [measured_on_a100(500.0)] * 20

    before, after = answer(question, dry_run), answer(question, dry_run, trials_on)
    assert asked == ["A100 SXM 80GB"]
    assert not before.calibrated
    assert after.calibrated
    assert after.peak_allocated_bytes_high == after.peak_allocated_bytes
    assert any("20 trials on A100 SXM 80GB" in note for note in after.notes)
    assert before.tokens_per_second is not None
    assert after.tokens_per_second is not None
    assert after.tokens_per_second.mid < before.tokens_per_second.mid


def test_words_and_units_are_read(config: str) -> None:
    question = read_question(
        config,
        task="Chat",
        method="LORA",
        quantization="nf4",
        batch_size=4,
        gradient_accumulation=2,
        seq_len=512,
        dora=True,
        gpu="a100-80gb",
        memory_limit="24 GiB",
        tokens=1_000,
        epochs=2.5,
    )
    settings = question.settings
    assert (question.task, settings.method, settings.quantization) == (
        TaskKind.CHAT,
        Method.LORA,
        Quantization.NF4,
    )
    assert (settings.micro_batch, settings.accumulation, settings.length, settings.use_dora) == (
        4,
        2,
        512,
        True,
    )
    assert question.gpu == find_gpu("A100 SXM 80GB")
    assert (question.limit_bytes, question.tokens) == (24 * GIB, 2_500)


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"batch_size": 0}, "batch_size", "batch size 0 is not between 1 and"),
        ({"seq_len": 0}, "seq_len", "sequence length 0"),
        ({"gradient_accumulation": -1}, "gradient_accumulation", "-1"),
        ({"rank": 0}, "rank", "rank 0"),
        ({"alpha": float("nan")}, "alpha", "alpha nan is not above 0"),
        ({"gpus": 0}, "gpus", "number of GPUs 0"),
        ({"memory_limit": "24GX"}, "memory_limit", "unit 'GX' in size '24GX' is unknown"),
        ({"memory_limit": "24"}, "memory_limit", "size '24' has no unit"),
        ({"memory_limit": "-1GiB"}, "memory_limit", "is not a size"),
        ({"gpu": "B9000"}, "gpu", "no GPU named 'B9000'"),
        ({"method": "lorra"}, "method", "method 'lorra' is unknown"),
        ({"quantization": "int3"}, "quantization", "'int3' is unknown"),
        ({"precision": "fp8"}, "precision", "precision 'fp8' is unknown"),
        ({"optimizer": "sgd"}, "optimizer", "optimizer 'sgd' is unknown"),
        ({"loss": "hinge"}, "loss", "loss 'hinge' is unknown"),
        ({"zero_stage": 4}, "zero_stage", "ZeRO stage 4 is unknown"),
        ({"offload": "disk", "zero_stage": 3}, "offload", "offload 'disk' is unknown"),
        ({"offload": "all"}, "offload", "only ZeRO and FSDP"),
        ({"offload": "optimizer", "fsdp": True}, "offload", "all to the host or nothing"),
        ({"offload": "all", "zero_stage": 2}, "offload", "ZeRO stage 2 keeps parameters"),
        ({"zero_stage": 3, "fsdp": True}, "fsdp", "exclude each other"),
        ({"padded": True, "packed": True}, "packed", "not both"),
        ({"method": "full", "quantization": "nf4"}, "quantization", "cannot train nf4"),
        ({"method": "full", "rank": 8}, "rank", "has no rank"),
        ({"method": "ia3", "dora": True}, "dora", "not of ia3"),
        ({"method": "ia3", "rslora": True}, "rslora", "not of ia3"),
        ({"double_quantization": True}, "double_quantization", "4-bit"),
        ({"attention": "flash_attention_2", "precision": "fp32"}, "attention", "half precision"),
        ({"which_gpu": True, "gpu": "T4"}, "which_gpu", "one was named"),
        ({"which_gpu": True, "memory_limit": "8GiB"}, "memory_limit", "their own memory"),
        ({"which_gpu": True, "every_gpu": True}, "which_gpu", "without the others"),
        ({"which_gpu": True, "largest": False}, "which_gpu", "with its largest batch"),
        ({"tokens": 1_000}, "tokens", "depends on the GPU"),
        ({"tokens": 0, "gpu": "T4"}, "tokens", "0 tokens are not a dataset"),
        ({"epochs": 0.0}, "epochs", "epochs 0.0 are out of range"),
    ],
)
def test_each_misuse_has_its_message(config: str, options: dict[str, Any], field: str, words: str) -> None:
    found = problems(config, **options)
    assert list(found) == [field]
    assert words in found[field]


def test_all_misuses_are_told_at_once(tmp_path: Path) -> None:
    found = problems(str(tmp_path / "nowhere"), batch_size=0, memory_limit="24GX", gpu="B9000", loss="hinge")
    assert set(found) == {"model", "batch_size", "memory_limit", "gpu", "loss"}


def test_models_outside_the_roots_and_code_of_their_own_are_refused(config: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_question(config, roots=[tmp_path / "elsewhere"])
    assert isinstance(caught.value.problems[0].error, PathNotAllowed)
    Path(config).write_text(json.dumps({"auto_map": {"AutoConfig": "config.Config"}}))
    assert "brings Python code of its own" in problems(config)["model"]
    assert read_question(config, allow_remote_code=True).model == config


def test_an_argument_that_there_is_none_of_is_refused(config: str) -> None:
    with pytest.raises(TypeError, match="no argument 'batchsize'"):
        read_question(config, batchsize=4)  # type: ignore[call-arg]


def test_without_a_limit_nothing_is_judged(config: str, dry_run) -> None:
    found = answer(read_question(config), dry_run)
    assert (found.fits, found.capacity_bytes, found.max_micro_batch, found.max_seq_len) == (None,) * 4
    assert (found.tokens_per_second, found.hours, found.gpu) == (None, None, None)
    assert [terms.limit_bytes for terms in dry_run.terms] == [None]
    for name in ("peak_allocated_bytes", "peak_reserved_bytes", "device_bytes"):
        low, mid, high = (getattr(found, f"{name}{end}") for end in ("_low", "", "_high"))
        assert low < mid < high
    assert found.peak_allocated_bytes == dry_run.allocated_bytes
    assert found.peak_reserved_bytes == dry_run.reserved_bytes
    assert found.device_bytes > found.peak_reserved_bytes
    assert sum(found.breakdown.values()) == found.device_bytes
    assert found.breakdown["unused_by_allocator"] == dry_run.reserved_bytes - dry_run.allocated_bytes
    assert set(found.breakdown) == {"base_weights", "activations", "unused_by_allocator", "cuda_context"}
    assert found.phases == {"build": 5 * GIB, "backward": 10 * GIB}
    assert {"torch", "transformers", "peft"} <= found.stack.keys()


@pytest.mark.parametrize(
    ("limit", "verdict"), [("24GiB", "yes"), ("12.5GiB", "too-close"), ("6GiB", "no"), ("1MiB", "no")]
)
def test_a_limit_is_judged(config: str, dry_run, limit: str, verdict: str) -> None:
    found = answer(read_question(config, memory_limit=limit), dry_run)
    assert found.fits == verdict
    assert (found.max_micro_batch is None) == (verdict != "yes")
    asked = dry_run.terms[0].limit_bytes
    assert asked is not None
    assert found.capacity_bytes is not None
    assert 0 <= asked < found.capacity_bytes


def test_a_gpu_gives_a_capacity_a_speed_and_hours(config: str, dry_run) -> None:
    question = read_question(config, gpu="A100-80GB", tokens=3_600_000, gpus=2)
    found = answer(question, dry_run)
    assert (found.gpu, found.fits, found.gpus) == ("A100 SXM 80GB", "yes", 2)
    assert found.capacity_bytes == find_gpu("A100-80GB").memory_bytes
    assert found.gpu_sources
    speed, hours = found.tokens_per_second, found.hours
    assert speed is not None
    assert hours is not None
    assert speed.low < speed.mid < speed.high
    assert hours.mid == pytest.approx(1_000 / 2 / speed.mid)
    assert hours.low < hours.mid < hours.high
    assert any("those of one GPU" in note for note in found.notes)


def test_of_gpu_and_limit_the_lesser_counts(config: str, dry_run) -> None:
    found = answer(read_question(config, gpu="A100-80GB", memory_limit="8GiB"), dry_run)
    assert (found.capacity_bytes, found.fits) == (8 * GIB, "no")
    assert any("the lesser of" in note for note in found.notes)


def test_a_gpu_without_the_unit_has_no_speed_but_a_reason(config: str, dry_run) -> None:
    found = answer(read_question(config, gpu="V100-SXM2-32GB"), dry_run)
    assert (found.fits, found.tokens_per_second) == ("yes", None)
    assert any("no unit for bfloat16" in note for note in found.notes)


def test_the_smallest_gpu_is_looked_for(config: str, dry_run) -> None:
    found = answer(read_question(config, which_gpu=True, tokens=10**6), dry_run)
    assert found.fits == "yes"
    assert len(found.choices) == CHOICES
    assert found.choices[0].gpu == found.gpu
    sizes = [choice.capacity_bytes for choice in found.choices]
    assert sizes == sorted(sizes)
    assert all(choice.device_bytes_high <= choice.capacity_bytes for choice in found.choices)
    assert all(
        choice.hours and choice.tokens_per_second and choice.max_micro_batch for choice in found.choices
    )
    limits = [terms.limit_bytes or 0 for terms in dry_run.terms]
    assert max(limit for limit in limits if limit < dry_run.reserved_bytes) > 0, "smaller ones were tried"
    assert "T4 16GB" in found.notes[0], "it has no bfloat16"
    with_fp16 = answer(read_question(config, which_gpu=True, precision="fp16"), dry_run)
    assert not any("T4" in note for note in with_fp16.notes)


def test_every_gpu_is_judged_beside_the_one_that_is_asked_about(config: str, dry_run) -> None:
    question = read_question(config, gpu="L4", every_gpu=True, largest=False)
    found = answer(question, dry_run)
    assert (found.gpu, found.fits, found.max_micro_batch) == ("L4 24GB", "yes", None)
    assert len(found.every_gpu) > 20
    verdicts = {each.gpu: each.fits for each in found.every_gpu}
    assert {"yes", "no"} <= set(verdicts.values())
    assert verdicts["L4 24GB"] == "yes"
    sizes = [each.capacity_bytes for each in found.every_gpu]
    assert sizes == sorted(sizes)
    assert all(terms.limit_bytes is None for terms in dry_run.terms), "no largest batch is looked for"
    assert len(dry_run.terms) < 8, "GPUs of one generation need the same"
    alone = answer(read_question(config, gpu="L4"), dry_run)
    assert alone.device_bytes == found.device_bytes
    assert (alone.every_gpu, alone.max_micro_batch) == ((), 1)


def test_where_no_gpu_is_large_enough_the_largest_shows_it(config: str, dry_run) -> None:
    dry_run.allocated_bytes, dry_run.reserved_bytes = 500 * GIB, 512 * GIB
    found = answer(read_question(config, which_gpu=True), dry_run)
    assert (found.fits, found.choices, found.gpu) == ("no", (), "MI325X 256GB")
    assert any("On no GPU" in note for note in found.notes)
