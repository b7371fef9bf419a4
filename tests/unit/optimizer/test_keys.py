"""Which measurements may stand for each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rankwise.optimizer.domain import Adapter, Candidate, Level, LossMask, Method, Recipe, StudyFacts
from rankwise.optimizer.keys import environment_key, measurement_key, trial_device
from rankwise.probes.profiles import GpuProfile, HardwareProfile, TaskKind

CANDIDATE = Candidate(
    adapter=Adapter(method=Method.LORA, rank=16, alpha=32, targets=("q", "v")),
    level=Level(),
    recipe=Recipe(max_length=128),
    micro_batch=4,
    learning_rate=2e-4,
)
ADALORA = replace(CANDIDATE, adapter=Adapter(method=Method.ADALORA, rank=8, initial_rank=12, targets=("q",)))


def on_gpus(hardware: HardwareProfile, *gpus: GpuProfile) -> HardwareProfile:
    return replace(hardware, gpus=gpus)


@pytest.fixture
def with_gpu(build: Any) -> HardwareProfile:
    gpu = replace(build.hardware(gpus=1).gpus[0], driver_version="580.1", power_limit_w=300.0)
    return on_gpus(build.hardware(), gpu)


def test_the_device_is_the_gpu_with_most_free_memory(build: Any) -> None:
    assert trial_device(build.hardware()) is None
    first, second = build.hardware(gpus=2).gpus
    full, free = replace(first, free_bytes=1), replace(second, free_bytes=2)
    assert trial_device(on_gpus(build.hardware(), full, free)) == free


@pytest.mark.parametrize(
    "changes",
    [
        {"uuid": "GPU-other", "index": 3, "pci_bus_id": "0000:01:00.0"},
        {"free_bytes": 5, "used_bytes": 5, "utilisation_percent": 90, "temperature_c": 70, "processes": ()},
        {"power_w": 250.0, "energy_j": 1e6, "sm_clock_hz": 10**9, "throttle_reasons": ("thermal",)},
    ],
    ids=["another of the same model", "its load", "its present clocks"],
)
def test_an_equal_device_in_another_state_is_the_same_environment(
    with_gpu: HardwareProfile, changes: dict[str, Any]
) -> None:
    other = on_gpus(with_gpu, replace(with_gpu.gpus[0], **changes))
    assert environment_key(other) == environment_key(with_gpu)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Another GPU"},
        {"total_bytes": 1},
        {"driver_version": "590.1"},
        {"is_mig": True},
        {"power_limit_w": 200.0},
        {"max_sm_clock_hz": 10**9},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_device_is_another_environment(with_gpu: HardwareProfile, changes: dict[str, Any]) -> None:
    other = on_gpus(with_gpu, replace(with_gpu.gpus[0], **changes))
    assert environment_key(other) != environment_key(with_gpu)


def test_a_gpu_that_trials_do_not_run_on_does_not_matter(with_gpu: HardwareProfile) -> None:
    used = replace(with_gpu.gpus[0], free_bytes=10)
    idle = replace(used, uuid="GPU-small", name="Small GPU", free_bytes=5)
    assert environment_key(on_gpus(with_gpu, idle, used)) == environment_key(on_gpus(with_gpu, used))
    assert environment_key(on_gpus(with_gpu, idle)) != environment_key(on_gpus(with_gpu, used))


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu_model": "Another CPU"},
        {"physical_cores": 4},
        {"logical_cores": 4},
        {"platform": "Another Linux"},
        {"python_version": "3.12.0"},
        {"libraries": {"bitsandbytes": "0.50"}},
        {"variables": {"OMP_NUM_THREADS": "1"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_host_is_another_environment(build: Any, changes: dict[str, Any]) -> None:
    hardware = build.hardware()
    other = replace(hardware, host=replace(hardware.host, **changes))
    assert environment_key(other) != environment_key(hardware)


def other_facts(facts: StudyFacts, build: Any) -> dict[str, StudyFacts]:
    dataset = facts.dataset
    task = replace(dataset.task, kind=TaskKind.REGRESSION)
    return {
        "structure": replace(facts, model=replace(facts.model, structure_sha256="1" * 64)),
        "random weights": replace(facts, model=replace(facts.model, has_weights=False)),
        "lengths": replace(facts, dataset=replace(dataset, lengths=build.lengths(p99=90))),
        "unknown lengths": replace(facts, dataset=replace(dataset, lengths=None)),
        "task": replace(facts, dataset=replace(dataset, task=task)),
        "rows": replace(facts, train_rows=facts.train_rows + 1),
        "estimated tokens": replace(facts, tokens_estimated=True),
        "environment": replace(facts, hardware=build.hardware(gpus=1)),
    }


def test_whatever_changes_a_measurement_changes_its_key(build: Any) -> None:
    facts = build.facts(dataset=build.dataset(lengths=build.lengths()))
    key = measurement_key(facts, CANDIDATE)
    keys = {name: measurement_key(other, CANDIDATE) for name, other in other_facts(facts, build).items()}
    keys["seed"] = measurement_key(facts, CANDIDATE, seed=1)
    assert [name for name, other in keys.items() if other == key] == []


def test_names_and_labels_do_not_matter(build: Any) -> None:
    facts = build.facts(dataset=build.dataset(lengths=build.lengths()))
    dataset = replace(facts.dataset, source="copy.csv", path="/copy.csv", sha256="1" * 64)
    other = replace(
        facts, model=replace(facts.model, source="b", path="/b"), dataset=dataset, tokens_path="/t"
    )
    assert measurement_key(other, CANDIDATE) == measurement_key(facts, CANDIDATE)


def test_without_lengths_data_are_told_apart_by_their_content(build: Any) -> None:
    facts = build.facts()
    other = replace(facts, dataset=replace(facts.dataset, sha256="1" * 64))
    assert measurement_key(other, CANDIDATE) != measurement_key(facts, CANDIDATE)


@pytest.mark.parametrize(("gpus", "matters"), [(0, False), (1, True)], ids=["CPU", "GPU"])
def test_a_memory_limit_changes_what_cudas_allocator_does(build: Any, gpus: int, matters: bool) -> None:
    facts = build.facts(hardware=build.hardware(gpus=gpus))
    limited = measurement_key(facts, CANDIDATE, memory_limit_bytes=2**30)
    assert (limited != measurement_key(facts, CANDIDATE)) is matters


@pytest.mark.parametrize(("candidate", "matters"), [(CANDIDATE, False), (ADALORA, True)])
def test_the_length_of_the_training_matters_to_adalora(
    build: Any, candidate: Candidate, matters: bool
) -> None:
    longer = replace(candidate, recipe=replace(candidate.recipe, epochs=9.0))
    keys = {measurement_key(build.facts(), each) for each in (candidate, longer)}
    assert (len(keys) == 2) is matters


@pytest.mark.parametrize(
    "recipe",
    [
        {"packing": True},
        {"loss_mask": LossMask.COMPLETION},
        {"chat_template_sha256": "a"},
        {"effective_batch": 8},
        {"max_grad_norm": 0.0},
    ],
    ids=lambda recipe: next(iter(recipe)),
)
def test_how_rows_become_batches_matters(build: Any, recipe: dict[str, Any]) -> None:
    other = replace(CANDIDATE, recipe=replace(CANDIDATE.recipe, **recipe))
    assert measurement_key(build.facts(), other) != measurement_key(build.facts(), CANDIDATE)
