from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwise.errors import DatasetError, InputError, PathNotAllowed
from rankwise.probes import dataset
from rankwise.probes.asked import Asked
from rankwise.probes.dataset import (
    LengthSample,
    check_dataset,
    length_profile,
    profile_dataset,
    resolve_dataset,
)
from rankwise.probes.profiles import DatasetProfile, TaskKind

REVIEWS = "id,text,label\n1,a good film,pos\n2,a bad film,neg\n3,a good film,pos\n4,,neg\n5,no label, \n"


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def profile(path: Path, **chosen: str | None) -> DatasetProfile:
    return profile_dataset(path, Asked(**chosen), source="as written")


def test_a_labelled_csv_is_profiled(tmp_path: Path) -> None:
    path = write(tmp_path, REVIEWS)
    found = profile(path)
    assert found.source == "as written"
    assert found.path == str(path)
    assert found.sha256 == hashlib.sha256(REVIEWS.encode()).hexdigest()
    assert (found.format, found.size_bytes) == ("csv", len(REVIEWS))
    assert (found.rows, found.usable_rows, found.duplicate_rows) == (5, 3, 1)
    assert found.columns == ("id", "text", "label")
    assert found.task.kind is TaskKind.TEXT_CLASSIFICATION
    assert (found.task.text_column, found.task.label_column) == ("text", "label")
    assert found.task.labels == ("neg", "pos")
    assert found.label_counts == {"neg": 1, "pos": 2}
    assert found.task.reason == "column 'label' is named like a label and has 2 distinct values"
    assert found.lengths is None


def test_json_lines_without_a_label_are_learnt_as_text(tmp_path: Path) -> None:
    lines = '{"prompt": "tell me"}\n{"prompt": "", "n": 1}\n{"n": 2}\n{"prompt": "go on", "late": "x"}\n'
    found = profile(write(tmp_path, lines, "a.ndjson"))
    assert (found.format, found.rows, found.usable_rows) == ("jsonl", 4, 2)
    assert found.columns == ("prompt", "n", "late")
    assert found.task.kind is TaskKind.CAUSAL_LM
    assert (found.task.text_column, found.task.label_column, found.task.labels) == ("prompt", None, ())
    assert found.label_counts == {}
    assert "no column looks like a label" in found.task.reason


def test_labels_far_down_the_file_count(tmp_path: Path) -> None:
    sorted_rows = [f"film {n},{int(n >= 1500)}" for n in range(3000)]
    found = profile(write(tmp_path, "\n".join(["text,verdict", *sorted_rows])))
    assert found.label_counts == {"0": 1500, "1": 1500}


def test_the_users_choices_win(tmp_path: Path) -> None:
    path = write(tmp_path, REVIEWS)
    assert profile(path, task="causal-lm").task.kind is TaskKind.CAUSAL_LM
    assert profile(path, task="causal-lm").usable_rows == 4
    chosen = profile(path, text_column="label", label_column="text", task="text-classification").task
    assert (chosen.text_column, chosen.label_column) == ("label", "text")
    assert chosen.labels == ("a bad film", "a good film")


