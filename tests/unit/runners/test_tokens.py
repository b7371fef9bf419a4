from __future__ import annotations

import subprocess
import sys
import threading
from array import array
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rankwise.runners import tokens
from rankwise.runners.recipe import Example, collate, count_tokens, pack_training_rows
from rankwise.runners.tokens import BATCH_ROWS, TokenFile, write_token_files


def make_rows(lengths: list[int], label: int | None = None) -> Iterator[tuple[Example, bool]]:
    """Rows of these lengths, each filled with its number; the last one is held out."""
    for number, length in enumerate(lengths):
        yield Example(array("i", [number] * length), label), number == len(lengths) - 1


def read(folder: Path, name: str = "train") -> TokenFile:
    return TokenFile(folder / f"{name}.arrow")


@pytest.mark.parametrize("label", [None, 3])
def test_round_trip(tmp_path: Path, label: int | None) -> None:
    assert write_token_files(tmp_path / "t", make_rows([2, 5, 3, 1], label)) == (3, 1)
    train, heldout = read(tmp_path / "t"), read(tmp_path / "t", "heldout")
    assert [list(row.input_ids) for row in train] == [[0] * 2, [1] * 5, [2] * 3]
    assert [list(row.input_ids) for row in heldout] == [[3]]
    assert {row.label for row in train} == {label}


@pytest.mark.parametrize(
    ("lengths", "micro_batch", "expected"),
    [
        ([2, 5, 3, 1], 2, [5, 4, 5, 4]),
        ([2, 5, 3, 1], 4, [5, 5, 5, 4]),
        ([2, 5, 3, 1], 1, [5, 5, 5, 5]),
        ([5, 5, 1], 2, [5, 5, 5, 5]),
    ],
    ids=["padded", "one batch", "single rows", "alike"],
)
def test_the_heaviest_rows_need_padding_where_batches_do(
    tmp_path: Path, lengths: list[int], micro_batch: int, expected: list[int]
) -> None:
    write_token_files(tmp_path / "t", make_rows(lengths))
    rows = read(tmp_path / "t").heaviest(4, micro_batch=micro_batch)
    assert [len(row.input_ids) for row in rows] == expected


def test_shared_rows_need_no_padding(tmp_path: Path) -> None:
    rows = [(Example([1] * length, starts=[0]), False) for length in (4, 2)]
    write_token_files(tmp_path / "t", rows)
    assert [len(row.input_ids) for row in read(tmp_path / "t").heaviest(2, micro_batch=2)] == [4, 4]


def as_plain(row: Example) -> list[object]:
    """All fields, with sequences as lists."""
    cells = [getattr(row, field.name) for field in fields(row)]
    return [list(cell) if hasattr(cell, "__len__") else cell for cell in cells]


@pytest.mark.parametrize(
    "row",
    [
        Example([1, 2], label=3, token_types=[0, 1]),
        Example([1], value=-2.5),
        Example([1, 2, 3], mask=[0, 1, 1], starts=[0, 2]),
        Example([1, 2], target_ids=[5, 6, 7]),
    ],
    ids=["pair", "number", "packed", "target"],
)
def test_every_field_comes_back(tmp_path: Path, row: Example) -> None:
    write_token_files(tmp_path / "t", [(row, False), (Example([9]), False), (row, True)])
    assert as_plain(read(tmp_path / "t")[0]) == as_plain(row)
    assert as_plain(read(tmp_path / "t")[1]) == as_plain(Example([9]))


def test_rows_of_a_file_make_the_batches_of_the_rows(tmp_path: Path) -> None:
    for number, row in enumerate(
        (
            Example([1, 2, 3], mask=[0, 1, 1], starts=[0, 2]),
            Example([1, 2], target_ids=[5, 6, 7]),
            Example([1, 2], label=1, token_types=[0, 1]),
        )
    ):
        write_token_files(tmp_path / f"{number}", [(row, False)])
        made, expected = (collate(rows, pad_id=0) for rows in ([*read(tmp_path / f"{number}")], [row]))
        assert {name: value.tolist() for name, value in made.items()} == {
            name: value.tolist() for name, value in expected.items()
        }
        assert count_tokens(read(tmp_path / f"{number}")[0]) == count_tokens(row)


def test_the_heaviest_row_has_the_longest_source_and_the_longest_target(tmp_path: Path) -> None:
    rows = [Example([1] * 9, target_ids=[2]), Example([3], target_ids=[4] * 7), Example([5], target_ids=[6])]
    write_token_files(tmp_path / "t", [(row, False) for row in rows])
    heaviest = read(tmp_path / "t").longest()
    assert heaviest.target_ids is not None
    assert (list(heaviest.input_ids), list(heaviest.target_ids)) == ([1] * 9, [4] * 7)


