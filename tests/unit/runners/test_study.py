"""A study's run with a real store, and jobs that say what they are told to."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from rankwise.api.handover import write_results
from rankwise.errors import Conflict, NotFound, StaleFence, StoreError
from rankwise.home import Home
from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import (
    Baseline,
    Estimate,
    Method,
    Outcome,
    Preset,
    Recipe,
    Rung,
    Study,
    StudyFacts,
    StudyRequest,
    StudyState,
    Trial,
    TrialState,
)
from rankwise.optimizer.estimates.intervals import Fits
from rankwise.optimizer.estimates.need import Need
from rankwise.optimizer.estimates.prediction import TrialPrediction
from rankwise.optimizer.estimates.tape import Kind, Phase, Work
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.probes.profiles import (
    DatasetProfile,
    GpuProfile,
    HardwareProfile,
    HostProfile,
    LengthProfile,
    ModelProfile,
    ModuleProfile,
    TaskKind,
    TaskProfile,
)
from rankwise.runners import attempt as attempt_module
from rankwise.runners import device_care
from rankwise.runners import study as study_module
from rankwise.runners.attempt import is_judged
from rankwise.runners.study import Interrupted, StudyRun, ladders_ahead, overlap_s
from rankwise.runners.warm_client import Job
from rankwise.store import QuarantineCause, Store, StudyClaim, Worker

RACES = int(os.environ.get("RANKWISE_CANCEL_RACES", "8"))
NEIGHBOUR = ("Another process took 2.0 GiB of the device.",)
LEFT = {"type": "exit", "cause": "finished", "exit_code": 0, "signal": None, "wall_s": 1.0}
OOM = {"type": "failure", "outcome": "oom", "reason": "CUDA out of memory"}


@dataclasses.dataclass
class FakeJob:
    """A job that has said everything by the first poll."""

    messages: list[dict[str, Any]]
    log_path: Path
    closed: bool = False

    def poll(self, _timeout_s: float) -> Iterator[dict[str, Any]]:
        self.closed = True
        yield from self.messages

    def last(self, kind: str) -> dict[str, Any] | None:
        return next((item for item in reversed(self.messages) if item["type"] == kind), None)

    def cancel(self) -> None:
        self.messages = []

    def wait(self, _timeout_s: float) -> None:
        self.closed = True


class FakeServer:
    """A warm server whose every trial measures another speed; ``failures`` are what the next ones say.

    Dry runs tell a GiB for each row of the micro-batch.
    """

    def __init__(self) -> None:
        self.launched: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.estimated: list[list[int]] = []
        """Micro-batches that were asked for at a time."""

    def wait_ready(self, _check: object) -> None:
        pass

    def start(self, job: str, spec: dict[str, Any], folder: Path, _limits: object) -> FakeJob:
        if job == "estimate-trials":
            return FakeJob([self.tell(spec), LEFT], folder / "estimate.log")
        self.launched.append(spec)
        figures: dict[str, Any] = {"measured_s": 5.0, "trainable_params": 10}
        if spec["rung"] == Rung.PROBE:
            speed = 100.0 + len(self.launched)
            figures |= {"tokens_per_s": speed, "step_s_mean": 0.1, "peak_reserved_bytes": 2**30}
        else:
            figures |= {"heldout_loss": 0.5, "heldout_rows": 10}
        said = self.failures.pop(0) if self.failures else {"type": "result", "measurement": figures}
        return FakeJob([said, LEFT], folder / "trial.log")

    def tell(self, spec: dict[str, Any]) -> dict[str, Any]:
        sizes = [candidate["micro_batch"] for candidate in spec["candidates"]]
        self.estimated.append(sizes)
        told = []
        for size in sizes:
            need = Need(
                allocated_bytes=size * 2**30,
                reserved_bytes=size * 2**30,
                by_phase=dict.fromkeys(Phase, size * 2**30),
                breakdown={Kind.ACTIVATIONS: size * 2**30},
            )
            work = Work(flops=Counter(float32=10**12), moved_bytes=10**9, kernels=100)
            told.append(to_json(TrialPrediction(need=need, work=work, step_tokens=100.0, seconds=0.0)))
            if need.allocated_bytes <= spec["enough_bytes"]:
                break
        return {"type": "result", "predictions": told}


class FakeWatch:
    """Sees what the test says: one entry of ``script`` an attempt, nothing when they are used up."""

    script: list[tuple[str, ...]]

    def __init__(self, _device: GpuProfile | None, *, logical_cores: int) -> None:
        self.disturbances = self.script.pop(0) if self.script else ()
        self.peak_bytes = 3 * 2**30
        self.pids: frozenset[int] = frozenset()
        self.samples = 0

    def sample(self, _pids: Collection[int]) -> None:
        self.samples += 1


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> type[FakeWatch]:
    monkeypatch.setattr(FakeWatch, "script", [], raising=False)
    monkeypatch.setattr(attempt_module, "DeviceWatch", FakeWatch)
    return FakeWatch


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    store = Store.open(home.database)
    yield store
    store.close()


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def make_facts() -> StudyFacts:
    """A BERT of two layers on one GPU."""
    modules = [
        ModuleProfile(
            name=f"bert.encoder.layer.{layer}.attention.self.{role}",
            kind="linear",
            role=role,
            in_features=64,
            out_features=64,
            parameters=64 * 65,
            layer=layer,
        )
        for layer in range(2)
        for role in ("query", "key", "value")
    ]
    head = ModuleProfile(
        name="classifier", kind="linear", role="head", in_features=64, out_features=2, parameters=130
    )
    return StudyFacts(
        hardware=HardwareProfile(
            host=HostProfile(
                cpu_model="Some CPU",
                physical_cores=2,
                logical_cores=2,
                ram_total_bytes=2**34,
                ram_available_bytes=2**33,
                disk_free_bytes=2**36,
                platform="Linux",
                python_version="3.11.0",
                native_bf16=False,
            ),
            gpus=(
                GpuProfile(
                    uuid="GPU-1", index=0, name="Some GPU", total_bytes=2**34, compute_capability=(8, 0)
                ),
            ),
        ),
        model=ModelProfile(
            source="models/tiny",
            path="models/tiny",
            revision=None,
            architecture="BertForSequenceClassification",
            model_type="bert",
            parameters=100_000,
            weight_bytes=400_000,
            structure_sha256="0" * 64,
            hidden_size=64,
            layers=2,
            max_positions=512,
            supports_gradient_checkpointing=True,
            modules=(*modules, head),
            new_modules=("classifier",),
        ),
        dataset=DatasetProfile(
            source="reviews.csv",
            path="reviews.csv",
            sha256="0" * 64,
            format="csv",
            size_bytes=1000,
            rows=400,
            usable_rows=400,
            columns=("text", "label"),
            task=TaskProfile(
                kind=TaskKind.TEXT_CLASSIFICATION, text_column="text", label_column="label", labels=("0", "1")
            ),
            lengths=LengthProfile(
                p50=9, p90=20, p99=30, max=40, mean=12.5, rows_measured=400, estimated=False
            ),
        ),
        recipe=Recipe(max_length=64),
        tokens_path="tokens",
        pad_id=0,
        heldout_share=0.1,
        train_rows=360,
        heldout_rows=40,
        truncated_rows=0,
        truncated_tokens_share=0.0,
    )


def run_study(
    store: Store, home: Home, server: FakeServer, *, facts: StudyFacts | None = None, **changes: Any
) -> tuple[Study, list[Trial]]:
    """Run a study of two trials, one probe and one training, to its end."""
    request = StudyRequest(
        model="models/tiny",
        dataset="reviews.csv",
        methods=(Method.LORA,),
        max_trials=changes.pop("max_trials", 2),
    )
    study_id = store.create_study(dataclasses.replace(request, **changes)).id
    claim = claimed(store, study_id)
    study = store.save_facts(claim, facts or make_facts())
    study_run(store, home, server, dataclasses.replace(claim, study=study)).run()
    return store.get_study(study_id), store.list_trials(study_id)


def claimed(store: Store, study_id: str) -> StudyClaim:
    claim = store.claim_study(Worker(name="test", place="here"), only=study_id)
    assert claim is not None
    return claim


def study_run(store: Store, home: Home, server: FakeServer, claim: StudyClaim) -> StudyRun:
    return StudyRun(
        store=store,
        home=home,
        claim=claim,
        warm_server=lambda: server,  # type: ignore[arg-type, return-value]
        should_stop=lambda: False,
        worker="test",
    )


def kinds(store: Store, study: Study) -> list[str]:
    history = store.events_after(study.id, 0)
    return [event.kind for event in history if event.kind.startswith("trial.")]


def speed(trial: Trial) -> float | None:
    return trial.measurement.tokens_per_s if trial.measurement else None


def marks(trial: Trial) -> tuple[str, ...]:
    return trial.measurement.disturbances if trial.measurement else ()


pytestmark = pytest.mark.usefixtures("watch")


class SlowServer(FakeServer):
    """Its trials take a few looks; ``beside`` are the devices that were in use when each began."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[tuple[list[str], FakeJob]] = []
        self.beside: list[tuple[str, list[str]]] = []

    def start(self, job: str, spec: dict[str, Any], folder: Path, limits: object) -> FakeJob:
        made = super().start(job, spec, folder, limits)
        if job != "trial":
            return made
        slow = SlowJob(made.messages, made.log_path)
        in_use = [uuid for uuids, other in self.jobs if not other.closed for uuid in uuids]
        assert not set(in_use) & set(spec["devices"]), "a device has one trial at a time"
        self.beside.append((spec["rung"], in_use))
        self.jobs.append((spec["devices"], slow))
        return slow