@pytest.mark.parametrize(
    ("content", "chosen", "message", "next_step"),
    [
        (
            REVIEWS,
            {"label_column": "lable"},
            "no column 'lable' (it has: id, text, label)",
            "--label-column label",
        ),
        (REVIEWS, {"text_column": "texts"}, "no column 'texts'", "--text-column text"),
        (REVIEWS, {"text_column": "label", "label_column": "label"}, "text and label at once", "another"),
        (
            REVIEWS,
            {"label_column": "id", "task": "text-classification"},
            "label column 'id' is a different number in most rows",
            "causal-lm",
        ),
        (REVIEWS, {"task": "tagging"}, "no task 'tagging'", "text-classification, regression, causal-lm"),
        (REVIEWS, {"task": "causal-lm", "label_column": "label"}, "has no use for a label", "leave one"),
        (
            "text,n\na film,1\n",
            {"task": "text-classification"},
            "no column looks like a label",
            "--label-column",
        ),
        ("text,label\na,x\nb,y\nc,z\n", {}, "different in most rows", "causal-lm"),
        ("text,label\n", {}, "no rows", "add rows"),
        ("a,b\n1,2\n", {}, "no column holds text (it has: a, b)", "--text-column"),
        ("text,x\n,1\n ,2\n", {"text_column": "text"}, "'text' is empty in all 2 rows", "--text-column"),
        ("text,label\na,1\nb\n", {}, "dataset a.csv, line 3: 1 cells", "correct or remove"),
        (b"text\n\xc3\xa9\n\xff\n", {}, "dataset a.csv, line 3: byte 1", "iconv -c"),
        (",".join(map(str, range(1001))) + "\n", {}, "more than 1000 columns", "keep"),
        (",".join(map(str, range(1001))) + "\n" + "x," * 1000 + "\n", {}, "more than 1000 columns", "keep"),
        ("", {}, "is empty", "has rows"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_with_a_way_out(
    tmp_path: Path, content: str | bytes, chosen: dict[str, str], message: str, next_step: str
) -> None:
    with pytest.raises(InputError) as caught:
        profile(write(tmp_path, content), **chosen)
    assert message in caught.value.message
    assert next_step in caught.value.next_step


def test_nested_cells_are_no_text(tmp_path: Path) -> None:
    deep = '{"text": ' + "[" * 500 + "]" * 500 + "}\n"
    path = write(tmp_path, '{"text": "a"}\n' + deep, "a.jsonl")
    with pytest.raises(DatasetError, match="no column holds text"):
        profile(path)
    with pytest.raises(DatasetError, match="holds a list or an object in row 2"):
        profile(path, text_column="text")


def test_the_quick_check_reads_only_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "text,label\n" + "a,1\n" * dataset.HEAD_ROWS + "broken\n")
    assert check_dataset(path) == "text"
    with pytest.raises(DatasetError, match="line 1002"):
        profile(path)


def test_duplicates_are_unknown_where_they_would_take_too_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_DISTINCT_ROWS", 3)
    assert profile(write(tmp_path, "text\na\nb\na\na\nb\n")).duplicate_rows == 3
    assert profile(write(tmp_path, "text\na\nb\nc\nd\na\n")).duplicate_rows is None


def test_rows_that_are_set_aside_are_announced(tmp_path: Path) -> None:
    assert profile(write(tmp_path, REVIEWS)).notes == (
        "1 of 5 rows are set aside: without text in 'text'",
        "1 of 5 rows are set aside: without a label in 'label'",
    )
    assert profile(write(tmp_path, "text,label\na,1\nb,2\nc,1\nd,2\n")).notes == ()


@pytest.mark.parametrize("missing", ["NaN", "null", '"nan"', "Infinity", "-Infinity", '" "'])
def test_what_is_no_label_becomes_no_class(tmp_path: Path, missing: str) -> None:
    rows = [f'{{"text": "film {n}", "label": {n % 2}}}' for n in range(10)]
    found = profile(write(tmp_path, "\n".join([*rows, f'{{"text": "x", "label": {missing}}}']), "a.jsonl"))
    assert found.task.labels == ("0", "1")
    assert (found.rows, found.usable_rows) == (11, 10)
    assert found.notes == ("1 of 11 rows are set aside: without a label in 'label'",)


def test_a_text_that_is_nan_is_missing(tmp_path: Path) -> None:
    found = profile(write(tmp_path, '{"text": "a film"}\n{"text": NaN}\n', "a.jsonl"))
    assert (found.rows, found.usable_rows) == (2, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "columns 'chosen' and 'rejected'"),
        ('{"Chosen_response": "b", "rejected_response": "c"}', "'Chosen_response' and 'rejected_response'"),
        ('{"prompt": "a", "completion": "b", "label": true}', "marked as wanted or not"),
    ],
)
def test_preferences_are_said_to_be_unsupported(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DatasetError, match="not supported") as caught:
        profile(write(tmp_path, f"{row}\n" * 3, "a.jsonl"))
    assert message in caught.value.message
    assert caught.value.next_step


