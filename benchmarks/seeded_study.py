"""A study of as many trials as wished, with invented figures, written straight into a store.

For what must stay fast when a study is large: nothing is trained. It takes some ten seconds for 5,000 trials:

    RANKWISE_HOME=/tmp/seeded python benchmarks/seeded_study.py --trials 5000
    RANKWISE_HOME=/tmp/seeded rankwise serve

Figures follow plausible shapes (more rows a step: more memory and speed, less gain each time), with noise;
they are no measurements. The ranking is the scorer's own.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta

from ulid import ULID

from rankwise.home import Home
from rankwise.optimizer.domain import (
    Adapter,
    Candidate,
    Estimate,
    HeldoutScores,
    Level,
    Measurement,
    Method,
    Outcome,
    Quantization,
    Recipe,
    Rung,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    TrialPlan,
    TrialState,
)
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.scorer import recommend
from rankwise.probes.profiles import (
    DatasetProfile,
    GpuProfile,
    HardwareProfile,
    HostProfile,
    ModelProfile,
    TaskKind,
    TaskProfile,
)
from rankwise.store import Store, StudyClaim, Worker
from rankwise.store.events import EventKind, trial_finished, trial_planned
from rankwise.store.mapping import document, heldout_document, measured, trial_of
from rankwise.store.tables import EstimateRow, HeldoutRow, TrialRow

GIB = 2**30
DEVICE = "NVIDIA A100-SXM4-80GB"
RECIPE = Recipe(max_length=1024)
RUNGS = {20: 32, 60: 12, 180: 5}
"""Steps of each rung of training → how many candidates reach it."""
TARGETS = {
    "minimal": ("q_proj", "v_proj"),
    "balanced": ("k_proj", "o_proj", "q_proj", "v_proj"),
    "full": ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
}
HELDOUT_ROWS = 200


@dataclass(frozen=True)
class Shape:
    """What a trial of this candidate would measure."""

    candidate: Candidate
    memory_bytes: float
    tokens_per_s: float
    loss: float


def shapes(seed: int) -> Iterator[Shape]:
    """Distinct candidates in a seeded order: there are some 16,000."""
    rng = random.Random(seed)
    choices = list(
        itertools.product(
            (4, 8, 16, 32, 64, 128),
            TARGETS,
            (False, True),
            (False, True),
            (Quantization.NONE, Quantization.NF4, Quantization.INT8),
            (1, 2, 4, 8, 16, 32),
            ("sdpa", "flash_attention_2"),
            ("plain", "liger"),
            ("adamw_torch", "adamw_8bit", "paged_adamw_8bit"),
        )
    )
    rng.shuffle(choices)
    for rank, name, dora, checkpointing, quantization, rows, attention, loss, optimizer in choices:
        adapter = Adapter(
            method=Method.LORA,
            rank=rank,
            alpha=2.0 * rank,
            dropout=0.05,
            targets=TARGETS[name],
            target_set=name,
            use_dora=dora,
        )
        level = Level(
            weight_dtype="bfloat16",
            compute_dtype="bfloat16",
            quantization=quantization,
            gradient_checkpointing=checkpointing,
            attention=attention,
            loss=loss,
            optimizer=optimizer,
        )
        weights = {Quantization.NONE: 15.0, Quantization.NF4: 5.5, Quantization.INT8: 8.6}[quantization]
        each = (1.1 if checkpointing else 3.4) * (0.7 if loss == "liger" else 1.0)
        memory = weights + rows * each + rank * 0.006 * len(TARGETS[name])
        slowed = {Quantization.NONE: 1.0, Quantization.NF4: 0.78, Quantization.INT8: 0.7}[quantization]
        speed = 5200 * (1 - math.exp(-rows / 3)) * slowed * (0.72 if checkpointing else 1.0)
        speed *= (1.08 if attention != "sdpa" else 1.0) * (0.8 if dora else 1.0) * rng.uniform(0.95, 1.05)
        learnt = (
            1.62
            - 0.04 * math.log2(rank)
            - 0.03 * len(TARGETS[name])
            + 0.01 * (quantization is not Quantization.NONE)
        )
        yield Shape(
            Candidate(adapter=adapter, level=level, recipe=RECIPE, micro_batch=rows, learning_rate=2e-4),
            memory * GIB * rng.uniform(0.99, 1.01),
            speed,
            learnt + rng.gauss(0, 0.015),
        )


def facts() -> StudyFacts:
    """A large language model on one large GPU."""
    return StudyFacts(
        hardware=HardwareProfile(
            host=HostProfile(
                cpu_model="a processor",
                physical_cores=32,
                logical_cores=64,
                ram_total_bytes=512 * GIB,
                ram_available_bytes=400 * GIB,
                disk_free_bytes=1024 * GIB,
                platform="Linux",
                python_version="3.11.7",
                native_bf16=False,
            ),
            gpus=(GpuProfile(uuid="GPU-seeded", index=0, name=DEVICE, total_bytes=80 * GIB),),
        ),
        model=ModelProfile(
            source="models/Llama-3.1-8B",
            path="models/Llama-3.1-8B",
            revision=None,
            architecture="LlamaForCausalLM",
            model_type="llama",
            parameters=8_030_261_248,
            weight_bytes=16_060_522_496,
            structure_sha256="0" * 64,
            hidden_size=4096,
            layers=32,
            max_positions=131_072,
            supports_gradient_checkpointing=True,
            modules=(),
            new_modules=(),
        ),
        dataset=DatasetProfile(
            source="data/support.jsonl",
            path="data/support.jsonl",
            sha256="0" * 64,
            format="jsonl",
            size_bytes=40_000_000,
            rows=41_300,
            usable_rows=41_250,
            columns=("prompt", "completion"),
            task=TaskProfile(
                kind=TaskKind.PROMPT_COMPLETION,
                text_column="prompt",
                target_column="completion",
                reason="a prompt and a completion",
            ),
        ),
        recipe=RECIPE,
        tokens_path="tokens",
        pad_id=0,
        heldout_share=0.1,
        train_rows=37_000,
        heldout_rows=4_100,
        truncated_rows=120,
        truncated_tokens_share=0.002,
    )


def seed_study(
    store: Store, *, trials: int, seed: int = 0, is_running: bool = False, **request: object
) -> str:
    """The id of a new study with so many finished trials.

    Args:
        store: where it is written.
        trials: at least 100.
        seed: of the figures.
        is_running: leave it running, without a recommendation.
        request: fields of its request.
    """
    asked = {"model": "models/Llama-3.1-8B", "dataset": "data/support.jsonl", "memory_limit_bytes": 72 * GIB}
    study = store.create_study(
        StudyRequest(**{**asked, "budget_s": 86_400.0, "max_trials": 10_000, **request})
    )
    claim = store.claim_study(Worker(name="seeding", place="nowhere"), only=study.id)
    if claim is None:
        raise RuntimeError("another worker has taken the study in hand")
    store.save_facts(claim, facts())
    store.append_event(claim, "search.started", {"candidates": trials + trials // 3})
    _write_trials(store, study, trials, seed)
    if not is_running:
        done = store.list_trials(study.id, with_heldout=True)
        found = recommend(
            store.get_study(study.id),
            done,
            store.list_estimates(study.id),
            wall_s=sum(trial.wall_s or 0.0 for trial in done),
            measured_s=sum(trial.measurement.measured_s for trial in done if trial.measurement),
            stopped="nothing that is left promises more",
        )
        store.finish_study(claim, StudyState.SUCCEEDED, None, found)
    return study.id


def run_of(store: Store, study_id: str) -> StudyClaim:
    """The right to go on with a seeded study that runs: it was claimed once."""
    return StudyClaim(study=store.get_study(study_id), fence=1, moved=False)


def _write_trials(store: Store, study: Study, trials: int, seed: int) -> None:
    """All in one transaction: one each, as a supervisor makes, would take minutes."""
    rng = random.Random(seed + 1)
    probed = list(itertools.islice(shapes(seed), trials - sum(RUNGS.values())))
    fit = [shape for shape in probed if shape.memory_bytes <= 72 * GIB]
    steps_of = {steps: _front_runners(fit, count) for steps, count in RUNGS.items()}
    with store._write() as transaction:
        session = transaction.session
        owner = transaction.lock_study(study.id)
        moment = transaction.now - timedelta(seconds=20 * trials)
        for number, (shape, steps) in enumerate(_in_order(probed, steps_of), start=1):
            estimate = _estimate(shape, rng)
            told = EstimateRow(
                study_id=owner.id,
                shape_key=f"{number:064d}",
                candidate=document(shape.candidate),
                device=DEVICE,
                estimate=document(estimate),
                fits=estimate.fits,
            )
            plan = TrialPlan(
                candidate=shape.candidate,
                rung=Rung.TRAIN if steps else Rung.PROBE,
                train_steps=steps,
                reason="among the front-runners" if steps else "its adapter promised most",
            )
            fits = shape.memory_bytes <= 72 * GIB
            row = TrialRow(
                ulid=str(ULID.from_datetime(moment)),
                study_id=owner.id,
                number=number,
                candidate_id=shape.candidate.id,
                rung=plan.rung,
                replicate=0,
                train_steps=steps,
                plan=document(plan),
                state=TrialState.FINISHED,
                attempts=1,
                outcome=Outcome.OK if fits else Outcome.OOM,
                reason=None if fits else "the limit of 72.0 GiB was exceeded",
                **measured(_measurement(shape, steps, rng) if fits else None),
                started_at=moment,
                finished_at=moment + timedelta(seconds=19),
                wall_s=19.0,
                estimate=told,
            )
            session.add(row)
            if steps:
                session.flush()
                scores = HeldoutScores(
                    losses=tuple(max(0.01, rng.gauss(_loss(shape, steps), 0.4)) for _ in range(HELDOUT_ROWS)),
                    items=(1,) * HELDOUT_ROWS,
                )
                session.add(HeldoutRow(trial_id=row.id, scores=heldout_document(scores)))
            trial = trial_of(row, study.id)
            transaction.append_event(owner, EventKind.TRIAL_PLANNED, trial_planned(trial))
            transaction.append_event(owner, EventKind.TRIAL_FINISHED, trial_finished(trial))
            moment += timedelta(seconds=20)


def _in_order(probed: Sequence[Shape], steps_of: dict[int, list[Shape]]) -> Iterator[tuple[Shape, int]]:
    yield from ((shape, 0) for shape in probed)
    for steps, own in steps_of.items():
        yield from ((shape, steps) for shape in own)


def _front_runners(fit: Sequence[Shape], count: int) -> list[Shape]:
    """Fast ones that learn much, of different adapters."""
    best: dict[Adapter, Shape] = {}
    for shape in fit:
        known = best.get(shape.candidate.adapter)
        if known is None or shape.tokens_per_s > known.tokens_per_s:
            best[shape.candidate.adapter] = shape
    return sorted(best.values(), key=lambda each: each.loss - each.tokens_per_s / 20_000)[:count]


def _loss(shape: Shape, steps: int) -> float:
    return shape.loss + 1.4 / math.sqrt(steps)


def _estimate(shape: Shape, rng: random.Random) -> Estimate:
    told = shape.memory_bytes * rng.uniform(0.96, 1.04)
    return Estimate(
        device=DEVICE,
        fits=Fits.YES if told < 70 * GIB else Fits.TOO_CLOSE,
        peak_allocated_bytes=int(told * 0.92),
        peak_reserved_bytes=int(told * 0.99),
        peak_device_bytes=int(told),
        low_bytes=int(told * 0.95),
        high_bytes=int(told * 1.1),
        tokens_per_s=shape.tokens_per_s * rng.uniform(0.85, 1.15),
        tokens_per_s_low=shape.tokens_per_s * 0.75,
        tokens_per_s_high=shape.tokens_per_s * 1.3,
    )


def _measurement(shape: Shape, steps: int, rng: random.Random) -> Measurement:
    adapter = shape.candidate.adapter
    losses = tuple(2.9 - 1.3 * (1 - math.exp(-step / 25)) + rng.gauss(0, 0.06) for step in range(steps))
    probed = Measurement(
        tokens_per_s=shape.tokens_per_s,
        tokens_per_s_rel_halfwidth=rng.uniform(0.01, 0.04),
        samples_per_s=shape.tokens_per_s / 600,
        steps_per_s=shape.tokens_per_s / 9600,
        step_s_mean=9600 / shape.tokens_per_s,
        measured_s=12.0,
        peak_allocated_bytes=int(shape.memory_bytes * 0.91),
        peak_reserved_bytes=int(shape.memory_bytes * 0.985),
        peak_device_bytes=int(shape.memory_bytes),
        trainable_params=(adapter.rank or 0) * 8192 * 32 * len(adapter.targets),
        total_params=8_030_261_248,
    )
    if not steps:
        return probed
    return replace(
        probed,
        heldout_loss=_loss(shape, steps),
        heldout_loss_se=0.4 / math.sqrt(HELDOUT_ROWS),
        heldout_rows=HELDOUT_ROWS,
        train_losses=losses,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--running", action="store_true", help="leave the study running")
    options = parser.parse_args()
    home = Home.from_environment().create()
    with closing(Store.open(home.database)) as store:
        print(seed_study(store, trials=options.trials, is_running=options.running))


if __name__ == "__main__":
    main()