class SlowJob(FakeJob):
    polls_left = 3

    def poll(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        self.polls_left -= 1
        if not self.polls_left:
            yield from super().poll(timeout_s)


def on_gpus(count: int) -> StudyFacts:
    facts = make_facts()
    (gpu,) = facts.hardware.gpus
    gpus = tuple(dataclasses.replace(gpu, uuid=f"GPU-{number + 1}", index=number) for number in range(count))
    return dataclasses.replace(facts, hardware=dataclasses.replace(facts.hardware, gpus=gpus))


class TestSeveralDevices:
    def test_trials_run_beside_each_other_each_on_a_device_of_its_own(self, store: Store, home: Home) -> None:
        server = SlowServer()
        study, trials = run_study(store, home, server, facts=on_gpus(3), max_trials=9, processes=1)
        assert study.state is StudyState.SUCCEEDED
        assert {trial.outcome for trial in trials} == {Outcome.OK}
        assert len(trials) <= 9
        assert {trial.attempts for trial in trials} == {1}
        assert server.beside[0] == ("probe", [])
        assert max(len(in_use) for _, in_use in server.beside) == 2
        assert any(in_use for rung, in_use in server.beside if rung == "train")
        assert {uuid for uuids, _ in server.jobs for uuid in uuids} == {"GPU-1", "GPU-2", "GPU-3"}
        assert store.leased_devices(["GPU-1", "GPU-2", "GPU-3"]) == set()

    def test_one_device_has_one_trial_at_a_time(self, store: Store, home: Home) -> None:
        server = SlowServer()
        run_study(store, home, server, facts=on_gpus(1), max_trials=4)
        assert all(in_use == [] for _, in_use in server.beside)

    def test_a_cancellation_ends_all_that_run(
        self, store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = SlowServer()
        monkeypatch.setattr(study_module, "CANCEL_CHECK_S", 0.0)

        def begin(job: str, spec: dict[str, Any], folder: Path, limits: object) -> FakeJob:
            made = SlowServer.start(server, job, spec, folder, limits)
            if any(in_use for _, in_use in server.beside):
                (study,) = store.list_studies()
                store.request_cancel(study.id)
            return made

        monkeypatch.setattr(server, "start", begin)
        study, trials = run_study(store, home, server, facts=on_gpus(2), max_trials=9, processes=1)
        assert study.state is StudyState.CANCELLED
        assert all(job.closed for _, job in server.jobs)
        assert [trial.outcome for trial in trials].count(Outcome.CANCELLED) == 2
        assert store.leased_devices(["GPU-1", "GPU-2"]) == set()

    def test_a_stop_hands_all_that_run_back(self, store: Store, home: Home) -> None:
        server = SlowServer()
        study_id = store.create_study(
            StudyRequest(model="models/tiny", dataset="reviews.csv", methods=(Method.LORA,), processes=1)
        ).id
        claim = claimed(store, study_id)
        claim = dataclasses.replace(claim, study=store.save_facts(claim, on_gpus(2)))
        run = study_run(store, home, server, claim)
        run.should_stop = lambda: any(in_use for _, in_use in server.beside)
        with pytest.raises(Interrupted):
            run.run()
        assert all(job.closed for _, job in server.jobs)
        states = Counter(trial.state for trial in store.list_trials(study_id))
        assert states[TrialState.QUEUED] == 2
        assert states[TrialState.RUNNING] == 0


@pytest.mark.parametrize(
    ("spans", "expected_s"),
    [
        ([], 0.0),
        ([(0.0, 2.0), (2.0, 3.0)], 0.0),
        ([(0.0, 4.0), (1.0, 3.0)], 2.0),
        ([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0)], 1.0),
    ],
)
def test_time_in_which_several_ran_counts_once(spans: list[tuple[float, float]], expected_s: float) -> None:
    assert overlap_s(spans) == pytest.approx(expected_s)


def test_undisturbed(store: Store, home: Home, server: FakeServer) -> None:
    study, (probe, training) = run_study(store, home, server)
    assert study.state is StudyState.SUCCEEDED
    assert (probe.plan.rung, training.plan.rung) == (Rung.PROBE, Rung.TRAIN)
    assert probe.measurement is not None
    assert probe.measurement.peak_device_bytes == 3 * 2**30
    assert [spec["rung"] for spec in server.launched] == ["probe", "train"]
    assert store.get_recommendation(study.id).measured_s == 10.0


@pytest.mark.parametrize(
    ("physical", "logical", "threads"),
    [(2, 2, 2), (4, 8, 4), (64, 8, 8), (None, 8, 8)],
    ids=["a machine", "with two threads a core", "a container's share of one", "cores unknown"],
)
def test_a_trial_has_no_more_threads_than_cores(
    store: Store, home: Home, server: FakeServer, physical: int | None, logical: int, threads: int
) -> None:
    facts = make_facts()
    host = dataclasses.replace(facts.hardware.host, physical_cores=physical, logical_cores=logical)
    hardware = dataclasses.replace(facts.hardware, host=host)
    run_study(store, home, server, facts=dataclasses.replace(facts, hardware=hardware))
    assert {spec["threads"] for spec in server.launched} == {threads}


def test_a_command_of_the_users_judges_trainings_only(store: Store, home: Home, server: FakeServer) -> None:
    _, (_, training) = run_study(
        store, home, server, eval_command=("judge", "--fast"), eval_lower_is_better=True, budget_s=400.0
    )
    assert [spec["judge"] for spec in server.launched] == [
        None,
        {
            "command": ["judge", "--fast"],
            "folder": str(home.trial_folder(training.id) / "trained"),
            "limit_s": 400.0,
            "lower_is_better": True,
        },
    ]


def test_what_a_judge_takes_is_not_the_trials() -> None:
    said = [{"type": "progress", "phase": "train"}, {"type": "progress", "phase": "judge"}]
    assert [is_judged(cast(Job, FakeJob(said[:count], Path("log")))) for count in range(3)] == [
        False,
        False,
        True,
    ]


class TestDisturbed:
    def test_once_is_repeated_and_the_second_is_kept(
        self, store: Store, home: Home, server: FakeServer, watch: type[FakeWatch]
    ) -> None:
        watch.script += [NEIGHBOUR]
        study, (probe, _) = run_study(store, home, server)
        assert study.state is StudyState.SUCCEEDED
        assert (probe.outcome, probe.attempts) == (Outcome.OK, 2)
        assert (speed(probe), marks(probe)) == (102.0, ())
        assert kinds(store, study)[:5] == [
            "trial.planned",
            "trial.running",
            "trial.disturbed",
            "trial.running",
            "trial.finished",
        ]

    def test_twice_is_marked_and_later_trials_are_not_repeated(
        self, store: Store, home: Home, server: FakeServer, watch: type[FakeWatch]
    ) -> None:
        watch.script += [NEIGHBOUR] * 10
        _, (first, second, *_) = run_study(store, home, server, max_trials=4)
        assert (first.outcome, first.attempts) == (Outcome.OK, 2)
        assert (speed(first), marks(first)) == (102.0, NEIGHBOUR)
        assert (second.plan.rung, second.outcome, second.attempts) == (Rung.PROBE, Outcome.OK, 1)
        assert marks(second) == NEIGHBOUR

    def test_is_not_repeated_where_the_budget_is_spent(
        self, store: Store, home: Home, server: FakeServer, watch: type[FakeWatch]
    ) -> None:
        watch.script += [NEIGHBOUR]
        _, (probe, *_) = run_study(store, home, server, budget_s=1e-6)
        assert (probe.attempts, marks(probe)) == (1, NEIGHBOUR)

    def test_lack_of_memory_beside_a_neighbour_is_no_evidence(
        self, store: Store, home: Home, server: FakeServer, watch: type[FakeWatch]
    ) -> None:
        watch.script += [NEIGHBOUR]
        server.failures += [OOM]
        _, (probe, _) = run_study(store, home, server)
        assert (probe.outcome, probe.attempts, probe.reason) == (Outcome.OK, 2, None)

    def test_lack_of_memory_twice_is_what_there_is(
        self, store: Store, home: Home, server: FakeServer, watch: type[FakeWatch]
    ) -> None:
        watch.script += [NEIGHBOUR] * 2
        server.failures += [OOM] * 2
        _, (probe, *_) = run_study(store, home, server)
        assert (probe.outcome, probe.attempts, probe.reason) == (Outcome.OOM, 2, "CUDA out of memory")
        assert marks(probe) == NEIGHBOUR

    def test_a_training_keeps_what_it_learnt(
        self, store: Store, home: Home, server: FakeServer, watch: type[FakeWatch]
    ) -> None:
        watch.script += [(), NEIGHBOUR]
        _, (_, training) = run_study(store, home, server)
        assert (training.outcome, training.attempts, marks(training)) == (Outcome.OK, 1, ())


class TestReuse:
    def test_a_shape_is_measured_once(self, store: Store, home: Home, server: FakeServer) -> None:
        _, (measured, _) = run_study(store, home, server)
        study, (reused, *others) = run_study(store, home, server)
        assert (reused.state, reused.outcome, reused.attempts) == (TrialState.FINISHED, Outcome.OK, 0)
        assert (reused.measurement, reused.reused_from) == (measured.measurement, measured.id)
        assert reused.wall_s == 0.0
        assert kinds(store, study)[:2] == ["trial.planned", "trial.finished"]

        probed = [spec["candidate"] for spec in server.launched if spec["rung"] == Rung.PROBE]
        assert to_json(measured.candidate) in probed
        assert all(probed.count(candidate) == 1 for candidate in probed)
        assert [trial.reused_from for trial in others] == [None] * len(others)
        assert store.get_recommendation(study.id).measured_s == 5.0 * len(others)

    def test_from_the_trial_that_measured_and_never_in_a_chain(
        self, store: Store, home: Home, server: FakeServer
    ) -> None:
        runs = [run_study(store, home, server)[1] for _ in range(3)]
        first, second, third = (trials[0] for trials in runs)
        assert (second.reused_from, third.reused_from) == (first.id, first.id)

    def test_not_where_a_neighbour_had_marked_it(
        self, store: Store, home: Home, server: FakeServer, watch: type[FakeWatch]
    ) -> None:
        watch.script += [NEIGHBOUR] * 2
        run_study(store, home, server)
        _, (probe, *_) = run_study(store, home, server)
        assert (probe.reused_from, probe.attempts) == (None, 1)

    @pytest.mark.parametrize("changes", [{"seed": 1}, {"memory_limit_bytes": 2**33}], ids=["seed", "limit"])
    def test_not_where_it_would_differ(
        self, store: Store, home: Home, server: FakeServer, changes: dict[str, Any]
    ) -> None:
        run_study(store, home, server)
        _, (probe, _) = run_study(store, home, server, **changes)
        assert (probe.reused_from, probe.attempts) == (None, 1)


class TestEstimates:
    def test_the_first_trial_takes_the_largest_micro_batch_that_may_fit(
        self, watch: type[FakeWatch], store: Store, home: Home, server: FakeServer
    ) -> None:
        _, trials = run_study(store, home, server, memory_limit_bytes=6 * 2**30)
        study_id = trials[0].study_id
        told = store.list_estimates(study_id)
        assert server.estimated[0] == [16, 8, 4, 2]
        assert [candidate.micro_batch for candidate in told][:3] == [16, 8, 4]
        assert [estimate.fits for estimate in told.values()][:2] == [Fits.NO, Fits.NO]
        assert trials[0].candidate.micro_batch == 4
        assert trials[0].estimate == list(told.values())[2]
        ruled_out = [e.payload for e in store.events_after(study_id, 0) if e.kind == "candidate.ruled_out"]
        assert next(each["reason"] for each in ruled_out).startswith("it needs at least 15.")

    def test_nothing_is_run_where_nothing_can_fit(
        self, watch: type[FakeWatch], store: Store, home: Home, server: FakeServer
    ) -> None:
        study, trials = run_study(
            store, home, server, memory_limit_bytes=2**30, presets=(Preset.EFFICIENT,), only_presets=True
        )
        assert (study.state, trials, server.launched) == (StudyState.FAILED, [], [])
        assert study.reason is not None
        assert study.reason.startswith("NothingFits: nothing fits. Ruled out by a dry run, and not run:")
        assert "raise the memory limit above 2." in study.reason

    def test_a_shape_is_told_once_and_its_training_has_it_too(
        self, watch: type[FakeWatch], store: Store, home: Home, server: FakeServer
    ) -> None:
        _, trials = run_study(store, home, server)
        probe, training = trials
        assert len(server.estimated) == 2  # of the next adapter, too, on another core
        assert probe.estimate is not None
        assert training.estimate == probe.estimate

    def test_what_cannot_be_run_dry_is_tried_all_the_same(
        self,
        watch: type[FakeWatch],
        store: Store,
        home: Home,
        server: FakeServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        refusal = {"type": "error", "kind": "InputError", "message": "no such layer", "next_step": ""}
        monkeypatch.setattr(server, "tell", lambda _: refusal)
        study, trials = run_study(store, home, server)
        assert study.state is StudyState.SUCCEEDED
        assert trials[0].estimate is not None
        assert (trials[0].estimate.fits, trials[0].estimate.reason) == (None, "no such layer")


def test_a_baseline_that_cannot_run_is_told_and_the_study_goes_on(
    store: Store, home: Home, server: FakeServer
) -> None:
    settings = {"method": "lora", "zero_stage": 3}
    baseline = Baseline(name="old.yaml", trainer="axolotl", settings=settings)
    study, trials = run_study(store, home, server, baseline=baseline)
    told = [e.payload for e in store.events_after(study.id, 0) if e.kind == "baseline.left_out"]
    assert told == [
        {"name": "old.yaml", "reason": "it divides the training among GPUs, and trials run on one"}
    ]
    assert (study.state, len(trials)) == (StudyState.SUCCEEDED, 2)
    write_results(store, study.id, home.root / "out")
    written = json.loads((home.root / "out" / "recommendation.json").read_text())["baseline"]
    assert (written["name"], written["reason"]) == (told[0]["name"], told[0]["reason"])


def test_dry_runs_that_are_killed_are_asked_for_again(store: Store, home: Home, server: FakeServer) -> None:
    """They tell nothing of the candidate."""
    killed = [LEFT | {"exit_code": None, "signal": 9}, LEFT | {"cause": "cancelled"}]
    tell = server.start

    def start(job: str, spec: dict[str, Any], folder: Path, limits: object) -> FakeJob:
        if job == "estimate-trials" and killed:
            return FakeJob([killed.pop()], folder / "estimate.log")
        return tell(job, spec, folder, limits)

    server.start = start  # type: ignore[method-assign]
    study, trials = run_study(store, home, server)
    assert study.state is StudyState.SUCCEEDED
    assert killed == []
    assert trials[0].estimate is not None
    assert trials[0].estimate.reason is None or "killed" not in trials[0].estimate.reason


def test_a_job_that_is_killed_every_time_ends_the_study(store: Store, home: Home) -> None:
    asked = []

    class Deadly(FakeServer):
        def start(self, job: str, _spec: dict[str, Any], folder: Path, _limits: object) -> FakeJob:
            asked.append(job)
            return FakeJob([], folder / "prepare.log")

    model = home.root / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    study_id = store.create_study(StudyRequest(model=str(model), dataset="reviews.csv")).id
    study_run(store, home, Deadly(), claimed(store, study_id)).run()
    ended = store.get_study(study_id)
    assert ended.state is StudyState.FAILED
    assert "its process was killed" in str(ended.reason)
    assert asked == ["prepare"] * study_module.JOB_TRIES


class Driver:
    """Says of every device what the test says: bytes in use, look by look; the last stays."""

    def __init__(self, *looks: int) -> None:
        self.looks = list(looks)

    def __call__(self, gpu: GpuProfile) -> GpuProfile:
        used = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return dataclasses.replace(gpu, used_bytes=used, health_problems=())


def test_a_trial_waits_while_others_have_the_device(
    store: Store, home: Home, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(8 * 2**30, 8 * 2**30, 8 * 2**30, 2**30)
    monkeypatch.setattr(device_care, "read_again", driver)
    monkeypatch.setattr(study_module, "WAIT_S", 0.0)
    facts = make_facts()
    (gpu,) = facts.hardware.gpus
    hardware = dataclasses.replace(facts.hardware, gpus=(dataclasses.replace(gpu, used_bytes=2**30),))
    study, trials = run_study(store, home, server, facts=dataclasses.replace(facts, hardware=hardware))
    assert study.state is StudyState.SUCCEEDED
    assert [trial.outcome for trial in trials] == [Outcome.OK, Outcome.OK]
    assert [trial.attempts for trial in trials] == [1, 1]
    assert kinds(store, study)[:4] == ["trial.planned", "trial.waiting", "trial.running", "trial.finished"]
    waiting = next(event for event in store.events_after(study.id, 0) if event.kind == "trial.waiting")
    assert "others took 7.0 GiB of GPU 0 (GPU-1)" in waiting.payload["reason"]


def test_a_device_in_quarantine_makes_trials_wait_until_it_is_released(
    store: Store, home: Home, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.quarantine_device("GPU-1", QuarantineCause.HEALTH, "it is worn out")
    released = [False]

    def sleep(_seconds: float) -> None:
        store.release_device("GPU-1")
        released[0] = True

    monkeypatch.setattr(study_module.time, "sleep", sleep)
    study, trials = run_study(store, home, server)
    assert study.state is StudyState.SUCCEEDED
    assert released == [True]
    assert "trial.waiting" in kinds(store, study)
    assert [trial.outcome for trial in trials] == [Outcome.OK, Outcome.OK]


def test_a_trial_waits_for_room_on_the_disk(
    store: Store, home: Home, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [2**30, 2**30, 0]
    monkeypatch.setattr(study_module, "WAIT_S", 0.0)
    monkeypatch.setattr(
        study_module, "missing_bytes", lambda _folder: missing.pop(0) if len(missing) > 1 else missing[0]
    )
    study, _ = run_study(store, home, server)
    assert study.state is StudyState.SUCCEEDED
    assert kinds(store, study)[:3] == ["trial.planned", "trial.waiting", "trial.running"]
    waiting = next(event for event in store.events_after(study.id, 0) if event.kind == "trial.waiting")
    assert "1.0 GiB must be freed on the disk" in waiting.payload["reason"]


def test_a_cancellation_that_races_with_the_end_leaves_one_end(
    store: Store, home: Home, server: FakeServer
) -> None:
    """Asked for by another connection, at any moment of a study."""
    ends = Counter(race(store, home, server, 1 + 3 * number % 24) for number in range(RACES))
    assert ends.keys() <= {StudyState.SUCCEEDED, StudyState.CANCELLED}
    assert ends[StudyState.CANCELLED] > 0


def race(store: Store, home: Home, server: FakeServer, after: int) -> StudyState:
    """Run a study, and have it cancelled when so many events are there; returns how it ended."""
    study_id = store.create_study(
        StudyRequest(model="models/tiny", dataset="reviews.csv", methods=(Method.LORA,), max_trials=3)
    ).id
    claim = claimed(store, study_id)
    study = store.save_facts(claim, make_facts())
    other, over = Store.open(home.database), threading.Event()

    def cancel() -> None:
        while len(other.events_after(study_id, 0)) < after and not over.wait(0.001):
            continue
        with suppress(Conflict):
            other.request_cancel(study_id)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    study_run(store, home, server, dataclasses.replace(claim, study=study)).run()
    over.set()
    canceller.join()
    other.close()
    ended = store.get_study(study_id)
    told = [event.kind for event in store.events_after(study_id, 0)]
    assert told.count("study.finished") == 1
    assert told[-1] == "study.finished"
    assert {trial.state for trial in store.list_trials(study_id)} <= {TrialState.FINISHED}
    if ended.state is StudyState.SUCCEEDED:
        assert store.get_recommendation(study_id)
    else:
        with pytest.raises(NotFound):
            store.get_recommendation(study_id)
    return ended.state


def test_a_run_whose_study_was_taken_over_ends_and_changes_nothing_more(
    store: Store, home: Home, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Worker(name="other", place="elsewhere")
    start = server.start

    def be_late(job: str, *rest: Any) -> FakeJob:
        if job == "trial":
            (study,) = store.list_studies()
            store.reap(dead_place="here")
            assert store.claim_study(other, only=study.id) is not None
        return start(job, *rest)

    monkeypatch.setattr(server, "start", be_late)
    with pytest.raises(StaleFence):
        run_study(store, home, server)
    (study,) = store.list_studies()
    assert study.state is StudyState.RUNNING
    assert store.holder_of(study.id) is not None
    assert [event.kind for event in store.events_after(study.id, 0)][-3:] == [
        "trial.lost",
        "study.lost",
        "study.running",
    ]


def test_a_run_says_that_it_is_alive_while_its_jobs_run(
    store: Store, home: Home, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "HEARTBEAT_S", 0.0)
    renewed: list[str] = []
    renew = store.renew_study
    monkeypatch.setattr(store, "renew_study", lambda claim: (renewed.append(claim.id), renew(claim)))
    study, _ = run_study(store, home, server)
    assert study.state is StudyState.SUCCEEDED
    assert len(renewed) >= len(server.launched)


def test_what_ran_elsewhere_is_prepared_again(store: Store, home: Home, server: FakeServer) -> None:
    study = store.create_study(StudyRequest(model="models/tiny", dataset="reviews.csv"))
    claim = store.claim_study(Worker(name="test", place="elsewhere"), only=study.id)
    assert claim is not None
    store.save_facts(claim, make_facts())
    store.release_study(claim)
    for place, found in (("elsewhere", True), ("here", False)):
        claim = store.claim_study(Worker(name="test", place=place), only=study.id)
        assert claim is not None
        run = StudyRun(
            store=store,
            home=home,
            claim=claim,
            warm_server=lambda: server,  # type: ignore[arg-type, return-value]
            should_stop=lambda: False,
            worker="test",
        )
        assert (run.facts_from_before() is not None) is found
        store.release_study(claim)


def test_a_database_out_of_reach_fails_no_study(
    store: Store, home: Home, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach(*_: object) -> None:
        raise StoreError("the server is gone")

    monkeypatch.setattr(store, "plan_trial", out_of_reach)
    with pytest.raises(StoreError):
        run_study(store, home, server)
    (study,) = store.list_studies()
    assert study.state is StudyState.RUNNING


class TestLaddersAhead:
    def test_the_next_adapters_at_the_same_settings_while_cores_last(self) -> None:
        facts = make_facts()
        request = StudyRequest(model="models/tiny", dataset="reviews.csv")
        candidates = enumerate_candidates(facts, request)
        adapters = list(dict.fromkeys(candidate.adapter for candidate in candidates))
        first = candidates[0]
        alone, many = (ladders_ahead(first, candidates, {}, most=most) for most in (1, 9))
        assert [ladder[0].adapter for ladder in many] == adapters[:3]
        assert all(
            (ladder[0].level, ladder[0].micro_batch) == (first.level, first.micro_batch) for ladder in many
        )
        assert alone == many[:1]

    def test_not_what_is_told_already(self) -> None:
        facts = make_facts()
        candidates = enumerate_candidates(facts, StudyRequest(model="models/tiny", dataset="reviews.csv"))
        first, second, third = ladders_ahead(candidates[0], candidates, {}, most=3)
        told = {second[0]: Estimate(device="a GPU")}
        assert ladders_ahead(candidates[0], candidates, told, most=3) == [first, third]

    def test_a_baseline_comes_alone(self) -> None:
        facts = make_facts()
        candidates = enumerate_candidates(facts, StudyRequest(model="models/tiny", dataset="reviews.csv"))
        baseline = dataclasses.replace(candidates[0], learning_rate=0.5)
        assert ladders_ahead(baseline, candidates, {}, most=3) == [[baseline]]