def test_rows_of_many_cells_are_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "LOOKED_AT_CELLS", 1000)
    path = write(tmp_path, "text,label,a,b\n" + "a film,1,2,3\na book,2,3,4\na play,1,3,4\n" * 300)
    found = profile(path)
    assert found.every_nth_row == 5, "a prime, or labels that take turns would look like one"
    assert found.rows == 900
    assert found.task.labels == ("1", "2")


def test_a_folder_that_may_not_be_read_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "text\na\n")

    def refuse(top: Path, *, onerror: Any) -> list[Any]:
        onerror(PermissionError(13, "Permission denied"))
        return []

    monkeypatch.setattr(os, "walk", refuse)
    with pytest.raises(DatasetError, match="Permission denied"):
        profile(tmp_path)


def test_long_texts_are_sampled_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SAMPLED_CHARACTERS", 1000)
    sample = LengthSample(0)
    for n in range(500):
        sample.add("x" * (100 + n % 7))
    assert 1 <= sum(map(len, sample.sampled)) <= 1000
    assert sum(map(len, sample.longest)) <= 1000
    assert len(sample.longest[0]) == 106
    assert not sample.is_complete


def test_only_regular_files_of_known_formats_are_taken(tmp_path: Path) -> None:
    write(tmp_path, "text\na\n", "reviews.csv")
    write(tmp_path, "x", "reviews.doc")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name, message, next_step in [
        ("revews.csv", "does not exist", "reviews.csv"),
        ("reviews.doc", "unsupported extension '.doc'", ".csv, .tsv, .jsonl, .ndjson, .json, .parquet"),
        ("empty", "folder without data files", "put .csv"),
        ("pipe.csv", "not a regular file", "copy"),
    ]:
        with pytest.raises(DatasetError) as caught:
            resolve_dataset(str(tmp_path / name), allowed_roots=None)
        assert message in caught.value.message
        assert next_step in caught.value.next_step


def test_datasets_lie_inside_the_allowed_roots(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outside = write(tmp_path, "text\na\n", "secret.csv")
    inside = write(tmp_path / "in", "text\na\n")
    (tmp_path / "in" / "link.csv").symlink_to(outside)
    assert resolve_dataset(str(inside), allowed_roots=[tmp_path / "in"]) == inside
    for path in (outside, tmp_path / "in" / "link.csv", tmp_path / "in" / ".." / "secrets.csv"):
        with pytest.raises(PathNotAllowed) as caught:
            resolve_dataset(str(path), allowed_roots=[tmp_path / "in"])
        assert "did you mean" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["a.csv", "a.jsonl"]),
    st.binary(max_size=200)
    | st.lists(st.text(alphabet='ab1,;"\n\t{}[]:.\\é', max_size=30)).map(
        lambda lines: "\n".join(lines).encode()
    )
    | st.lists(
        st.fixed_dictionaries({"text": st.text(), "label": st.integers(0, 2) | st.none() | st.text()})
    ).map(
        lambda rows: "\n".join(str(row).replace("'", '"') for row in rows).encode("utf-8", "surrogatepass")
    ),
)
def test_any_bytes_give_a_profile_or_a_dataset_error(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path, content, name)
    try:
        found = profile(path)
    except DatasetError:
        return
    assert 0 < found.usable_rows <= found.rows
    assert set(found.label_counts) == set(found.task.labels)


def test_a_sample_that_holds_everything_is_complete_and_in_order() -> None:
    sample = LengthSample(0, capacity=3, longest=2)
    for text in ("a", "ccc", "bb"):
        sample.add(text)
    assert sample.sampled == ["a", "ccc", "bb"]
    assert sample.longest == ["ccc", "bb"]
    assert sample.is_complete


def test_a_sample_is_uniform_seeded_and_keeps_the_longest() -> None:
    def drawn(seed: int) -> LengthSample:
        sample = LengthSample(seed, capacity=500, longest=3)
        for n in range(10_000):
            sample.add("x" * 50_000 if n == 7_777 else str(n))
        return sample

    first = drawn(1)
    assert not first.is_complete
    assert len(first.sampled) == 500
    assert first.sampled == drawn(1).sampled != drawn(2).sampled
    assert [len(text) for text in first.longest] == [50_000, 4, 4]
    positions = [int(text) for text in first.sampled if len(text) < 10]
    # Mean 5000, standard error 10000/sqrt(12·500) ≈ 129.
    assert abs(sum(positions) / len(positions) - 5000) < 5 * 129


