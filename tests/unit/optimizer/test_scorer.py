"""Rankings, ties, the Pareto front, the classic formula, and a recommendation's reasons."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.optimizer.codec import from_json, to_json
from rankwise.optimizer.domain import (
    OBJECTIVE_WEIGHTS,
    Adapter,
    Method,
    Objective,
    Recommendation,
    Rung,
    Scoring,
)
from rankwise.optimizer.scorer import TIE_POINTS, Aim, recommend
from rankwise.optimizer.scorer import rank as rank_trials

GIB = 2**30
BALANCED = OBJECTIVE_WEIGHTS[Objective.BALANCED]


def rank(trials, **options):
    return rank_trials(trials, Aim(**{"weights": BALANCED, **options})).scored


def test_the_score_weighs_speed_memory_and_quality(build, candidates):
    trials = [
        build.trial(candidates[0], 1, tokens_per_s=1000.0, peak_process_bytes=2 * GIB),
        build.trial(candidates[1], 2, tokens_per_s=500.0, peak_process_bytes=GIB),
        build.trial(candidates[0], 3, rung=Rung.TRAIN, heldout_loss=0.7),
        build.trial(candidates[1], 4, rung=Rung.TRAIN, heldout_loss=0.4),
    ]
    ranking = rank(trials)
    assert [scored.trial_id for scored in ranking] == ["trial-4", "trial-3"]
    assert [scored.rank for scored in ranking] == [1, 2]
    quality = math.exp(-10 * 0.3 / 0.4)
    assert ranking[0].score == pytest.approx(50 * 0.5 + 5 + 45)
    assert ranking[1].score == pytest.approx(50 + 5 * 0.5 + 45 * quality)
    assert ranking[1].parts == pytest.approx({"speed": 1.0, "memory": 0.5, "quality": quality})
    assert all(scored.on_pareto_front for scored in ranking)
    assert rank(trials, weights=OBJECTIVE_WEIGHTS[Objective.SPEED])[0].trial_id == "trial-3"


def test_ties_go_to_the_smaller_configuration(build, candidates):
    trials = [
        build.trial(candidates[0], 1, tokens_per_s=1000.0, trainable_params=3000),
        build.trial(candidates[1], 2, tokens_per_s=995.0, trainable_params=1000),
        build.trial(candidates[2], 3, tokens_per_s=996.0, trainable_params=2000),
        build.trial(candidates[3], 4, tokens_per_s=500.0, trainable_params=1),
    ]
    ranking = rank(trials)
    assert [scored.number for scored in ranking] == [2, 3, 1, 4]
    assert [scored.tied_with_best for scored in ranking] == [True, True, True, False]


def test_a_tie_of_equal_size_goes_to_less_memory_then_to_the_lower_id(build, candidates):
    trials = [
        build.trial(candidates[0], 1, peak_process_bytes=1001 * 2**20),
        build.trial(candidates[1], 2, peak_process_bytes=1000 * 2**20),
        build.trial(candidates[2], 3, peak_process_bytes=1001 * 2**20),
    ]
    order = [scored.number for scored in rank(trials)]
    by_id = sorted((0, 2), key=lambda index: candidates[index].id)
    assert order == [2, *(index + 1 for index in by_id)]


def test_dominated_trials_are_off_the_pareto_front(build, candidates):
    trials = [
        build.trial(candidates[0], 1, tokens_per_s=1000.0, peak_process_bytes=2 * GIB),
        build.trial(candidates[1], 2, tokens_per_s=900.0, peak_process_bytes=GIB),
        build.trial(candidates[2], 3, tokens_per_s=900.0, peak_process_bytes=2 * GIB),
        build.trial(candidates[3], 4, tokens_per_s=900.0, peak_process_bytes=GIB),
    ]
    front = {scored.number: scored.on_pareto_front for scored in rank(trials)}
    assert front == {1: True, 2: True, 3: False, 4: True}


@settings(max_examples=50)
@given(data=st.data())
def test_rankings_are_consistent(build, candidates, data):
    figures = st.tuples(st.floats(1.0, 1e4), st.integers(1, 2**40), st.floats(0.0, 20.0))
    trials = [
        build.trial(
            candidate,
            number,
            rung=Rung.TRAIN,
            tokens_per_s=speed,
            peak_process_bytes=peak,
            heldout_loss=loss,
        )
        for number, candidate in enumerate(candidates, start=1)
        for speed, peak, loss in [data.draw(figures)]
    ]
    ranking = rank(trials)
    assert sorted(scored.number for scored in ranking) == [trial.number for trial in trials]
    assert all(0.0 <= part <= 1.0 for scored in ranking for part in scored.parts.values())
    best = max(scored.score for scored in ranking)
    assert ranking[0].score >= best - TIE_POINTS
    rest = [scored.score for scored in ranking if scored.score < best - TIE_POINTS]
    assert rest == sorted(rest, reverse=True)
    assert any(scored.on_pareto_front for scored in ranking)
    assert rank(trials[::-1]) == ranking


@pytest.mark.parametrize(
    ("memory_share", "bonus"), [(0.0, 0.0), (0.425, 25.0), (0.85, 50.0), (0.95, 50.0), (0.951, 0.0)]
)
def test_classic_memory_bonus(build, candidates, memory_share, bonus):
    trial = build.trial(candidates[0], 1, steps_per_s=2.0, peak_process_bytes=round(memory_share * 1e9))
    (scored,) = rank([trial], scoring=Scoring.CLASSIC, memory_limit_bytes=10**9)
    assert scored.parts["memory_bonus"] == pytest.approx(bonus)
    assert scored.score == pytest.approx(0.4 * 200.0 + 0.2 * bonus + 0.4 * scored.parts["quality"])


@pytest.mark.parametrize(
    ("method", "lora_rank", "target_set", "quality"),
    [
        (Method.FULL, None, "custom", 100.0),
        (Method.IA3, None, "key,value", 87.5),
        (Method.LORA, 64, "minimal", 99.25),
        (Method.LORA, 32, "full", 99.0),
        (Method.LORA, 32, "balanced", 98.75),
        (Method.LORA, 16, "full", 98.0),
        (Method.LORA, 16, "balanced", 98.0),
        (Method.LORA, 16, "minimal", 96.5),
        (Method.LORA, 8, "full", 93.5),
    ],
)
def test_classic_quality_is_the_table(build, candidates, method, lora_rank, target_set, quality):
    adapter = Adapter(method=method, rank=lora_rank, alpha=1.0, target_set=target_set)
    trial = build.trial(replace(candidates[0], adapter=adapter), 1)
    (scored,) = rank([trial], scoring=Scoring.CLASSIC, memory_limit_bytes=None, memory_total_bytes=2 * GIB)
    assert scored.parts["quality"] == quality
    assert scored.parts["throughput"] == 200.0


def test_classic_leaves_out_what_it_cannot_score(build, candidates):
    trials = [build.trial(candidates[0], 1, steps_per_s=None), build.trial(candidates[1], 2)]
    ranking = rank(trials, scoring=Scoring.CLASSIC, memory_total_bytes=2 * GIB)
    assert [scored.number for scored in ranking] == [2]


def test_a_recommendation_carries_its_evidence(build, candidates):
    trials = [
        build.trial(candidates[0], 1, tokens_per_s=1000.0),
        build.trial(candidates[1], 2, tokens_per_s=500.0),
        build.trial(candidates[0], 5, rung=Rung.TRAIN, heldout_loss=0.50),
        build.trial(candidates[1], 6, rung=Rung.TRAIN, heldout_loss=0.51),
    ]
    chosen = recommend(build.study(memory_limit_bytes=8 * GIB), trials, wall_s=100.0, measured_s=60.0)
    assert (chosen.trial_id, chosen.candidate) == ("trial-5", candidates[0])
    assert chosen.evidence.tokens_per_s == 1000.0
    assert chosen.evidence.heldout_loss == 0.5
    assert chosen.quality_measured
    assert chosen.overhead_share == pytest.approx(0.4)
    assert from_json(Recommendation, to_json(chosen)) == chosen
