from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rankwise.runners.capped_log import CappedLog, LogPipe


@given(chunks=st.lists(st.binary(max_size=40), max_size=30), head=st.integers(0, 30), tail=st.integers(1, 30))
def test_what_is_kept_is_the_beginning_and_the_end(
    tmp_path_factory: object, chunks: list[bytes], head: int, tail: int
) -> None:
    path = Path(tmp_path_factory.mktemp("log")) / "log"  # type: ignore[attr-defined]
    log = CappedLog(path, head_bytes=head, tail_bytes=tail)
    for chunk in chunks:
        log.write(chunk)
    log.close()
    whole, kept = b"".join(chunks), path.read_bytes()
    if len(whole) <= head + tail:
        assert kept == whole
    else:
        dropped = len(whole) - head - tail
        notice = f"\n[… {dropped:,} bytes of output are left out here …]\n".encode()
        assert kept == whole[:head] + notice + whole[len(whole) - tail :]


def test_a_log_that_is_written_can_be_read_meanwhile(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", head_bytes=4, tail_bytes=4)
    log.write(b"abc")
    assert (tmp_path / "log").read_bytes() == b"abc"
    log.write(b"defgh")
    assert (tmp_path / "log").read_bytes() == b"abcdefgh"
    log.write(b"ij")
    log.settle()
    assert (tmp_path / "log").read_bytes().endswith(b"\nghij")
    log.close()


def test_a_stray_with_the_pipe_in_hand_does_not_hold_up_the_end(tmp_path: Path) -> None:
    pipe = LogPipe(CappedLog(tmp_path / "log"))
    stray = os.dup(pipe.writer)
    pipe.start()
    os.write(stray, b"last words")
    pipe.finish()
    assert (tmp_path / "log").read_bytes() == b"last words"
    os.close(stray)
