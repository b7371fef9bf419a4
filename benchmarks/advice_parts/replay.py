"""A study replayed on a bank: trials end at once with what was collected, and cost what they took then.

Seeds of a replay decide which held-out rows the study sees, which of the collected replicates come first, and
by how much probes err. Knows no strategies.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rankwise.optimizer.adapters import in_order
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    HeldoutScores,
    Level,
    Measurement,
    Outcome,
    Rung,
    Trial,
    TrialPlan,
    TrialState,
)
from rankwise.optimizer.methods import learning_rate
from rankwise.optimizer.rules import preferred_attention

from .bank import Array, Bank, Probed, Trained

STUDY_ROWS = 256
"""Held-out rows that a study sees; half of them where there are few."""
MICRO_BATCH_SHARES = (1, 2, 4)

_MEASURED = {each.name for each in fields(Measurement)}
_SPEEDS = ("tokens_per_s", "samples_per_s", "steps_per_s")


@dataclass(frozen=True, slots=True)
class Missing:
    """A training that a strategy wanted and that the bank does not have."""

    adapter: Adapter
    rate: float
    steps: int
    replicate: int


class Replay:
    """One study's world.

    Args:
        bank: of the task.
        seed: of everything that differs between replays.
    """

    def __init__(self, bank: Bank, seed: int) -> None:
        self.bank = bank
        self.rng = np.random.default_rng([seed, 20])
        rows = min(STUDY_ROWS, len(bank.items) // 2)
        self.rows: Array = np.sort(self.rng.choice(len(bank.items), rows, replace=False))
        self._replicates = [int(each) for each in self.rng.permutation(3)]
        self.spent_s = 0.0
        self.missing: list[Missing] = []
        self.trials: list[Trial] = []
        self._probe_errors: dict[tuple[str, bool, int], float] = {}

    def run(self, plan: TrialPlan) -> Trial:
        """The plan's trial, finished; what it cost is added to ``spent_s``."""
        trial = self._probe(plan) if plan.rung is Rung.PROBE else self._train(plan)
        self.spent_s += trial.wall_s or 0.0
        self.trials.append(trial)
        return trial

    def candidates(self) -> list[Candidate]:
        """The grid as a study lists it, best prior first: adapters, checkpointed or not, micro-batches."""
        bank = self.bank
        adapters = in_order([bank.adapters[name] for name in bank.grid], bank.facts.model)
        return [candidate for adapter in adapters for candidate in shapes(bank, adapter)]

    def trained(self, adapter: str, rate: float, steps: int, replicate: int) -> Trained | None:
        """What the bank has in place of this study's replicate; None where it has none."""
        known = self._replicates[replicate] if replicate < 3 and steps == self.bank.steps else replicate
        return self.bank.trained.get((adapter, rate, steps, known))

    def loss(self, trained: Trained) -> float:
        """On the rows that the study sees."""
        return self.bank.loss(trained, self.rows)

    def cost_s(
        self, trained: Trained, *, checkpointing: bool = False, micro_batch: int | None = None
    ) -> float:
        """Wall time of a training: building, steps at the speed that its shape was probed at, evaluation."""
        seen = len(self.rows) / len(self.bank.items)
        build_s, evaluation_s = self.bank.besides_s(trained.adapter)
        return build_s + self.steps_s(trained, checkpointing, micro_batch) + seen * evaluation_s

    def steps_s(self, trained: Trained, checkpointing: bool, micro_batch: int | None) -> float:
        """Wall time of a training's steps; as it was where its shape was not probed."""
        batch = micro_batch or self.bank.facts.recipe.effective_batch
        probed = self.bank.probed.get((trained.adapter, checkpointing, batch))
        if probed is None or probed.outcome != "ok":
            return trained.steps_s
        return float(trained.steps * probed.measurement["step_s_mean"])

    def _probe(self, plan: TrialPlan) -> Trial:
        candidate = plan.candidate
        key = (
            self.bank.name_of(candidate.adapter) or "",
            candidate.level.gradient_checkpointing,
            candidate.micro_batch,
        )
        probed = self.bank.probed.get(key)
        if probed is None:
            return self._finished(plan, Outcome.LOST, "not in the bank")
        if probed.outcome != "ok":
            return self._finished(plan, Outcome(probed.outcome), "as it was", wall_s=probed.wall_s)
        return self._finished(
            plan, Outcome.OK, None, wall_s=probed.wall_s, measurement=self._measured(key, probed)
        )

    def _measured(self, key: tuple[str, bool, int], probed: Probed) -> Measurement:
        told: dict[str, Any] = {
            name: value for name, value in probed.measurement.items() if name in _MEASURED
        }
        halfwidth = told["tokens_per_s_rel_halfwidth"] or 0.0
        if key not in self._probe_errors:
            self._probe_errors[key] = float(np.exp(self.rng.normal(0, halfwidth / 1.96)))
        error = self._probe_errors[key]
        for name in _SPEEDS:
            told[name] = None if told[name] is None else told[name] * error
        told["step_s_mean"] /= error
        return Measurement(**told)

    def _train(self, plan: TrialPlan) -> Trial:
        candidate = plan.candidate
        name = self.bank.name_of(candidate.adapter)
        trained = name and self.trained(name, candidate.learning_rate, plan.train_steps, plan.replicate)
        if not trained:
            self.missing.append(
                Missing(candidate.adapter, candidate.learning_rate, plan.train_steps, plan.replicate)
            )
            return self._finished(plan, Outcome.LOST, "not in the bank")
        level, batch = candidate.level, candidate.micro_batch
        wall_s = self.cost_s(trained, checkpointing=level.gradient_checkpointing, micro_batch=batch)
        if not trained.is_ok:
            return self._finished(plan, Outcome(trained.outcome), trained.reason, wall_s=wall_s)
        losses, items = trained.row_losses[self.rows], self.bank.items[self.rows]
        loss = float(losses.sum() / items.sum())
        residuals = losses - loss * items
        n = len(items)
        error = float(np.sqrt((residuals**2).sum() / (n * (n - 1))) / items.mean())
        measurement = Measurement(
            steps_measured=plan.train_steps,
            measured_s=self.steps_s(trained, level.gradient_checkpointing, batch),
            heldout_loss=loss,
            heldout_loss_se=error,
            heldout_rows=n,
            train_losses=tuple(map(float, trained.train_losses)),
        )
        scores = HeldoutScores(losses=tuple(map(float, losses)), items=tuple(map(int, items)))
        return self._finished(plan, Outcome.OK, None, wall_s=wall_s, measurement=measurement, heldout=scores)

    def _finished(
        self,
        plan: TrialPlan,
        outcome: Outcome,
        reason: str | None,
        *,
        wall_s: float = 0.0,
        measurement: Measurement | None = None,
        heldout: HeldoutScores | None = None,
    ) -> Trial:
        number = len(self.trials) + 1
        return Trial(
            id=f"{number:03}",
            study_id="replay",
            number=number,
            plan=plan,
            state=TrialState.FINISHED,
            attempts=1,
            outcome=outcome,
            reason=reason,
            measurement=measurement,
            started_at=datetime(2026, 1, 1, tzinfo=UTC),
            finished_at=datetime(2026, 1, 1, tzinfo=UTC),
            wall_s=wall_s,
            heldout=heldout,
        )


def shapes(bank: Bank, adapter: Adapter) -> list[Candidate]:
    """An adapter's candidates at its own rate, as a study lists them."""
    facts = bank.facts
    batch = facts.recipe.effective_batch
    checkpointing = (False, True) if facts.model.supports_gradient_checkpointing else (False,)
    return [
        Candidate(
            adapter=adapter,
            level=Level(attention=preferred_attention(facts.model), gradient_checkpointing=saving),
            recipe=facts.recipe,
            micro_batch=batch // share,
            learning_rate=learning_rate(adapter.method, facts.model.hidden_size),
        )
        for saving in checkpointing
        for share in (MICRO_BATCH_SHARES if not saving else (1,))
    ]
