"""Who is as good as the best, in what is recommended and under other names."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rankwise.errors import NothingFits
from rankwise.optimizer.domain import HeldoutScores, Objective, Outcome, Relation, Rung
from rankwise.optimizer.scorer import recommend

GIB = 2**30
ROWS = 300


def learnt(build, candidate, number, loss, *, seeds=2, noise=0.003, speed=1000.0, memory=GIB, **figures):
    """A probe and trainings of a candidate, with rows that are alike for all candidates."""
    rows = random.Random(0)
    hardness = [rows.gauss(0.0, 0.2) for _ in range(ROWS)]
    chance = random.Random(f"{candidate.id}{number}")
    trials = [
        build.trial(candidate, number, tokens_per_s=speed, step_s_mean=100 / speed, peak_process_bytes=memory)
    ]
    for replicate in range(seeds):
        level = loss * (1 + chance.gauss(0.0, noise))
        scores = HeldoutScores(
            losses=tuple(level + each + chance.gauss(0.0, 0.02) for each in hardness), items=(1,) * ROWS
        )
        trial = build.trial(
            candidate, number + 1 + replicate, rung=Rung.TRAIN, heldout_loss=scores.loss, **figures
        )
        trials.append(replace(trial, heldout=scores, plan=replace(trial.plan, replicate=replicate)))
    return trials


def chosen(build, trials, **request):
    return recommend(build.study(**request), trials, wall_s=100.0, measured_s=60.0, stopped="enough was seen")


def test_of_those_that_cannot_be_told_apart_the_faster_wins(build, candidates):
    trials = [
        *learnt(build, candidates[0], 1, 0.500, speed=1000.0),
        *learnt(build, candidates[1], 11, 0.501, speed=2000.0),
        *learnt(build, candidates[2], 21, 0.600, speed=9000.0),
    ]
    found = chosen(build, trials)
    assert found.candidate == candidates[1]
    assert [scored.is_as_good for scored in found.ranking] == [True, True, False]
    assert {len(scored.replicates) for scored in found.ranking} == {2}
    relations = {each.trial_id: each.relation for each in found.comparisons}
    assert relations == {"trial-2": Relation.NO_DIFFERENCE, "trial-22": Relation.BETTER}
    assert any("no difference in held-out loss found at this budget" in reason for reason in found.reasons)
    assert any("2 of 3 trained configurations that learnt enough" in reason for reason in found.reasons)
    assert found.stopped == "enough was seen"


def test_single_seeds_tell_nothing(build, candidates):
    """What a seed does is a guess then, and intervals are hundreds of losses wide."""
    trials = [
        *learnt(build, candidates[0], 1, 0.500, seeds=1),
        *learnt(build, candidates[1], 11, 0.501, seeds=1, speed=2000.0),
        *learnt(build, candidates[2], 21, 0.600, seeds=1),
    ]
    found = chosen(build, trials)
    assert {each.relation for each in found.comparisons} == {Relation.UNKNOWN}
    assert all(each.low < 0 < each.high for each in found.comparisons)
    assert any("which learnt more is not known: held-out loss +0.00" in reason for reason in found.reasons)
    assert not any("no difference in held-out loss" in reason for reason in found.reasons)
    assert found.candidate == candidates[1], "so close, and twice as fast"


def test_every_comparison_has_an_interval_that_holds_the_difference(build, candidates):
    trials = [*learnt(build, candidates[0], 1, 0.5), *learnt(build, candidates[1], 11, 0.6)]
    (comparison,) = chosen(build, trials).comparisons
    assert comparison.low < comparison.difference < comparison.high
    assert comparison.low < -0.1 < comparison.high


def test_several_are_recommended_under_names_of_their_own(build, candidates):
    trials = [
        *learnt(build, candidates[0], 1, 0.50, speed=1000.0, memory=4 * GIB),
        *learnt(build, candidates[1], 11, 0.60, speed=2000.0, memory=3 * GIB),
        *learnt(build, candidates[2], 21, 0.70, speed=500.0, memory=GIB),
    ]
    named = {each.name: each for each in chosen(build, trials).named}
    assert {name: each.trial_id for name, each in named.items()} == {
        "balanced": "trial-2",
        "best quality": "trial-2",
        "fastest": "trial-12",
        "smallest": "trial-22",
    }
    assert named["balanced"].reason.endswith("the recommended one.")
    assert "100.0% faster, 25.0% less memory, held-out loss 0.59" in named["fastest"].reason


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"objective": Objective.BALANCED}, 0),
        ({"objective": Objective.QUALITY}, 0),
        ({"objective": Objective.SPEED}, 2),
        ({"objective": Objective.COST}, 1),
        ({"objective": Objective.SPEED, "quality_within": 0.05}, 1),
        ({"objective": Objective.BALANCED, "quality_within": 0.5}, 2),
    ],
)
def test_objectives_and_a_limit_on_quality_decide(build, candidates, request_, expected):
    trials = [
        *learnt(build, candidates[0], 1, 0.500, speed=1000.0, seeds=8, noise=0.001),
        *learnt(build, candidates[1], 11, 0.512, speed=1500.0, seeds=8, noise=0.001),
        *learnt(build, candidates[2], 21, 0.600, speed=4000.0, seeds=8, noise=0.001),
    ]
    assert chosen(build, trials, **request_).candidate == candidates[expected]


def test_a_limit_on_the_time_to_finish_is_kept(build, candidates):
    trials = [
        *learnt(build, candidates[0], 1, 0.5, speed=1000.0),
        *learnt(build, candidates[1], 11, 0.6, speed=2000.0),
    ]
    free = chosen(build, trials, price_per_hour=3.6)
    assert free.candidate == candidates[0]
    assert free.finish.seconds == pytest.approx(free.finish.steps * 0.1)
    assert free.finish.cost == pytest.approx(free.finish.seconds / 1000)
    hurried = chosen(build, trials, finish_limit_s=free.finish.seconds - 1)
    assert hurried.candidate == candidates[1]
    with pytest.raises(
        NothingFits, match=r"nothing finishes within .* h: the fastest of 2 configurations"
    ) as caught:
        chosen(build, trials, finish_limit_s=1.0)
    assert "fewer epochs" in caught.value.next_step


def test_shorter_trainings_and_other_rates_do_not_compete(build, candidates):
    higher = replace(candidates[0], learning_rate=10 * candidates[0].learning_rate)
    sweep = learnt(build, higher, 31, 0.1, seeds=1)[1:]
    short = [replace(trial, plan=replace(trial.plan, train_steps=25)) for trial in sweep]
    trials = [*learnt(build, candidates[0], 1, 0.5), *learnt(build, candidates[1], 11, 0.6), *short]
    found = chosen(build, trials)
    assert [scored.trial_id for scored in found.ranking] == ["trial-2", "trial-12"]


def test_a_rate_that_diverges_does_not_condemn_the_shape(build, candidates):
    higher = replace(candidates[0], learning_rate=10 * candidates[0].learning_rate)
    trials = [
        *learnt(build, candidates[0], 1, 0.5),
        build.trial(higher, 9, rung=Rung.TRAIN, outcome=Outcome.DIVERGED),
    ]
    assert chosen(build, trials).candidate == candidates[0]


def test_a_metric_of_the_users_own_decides_in_place_of_the_loss(build, candidates):
    trials = [
        *learnt(build, candidates[0], 1, 0.5, own_metric=0.70, own_loss=-0.70),
        *learnt(build, candidates[1], 11, 0.6, own_metric=0.80, own_loss=-0.80),
    ]
    found = chosen(build, trials)
    assert found.candidate == candidates[1]
    assert found.evidence.own_metric == pytest.approx(0.80)
    (comparison,) = found.comparisons
    assert comparison.difference == pytest.approx(-0.10)
    assert comparison.relation is Relation.BETTER


@pytest.mark.parametrize(("gpus", "devices"), [(0, 1), (2, 2)])
def test_each_device_is_paid_for(build, candidates, gpus, devices):
    spread = replace(candidates[0], level=replace(candidates[0].level, processes=2))
    facts = build.facts(hardware=build.hardware(gpus=gpus))
    found = chosen(build, learnt(build, spread, 1, 0.5, speed=1000.0), facts=facts, price_per_hour=3.6)
    assert found.finish.cost == pytest.approx(devices * found.finish.seconds / 1000)
