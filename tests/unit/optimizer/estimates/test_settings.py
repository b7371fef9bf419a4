from __future__ import annotations

from dataclasses import replace

import pytest

from rankwise.errors import InputError
from rankwise.optimizer.domain import Method, Quantization
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


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Method.HEAD, "head only"),
        (Method.LAST_BLOCKS, "last 2 blocks + head"),
        (Method.BITFIT, "biases + head"),
        (Method.NORMS, "norms + head"),
    ],
)
def test_methods_without_an_adapter_can_be_asked_about(build, method: Method, words: str) -> None:
    asked = candidate_from(Settings(method=method), build.bert(layers=4), CLASSES)
    assert asked.adapter.describe() == words
    with pytest.raises(InputError, match=f"the method {method} has no rank"):
        candidate_from(Settings(method=method, rank=4), build.bert(), CLASSES)


def test_what_a_method_without_an_adapter_would_train_has_to_be_there(build) -> None:
    asked = Settings(method=Method.LAST_BLOCKS)
    assert candidate_from(asked, build.bert(layers=2), CLASSES).adapter.last_blocks == 1
    with pytest.raises(InputError, match="no weights of its own that last-blocks could train"):
        candidate_from(asked, build.bert(layers=1), CLASSES)
    with pytest.raises(InputError, match="biases of nf4 layers cannot be trained"):
        candidate_from(Settings(method=Method.BITFIT, quantization=Quantization.NF4), build.bert(), CLASSES)
