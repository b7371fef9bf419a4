"""Earlier studies order what is tried, and count for nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.optimizer.domain import Known, Rung
from rankwise.optimizer.experience import by_experience, learn


def trained(build, candidate, number, loss, steps=100):
    return build.trial(candidate, number, rung=Rung.TRAIN, heldout_loss=loss, train_steps=steps)


def test_finalists_of_all_studies_are_averaged_and_the_latest_rate_is_kept(build, candidates):
    first, second, third = candidates[:3]
    faster = replace(first, learning_rate=10 * first.learning_rate)
    earlier = [
        trained(build, first, 1, 0.5),
        trained(build, second, 2, 0.6),
        trained(build, third, 3, 0.1, 25),
    ]
    later = [trained(build, first, 1, 2.2), trained(build, faster, 2, 2.0), trained(build, second, 3, 2.1)]
    alone = [trained(build, third, 1, 0.5)]
    known = learn([earlier, later, alone])
    assert [each.adapter for each in known] == [first.adapter, second.adapter]
    assert [each.excess for each in known] == pytest.approx([0.0, (0.1 / 0.5 + 0.1 / 2.0) / 2])
    assert [each.studies for each in known] == [2, 2]
    assert known[0].learning_rate == faster.learning_rate


def test_proven_adapters_come_first_and_poor_ones_last(candidates):
    known = [
        Known(adapter=candidates[3].adapter, learning_rate=1e-3, excess=0.0, studies=1),
        Known(adapter=candidates[0].adapter, learning_rate=2e-3, excess=0.5, studies=1),
        Known(adapter=candidates[1].adapter, learning_rate=3e-3, excess=0.05, studies=1),
    ]
    ordered = by_experience(candidates, known)
    assert [c.adapter for c in ordered] == [
        candidates[index].adapter for index in (3, 1, 2, *range(4, len(candidates)), 0)
    ]
    assert [c.learning_rate for c in ordered[:3]] == [1e-3, 3e-3, candidates[2].learning_rate]
    assert by_experience(candidates, []) == tuple(candidates)
