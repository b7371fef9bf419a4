"""Studies that are scripted through a real store, and dry runs without a job, for what only shows them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from rankwise.api.cli.main import main
from rankwise.home import Home
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Comparison,
    Estimate,
    Finish,
    Level,
    Measurement,
    Method,
    Named,
    Outcome,
    Recipe,
    Recommendation,
    Relation,
    Rung,
    ScoredTrial,
    Scoring,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialPlan,
    TrialState,
)
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.estimates.need import Need
from rankwise.optimizer.estimates.prediction import Prediction, Terms
from rankwise.optimizer.estimates.tape import Kind, Phase, Work
from rankwise.probes.profiles import (
    DatasetProfile,
    HardwareProfile,
    HostProfile,
    ModelProfile,
    TaskKind,
    TaskProfile,
)
from rankwise.runners.jobs import Estimation
from rankwise.store import Claim, Store, StudyClaim, Worker

RECIPE = Recipe(max_length=128)
LORA = Candidate(
    adapter=Adapter(
        method=Method.LORA,
        rank=16,
        alpha=32.0,
        dropout=0.1,
        targets=("query", "value"),
        trained_modules=("classifier",),
        target_set="minimal",
    ),
    level=Level(),
    recipe=RECIPE,
    micro_batch=4,
    learning_rate=5e-4,
)
FULL = Candidate(
    adapter=Adapter(method=Method.FULL),
    level=Level(gradient_checkpointing=True, compute_dtype="bfloat16"),
    recipe=RECIPE,
    micro_batch=16,
    learning_rate=5e-5,
)
FACTS = StudyFacts(
    hardware=HardwareProfile(
        host=HostProfile(
            cpu_model="a CPU",
            physical_cores=2,
            logical_cores=2,
            ram_total_bytes=8 * 2**30,
            ram_available_bytes=6 * 2**30,
            disk_free_bytes=2**36,
            platform="Linux",
            python_version="3.11.7",
            native_bf16=False,
        ),
        gpu_note="no NVIDIA driver",
    ),
    model=ModelProfile(
        source="models/MiniLM",
        path="models/MiniLM",
        revision=None,
        architecture="BertModel",
        model_type="bert",
        parameters=22_700_000,
        weight_bytes=90_800_000,
        structure_sha256="0" * 64,
        hidden_size=384,
        layers=6,
        max_positions=512,
        supports_gradient_checkpointing=True,
        modules=(),
        new_modules=("classifier",),
    ),
    dataset=DatasetProfile(
        source="data/reviews.csv",
        path="data/reviews.csv",
        sha256="0" * 64,
        format="csv",
        size_bytes=40_000,
        rows=400,
        usable_rows=400,
        columns=("text", "label"),
        task=TaskProfile(
            kind=TaskKind.TEXT_CLASSIFICATION,
            text_column="text",
            label_column="label",
            labels=("bad", "good"),
            reason="few distinct labels",
        ),
    ),
    recipe=RECIPE,
    tokens_path="tokens",
    pad_id=0,
    heldout_share=0.2,
    train_rows=320,
    heldout_rows=80,
    truncated_rows=0,
    truncated_tokens_share=0.0,
)
PROBED = Measurement(
    tokens_per_s=2345.6, tokens_per_s_rel_halfwidth=0.021, peak_process_bytes=430 * 2**20, measured_s=4.0
)
TRAINED = Measurement(
    tokens_per_s=2310.0,
    tokens_per_s_rel_halfwidth=0.03,
    peak_process_bytes=441 * 2**20,
    heldout_loss=0.4123,
    heldout_loss_se=0.011,
    metric_name="accuracy",
    metric_value=0.81,
    measured_s=9.0,
)


WORKER = Worker(name="script", place="here")


class StudyScript:
    """Plays the supervisor: what a study went through, written into the store step by step."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.request = StudyRequest(model="models/MiniLM", dataset="data/reviews.csv", budget_s=60.0)
        self.id = store.create_study(self.request).id
        self._claim: StudyClaim | None = None

    @property
    def claim(self) -> StudyClaim:
        """The right to play it."""
        assert self._claim is not None, "the study is not begun"
        return self._claim

    def take(self) -> StudyClaim:
        """Claim the study and find out nothing yet."""
        self._claim = self.store.claim_study(WORKER, only=self.id)
        return self.claim

    def candidate(self, *, learning_rate: float) -> Candidate:
        return replace(LORA, learning_rate=learning_rate)

    def begin(self) -> None:
        self.store.save_facts(self.take(), FACTS)

    def plan(self, candidate: Candidate, rung: Rung) -> Trial:
        steps = 20 if rung is Rung.TRAIN else 0
        return self.store.plan_trial(self.claim, TrialPlan(candidate=candidate, rung=rung, train_steps=steps))

    def start(self, candidate: Candidate, rung: Rung) -> Claim:
        trial = self.plan(candidate, rung)
        claim = self.store.claim_trial(self.claim, trial.id, devices=["cpu"], worker="script", lease_s=60.0)
        assert claim is not None
        return claim

    def run(self, candidate: Candidate, rung: Rung, measurement: Measurement) -> Trial:
        return self.store.finish_attempt(
            self.start(candidate, rung), outcome=Outcome.OK, measurement=measurement, wall_s=10.0
        )

    def fail_trial(self, candidate: Candidate, outcome: Outcome, reason: str) -> Trial:
        claim = self.start(candidate, Rung.PROBE)
        return self.store.finish_attempt(claim, outcome=outcome, reason=reason, wall_s=2.0)

    def recommend(self, trial: Trial) -> Study:
        assert trial.measurement is not None
        recommendation = Recommendation(
            study_id=self.id,
            trial_id=trial.id,
            candidate=trial.candidate,
            evidence=trial.measurement,
            score=87.5,
            scoring=Scoring.COMPARABLE,
            weights=self.request.effective_weights,
            ranking=(
                ScoredTrial(
                    trial_id=trial.id,
                    number=trial.number,
                    rank=1,
                    score=87.5,
                    parts={"speed": 1.0, "memory": 0.6, "quality": 0.9},
                    on_pareto_front=True,
                    tied_with_best=False,
                ),
            ),
            reasons=("It learnt as much as the others in less time.", "Full fine-tuning did not fit."),
            quality_measured=True,
            wall_s=20.0,
            measured_s=13.0,
        )
        return self.store.finish_study(self.claim, StudyState.SUCCEEDED, None, recommendation)

    def fail(self, reason: str) -> Study:
        return self.store.finish_study(self.claim, StudyState.FAILED, reason)

    def play(self) -> Study:
        """A whole study: a probe, one that did not fit, a training, the recommendation."""
        self.begin()
        self.run(LORA, Rung.PROBE, PROBED)
        self.fail_trial(FULL, Outcome.OOM, "the limit of 500 MiB was exceeded")
        return self.recommend(self.run(LORA, Rung.TRAIN, TRAINED))


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Runs ``rankwise ARGUMENTS`` in this process."""

    def command(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["rankwise", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return command


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home.database)
    yield opened
    opened.close()


@pytest.fixture
def script(store: Store) -> StudyScript:
    """A study that was asked for and waits to be played."""
    return StudyScript(store)


@pytest.fixture
def candidates() -> tuple[Candidate, Candidate]:
    """A small adapter, and full fine-tuning."""
    return LORA, FULL


@pytest.fixture
def probed() -> Measurement:
    return PROBED


@pytest.fixture
def trained() -> Measurement:
    return TRAINED


@dataclass
class ScriptedDryRun:
    """Answers in place of the job: a candidate that needs so much, whatever the terms are."""

    allocated_bytes: int = 10 * 2**30
    reserved_bytes: int = 12 * 2**30
    dtype: str = "bfloat16"
    terms: list[Terms] = field(default_factory=list)
    """That it was asked for, all questions together."""
    sources: list[str] = field(default_factory=list)

    def __call__(self, terms: Sequence[Terms], enough: int | None) -> Estimation:
        """As :meth:`rankwise.runners.jobs.Inquiries.estimate` of the source."""
        self.terms += terms
        predictions: list[Prediction] = []
        for each in terms:
            if enough is not None and sum(done.max_micro_batch is not None for done in predictions) >= enough:
                break
            predictions.append(self._prediction(each))
        return Estimation(
            task=TaskProfile(kind=TaskKind.CAUSAL_LM, text_column="", reason="a decoder"),
            model=FACTS.model,
            predictions=tuple(predictions),
        )

    def estimate(
        self, source: str, settings: object, terms: Sequence[Terms], **options: object
    ) -> Estimation:
        self.sources.append(source)
        return self(terms, options["enough"])  # type: ignore[arg-type]

    def stop(self) -> None:
        pass

    def _prediction(self, terms: Terms) -> Prediction:
        work = Work(moved_bytes=10**12, kernels=9_000)
        work.flops[self.dtype] = 7 * 10**14
        limit_bytes = terms.limit_bytes
        return Prediction(
            candidate=replace(LORA, level=Level(compute_dtype="bfloat16")),
            need=Need(
                allocated_bytes=self.allocated_bytes,
                reserved_bytes=self.reserved_bytes,
                by_phase={Phase.BUILD: self.allocated_bytes // 2, Phase.BACKWARD: self.allocated_bytes},
                breakdown={
                    Kind.ACTIVATIONS: self.allocated_bytes // 4,
                    Kind.BASE_WEIGHTS: self.allocated_bytes - self.allocated_bytes // 4,
                },
            ),
            work=work,
            max_micro_batch=limit_bytes // self.reserved_bytes or None if limit_bytes is not None else None,
            max_length=4096 if limit_bytes is not None and self.reserved_bytes <= limit_bytes else None,
            seconds=0.1,
        )


@pytest.fixture
def dry_run() -> ScriptedDryRun:
    return ScriptedDryRun()


@dataclass(frozen=True)
class Finished:
    """A study that went through every stage, with all that is kept of it."""

    study: Study
    trials: tuple[Trial, ...]
    estimates: dict[Candidate, Estimate]
    recommendation: Recommendation
    enumerated: int


class _Trials:
    """Numbers trials and gives them ids, in the order of their making."""

    def __init__(self, study_id: str) -> None:
        self.study_id = study_id
        self.all: list[Trial] = []

    def add(
        self,
        candidate: Candidate,
        measurement: Measurement | None,
        *,
        steps: int = 0,
        replicate: int = 0,
        outcome: Outcome = Outcome.OK,
        reason: str | None = None,
        estimate: Estimate | None = None,
    ) -> Trial:
        rung = Rung.TRAIN if steps else Rung.PROBE
        trial = Trial(
            id=f"T{len(self.all) + 1:02}",
            study_id=self.study_id,
            number=len(self.all) + 1,
            plan=TrialPlan(candidate=candidate, rung=rung, replicate=replicate, train_steps=steps),
            state=TrialState.FINISHED,
            attempts=1,
            outcome=outcome,
            reason=reason,
            measurement=measurement,
            wall_s=12.0 + steps * 0.2,
            estimate=estimate,
        )
        self.all.append(trial)
        return trial


def _losses(final: float, steps: int) -> tuple[float | None, ...]:
    """A falling curve with some noise that is the same every time."""
    return tuple(
        final + (1.2 - final) * math.exp(-4 * step / steps) + 0.05 * math.sin(step * 2.3)
        for step in range(steps)
    )


def finished_study(
    name: str = "01FINISHED", *, faster: float = 1.0, hardware: HardwareProfile | None = None
) -> Finished:
    """Four adapters that are probed, trained at three rates, two of them to the end, one with two seeds.

    Args:
        name: the study's id.
        faster: factor on every speed.
        hardware: in place of the usual.
    """
    request = StudyRequest(
        model="models/MiniLM", dataset="data/reviews.csv", budget_s=1800.0, price_per_hour=2.5
    )
    facts = replace(FACTS, hardware=hardware or FACTS.hardware)
    trials = _Trials(name)
    adapters = {
        "lora": LORA.adapter,
        "wide": replace(LORA.adapter, rank=64, alpha=128.0, targets=("dense", "query"), target_set="full"),
        "ia3": Adapter(method=Method.IA3, targets=("key", "value"), trained_modules=("classifier",)),
        "full": FULL.adapter,
    }
    speeds = {"lora": 2345.6, "wide": 1890.0, "ia3": 2470.0, "full": 1210.0}
    sizes = {"lora": 430, "wide": 512, "ia3": 425, "full": 980}
    losses = {"lora": 0.4123, "wide": 0.409, "ia3": 0.474, "full": 0.431}
    candidates = {key: replace(LORA, adapter=adapter) for key, adapter in adapters.items()}
    for key, candidate in candidates.items():
        told_bytes = int(sizes[key] * 1.06) * 2**20
        trials.add(
            candidate,
            Measurement(
                tokens_per_s=speeds[key] * faster,
                tokens_per_s_rel_halfwidth=0.02,
                peak_process_bytes=sizes[key] * 2**20,
                measured_s=4.0,
            ),
            estimate=Estimate(
                device="a CPU",
                fits=Fits.YES,
                peak_process_bytes=told_bytes,
                low_bytes=told_bytes * 9 // 10,
                high_bytes=told_bytes * 11 // 10,
                tokens_per_s=speeds[key] * 1.1,
                tokens_per_s_low=speeds[key] * 0.8,
                tokens_per_s_high=speeds[key] * 1.4,
            ),
        )
    trials.add(
        replace(LORA, level=Level(gradient_checkpointing=True)),
        replace(PROBED, tokens_per_s=1700.0 * faster, peak_process_bytes=395 * 2**20),
    )
    trials.add(FULL, None, outcome=Outcome.OOM, reason="the limit of 500 MiB was exceeded")
    for key, candidate in candidates.items():
        for rate, worse in ((1e-4, 0.16), (5e-4, 0.1), (2e-3, 0.13)):
            rated = replace(candidate, learning_rate=rate)
            if key == "full" and rate == 2e-3:
                trials.add(rated, None, steps=20, outcome=Outcome.DIVERGED, reason="the loss was NaN")
                continue
            trained = replace(TRAINED, heldout_loss=losses[key] + worse, train_losses=_losses(0.5, 20))
            trials.add(rated, trained, steps=20)
    last: dict[str, Trial] = {}
    for key in ("lora", "wide", "ia3"):
        trained = replace(TRAINED, heldout_loss=losses[key], train_losses=_losses(losses[key], 60))
        last[key] = trials.add(candidates[key], trained, steps=60)
    again = trials.add(candidates["lora"], replace(TRAINED, heldout_loss=0.4137), steps=60, replicate=1)
    full_steps = 2400
    ranking = tuple(
        ScoredTrial(
            trial_id=last[key].id,
            number=last[key].number,
            rank=rank,
            score=score,
            parts={"speed": 0.9, "memory": 0.9, "quality": 0.98},
            on_pareto_front=key != "ia3",
            tied_with_best=False,
            replicates=(last[key].id, again.id) if key == "lora" else (last[key].id,),
            heldout_loss=losses[key],
            is_as_good=key != "ia3",
            finish_s=7800.0 * 2345.6 / speeds[key] / faster,
        )
        for rank, (key, score) in enumerate((("lora", 93.1), ("wide", 90.2), ("ia3", 70.0)), start=1)
    )
    winner = last["lora"]
    recommendation = Recommendation(
        study_id=name,
        trial_id=winner.id,
        candidate=winner.candidate,
        evidence=replace(
            TRAINED,
            tokens_per_s=2345.6 * faster,
            tokens_per_s_rel_halfwidth=0.02,
            train_losses=winner.measurement.train_losses if winner.measurement else (),
        ),
        score=93.1,
        scoring=Scoring.COMPARABLE,
        weights=request.effective_weights,
        ranking=ranking,
        reasons=("It learnt as much as the others in less time.", "Full fine-tuning learnt no more."),
        quality_measured=True,
        wall_s=640.0,
        measured_s=410.0,
        estimate=trials.all[0].estimate,
        comparisons=(
            Comparison(
                trial_id=last["wide"].id,
                difference=0.0033,
                low=-0.011,
                high=0.018,
                relation=Relation.NO_DIFFERENCE,
            ),
            Comparison(
                trial_id=last["ia3"].id, difference=-0.0617, low=-0.081, high=-0.042, relation=Relation.BETTER
            ),
        ),
        confidence=0.95,
        named=(
            Named(
                name="fastest", trial_id=last["ia3"].id, number=last["ia3"].number, reason="IA3: 5 % faster."
            ),
            Named(name="smallest", trial_id=last["ia3"].id, number=last["ia3"].number, reason="425 MiB."),
            Named(
                name="best quality",
                trial_id=last["wide"].id,
                number=last["wide"].number,
                reason="The lowest held-out loss, though no difference was found.",
            ),
            Named(name="balanced", trial_id=winner.id, number=winner.number, reason="The best of all parts."),
        ),
        finish=Finish(
            steps=full_steps,
            seconds=7800.0 / faster,
            low_s=7500.0 / faster,
            high_s=8160.0 / faster,
            cost=5.42 / faster,
        ),
        stopped="the search is complete: the leaders can be told apart",
    )
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    too_large = replace(FULL, micro_batch=64)
    return Finished(
        study=Study(
            id=name,
            request=request,
            state=StudyState.SUCCEEDED,
            created_at=moment,
            updated_at=moment,
            facts=facts,
        ),
        trials=tuple(trials.all),
        estimates={
            **{trial.candidate: trial.estimate for trial in trials.all if trial.estimate},
            too_large: Estimate(device="a CPU", fits=Fits.NO, reason="it needs 20 GiB of 8"),
        },
        recommendation=recommendation,
        enumerated=412,
    )


@pytest.fixture
def finished() -> Finished:
    return finished_study()
