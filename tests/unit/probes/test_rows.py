from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwise.probes import rows
from rankwise.probes.rows import RowError, read_rows, row_text

texts = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]))
any_bytes = st.binary(max_size=200) | texts.map(str.encode)
reuse_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(path: Path) -> RowError:
    with pytest.raises(RowError) as caught:
        list(read_rows(path))
    assert caught.value.path == path
    return caught.value


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_is_read_whatever_its_delimiter_line_end_and_byte_order_mark(
    tmp_path: Path, delimiter: str, line_end: str, mark: str
) -> None:
    lines = [f"text{delimiter} label", f'"two{line_end}lines, ""quoted"""{delimiter}1', "", f"b{delimiter}"]
    path = write(tmp_path, "a.CSV", mark + line_end.join(lines))
    assert list(read_rows(path)) == [
        {"text": f'two{line_end}lines, "quoted"', "label": "1"},
        {"text": "b", "label": ""},
    ]


def test_csv_of_one_column_needs_no_delimiter(tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path, "a.csv", "text\na\n\n  \nb"))) == [{"text": "a"}, {"text": "b"}]


def test_json_values_keep_their_types_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '\ufeff{"t": "é", "n": 1}\n\n  \r\n{"t": null, "x": [1.5, true]}')
    assert list(read_rows(path)) == [{"t": "é", "n": 1}, {"t": None, "x": [1.5, True]}]


@pytest.mark.parametrize(
    ("name", "content", "line", "cause"),
    [
        ("a.csv", "", 1, "no header"),
        ("a.csv", "\n\n", 1, "no header"),
        ("a.csv", "a,b,a\n", 1, "2 columns are named 'a'"),
        ("a.csv", "a,b\n1,2\n1\n", 3, "1 cells where the header has 2"),
        ("a.csv", "a,b\n1,2,3\n", 2, "3 cells where the header has 2"),
        ("a.csv", 'a,b\n"x\ny",2\n"open,1\nz,2\n', 4, "unexpected end of data"),
        ("a.csv", 'a,b\n"x" y,2\n', 2, "expected after"),
        ("a.csv", b"a,b\n1,2\n1,\xff\n", 3, "byte 3 of the line is not UTF-8"),
        ("a.csv", "a,b\n1,\0\n", 2, "the line holds a NUL"),
        ("a.csv", "text\n".encode("utf-16"), 1, "not UTF-8"),
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', 3, "not one JSON object"),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', 1, "Extra data"),
        ("a.jsonl", "{}\n[1]\n", 2, "a JSON list where an object"),
        ("a.jsonl", "[1]\n[2]\n", 1, "a JSON int where an object"),
        ("a.json", '[\n{"a":\n1},\n{"a"}\n]\n', 4, "not a JSON array"),
        ("a.json", '[{"a": 1}\n', 1, "not a JSON array"),
        ("a.json", '[{"a": 1}, "\\ud83d"]', 1, "surrogates"),
        ("a.jsonl", b'{"a": "\xe9"}\n', 1, "not UTF-8"),
        ("a.jsonl", '{"a": "\\ud83d"}\n', 1, "surrogates"),
        ("a.jsonl", '{"a":' + "[" * 100_000, 1, "recursion"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}\n", 1, "digits"),
    ],
)
def test_a_bad_row_is_named_by_line_and_cause(
    tmp_path: Path, name: str, content: str | bytes, line: int, cause: str
) -> None:
    error = error_of(write(tmp_path, name, content))
    assert error.line == line
    assert cause in error.cause
    assert str(error) == f"{error.path}, line {line}: {error.cause}"


def test_rows_before_a_bad_one_are_delivered(tmp_path: Path) -> None:
    found = read_rows(write(tmp_path, "a.csv", "a,b\n1,2\n3\n"))
    assert next(found) == {"a": "1", "b": "2"}
    with pytest.raises(RowError):
        next(found)


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text\n{}\n"), ("a.jsonl", '{{"text": "{}"}}\n')])
def test_long_cells_are_read_up_to_the_limit(
    tmp_path: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, name, content.format("x" * 200_000))
    assert [len(row["text"]) for row in read_rows(path)] == [200_000]
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1000)
    assert "longer than 100000 bytes" in error_of(path).cause


def test_records_of_many_lines_are_skipped_in_linear_time(tmp_path: Path) -> None:
    cell = '"' + "word\n" * 300_000 + '"'
    found = read_rows(write(tmp_path, "a.csv", "text,n\n" + f"{cell},1\nb,2\nc,3\n" * 2), every=3)
    # Matching the record anew with each of its lines took hours.
    assert [row["n"] for row in found] == ["1", "1"]
    found = read_rows(write(tmp_path, "b.csv", f"text,n\na,0\n{cell},1\nb,2\nc,3\n"), every=3)
    assert [row["n"] for row in found] == ["0", "3"]
    assert found.passed == 4


def test_half_a_surrogate_pair_in_a_conversation_is_refused() -> None:
    turns = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "%s"}]'
    assert rows.conversation({"talk": turns % "\\ud83d"}, "talk") is None
    assert rows.conversation({"talk": turns % "\\ud83d\\ude42"}, "talk") is not None


def test_a_quote_left_open_does_not_take_the_file_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1000)
    error = error_of(write(tmp_path, "a.csv", 'text\n"open\n' + "word\n" * 1000))
    assert error.line == 2
    assert "field limit" in error.cause


@pytest.mark.parametrize(
    ("value", "text"),
    [("a b ", "a b "), (None, ""), (1, "1"), (1.5, "1.5"), (True, "true"), ({"é": [1]}, '{"é": [1]}')],
)
def test_any_cell_has_a_text(value: object, text: str) -> None:
    assert row_text({"a": value}, "a") == text
    assert row_text({}, "a") == ""


@reuse_folder
@given(st.lists(st.tuples(texts, texts).filter(lambda cells: "".join(cells).strip())))
def test_what_a_csv_writer_wrote_is_read_back(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([("a", "b"), *cells])
    path = write(tmp_path, "a.csv", written.getvalue())
    assert [(row["a"], row["b"]) for row in read_rows(path)] == cells


@reuse_folder
@given(st.lists(st.dictionaries(texts, texts | st.none() | st.floats(allow_nan=False) | st.booleans())))
def test_what_a_json_writer_wrote_is_read_back(tmp_path: Path, written: list[dict[str, object]]) -> None:
    path = write(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in written))
    assert list(read_rows(path)) == written


@reuse_folder
@given(st.sampled_from(["a.csv", "a.jsonl"]), any_bytes)
def test_any_bytes_give_rows_or_a_row_error(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path, name, content)
    try:
        found = list(read_rows(path))
    except RowError:
        return
    assert all(isinstance(row, dict) for row in found)
