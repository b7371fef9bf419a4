from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.api.units import (
    MAX_BYTES,
    MAX_SECONDS,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
    parse_share,
)
from rankwise.errors import InputError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("10GiB", 10 * 2**30),
        ("10 GB", 10**10),
        ("512MiB", 512 * 2**20),
        ("1.5gib", 3 * 2**29),
        (" 7 kb ", 7000),
        ("12B", 12),
        ("10G", 10 * 2**30),
        ("10g", 10 * 2**30),
        ("10GB", 10**10),
        ("512m", 512 * 2**20),
        (12345, 12345),
    ],
)
def test_sizes_are_read(text: str | int, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "GiB",
            "-1GiB",
            "0GiB",
            "0.4B",
            "1e3GiB",
            "5 apples",
            "2000TiB",
            "١٠GiB",
            "nan",
            "9" * 400 + "B",
        ),
        *(0, -5, True, 1.5, None, 10**30),
    ],
)
def test_what_is_no_size_is_refused(value: str | int) -> None:
    with pytest.raises(InputError) as caught:
        parse_bytes(value)
    assert caught.value.next_step


def test_a_size_without_unit_is_answered_with_one() -> None:
    with pytest.raises(InputError, match="'10' has no unit — write 10GiB"):
        parse_bytes("10")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("90s", 90),
        ("1h30m", 5400),
        ("1 h 05 m", 3900),
        ("2d", 172_800),
        ("1.5H", 5400),
        ("250ms", 0.25),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("", "m", "-1m", "0s", "10 minutes", "1h30", "10 m!", "9999d"),
        *(0, -1, True, None, float("nan"), float("inf"), 10**400),
    ],
)
def test_what_is_no_duration_is_refused(value: str | float) -> None:
    with pytest.raises(InputError) as caught:
        parse_seconds(value)
    assert caught.value.next_step


def test_a_duration_without_unit_is_answered_with_two() -> None:
    with pytest.raises(InputError, match="write it like 90s or 90m"):
        parse_seconds("90")


@pytest.mark.parametrize(
    ("text", "share"),
    [("1%", 0.01), (" 2.5 % ", 0.025), ("0.01", 0.01), ("0", 0), (0.5, 0.5), (1, 1)],
)
def test_shares_are_read(text: str | float, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "value", ["", "%", "-1%", "1 percent", "2000%", "1e3", 11, -0.1, True, None, float("nan"), float("inf")]
)
def test_what_is_no_share_is_refused(value: str | float) -> None:
    with pytest.raises(InputError) as caught:
        parse_share(value)
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (310 * 2**20, "310 MiB"),
        (1_331_439_861, "1.24 GiB"),
        (2**30 - 1, "1024 MiB"),
        (10 * 2**30, "10 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_sizes_are_written(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0314, "31 ms"),
        (0.9999, "1.0 s"),
        (4.24, "4.2 s"),
        (9.97, "10 s"),
        (59.6, "1 m 00 s"),
        (123, "2 m 03 s"),
        (3599.7, "1 h 00 m"),
        (3900, "1 h 05 m"),
    ],
)
def test_durations_are_written(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.integers(min_value=1, max_value=MAX_BYTES))
def test_written_sizes_read_back_within_their_three_digits(size_bytes: int) -> None:
    assert parse_bytes(format_bytes(size_bytes)) == pytest.approx(size_bytes, rel=0.005)


@given(st.floats(min_value=0.001, max_value=MAX_SECONDS - 60))
def test_written_durations_read_back_within_their_last_unit(seconds: float) -> None:
    written = format_seconds(seconds)
    half_unit_s = {"ms": 0.0005, "m": 30.0}.get(written.split()[-1], 0.5 if seconds >= 9.95 else 0.05)
    assert parse_seconds(written) == pytest.approx(seconds, abs=half_unit_s * 1.001)
