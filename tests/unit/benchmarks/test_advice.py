"""The tabular benchmark: banks on disk, replays of studies on them, what choices are held against."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rankwise.optimizer.domain import Objective, Outcome, Rung, TrialPlan

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
DATA = BENCHMARKS / "advice_data"
TASKS = sorted(path.stem for path in DATA.glob("*.npz"))
ROWS = 40
MOST_BYTES = 12 * 2**20


@pytest.fixture
def parts() -> Iterator[Any]:
    """The benchmark's modules."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from advice_parts import bank, judging, page, replay, strategies

        yield SimpleNamespace(bank=bank, judging=judging, page=page, replay=replay, strategies=strategies)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def made(parts: Any) -> Any:
    """A bank of two adapters at two rates with losses of our own: ``full`` at its higher rate is the best."""
    known = parts.bank.load(DATA, "patch-tst")
    rates = {name: parts.judging.own_rate(known, name) for name in ("full", "LoRA r16")}
    losses = {("full", 0): 2.0, ("full", 1): 1.0, ("LoRA r16", 0): 1.1, ("LoRA r16", 1): math.inf}
    rng = np.random.default_rng(0)
    trained = []
    for (name, step), loss in losses.items():
        for steps in known.rungs:
            for replicate in range(3):
                is_ok = math.isfinite(loss)
                row_losses = loss + 0.01 * replicate + 0.001 * rng.normal(size=ROWS)
                trained.append(
                    parts.bank.Trained(
                        adapter=name,
                        rate=float(f"{rates[name] * 10 ** (step / 2):.1e}"),
                        steps=steps,
                        replicate=replicate,
                        outcome="ok" if is_ok else "diverged",
                        reason=None if is_ok else "loss became nan",
                        metric=None,
                        build_s=0.5,
                        steps_s=99.0,
                        evaluation_s=2.0,
                        train_losses=np.linspace(3, loss if is_ok else 4, steps, dtype=np.float32),
                        row_losses=row_losses.astype(np.float32) if is_ok else np.zeros(0, np.float32),
                    )
                )
    batch = known.facts.recipe.effective_batch
    probed = [
        parts.bank.Probed(
            adapter=name,
            checkpointing=False,
            micro_batch=batch // share,
            outcome="ok",
            wall_s=1.0,
            measurement={
                "samples_per_s": speed / share,
                "steps_per_s": speed / share / batch,
                "step_s_mean": batch * share / speed,
                "tokens_per_s_rel_halfwidth": 0.02,
                "tokens_per_s": None,
                "measured_s": 0.5,
                "peak_process_bytes": 10**8,
                "trainable_params": 1000,
            },
        )
        for name, speed in (("full", 100.0), ("LoRA r16", 200.0))
        for share in (1, 2, 4)
    ]
    return parts.bank.Bank(
        name="made",
        request=known.request,
        facts=known.facts,
        rungs=known.rungs,
        grid=("full", "LoRA r16"),
        adapters={name: known.adapters[name] for name in ("full", "LoRA r16")},
        items=np.ones(ROWS, np.float32),
        trained=trained,
        probed=probed,
    )


def plan(
    parts: Any, bank: Any, adapter: str, *, steps: int, replicate: int = 0, rate: float | None = None
) -> TrialPlan:
    """A training of the adapter's first shape."""
    candidate = parts.replay.shapes(bank, bank.adapters[adapter])[0]
    if rate is not None:
        candidate = replace(candidate, learning_rate=rate)
    return TrialPlan(candidate=candidate, rung=Rung.TRAIN, train_steps=steps, replicate=replicate)


def test_a_bank_survives_the_disk(parts: Any, made: Any, tmp_path: Path) -> None:
    made.facts = replace(made.facts, tokens_path="/home/somebody/build/advice/tokens")
    made.save(tmp_path, below="build/advice")
    again = parts.bank.load(tmp_path, "made")
    assert again.facts.tokens_path == "build/advice/tokens"
    assert again.trained.keys() == made.trained.keys()
    for key, trained in made.trained.items():
        assert again.loss(again.trained[key]) == made.loss(trained)
        np.testing.assert_array_equal(again.trained[key].train_losses, trained.train_losses)
    assert again.best_truth() == made.best_truth()
    assert again.probed == made.probed


