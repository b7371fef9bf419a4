from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.errors import InputError
from rankwise.optimizer.estimates.settings import Settings, candidate_from
from rankwise.probes.profiles import TaskKind

CLASSES = TaskKind.TEXT_CLASSIFICATION


@pytest.mark.parametrize(("positions", "length"), [(512, 512), (4_096, 1_024), (None, 1_024)])
def test_rows_have_a_usual_length_or_what_the_model_reads(build, positions: int | None, length: int) -> None:
    model = replace(build.bert(), max_positions=positions)
    assert candidate_from(Settings(), model, CLASSES).recipe.max_length == length


def test_rows_longer_than_the_model_reads_are_refused(build) -> None:
    with pytest.raises(InputError, match="512 tokens at most, not 513") as caught:
        candidate_from(Settings(length=513), build.bert(), CLASSES)
    assert "512" in caught.value.next_step
