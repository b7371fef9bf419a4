"""The first design's table, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.domain import Complexity, Method
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.optimizer.tiers import tier

GIB = 2**30
IA3_MINIMAL = (Method.IA3, None, "minimal")


def lora(rank: int, target_set: str):
    return Method.LORA, rank, target_set


ROWS = (
    ((0, 4, 7.99), (IA3_MINIMAL, lora(8, "minimal"))),
    ((8, 9.99), (lora(8, "minimal"), lora(16, "minimal"))),
    ((10, 13.99), (lora(16, "minimal"), lora(16, "balanced"))),
    ((14, 19.99), (lora(16, "balanced"), lora(32, "balanced"), lora(32, "full"))),
    ((20, 80), (lora(32, "full"), lora(64, "full"))),
)


@pytest.mark.parametrize(("free_gib", "row"), [(gib, row) for gibs, row in ROWS for gib in gibs])
@pytest.mark.parametrize("complexity", [None, *Complexity])
def test_the_row_follows_the_free_memory(free_gib, row, complexity):
    adalora = ((Method.ADALORA, 32, "balanced"),)
    is_complex = complexity in (Complexity.COMPLEX, Complexity.VERY_COMPLEX)
    expected = row + (adalora if free_gib >= 20 and is_complex else ())
    assert tier(int(free_gib * GIB), complexity) == expected


def candidates_of(build, *, free_gib: float, **request):
    hardware = build.hardware(gpus=1)
    gpu = replace(hardware.gpus[0], free_bytes=int(free_gib * GIB))
    facts = build.facts(hardware=replace(hardware, gpus=(gpu,)))
    return enumerate_candidates(facts, build.request(use_tiers=True, **request))


@pytest.mark.parametrize(("free_gib", "row"), [(gibs[-1], row) for gibs, row in ROWS])
def test_the_baseline_without_peft_comes_first_then_the_row(build, free_gib, row):
    found = candidates_of(build, free_gib=free_gib)
    adapters = list(dict.fromkeys(candidate.adapter for candidate in found))
    assert adapters[0].method is Method.FULL
    assert tuple((a.method, a.rank, a.target_set) for a in adapters[1:]) == row
    assert {a.alpha for a in adapters if a.rank} == {2.0 * a.rank for a in adapters if a.rank}
    (level,) = {candidate.level for candidate in found}
    assert (level.gradient_checkpointing, level.compute_dtype, level.amp) == (True, "bfloat16", True)


def test_complex_tasks_add_adalora_at_twice_its_rank(build):
    found = candidates_of(build, free_gib=24, complexity=Complexity.COMPLEX)
    (adalora,) = {c.adapter for c in found if c.adapter.method is Method.ADALORA}
    assert (adalora.rank, adalora.alpha, adalora.target_set) == (32, 64.0, "balanced")


def test_a_limit_counts_as_what_is_free(build):
    found = candidates_of(build, free_gib=24, memory_limit_bytes=9 * GIB)
    assert {c.adapter.rank for c in found} == {None, 8, 16}
    assert {c.adapter.target_set for c in found if c.adapter.rank} == {"minimal"}


def test_unknown_free_memory_is_all_of_it_and_a_host_has_its_own(build):
    gpu = enumerate_candidates(build.facts(hardware=build.hardware(gpus=1)), build.request(use_tiers=True))
    assert {c.adapter.rank for c in gpu} == {None, 32, 64}
    host = enumerate_candidates(build.facts(), build.request(use_tiers=True))
    assert {c.adapter.rank for c in host} == {None, 8, 16}
    assert {c.level.compute_dtype for c in host} == {"float32"}


def test_methods_restrict_the_tiers_too(build):
    found = candidates_of(build, free_gib=4, methods=(Method.IA3,))
    assert {c.adapter.method for c in found} == {Method.IA3}
