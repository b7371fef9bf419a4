from __future__ import annotations

import pytest

from rankwise.api.cli.options import parse_weights
from rankwise.errors import InputError
from rankwise.optimizer.domain import Weights


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("speed=0.5,memory=0.1,quality=0.4", Weights(speed=0.5, memory=0.1, quality=0.4)),
        (" quality = 3 , speed=1 ", Weights(speed=1.0, memory=0.0, quality=3.0)),
    ],
)
def test_weights(text: str, weights: Weights):
    assert parse_weights(text) == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pace=1", "unknown"),
        ("speed=1,speed=2", "given twice"),
        ("speed", "not a number"),
        ("speed=fast", "not a number"),
        ("", "unknown"),
    ],
)
def test_weights_that_cannot_be_read(text: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        parse_weights(text)
    assert "speed=0.5" in caught.value.next_step
