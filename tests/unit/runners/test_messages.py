from __future__ import annotations

import json
import math
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from rankwise.runners.messages import Report, TrialSpec, last_line


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def lines(connection: socket.socket) -> list[dict[str, object]]:
    connection.setblocking(False)
    return [json.loads(line) for line in connection.recv(1 << 16).splitlines()]


def test_one_line_a_message(pair: tuple[socket.socket, socket.socket]) -> None:
    report = Report(pair[1].fileno())
    report("progress", phase="build")
    report("result", text="two\nlines, ein Umlaut: ü")
    assert lines(pair[0]) == [
        {"schema_version": 1, "type": "progress", "phase": "build"},
        {"schema_version": 1, "type": "result", "text": "two\nlines, ein Umlaut: ü"},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_refused_and_nothing_is_written(
    pair: tuple[socket.socket, socket.socket], value: float
) -> None:
    report = Report(pair[1].fileno())
    with pytest.raises(ValueError, match="not JSON compliant"):
        report("result", measurement={"loss": value})
    report("progress")
    assert [line["type"] for line in lines(pair[0])] == ["progress"]


def test_a_long_line_survives_a_full_pipe() -> None:
    reader, writer = os.pipe()
    chunks: list[bytes] = []

    def drain() -> None:
        while chunk := os.read(reader, 5_000):
            chunks.append(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    Report(writer)("result", train_losses=[0.5] * 100_000)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert len(json.loads(b"".join(chunks))["train_losses"]) == 100_000


def test_progress_is_thinned_out(pair: tuple[socket.socket, socket.socket]) -> None:
    report = Report(pair[1].fileno())
    for step in range(100):
        report.every_second("progress", step=step)
    assert lines(pair[0])[0]["step"] == 0
    with pytest.raises(BlockingIOError):
        pair[0].recv(1)


def test_a_spec_survives_json() -> None:
    spec = TrialSpec(
        model_path="m",
        tokens_path="t",
        task={"kind": "causal-lm"},
        candidate={"micro_batch": 4},
        adapter_config=None,
        rung="probe",
        total_steps=10,
        pad_id=0,
        seed=1,
        order_seed=2,
        threads=2,
    )
    assert TrialSpec.from_mapping(json.loads(json.dumps(spec.to_mapping()))) == spec


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("\n \n", ""), ("one\ntwo \n\n", "two"), ("one", "one")]
)
def test_last_line_says_something(text: str, line: str) -> None:
    assert last_line(text) == line