def test_the_heaviest_packed_row_is_the_fullest(tmp_path: Path) -> None:
    samples = [(Example([number] * 3), False) for number in range(20)]
    write_token_files(tmp_path / "t", pack_training_rows(samples, max_length=10, seed=0))
    heaviest = read(tmp_path / "t").longest()
    assert heaviest.starts is not None
    assert len(heaviest.input_ids) == 9
    assert list(heaviest.starts) == [0, 3, 6]


def test_indexes_like_a_list(tmp_path: Path) -> None:
    write_token_files(tmp_path / "t", make_rows([2, 5, 3, 1]))
    rows = read(tmp_path / "t")
    assert list(rows[-1].input_ids) == [2] * 3
    assert [len(row.input_ids) for row in rows[1:]] == [5, 3]
    assert rows[5:] == []
    for index in (3, -4):
        with pytest.raises(IndexError):
            rows[index]


def test_longest_is_the_first_of_several(tmp_path: Path) -> None:
    write_token_files(tmp_path / "t", make_rows([2, 5, 5, 9]))
    assert list(read(tmp_path / "t").longest().input_ids) == [1] * 5


def test_a_side_may_be_empty(tmp_path: Path) -> None:
    assert write_token_files(tmp_path / "t", make_rows([4])) == (0, 1)
    assert list(read(tmp_path / "t")) == []


def test_many_rows_are_mapped_not_copied(tmp_path: Path) -> None:
    lengths = [64] * (2 * BATCH_ROWS + 100)
    lengths[BATCH_ROWS + 7] = 100
    write_token_files(tmp_path / "t", make_rows(lengths))
    before = pa.total_allocated_bytes()
    rows = read(tmp_path / "t")
    assert rows[BATCH_ROWS].input_ids[0] == BATCH_ROWS
    assert pa.total_allocated_bytes() - before < sum(lengths)  # a quarter of the tokens' int32 size
    assert rows.longest().input_ids[0] == BATCH_ROWS + 7


def test_rows_outlive_their_file(tmp_path: Path) -> None:
    write_token_files(tmp_path / "t", make_rows([3, 1]))
    row = read(tmp_path / "t")[0]
    (tmp_path / "t" / "train.arrow").unlink()
    assert np.array_equal(row.input_ids, [0, 0, 0])


def test_nothing_appears_before_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "t"

    def rows() -> Iterator[tuple[Example, bool]]:
        yield from make_rows([2, 2])
        assert not folder.exists()
        raise RuntimeError("the data ended in the middle")

    with pytest.raises(RuntimeError):
        write_token_files(folder, rows())
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_the_first_is_kept(tmp_path: Path) -> None:
    """Both have opened their files before either is done."""
    both_writing = threading.Barrier(2)
    errors: list[BaseException] = []

    def write(fill: int) -> None:
        def rows() -> Iterator[tuple[Example, bool]]:
            both_writing.wait(10)
            yield from ((Example(array("i", [fill] * 3)), number == 0) for number in range(500))

        try:
            write_token_files(tmp_path / "t", rows())
        except BaseException as error:  # noqa: BLE001 - a thread's edge
            errors.append(error)

    writers = [threading.Thread(target=write, args=(fill,)) for fill in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    fills = {
        int(token)
        for name in ("train", "heldout")
        for row in read(tmp_path / "t", name)
        for token in row.input_ids
    }
    assert len(fills) == 1


def test_long_rows_are_written_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "BATCH_TOKENS", 10)
    write_token_files(tmp_path / "t", make_rows([4, 4, 4, 4, 4, 1]))
    with pa.OSFile(str(tmp_path / "t" / "train.arrow")) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
    assert batches == [3, 2]


def test_trials_read_rows_without_pandas(tmp_path: Path) -> None:
    """Arrow's own way to NumPy imports it, a sixth of a second in each trial's process."""
    write_token_files(tmp_path / "t", make_rows([2, 5, 3, 1], label=3))
    source = (
        "import sys; from pathlib import Path; from rankwise.runners.tokens import TokenFile; "
        "rows = TokenFile(Path(sys.argv[1])); "
        "print(rows[0].input_ids.tolist(), len(rows.heaviest(2, micro_batch=2)), "
        "'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", source, str(tmp_path / "t" / "train.arrow")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "[0, 0] 2 False\n"
