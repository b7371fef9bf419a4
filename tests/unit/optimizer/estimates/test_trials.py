"""Verdicts on the device that trials run on, and what their measurements teach."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rankwise.optimizer.domain import Candidate, Estimate, Measurement, Outcome, StudyFacts, Trial
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


def out_of_memory(build, candidate: Candidate, told: Estimate) -> Trial:
    return replace(build.trial(candidate, outcome=Outcome.OOM), estimate=told, measurement=None)


def test_what_ran_out_of_memory_raises_later_estimates(
    build, candidates: list[Candidate], on_a100: StudyFacts
) -> None:
    judge = Judge(facts=on_a100, request=build.request())
    told = judge.estimate(prediction(40 * GIB), candidates[0])
    assert (told.fits, told.capacity_bytes) == (Fits.YES, 60 * GIB)
    learnt = learnt_from([out_of_memory(build, candidates[0], told)], A100)
    assert (learnt.trials, learnt.out_of_memory) == (0, 1)
    assert learnt.reserved.low == RESERVED.low
    assert 1.4 < learnt.reserved.high < 60 / 40, "it needed what there is beside a context, at least"
    warned = Judge(facts=on_a100, request=build.request(), learnt=learnt)
    again = warned.estimate(prediction(40 * GIB), candidates[0])
    assert again.fits is Fits.TOO_CLOSE
    assert again.high_bytes == pytest.approx(60 * GIB, rel=0.001)
    assert warned.estimate(prediction(20 * GIB), candidates[0]).fits is Fits.YES


def test_what_ran_out_of_memory_counts_as_no_less_than_the_worst_that_was_measured(
    build, candidates: list[Candidate], on_a100: StudyFacts
) -> None:
    told = Judge(facts=on_a100, request=build.request()).estimate(prediction(40 * GIB), candidates[0])
    exact = measured(build, candidates[0], told, peak_reserved_bytes=40 * GIB)
    worst = measured(build, candidates[0], told, peak_reserved_bytes=58 * GIB)
    failed = out_of_memory(build, candidates[0], replace(told, capacity_bytes=50 * GIB))
    assert learnt_from([exact] * 39, A100).reserved.high == 1.0
    assert learnt_from([exact] * 37 + [worst, failed], A100).reserved.high == pytest.approx(58 / 40)
    alone = learnt_from([exact] * 37 + [failed] * 2, A100).reserved
    assert 1.15 < alone.high < 50 / 40
    assert alone.calibrated


def test_what_was_told_not_to_fit_or_met_others_teaches_nothing_by_failing(
    build, candidates: list[Candidate], on_a100: StudyFacts
) -> None:
    judge = Judge(facts=on_a100, request=build.request())
    large = out_of_memory(build, candidates[0], judge.estimate(prediction(59 * GIB), candidates[0]))
    failed = out_of_memory(build, candidates[0], judge.estimate(prediction(40 * GIB), candidates[0]))
    busy = replace(failed, measurement=Measurement(disturbances=("another program held memory",)))
    old = replace(failed, estimate=replace(failed.estimate, capacity_bytes=None))
    two = spread(candidates[0], processes=2)
    team = out_of_memory(build, two, judge.estimate(prediction(20 * GIB), two))
    assert learnt_from([large, busy, old, team], A100) == learnt_from([], A100)


def test_what_outgrew_its_limit_on_a_cpu_held_that_much_beside_its_tensors(
    build, candidates: list[Candidate]
) -> None:
    facts, request = build.facts(), build.request(memory_limit_bytes=GIB)
    lora = next(c for c in candidates if c.adapter.rank)
    told = Judge(facts=facts, request=request).estimate(prediction(GIB // 2), lora)
    failed = out_of_memory(build, lora, told)
    assert learnt_from([failed], None).host_overheads == (GIB // 2,)
    light = measured(build, lora, told, peak_tensor_bytes=GIB // 2, peak_process_bytes=GIB // 2 + GIB // 4)
    learnt = learnt_from([light, failed], None)
    assert learnt.host_overheads == (GIB // 4, GIB // 2)
    heavy = measured(build, lora, told, peak_tensor_bytes=GIB // 4, peak_process_bytes=GIB)
    assert learnt_from([heavy, failed], None).host_overheads == (3 * GIB // 4,) * 2
    again = Judge(facts=facts, request=request, learnt=learnt).estimate(prediction(GIB // 2), lora)
    assert (
        again.peak_process_bytes
        > Judge(facts=facts, request=request, learnt=learnt_from([light], None))
        .estimate(prediction(GIB // 2), lora)
        .peak_process_bytes
    )
    hopeless = replace(told, peak_tensor_bytes=2 * GIB)
    assert learnt_from([out_of_memory(build, lora, hopeless)], None).host_overheads == ()


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


def spread(candidate: Candidate, **settings: Any) -> Candidate:
    return replace(candidate, level=replace(candidate.level, **settings))


def test_ranks_of_a_gpu_are_told_one_at_a_time(
    build, candidates: list[Candidate], on_a100: StudyFacts
) -> None:
    judge = Judge(facts=on_a100, request=build.request())
    alone = judge.estimate(prediction(20 * GIB), candidates[0])
    told = judge.estimate(prediction(20 * GIB), spread(candidates[0], processes=4))
    assert told.peak_allocated_bytes == alone.peak_allocated_bytes
    assert told.peak_device_bytes > alone.peak_device_bytes  # NCCL's buffers
    assert told.step_tokens == 4 * alone.step_tokens
    assert told.tokens_per_s == pytest.approx(4 * alone.tokens_per_s)
    assert (told.rank_host_bytes, told.host_bytes) == (None, None)


def test_what_is_offloaded_has_to_be_on_the_host(
    build, candidates: list[Candidate], on_a100: StudyFacts
) -> None:
    judge = Judge(facts=on_a100, request=build.request())
    far = spread(candidates[0], processes=4, zero_stage=2, offload="optimizer")
    memory = on_a100.hardware.host.ram_total_bytes
    little, much = (
        judge.estimate(replace(prediction(20 * GIB), host_bytes=size), far)
        for size in (memory // 4, memory // 4 + 1)
    )
    assert (little.fits, little.rank_host_bytes, little.host_bytes) == (Fits.YES, memory // 4, memory)
    assert (much.fits, much.host_bytes) == (Fits.NO, memory + 4)
    assert much.reason.endswith("on the host")


def test_ranks_on_a_cpu_share_its_memory(build, candidates: list[Candidate]) -> None:
    lora = next(c for c in candidates if c.adapter.rank)
    facts, request = build.facts(), build.request(memory_limit_bytes=GIB)
    judge = Judge(facts=facts, request=request)
    size = int(0.7 * GIB)
    assert judge.estimate(prediction(size), lora).fits is None
    told = judge.estimate(prediction(size), spread(lora, processes=2))
    assert (told.fits, told.peak_tensor_bytes) == (Fits.NO, size)
    assert told.low_bytes == pytest.approx(2 * judge.estimate(prediction(size), lora).low_bytes, abs=2)
    assert judge.enough_bytes(spread(lora, processes=2)) < size < judge.enough_bytes(lora)
    # What is offloaded stays there.
    half = replace(prediction(size // 2), host_bytes=size // 2)
    far = judge.estimate(half, spread(lora, processes=2, zero_stage=2, offload="optimizer"))
    assert far.peak_tensor_bytes == 2 * (size // 2)
    assert half.taken_bytes(on_cuda=True) == size // 2
    assert half.taken_bytes(on_cuda=False) == 2 * (size // 2)


def test_buckets_that_are_not_filled_are_allocated_and_not_held(build, candidates: list[Candidate]) -> None:
    lora = next(c for c in candidates if c.adapter.rank)
    judge = Judge(facts=build.facts(), request=build.request())
    size, bucket = 4 * GIB, 4 * 500_000_000
    whole, divided = (
        judge.estimate(prediction(size), each)
        for each in (spread(lora, processes=2), spread(lora, processes=2, zero_stage=2))
    )
    assert divided.peak_tensor_bytes == whole.peak_tensor_bytes == size
    assert whole.low_bytes - divided.low_bytes == pytest.approx(2 * 0.97 * bucket, rel=0.01)


def test_processes_beside_each_other_each_hold_libraries(build, candidates: list[Candidate]) -> None:
    lora = next(c for c in candidates if c.adapter.rank)
    facts, request = build.facts(), build.request()
    told = Judge(facts=facts, request=request).estimate(prediction(GIB), spread(lora, processes=2))
    found = {"peak_tensor_bytes": GIB, "peak_process_bytes": 2 * GIB + GIB // 2}
    learnt = learnt_from([measured(build, spread(lora, processes=2), told, **found)], None)
    assert learnt.host_overheads == (GIB // 4,)
    again = Judge(facts=facts, request=request, learnt=learnt).estimate(
        prediction(GIB), spread(lora, processes=2)
    )
    assert again.peak_process_bytes == 2 * GIB + GIB // 2


def test_several_processes_teach_nothing_of_one_s_speed(
    build, candidates: list[Candidate], on_a100: StudyFacts
) -> None:
    judge = Judge(facts=on_a100, request=build.request())
    two = spread(candidates[0], processes=2)
    told = judge.estimate(prediction(20 * GIB), two)
    slow = measured(build, two, told, tokens_per_s=told.tokens_per_s / 3)
    assert learnt_from([slow] * 30, A100).efficiency == START