def test_of_others_the_truth_is_the_mean_over_rows_and_three_seeds(made: Any) -> None:
    name, rate, loss = made.best_truth()
    assert (name, rate) == ("full", made.rates("full")[1])
    assert loss == pytest.approx(1.01, abs=1e-3)
    assert made.truth("LoRA r16", made.rates("LoRA r16")[1]) == math.inf


def test_seeds_that_no_study_sees_are_the_truth_where_there_are_enough(parts: Any, made: Any) -> None:
    known = made.trained["full", made.rates("full")[0], made.steps, 0]
    unseen = range(parts.bank.SEEDS_SEEN, parts.bank.SEEDS_SEEN + parts.bank.LEAST_OF_TRUTH)
    more = [replace(known, replicate=each, row_losses=np.full(ROWS, 1.5, np.float32)) for each in unseen]

    def with_these(trained: list[Any]) -> Any:
        return parts.bank.Bank(**{**vars_of(made), "trained": [*made.trained.values(), *trained]})

    assert with_these(more[:-1]).truth("full", known.rate) == made.truth("full", known.rate)
    told = with_these(more)
    assert told.truth("full", known.rate) == pytest.approx(1.5)
    assert set(told.seeds_of_truth("full", known.rate)) == set(unseen)
    assert len(told.losses("full", known.rate)) == parts.bank.SEEDS
    made.add(told)
    assert made.trained.keys() == told.trained.keys()
    told.items = told.items[:-1]
    with pytest.raises(SystemExit, match="other rows"):
        made.add(told)


def vars_of(bank: Any) -> dict[str, Any]:
    """What a bank was made of, but for its trainings."""
    names = ("name", "request", "facts", "rungs", "grid", "adapters", "items")
    return {**{name: getattr(bank, name) for name in names}, "probed": bank.probed.values()}


def test_a_replayed_training_sees_some_rows_and_costs_its_time(parts: Any, made: Any) -> None:
    replay = parts.replay.Replay(made, 1)
    trial = replay.run(plan(parts, made, "full", steps=made.steps))
    assert trial.outcome is Outcome.OK
    assert trial.measurement is not None
    assert trial.heldout is not None
    assert trial.measurement.heldout_rows == len(trial.heldout.losses) == ROWS // 2
    assert trial.measurement.heldout_loss == pytest.approx(trial.heldout.loss)
    step_s = made.facts.recipe.effective_batch / 100.0
    assert trial.wall_s == pytest.approx(0.5 + made.steps * step_s + 2.0 / 2)
    assert replay.spent_s == trial.wall_s
    again = parts.replay.Replay(made, 1).run(plan(parts, made, "full", steps=made.steps))
    assert again == trial
    assert set(parts.replay.Replay(made, 2).rows) != set(replay.rows)


def test_whole_trainings_come_in_another_order_of_seeds(parts: Any, made: Any) -> None:
    firsts = set()
    for seed in range(20):
        replay = parts.replay.Replay(made, seed)
        rate = made.rates("full")[0]
        found = [replay.trained("full", rate, made.steps, replicate).replicate for replicate in range(3)]
        assert sorted(found) == [0, 1, 2]
        firsts.add(found[0])
    assert firsts == {0, 1, 2}


def test_what_the_bank_lacks_is_lost_and_noted(parts: Any, made: Any, tmp_path: Path) -> None:
    replay = parts.replay.Replay(made, 0)
    trial = replay.run(plan(parts, made, "full", steps=made.steps, rate=7.7))
    assert (trial.outcome, trial.wall_s) == (Outcome.LOST, 0.0)
    assert [(each.rate, each.replicate) for each in replay.missing] == [(7.7, 0)]
    parts.page._note(tmp_path / "wanted" / "made.json", replay.missing, made)
    text = (tmp_path / "wanted" / "made.json").read_text(encoding="utf-8")
    assert [text.count(f'"replicate": {seed}') for seed in range(4)] == [1, 1, 1, 0]


def test_what_diverged_diverges_again(parts: Any, made: Any) -> None:
    replay = parts.replay.Replay(made, 0)
    trial = replay.run(plan(parts, made, "LoRA r16", steps=made.steps, rate=made.rates("LoRA r16")[1]))
    assert (trial.outcome, trial.reason) == (Outcome.DIVERGED, "loss became nan")


