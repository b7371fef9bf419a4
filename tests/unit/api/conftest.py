"""Studies that are scripted through a real store, and dry runs without a job, for what only shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from rankwise.home import Home
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Level,
    Measurement,
    Method,
    Outcome,
    Recipe,
    Recommendation,
    Rung,
    ScoredTrial,
    Scoring,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialPlan,
)
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
from rankwise.store import Claim, Store

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


class StudyScript:
    """Plays the supervisor: what a study went through, written into the store step by step."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.request = StudyRequest(model="models/MiniLM", dataset="data/reviews.csv", budget_s=60.0)
        self.id = store.create_study(self.request).id

    def candidate(self, *, learning_rate: float) -> Candidate:
        return replace(LORA, learning_rate=learning_rate)

    def begin(self) -> None:
        self.store.claim_study(only=self.id)
        self.store.save_facts(self.id, FACTS)

    def plan(self, candidate: Candidate, rung: Rung) -> Trial:
        steps = 20 if rung is Rung.TRAIN else 0
        return self.store.plan_trial(self.id, TrialPlan(candidate=candidate, rung=rung, train_steps=steps))

    def start(self, candidate: Candidate, rung: Rung) -> Claim:
        trial = self.plan(candidate, rung)
        claim = self.store.claim_trial(trial.id, devices=["cpu"], worker="script", lease_s=60.0)
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
        return self.store.finish_study(self.id, StudyState.SUCCEEDED, None, recommendation)

    def fail(self, reason: str) -> Study:
        return self.store.finish_study(self.id, StudyState.FAILED, reason)

    def play(self) -> Study:
        """A whole study: a probe, one that did not fit, a training, the recommendation."""
        self.begin()
        self.run(LORA, Rung.PROBE, PROBED)
        self.fail_trial(FULL, Outcome.OOM, "the limit of 500 MiB was exceeded")
        return self.recommend(self.run(LORA, Rung.TRAIN, TRAINED))


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
