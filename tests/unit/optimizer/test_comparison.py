"""Only like is compared with like, by figures that all have."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rankwise.optimizer.comparison import (
    comparable_parts,
    comparable_trials,
    exceeds,
    memory_column,
    weighted_score,
)
from rankwise.optimizer.domain import Measurement, Outcome, Rung, Weights

GIB = 2**30


def test_a_training_takes_its_speed_from_the_probe_of_its_shape(build, candidates):
    probe = build.trial(candidates[0], 1, tokens_per_s=1234.0, peak_process_bytes=2 * GIB)
    other = build.trial(candidates[1], 2, tokens_per_s=999.0)
    training = build.trial(candidates[0], 3, rung=Rung.TRAIN, peak_process_bytes=3 * GIB, tokens_per_s=1.0)
    (compared,) = comparable_trials([probe, other, training], None)
    assert compared.trial is training
    assert compared.probe is probe
    assert compared.measurement.tokens_per_s == 1234.0
    assert compared.measurement.peak_process_bytes == 3 * GIB, "the larger of both has to fit"
    assert compared.measurement.heldout_loss == 0.5
    assert compared.measurement.measured_s == training.measurement.measured_s


def test_a_training_without_a_probe_keeps_its_own_figures(build, candidates):
    training = build.trial(candidates[0], 1, rung=Rung.TRAIN, tokens_per_s=7.0)
    (compared,) = comparable_trials([training], None)
    assert compared.measurement == training.measurement
    assert compared.probe is None


def test_probes_are_compared_where_no_training_succeeded(build, candidates):
    probes = [build.trial(candidate, number) for number, candidate in enumerate(candidates[:3], start=1)]
    diverged = build.trial(candidates[1], 4, rung=Rung.TRAIN, outcome=Outcome.DIVERGED)
    compared = comparable_trials([*probes, diverged], None)
    assert [each.trial.number for each in compared] == [1, 3]


@pytest.mark.parametrize("rung", list(Rung))
def test_a_shape_over_the_limit_is_out_at_whichever_rung_it_showed(build, candidates, rung):
    peaks = {Rung.PROBE: GIB, Rung.TRAIN: GIB, rung: 3 * GIB}
    trials = [
        build.trial(candidates[0], 1, rung=Rung.PROBE, peak_process_bytes=peaks[Rung.PROBE]),
        build.trial(candidates[0], 2, rung=Rung.TRAIN, peak_process_bytes=peaks[Rung.TRAIN]),
        build.trial(candidates[1], 3, peak_process_bytes=GIB),
    ]
    assert [each.trial.number for each in comparable_trials(trials, 2 * GIB)] == [3]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            [{"peak_device_bytes": 5, "peak_process_bytes": 1}, {"peak_process_bytes": 1}],
            "peak_process_bytes",
        ),
        ([{"peak_device_bytes": 5}, {"peak_device_bytes": 6}], "peak_device_bytes"),
        ([{"peak_process_bytes": 5, "peak_tensor_bytes": 1}, {"peak_tensor_bytes": 6}], "peak_tensor_bytes"),
        ([{"peak_process_bytes": 5}, {"peak_tensor_bytes": 6}], None),
    ],
)
def test_memory_is_compared_by_one_column_that_all_have(columns, expected):
    assert memory_column([Measurement(**each) for each in columns]) == expected


def test_parts_relate_to_the_best_and_need_figures_of_all():
    first = Measurement(tokens_per_s=100.0, peak_process_bytes=GIB, heldout_loss=0.5)
    second = Measurement(tokens_per_s=50.0, peak_process_bytes=4 * GIB, heldout_loss=0.5 + 0.05 * math.log(2))
    assert comparable_parts([first, second]) == [
        {"speed": 1.0, "memory": 1.0, "quality": 1.0},
        {"speed": 0.5, "memory": 0.25, "quality": pytest.approx(0.5)},
    ]
    assert comparable_parts([first, replace(second, heldout_loss=None)])[0].keys() == {"speed", "memory"}
    assert comparable_parts([first, replace(second, tokens_per_s=None)])[0].keys() == {"memory", "quality"}
    assert comparable_parts([]) == []


@pytest.mark.parametrize(
    ("parts", "weights", "expected"),
    [
        ({"speed": 1.0, "memory": 0.5}, (0.4, 0.2, 0.4), 100 * (0.4 + 0.1) / 0.6),
        ({"speed": 1.0, "memory": 0.5, "quality": 0.25}, (4, 2, 4), 60.0),
        ({"speed": 1.0, "memory": 0.5}, (0, 0, 1), 75.0),
        ({}, (1, 1, 1), 0.0),
    ],
    ids=["missing part", "only ratios matter", "no weighted part", "no part"],
)
def test_the_score_is_a_weighted_mean_of_what_there_is(parts, weights, expected):
    speed, memory, quality = weights
    assert weighted_score(parts, Weights(speed=speed, memory=memory, quality=quality)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("peak", "limit", "expected"), [(2, 1, True), (1, 1, False), (None, 1, False), (2, None, False)]
)
def test_unknown_memory_exceeds_no_limit(peak, limit, expected):
    assert exceeds(Measurement(peak_process_bytes=peak), limit) is expected
    assert exceeds(None, limit) is False
