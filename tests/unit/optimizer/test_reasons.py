"""The sentences give measured figures with their uncertainty, and say what was not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.errors import NothingFits
from rankwise.optimizer.domain import Estimate, Objective, Outcome, RankMeasurement, Rung, Scoring
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.scorer import recommend

GIB = 2**30


def test_the_reasons_in_full(build, candidates):
    trials = [
        build.trial(candidates[0], 1, tokens_per_s=1000.0, tokens_per_s_rel_halfwidth=0.02),
        build.trial(candidates[1], 2, tokens_per_s=500.0, tokens_per_s_rel_halfwidth=0.02),
        build.trial(candidates[2], 3),
        build.trial(candidates[3], 4, outcome=Outcome.OOM),
        build.trial(candidates[0], 5, rung=Rung.TRAIN, heldout_loss=0.50),
        build.trial(candidates[1], 6, rung=Rung.TRAIN, heldout_loss=0.51),
        build.trial(candidates[4], 7, rung=Rung.TRAIN, outcome=Outcome.DIVERGED),
        build.trial(candidates[5], 8, peak_process_bytes=9 * GIB),
    ]
    chosen = recommend(build.study(memory_limit_bytes=8 * GIB), trials, wall_s=100.0, measured_s=60.0)
    names = [candidate.describe() for candidate in candidates]
    assert chosen.reasons == (
        f"{names[0]} has the best score, 100.0 of 100 (speed 50%, memory 5%, quality 45%), "
        "among 2 trained configurations.",
        "Measured here: 1,000 tokens/s ± 2.0%, a peak of 1.00 GiB of process memory, "
        "held-out loss 0.5000 ± 0.0100 over 500 rows after 100 steps.",
        f"Against the runner-up, {names[1]}: 100.0% faster, as much memory, "
        "no difference in held-out loss found at this budget (-0.0100, -0.0378 to +0.0178).",
        "2 other configurations had speed and memory measured, but not quality: those figures and published "
        "results, a prior and no measurement, decided which were trained.",
        f"Ruled out, ran out of memory: {names[3]} (trial 4).",
        f"Ruled out, diverged: {names[4]} (trial 7).",
        f"Ruled out, above the limit of 8.00 GiB: {names[5]} (trial 8) at 9.00 GiB.",
    )


def test_without_trainings_the_reasons_say_that_quality_was_not_measured(build, candidates):
    trials = [build.trial(candidates[0], 1), build.trial(candidates[1], 2, tokens_per_s=2000.0)]
    chosen = recommend(build.study(), trials, wall_s=10.0, measured_s=5.0)
    assert chosen.trial_id == "trial-2"
    assert not chosen.quality_measured
    assert "speed 91%, memory 9%" in chosen.reasons[0]
    assert any("Quality was not measured" in reason for reason in chosen.reasons)


def test_what_a_dry_run_told_stands_beside_what_was_measured(build, candidates):
    told = Estimate(device="Some CPU", peak_tensor_bytes=GIB, low_bytes=GIB)
    hopeless = Estimate(device="Some CPU", fits=Fits.NO, reason="it needs at least 9.00 GiB of 8.00 GiB")
    trial = build.trial(candidates[0], 1, peak_tensor_bytes=GIB + 2**28)
    chosen = recommend(
        build.study(),
        [replace(trial, estimate=told)],
        {candidates[0]: told, candidates[1]: hopeless},
        wall_s=10.0,
        measured_s=5.0,
    )
    assert chosen.estimate == told
    assert (
        "A dry run had told, before anything was run: 1.00 GiB in live tensors, and 1.25 GiB were measured."
    ) in chosen.reasons
    assert (
        f"Ruled out by a dry run, and not run: {candidates[1].describe()} "
        "(it needs at least 9.00 GiB of 8.00 GiB)."
    ) in chosen.reasons


def test_what_each_process_held_is_told(build, candidates):
    ranks = (
        RankMeasurement(rank=0, peak_tensor_bytes=GIB, communication_share=0.125),
        RankMeasurement(rank=1, peak_tensor_bytes=2 * GIB, communication_share=0.25),
    )
    chosen = recommend(
        build.study(), [build.trial(candidates[0], 1, ranks=ranks)], wall_s=10.0, measured_s=5.0
    )
    assert (
        "Of 2 processes rank 1 held most, 2.00 GiB, and none less than 1.00 GiB; they talked to each other, "
        "or waited, for 12% to 25% of a step."
    ) in chosen.reasons


def test_nothing_that_was_estimated_fits(build, candidates):
    hopeless = Estimate(device="Some CPU", fits=Fits.NO, reason="it needs too much", low_bytes=9 * GIB)
    with pytest.raises(NothingFits) as caught:
        recommend(
            build.study(memory_limit_bytes=8 * GIB), [], {candidates[0]: hopeless}, wall_s=1.0, measured_s=0.0
        )
    assert str(caught.value).startswith("nothing fits. Ruled out by a dry run, and not run: ")
    assert "raise the memory limit above 9.00 GiB" in caught.value.next_step


def test_a_rank_that_exceeds_the_matrices_is_said_to(build, candidates):
    lora = next(candidate for candidate in candidates if candidate.adapter.rank)
    wide = replace(lora, adapter=replace(lora.adapter, rank=10_000))
    reasons = recommend(build.study(), [build.trial(wide, 1)], wall_s=10.0, measured_s=5.0).reasons
    assert any("Rank 10000 exceeds the smaller side" in reason for reason in reasons)


def test_the_reasons_say_when_memory_is_compared_by_tensors(build, candidates):
    tensors = {"peak_tensor_bytes": GIB}
    trials = [
        build.trial(candidates[0], 1, **tensors),
        build.trial(candidates[1], 2, peak_process_bytes=None, **tensors),
    ]
    reasons = recommend(build.study(), trials, wall_s=10.0, measured_s=5.0).reasons
    assert any("live tensors" in reason and "because" in reason for reason in reasons)


def test_a_clear_difference_in_loss_is_given_with_its_error(build, candidates):
    trials = [
        build.trial(candidates[0], 1, rung=Rung.TRAIN, heldout_loss=0.3),
        build.trial(candidates[1], 2, rung=Rung.TRAIN, heldout_loss=0.6),
    ]
    reasons = recommend(build.study(), trials, wall_s=10.0, measured_s=5.0).reasons
    assert any("held-out loss lower by 0.3000 (-0.3278 to -0.2722)" in reason for reason in reasons)


def test_nothing_fits_says_what_was_tried_and_what_would_help(build, candidates):
    trials = [
        build.trial(candidates[0], 1, outcome=Outcome.OOM),
        build.trial(candidates[1], 2, peak_process_bytes=3 * GIB),
    ]
    with pytest.raises(NothingFits) as caught:
        recommend(build.study(memory_limit_bytes=2 * GIB), trials, wall_s=10.0, measured_s=0.0)
    assert "none of 2 trials" in caught.value.message
    assert candidates[0].describe() in caught.value.message
    assert "above the limit of 2.00 GiB" in caught.value.message
    assert caught.value.next_step.startswith(
        "raise the memory limit to 3.15 GiB (the smallest measured peak is 3.00 GiB), shorten max_length"
    )


def test_where_no_peak_was_measured_the_limit_is_doubled(build, candidates):
    trials = [build.trial(candidates[0], 1, outcome=Outcome.OOM)]
    with pytest.raises(NothingFits) as caught:
        recommend(build.study(memory_limit_bytes=2 * GIB), trials, wall_s=10.0, measured_s=0.0)
    assert "no trial got far enough to say to what: try 4.00 GiB" in caught.value.next_step


def test_a_limit_that_nobody_set_cannot_be_raised(build, candidates):
    trials = [build.trial(candidates[0], 1, outcome=Outcome.OOM)]
    with pytest.raises(NothingFits) as caught:
        recommend(build.study(), trials, wall_s=10.0, measured_s=0.0)
    assert "limit" not in caught.value.next_step
    assert "take a smaller model" in caught.value.next_step


@pytest.mark.parametrize(
    ("outcomes", "next_step"),
    [([], "allow a larger budget"), ([Outcome.CRASHED], "read the logs of the trials that failed")],
)
def test_nothing_fits_without_want_of_memory(build, candidates, outcomes, next_step):
    trials = [build.trial(candidates[0], n, outcome=outcome) for n, outcome in enumerate(outcomes, start=1)]
    with pytest.raises(NothingFits) as caught:
        recommend(build.study(), trials, wall_s=1.0, measured_s=0.0)
    assert caught.value.next_step == next_step


def test_ties_and_the_classic_formula_are_named(build, candidates):
    trials = [build.trial(candidate, number) for number, candidate in enumerate(candidates[:3], start=1)]
    verdict = recommend(build.study(), trials, wall_s=1.0, measured_s=1.0).reasons[0]
    assert "is the smallest of 3 tied for the best score, 100.0 of 100" in verdict
    classic = recommend(build.study(scoring=Scoring.CLASSIC), trials, wall_s=1.0, measured_s=1.0).reasons[0]
    assert "classic formula; its quality is a table by adapter, not a measurement" in classic


def test_a_single_success_is_not_called_the_best(build, candidates):
    trials = [build.trial(candidates[0], 1), build.trial(candidates[0], 2, rung=Rung.TRAIN)]
    alone = "is the only trained configuration that succeeded: there is none to compare it with"
    verdict = recommend(build.study(), trials, wall_s=1.0, measured_s=1.0).reasons[0]
    assert verdict.endswith(f"{alone}, and its score of 100.0 says nothing.")
    absolute = build.study(scoring=Scoring.CLASSIC, memory_limit_bytes=2 * GIB)
    assert recommend(absolute, trials, wall_s=1.0, measured_s=1.0).reasons[0].endswith(f"{alone}.")


def test_a_difference_in_speed_within_its_error_is_none(build, candidates):
    trials = [
        build.trial(candidates[0], 1, tokens_per_s=1000.0, tokens_per_s_rel_halfwidth=0.03),
        build.trial(candidates[1], 2, tokens_per_s=970.0, tokens_per_s_rel_halfwidth=0.04),
    ]
    reasons = recommend(build.study(), trials, wall_s=1.0, measured_s=1.0).reasons
    assert "no difference in speed beyond the measurement's ± 5.0%" in reasons[2]


@pytest.mark.parametrize(("loss", "warned"), [(0.69, True), (0.67, True), (0.60, False)])
def test_a_classifier_that_learnt_nothing_is_called_that(build, candidates, loss, warned):
    study = build.study()
    dataset = replace(study.facts.dataset, label_counts={"no": 50, "yes": 50})
    study = replace(study, facts=replace(study.facts, dataset=dataset))
    trials = [build.trial(candidates[0], 1, rung=Rung.TRAIN, heldout_loss=loss, heldout_loss_se=0.02)]
    reasons = recommend(study, trials, wall_s=10.0, measured_s=5.0).reasons
    assert any("Nothing was learnt" in reason for reason in reasons) is warned


FLAT = tuple(2.0 + 0.1 * (-1) ** step for step in range(20))
FALLING = tuple(2.0 - 0.02 * step for step in range(20))
FALLEN_AT_ONCE = (5.0, 3.0, *(2.0 + 0.1 * (-1) ** step for step in range(18)))


@pytest.mark.parametrize(
    ("losses", "heldout_loss", "warned"),
    [
        (FLAT, 2.1, True),
        (FLAT, 1.9, False),
        (FALLING, 2.1, False),
        (FALLEN_AT_ONCE, 2.1, False),
        ((None, *FLAT), 2.1, True),
        (FLAT[:8], 2.1, False),
        ((), 2.1, False),
    ],
    ids=["flat", "held-out fell", "falling", "fallen at once", "one not finite", "too few", "none kept"],
)
def test_a_language_model_that_shows_no_progress_is_called_that(
    build, candidates, losses, heldout_loss, warned
):
    figures = {"heldout_loss": heldout_loss, "heldout_loss_se": 0.02, "train_losses": losses}
    trials = [build.trial(candidates[0], 1, rung=Rung.TRAIN, **figures)]
    reasons = recommend(build.study(), trials, wall_s=10.0, measured_s=5.0).reasons
    assert any(reason.startswith("No learning could be seen") for reason in reasons) is warned


def test_a_third_that_learnt_more_is_named(build, candidates):
    trials = []
    for number, (loss, speed) in enumerate(((0.50, 1000.0), (0.51, 990.0), (0.30, 100.0)), start=1):
        trials += [
            build.trial(candidates[number], 2 * number - 1, tokens_per_s=speed),
            build.trial(candidates[number], 2 * number, rung=Rung.TRAIN, heldout_loss=loss),
        ]
    study = build.study(objective=Objective.SPEED)
    reasons = recommend(study, trials, wall_s=10.0, measured_s=5.0).reasons
    assert any(
        reason.startswith(f"{candidates[3].describe()} (trial 6) learnt more (held-out loss higher by 0.2000")
        for reason in reasons
    )


def test_disturbed_and_reused_measurements_are_said_to_be(build, candidates):
    noise = "other programs took 1.2 of 2 cores"
    trials = [
        build.trial(candidates[0], 1, disturbances=(f"{noise}.",)),
        replace(build.trial(candidates[1], 2), reused_from="trial-0"),
    ]
    reasons = " ".join(recommend(build.study(), trials, wall_s=10.0, measured_s=5.0).reasons)
    assert "Speed and memory of 1 compared trial were measured while something else disturbed" in reasons
    assert f"each time that it was tried: {noise}." in reasons
    assert ".." not in reasons
    assert "1 trial had been measured in this environment before and was not run again." in reasons


def test_random_weights_explain_why_quality_is_missing(build, candidates):
    facts = build.facts(model=replace(build.bert(), has_weights=False), tokens_estimated=True)
    trials = [build.trial(candidates[0], 1), build.trial(candidates[1], 2)]
    chosen = recommend(build.study(facts=facts), trials, wall_s=10.0, measured_s=5.0)
    assert not chosen.quality_measured
    assert any("only the model's configuration is at hand" in reason for reason in chosen.reasons)
    assert any("four characters a token" in reason for reason in chosen.reasons)