@pytest.mark.parametrize("name", ["random search", "Optuna TPE + Hyperband"])
def test_a_rival_finds_the_best_within_its_budget(parts: Any, made: Any, name: str) -> None:
    replay = parts.replay.Replay(made, 0)
    chosen = parts.strategies.STRATEGIES[name](replay, 10_000.0)
    assert (chosen.adapter, chosen.rate) == made.best_truth()[:2]
    small = parts.replay.Replay(made, 0)
    budget_s = 2.5 * parts.page.unit_s(small)
    found = parts.strategies.STRATEGIES[name](small, budget_s)
    assert found.spent_s <= budget_s
    assert parts.strategies.STRATEGIES[name](parts.replay.Replay(made, 0), budget_s) == found


def test_rankwise_spends_little_more_than_its_budget(parts: Any, made: Any) -> None:
    replay = parts.replay.Replay(made, 0)
    unit_s = parts.page.unit_s(replay)
    chosen = parts.strategies.rankwise(replay, 8 * unit_s, objective=Objective.QUALITY)
    assert chosen.spent_s <= 9 * unit_s
    assert chosen.adapter in made.grid


def test_a_choice_is_held_against_the_truth(parts: Any, made: Any) -> None:
    chosen = parts.strategies.Chosen(
        adapter="LoRA r16", rate=made.rates("LoRA r16")[0], spent_s=3.0, trials=1
    )
    judged = parts.judging.judge(made, 0, chosen)
    assert judged.regret == pytest.approx(1.11 / 1.01 - 1, abs=1e-3)
    assert judged.speed_regret == 0.0  # the fastest of all
    lean = parts.strategies.Chosen(
        adapter="full", rate=made.rates("full")[1], micro_batch=2, spent_s=3.0, trials=1
    )
    judged = parts.judging.judge(made, 0, lean)
    assert judged.regret == 0.0
    assert judged.speed_regret == pytest.approx(0.75)  # LoRA is faster still, but learns less


def test_a_rate_is_chosen_by_one_short_training(parts: Any, made: Any) -> None:
    assert parts.judging.chosen_rate(made, "full", made.rungs[1]) == made.rates("full")[1]
    assert parts.judging.chosen_rate(made, "LoRA r16", made.rungs[2]) == made.rates("LoRA r16")[0]


def test_a_planted_difference_is_found_where_seeds_do_little(parts: Any, made: Any) -> None:
    rate = made.rates("full")[1]
    like = made.trained["full", rate, made.steps, 0]
    fields = {name: getattr(like, name) for name in type(like).__slots__}
    rows = np.random.default_rng(1).normal(1.0, 0.5, ROWS)
    shares = []
    for spread in (0.003, 0.1):
        rng = np.random.default_rng(2)
        for replicate in range(30):
            losses = (rows + rng.normal(0, spread)).astype(np.float32)
            made.trained["full", rate, made.steps, replicate] = parts.bank.Trained(
                **fields | {"replicate": replicate, "row_losses": losses}
            )
        assert parts.judging.null_configurations(made) == [("full", rate)]
        shares.append(parts.judging.calibrate(made, ("full", rate), None, seeds=3, draws=100))
    (quiet_alarms, quiet_found, _), (loud_alarms, loud_found, held) = shares
    assert quiet_alarms <= 0.05  # seeds do less than is taken for granted
    assert loud_alarms <= 0.2
    assert quiet_found > 0.9 > 0.5 > loud_found
    assert held is None


@pytest.mark.parametrize("task", TASKS)
def test_the_committed_bank_is_whole(parts: Any, task: str) -> None:
    bank = parts.bank.load(DATA, task)
    assert len(bank.grid) >= 5
    for name in bank.grid:
        rates = bank.rates(name, bank.rungs[-1])
        assert len(rates) == 5
        for rate in rates:
            assert len(bank.losses(name, rate)) == 3
            assert all((name, rate, steps, 0) in bank.trained for steps in bank.rungs)
    text = (DATA / f"{task}.json").read_text(encoding="utf-8")
    assert not re.search(r'"/(?!/)', text)  # no path of anybody's machine


def test_the_committed_banks_are_small() -> None:
    assert len(TASKS) >= 6
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= MOST_BYTES
