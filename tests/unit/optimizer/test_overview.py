from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Estimate,
    Level,
    Measurement,
    Method,
    Outcome,
    Recipe,
    Rung,
    ScoredTrial,
    Trial,
    TrialPlan,
    TrialState,
)
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.overview import (
    CANNOT_FIT,
    LEARNT_LESS,
    NOT_TRIED,
    OVER_THE_LIMIT,
    WORSE_ADAPTER,
    WORSE_RATE,
    WORSE_SETTINGS,
    funnel,
    rate_sweeps,
)

LORA = Candidate(
    adapter=Adapter(method=Method.LORA, rank=8, alpha=16.0, targets=("q",)),
    level=Level(),
    recipe=Recipe(max_length=64),
    micro_batch=4,
    learning_rate=1e-3,
)
IA3 = replace(LORA, adapter=Adapter(method=Method.IA3, targets=("q",)))
FULL = replace(LORA, adapter=Adapter(method=Method.FULL))


def trial(
    number: int,
    candidate: Candidate,
    *,
    steps: int = 0,
    rate: float | None = None,
    outcome: Outcome | None = Outcome.OK,
    loss: float | None = None,
    peak_bytes: int = 100,
    replicate: int = 0,
) -> Trial:
    rated = candidate if rate is None else replace(candidate, learning_rate=rate)
    measurement = Measurement(tokens_per_s=10.0, peak_process_bytes=peak_bytes, heldout_loss=loss)
    return Trial(
        id=f"t{number}",
        study_id="s",
        number=number,
        plan=TrialPlan(
            candidate=rated,
            rung=Rung.TRAIN if steps else Rung.PROBE,
            train_steps=steps,
            replicate=replicate,
        ),
        state=TrialState.FINISHED if outcome else TrialState.RUNNING,
        outcome=outcome,
        measurement=measurement if outcome is Outcome.OK else None,
    )


def scored(each: Trial, rank: int = 1) -> ScoredTrial:
    return ScoredTrial(
        trial_id=each.id,
        number=each.number,
        rank=rank,
        score=1.0,
        parts={},
        on_pareto_front=True,
        tied_with_best=False,
        replicates=(each.id,),
    )


def test_nothing_is_told_of_a_study_without_trials() -> None:
    assert funnel([], {}, enumerated=None) == ()
    [enumerated, may_fit] = funnel([], {}, enumerated=7)
    assert (enumerated.candidates, may_fit.candidates, may_fit.left) == (7, 7, {NOT_TRIED: 7})


def test_each_stage_says_why_the_others_left() -> None:
    slow = replace(LORA, level=Level(gradient_checkpointing=True))
    never = replace(FULL, micro_batch=64)
    trials = [
        trial(1, LORA),
        trial(2, slow),
        trial(3, IA3),
        trial(4, FULL, outcome=Outcome.OOM),
        trial(5, replace(FULL, micro_batch=2), peak_bytes=900),
        trial(6, replace(FULL, micro_batch=1)),
        trial(7, LORA, steps=20, loss=0.5),
        trial(8, LORA, steps=20, rate=1e-2, loss=0.7),
        trial(9, LORA, steps=20, rate=1e-1, outcome=Outcome.DIVERGED),
        trial(10, IA3, steps=20, loss=0.8),
        trial(11, LORA, steps=80, loss=0.3),
    ]
    told = {never: Estimate(device="a CPU", fits=Fits.NO), LORA: Estimate(device="a CPU", fits=Fits.YES)}
    stages = funnel(trials, told, enumerated=50, ranking=[scored(trials[-1])], memory_limit_bytes=800)

    assert [(stage.name, stage.candidates, stage.adapters) for stage in stages] == [
        ("enumerated", 50, None),
        ("may fit", 49, None),
        ("probed", 6, 3),
        ("trained 20 steps", 4, 2),
        ("trained 80 steps", 1, 1),
        ("compared", 1, 1),
    ]
    assert [stage.left for stage in stages] == [
        {CANNOT_FIT: 1},
        {NOT_TRIED: 43},
        {WORSE_SETTINGS: 1, "ran out of memory": 1, OVER_THE_LIMIT: 1, WORSE_ADAPTER: 1},
        {WORSE_RATE: 1, "diverged": 1, LEARNT_LESS: 1},
        {},
        {},
    ]


def test_while_a_study_goes_on_nobody_has_left_its_last_rung() -> None:
    trials = [trial(1, LORA), trial(2, IA3), trial(3, FULL, outcome=Outcome.OOM)]
    [probed] = funnel(trials, {}, enumerated=None)
    assert probed.left == {"ran out of memory": 1}
    trials += [trial(4, LORA, steps=20, loss=0.5), trial(5, LORA, steps=20, rate=1e-2, outcome=None)]
    *_, trained = funnel(trials, {}, enumerated=None)
    assert trained.left == {"not ended": 1}


def test_seeds_are_one_candidate() -> None:
    trials = [trial(1, LORA, steps=20, loss=0.5), trial(2, LORA, steps=20, loss=0.5, replicate=1)]
    *_, trained, compared = funnel(trials, {}, enumerated=None, ranking=[scored(trials[0])])
    assert (trained.candidates, trained.left, compared.candidates) == (1, {}, 1)


@pytest.mark.parametrize(("longer", "kept"), [(None, 1e-2), (1e-3, 1e-3)])
def test_a_sweep_keeps_what_was_trained_longer_or_else_the_lowest(longer: float | None, kept: float) -> None:
    trials = [
        trial(1, LORA, steps=20, rate=1e-2, loss=0.4),
        trial(2, LORA, steps=20, rate=1e-3, loss=0.5),
        trial(3, LORA, steps=20, rate=1e-1, outcome=Outcome.DIVERGED),
        trial(4, IA3, steps=20, loss=0.6),
        *([trial(5, LORA, steps=80, rate=longer, loss=0.3)] if longer else []),
    ]
    [sweep] = rate_sweeps(trials)

    assert sweep.adapter == LORA.adapter
    assert [(point.learning_rate, point.heldout_loss) for point in sweep.points] == [
        (1e-3, 0.5),
        (1e-2, 0.4),
        (1e-1, None),
    ]
    assert (sweep.train_steps, sweep.kept) == (20, kept)
