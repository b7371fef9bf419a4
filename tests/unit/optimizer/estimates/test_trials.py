"""Verdicts on the device that trials run on, and what their measurements teach."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rankwise.optimizer.domain import Candidate, Estimate, Measurement, StudyFacts, Trial
from rankwise.optimizer.estimates.calibration import ALLOCATED, RESERVED
from rankwise.optimizer.estimates.gpus import find_gpu
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.estimates.need import Need
from rankwise.optimizer.estimates.prediction import TrialPrediction
from rankwise.optimizer.estimates.speed import START
from rankwise.optimizer.estimates.tape import Kind, Phase, Work
from rankwise.optimizer.estimates.trials import Judge, Learnt, learnt_from

GIB = 2**30
A100 = find_gpu("A100-80GB")


def prediction(size: int, *, evaluation: int = 0) -> TrialPrediction:
    return TrialPrediction(
        need=Need(
            allocated_bytes=size,
            reserved_bytes=size,
            by_phase={**dict.fromkeys(Phase, size), Phase.EVALUATION: evaluation or size},
            breakdown={Kind.ACTIVATIONS: size},
        ),
        work=Work(flops=Counter(bfloat16=10**15), moved_bytes=10**12, kernels=10_000),
        step_tokens=4096.0,
        seconds=0.5,
    )


@pytest.fixture
def on_a100(build) -> StudyFacts:
    hardware = build.hardware(gpus=1)
    gpu = replace(hardware.gpus[0], name="NVIDIA A100-SXM4-80GB", total_bytes=80 * GIB, free_bytes=60 * GIB)
    return build.facts(hardware=replace(hardware, gpus=(gpu,)))


def test_on_a_gpu_every_column_is_told(build, candidates: list[Candidate], on_a100: StudyFacts) -> None:
    told = Judge(facts=on_a100, request=build.request()).estimate(prediction(20 * GIB), candidates[0])
    assert (told.device, told.fits, told.reason) == (A100.name, Fits.YES, None)
    assert told.peak_allocated_bytes == told.peak_reserved_bytes == 20 * GIB
    assert told.peak_tensor_bytes is None
    assert told.low_bytes < told.peak_device_bytes < told.high_bytes
    assert told.tokens_per_s_low < told.tokens_per_s < told.tokens_per_s_high


@pytest.mark.parametrize(
    ("size", "limit", "verdict"),
    [
        (70 * GIB, None, Fits.NO),  # others hold 20 GiB of its 80
        (40 * GIB, None, Fits.YES),
        (40 * GIB, 30 * GIB, Fits.NO),
        (40 * GIB, 41 * GIB, Fits.TOO_CLOSE),
    ],
)
def test_what_is_free_now_and_the_limit_decide(
    build, candidates: list[Candidate], on_a100: StudyFacts, size: int, limit: int | None, verdict: Fits
) -> None:
    request = build.request(memory_limit_bytes=limit)
    told = Judge(facts=on_a100, request=request).estimate(prediction(size), candidates[0])
    assert told.fits is verdict
    assert bool(told.reason) is (verdict is Fits.NO)
    hopeless_above = Judge(facts=on_a100, request=request).enough_bytes(candidates[0])
    assert (size > hopeless_above) is (verdict is Fits.NO)


def test_on_a_cpu_tensors_are_told_and_the_least_that_holds_them(build, candidates: list[Candidate]) -> None:
    facts = build.facts()
    lora = next(c for c in candidates if c.adapter.rank)
    told = Judge(facts=facts, request=build.request()).estimate(prediction(GIB, evaluation=2 * GIB), lora)
    assert told.device == Judge(facts=facts, request=build.request()).device_name == "Some CPU"
    assert told.peak_tensor_bytes == GIB  # evaluation is not among what a trial counts
    assert told.peak_device_bytes is None
    assert told.low_bytes < GIB
    assert told.fits is None
    tight = build.request(memory_limit_bytes=GIB // 2)
    refused = Judge(facts=facts, request=tight).estimate(prediction(GIB), lora)
    assert refused.fits is Fits.NO
    assert refused.reason == "it needs at least 993 MiB of 512 MiB"


def test_embeddings_that_stand_still_need_not_be_held(build, candidates: list[Candidate]) -> None:
    facts, request = build.facts(), build.request()
    lora = next(c for c in candidates if c.adapter.rank)
    full = next(c for c in build.candidates() if c.adapter.rank is None and not c.adapter.targets)
    of_both = [
        Judge(facts=facts, request=request).estimate(prediction(GIB), each).low_bytes for each in (lora, full)
    ]
    assert of_both[1] - of_both[0] == pytest.approx(0.97 * 4 * 1000 * 64, abs=2)


def measured(build, candidate: Candidate, told: Estimate, **figures: Any) -> Trial:
    trial = build.trial(candidate)
    return replace(trial, estimate=told, measurement=Measurement(**figures))


def test_what_processes_held_beside_tensors_is_learnt(build, candidates: list[Candidate]) -> None:
    facts, request = build.facts(), build.request(memory_limit_bytes=GIB)
    lora = next(c for c in candidates if c.adapter.rank)
    told = Judge(facts=facts, request=request).estimate(prediction(GIB // 2), lora)
    assert (told.fits, told.peak_process_bytes) == (None, None)
    found = {"peak_tensor_bytes": GIB // 2}
    trials = [
        measured(build, lora, told, peak_process_bytes=GIB // 2 + beside * GIB // 4, **found)
        for beside in (1, 2, 4)
    ]
    busy = replace(trials[0].measurement, disturbances=("another program took the processor",))
    trials[0] = replace(trials[0], measurement=busy)
    learnt = learnt_from(trials, None)
    again = Judge(facts=facts, request=request, learnt=learnt).estimate(prediction(GIB // 2), lora)
    assert again.peak_process_bytes == GIB
    assert again.low_bytes == pytest.approx(told.low_bytes + 0.97 * GIB / 4, abs=2)
    larger = Judge(facts=facts, request=request, learnt=learnt).estimate(prediction(GIB - 10**6), lora)
    assert larger.fits is Fits.NO
    assert Judge(facts=facts, request=request, learnt=learnt).enough_bytes(lora) < GIB - 10**6


def test_without_trials_nothing_is_learnt() -> None:
    assert learnt_from([], A100) == Learnt(allocated=ALLOCATED, reserved=RESERVED, efficiency=START, trials=0)


def test_few_trials_widen_the_intervals_and_many_set_them(
    build, candidates: list[Candidate], on_a100: StudyFacts
) -> None:
    told = Judge(facts=on_a100, request=build.request()).estimate(prediction(20 * GIB), candidates[0])
    high = int(20 * GIB * 1.25)
    one = measured(build, candidates[0], told, peak_allocated_bytes=high, peak_reserved_bytes=high)
    few = learnt_from([one], A100)
    assert few.allocated.high == few.reserved.high == pytest.approx(1.25)
    assert (few.allocated.low, few.reserved.low) == (ALLOCATED.low, RESERVED.low)
    exact = measured(build, candidates[0], told, peak_allocated_bytes=20 * GIB, peak_reserved_bytes=20 * GIB)
    many = learnt_from([exact] * 40, A100)
    assert many.allocated.calibrated
    assert (many.allocated.low, many.allocated.high) == (1.0, 1.0)
    assert many.trials == 40


def test_disturbed_speed_and_memory_teach_nothing(
    build, candidates: list[Candidate], on_a100: StudyFacts
) -> None:
    judge = Judge(facts=on_a100, request=build.request())
    told = judge.estimate(prediction(20 * GIB), candidates[0])
    odd = {"tokens_per_s": 1.0, "peak_allocated_bytes": 40 * GIB, "peak_reserved_bytes": 40 * GIB}
    trial = measured(build, candidates[0], told, disturbances=("a neighbour computed",), **odd)
    assert learnt_from([trial] * 30, A100) == Learnt()


def test_speed_follows_what_was_measured(build, candidates: list[Candidate], on_a100: StudyFacts) -> None:
    request = build.request()
    told = Judge(facts=on_a100, request=request).estimate(prediction(20 * GIB), candidates[0])
    slower = measured(build, candidates[0], told, tokens_per_s=told.tokens_per_s / 2)
    learnt = learnt_from([slower] * 30, A100)
    again = Judge(facts=on_a100, request=request, learnt=learnt).estimate(prediction(20 * GIB), candidates[0])
    assert again.tokens_per_s == pytest.approx(told.tokens_per_s / 2, rel=0.05)
    width = told.tokens_per_s_high / told.tokens_per_s_low
    assert again.tokens_per_s_high / again.tokens_per_s_low < width


def test_a_gpu_that_the_catalogue_lacks_has_no_speed(build, candidates: list[Candidate]) -> None:
    facts = build.facts(hardware=build.hardware(gpus=1))
    told = Judge(facts=facts, request=build.request()).estimate(prediction(GIB), candidates[0])
    assert (told.device, told.fits, told.tokens_per_s) == ("Some GPU", Fits.YES, None)