def test_lengths_are_summarised_by_nearest_rank() -> None:
    lengths = list(range(1, 101))
    random.Random(0).shuffle(lengths)
    found = length_profile(lengths, estimated=True, longest=[40, 250])
    assert (found.p50, found.p90, found.p99, found.max) == (50, 90, 99, 250)
    assert (found.mean, found.rows_measured, found.estimated) == (50.5, 100, True)
    only = length_profile([7], estimated=False)
    assert (only.p50, only.p99, only.max) == (7, 7, 7)


def test_one_class_is_learnt_beside_one_that_no_row_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na film,spam\nb film,spam\n")
    found = profile_dataset(tmp_path / "a.csv", source="a.csv")
    assert found.task.kind is TaskKind.TEXT_CLASSIFICATION
    assert found.task.labels == ("spam", "not spam")
    assert found.label_counts == {"spam": 2, "not spam": 0}
    assert found.notes == (
        "every row has the value 'spam' in 'label': there is nothing to learn; the class 'not spam', which "
        "no row has, is added",
    )


@pytest.mark.parametrize("task", [None, "regression"])
def test_a_constant_number_is_learnt_all_the_same(tmp_path: Path, task: str | None) -> None:
    (tmp_path / "a.csv").write_text("text,label\na film,0.5\nb film,0.5\n")
    found = profile_dataset(tmp_path / "a.csv", Asked(task=task), source="a.csv")
    assert (found.task.kind, found.task.labels) == (TaskKind.REGRESSION, ())
    assert found.notes == ("every row has the value '0.5' in 'label': there is nothing to learn",)


def test_a_constant_word_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na film,x\nb film,x\n")
    with pytest.raises(DatasetError, match="'x', which is no number"):
        profile_dataset(tmp_path / "a.csv", Asked(task="regression"), source="a.csv")


def test_labels_that_are_no_numbers_are_no_class(tmp_path: Path) -> None:
    """JSON's NaN, and words for it."""
    lines = [
        f'{{"text": "film {number}", "label": {label}}}'
        for number, label in enumerate(["NaN", "1", "0", '"nan"', "null", "Infinity", "1", "0"])
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = profile_dataset(tmp_path / "a.jsonl", source="a.jsonl")
    assert found.task.labels == ("0", "1")
    assert found.notes == ("4 of 8 rows are set aside: without a label in 'label'",)


DATED = "day,text\n" + "".join(f"2024-01-{day:02},text number {day}\n" for day in range(1, 29))


def test_a_time_beside_texts_makes_no_series_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(DATED)
    found = profile_dataset(tmp_path / "a.csv", Asked(time_column="day"), source="a.csv")
    assert (found.task.kind, found.task.text_column) == (TaskKind.CAUSAL_LM, "text")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"group_column": "user"}, "no column 'user'"),
        ({"group_column": "text", "text_column": "text"}, "text and group at once"),
        ({"group_column": "day", "time_column": "day"}, "--group-column day was given beside what orders"),
        ({"group_column": "day", "task": "forecasting"}, "has no use for a group"),
    ],
)
def test_a_group_that_cannot_be(tmp_path: Path, chosen: dict[str, str], message: str) -> None:
    (tmp_path / "a.csv").write_text(DATED)
    with pytest.raises(InputError, match=message):
        profile_dataset(tmp_path / "a.csv", Asked(**chosen), source="a.csv")


def test_a_group_names_no_text(tmp_path: Path) -> None:
    """Though its cells are the longest."""
    rows = "".join(f"{chr(97 + day % 5) * 90},text number {day}\n" for day in range(20))
    (tmp_path / "a.csv").write_text("user,words\n" + rows)
    found = profile_dataset(tmp_path / "a.csv", Asked(group_column="user"), source="a.csv")
    assert found.task.text_column == "words"
