from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rankwise.errors import DatasetError, InputError
from rankwise.probes.array_sources import image_files, is_moment, read_time
from rankwise.probes.arrays import image_shape, npz_arrays, read_image, read_npz, read_series
from rankwise.probes.asked import Asked
from rankwise.probes.dataset import check_dataset, profile_dataset
from rankwise.probes.profiles import DatasetProfile, TaskKind
from rankwise.probes.rows import RowError

SERIES = "day,wind,sky,temp\n2024-01-03,3,sun,0.5\n2024-01-01,1,rain,0.25\n2024-01-02,2,sun,\n"


def save_image(path: Path, *, size: tuple[int, int] = (4, 2), mode: str = "RGB", value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value, 0, 0) if mode == "RGB" else value).save(path)
    return path


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def profile(path: Path, **asked: Any) -> DatasetProfile:
    found = profile_dataset(path, Asked(**asked), source="as written")
    assert check_dataset(path, Asked(**asked)) == found.task.text_column == ""
    return found


def write_table(folder: Path, content: str) -> Path:
    path = folder / "a.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_folders_are_the_classes_of_images(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/1.PNG", "cat/deep/2.jpg", "cat/.hidden.png", "cat/notes.md"):
        if name.endswith("md"):
            (tmp_path / name).write_text("no image")
        else:
            save_image(tmp_path / name)
    found = profile(tmp_path)
    assert found.task.kind is TaskKind.IMAGE_CLASSIFICATION
    assert found.label_counts == {"cat": 2, "dog": 1}
    assert (found.rows, found.format) == (3, "images")
    assert "2 folders" in found.task.reason


def test_of_splits_the_training_images_are_taken(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            save_image(tmp_path / split / label / "1.png")
    assert [image.path.parts[-3] for image in image_files(tmp_path)] == ["train", "train"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1.png", "a/1.png", "b/1.png"), "outside of a class's folder"),
        (("a/1.png", "a/2.png"), "one class only"),
        (("train/a/1.png", "training/b/1.png"), "2 folders of images to train on"),
    ],
)
def test_images_that_make_no_dataset_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        save_image(tmp_path / name)
    with pytest.raises(DatasetError, match=message):
        profile(tmp_path)


def test_another_task_than_the_images_have_is_refused(tmp_path: Path) -> None:
    for label in ("a", "b"):
        save_image(tmp_path / label / "1.png")
    with pytest.raises(InputError, match="the data are images in folders"):
        profile(tmp_path, task="text-classification")
    with pytest.raises(InputError, match="--label-column x was given, and images have no columns"):
        profile(tmp_path, label_column="x")


def test_an_image_is_resized_and_normalised(tmp_path: Path) -> None:
    path = save_image(tmp_path / "1.png")
    assert image_shape(path) == (3, 2, 4)
    pixels = read_image(path, (3, 2, 2), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert pixels.shape == (3, 2, 2)
    assert pixels.dtype == np.float32
    assert [float(channel.mean()) for channel in pixels] == [1.0, -2.0, -1.0]
    assert image_shape(save_image(tmp_path / "2.png", mode="L")) == (1, 2, 4)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(b"none")
    with pytest.raises(RowError, match=r"1\.png: not readable as an image"):
        read_image(path, (3, 2, 2), (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("written", "since_1970"),
    [
        ("1970-01-02", 86400.0),
        ("1970/01/02", 86400.0),
        ("1970-01-01T01:00:00", 3600.0),
        ("1970-01-01T01:00+01:00", 0.0),
        ("1970-02", 31 * 86400.0),
        ("1970-01-01 00:00:01.000000000", 1.0),
        (17, 17.0),
        ("17.5", 17.5),
        ("soon", None),
        (None, None),
        (True, None),
    ],
)
def test_times(written: Any, since_1970: float | None) -> None:
    assert read_time(written) == since_1970
    assert is_moment(written) == (isinstance(written, str) and since_1970 is not None and written[2:3] != ".")


def test_numbers_beside_a_time_are_forecast(tmp_path: Path) -> None:
    found = profile(write_table(tmp_path, SERIES))
    form = found.task.arrays
    assert form is not None
    assert found.task.kind is TaskKind.FORECASTING
    assert (form.time_column, form.channels) == ("day", ("wind", "temp"))
    assert "left out: sky, from 2024-01-01 to 2024-01-03" in found.task.reason
    assert (found.rows, found.usable_rows) == (3, 2)
    assert found.notes == ("1 of 3 rows lack a value: windows with such a row are set aside",)


def test_the_choice_of_a_series_can_be_overridden(tmp_path: Path) -> None:
    path = write_table(tmp_path, SERIES)
    form = profile(path, channels=("temp",)).task.arrays
    assert form is not None
    assert form.channels == ("temp",)
    asked = Asked(text_column="day", label_column="sky")
    assert profile_dataset(path, asked, source="a").task.kind is TaskKind.TEXT_CLASSIFICATION
    without_time = write_table(tmp_path, "a,b\n1,2\n3,4\n")
    form = profile(without_time, task="forecasting").task.arrays
    assert form is not None
    assert (form.time_column, form.channels) == (None, ("a", "b"))


def test_texts_beside_a_time_are_no_series(tmp_path: Path) -> None:
    rows = "".join(f"2024-01-{day:02},{day},text number {day}\n" for day in range(1, 29))
    found = profile_dataset(write_table(tmp_path, "day,n,text\n" + rows), source="a")
    assert (found.task.kind, found.task.text_column) == (TaskKind.CAUSAL_LM, "text")


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        (SERIES, {"channels": ("sky",)}, "column 'sky' holds 'sun', which is no number"),
        (SERIES, {"channels": ("rain",)}, "no column 'rain'"),
        (SERIES.replace("03", "01"), {}, "row 2: the time '2024-01-01' in column 'day' occurs twice"),
        (SERIES, {"time_column": "sky"}, "row 1: no time in column 'sky'"),
        ("day,sky\n2024-01-01,sun\n", {"task": "forecasting"}, "no column holds numbers"),
        (SERIES, {"task": "forecasting", "label_column": "sky"}, "no use for a label"),
        (SERIES, {"task": "array-regression"}, "of which the task array-regression learns nothing"),
    ],
)
def test_what_is_no_series_is_refused(
    tmp_path: Path, content: str, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        profile(write_table(tmp_path, content), **asked)


def test_a_series_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    series = read_series(write_table(tmp_path, SERIES), time_column="day", channels=("wind", "temp"))
    np.testing.assert_array_equal(series.values, [[1, 0.25], [2, np.nan], [3, 0.5]])
    assert series.times == ("2024-01-01", "2024-01-03")


@pytest.mark.parametrize(
    ("arrays", "asked", "kind", "labels"),
    [
        ({"x": np.zeros((4, 2)), "y": np.array([0, 3, 1, 3])}, {}, "array-classification", tuple("0123")),
        ({"x": np.zeros((2, 2)), "label": np.array(["b", "a"])}, {}, "array-classification", ("a", "b")),
        ({"x": np.zeros((2, 2)), "y": np.array([-1, 1])}, {}, "array-classification", ("-1", "1")),
        ({"x": np.zeros((2, 2)), "y": np.zeros((2, 3, 3))}, {}, "array-regression", ()),
        (
            {"x": np.zeros((2, 2)), "y": np.array([1, 2])},
            {"task": "array-regression"},
            "array-regression",
            (),
        ),
        (
            {"x": np.zeros((2, 2)), "z": np.array([0.0, 1.0])},
            {"task": "array-classification", "label_column": "z"},
            "array-classification",
            ("0", "1"),
        ),
        ({"x": np.zeros((2, 2))}, {}, "self-supervised", ()),
        ({"x": np.zeros((2, 2)), "y": np.ones(2)}, {"task": "self-supervised"}, "self-supervised", ()),
    ],
)
def test_arrays_say_what_is_learnt_unless_the_user_does(
    tmp_path: Path, arrays: dict[str, Any], asked: dict[str, Any], kind: str, labels: tuple[str, ...]
) -> None:
    found = profile(save_npz(tmp_path / "a.npz", **arrays), **asked)
    assert found.task.kind == kind
    assert found.task.labels == labels
    form = found.task.arrays
    assert form is not None
    named = [name for name in arrays if name != found.task.label_column]
    assert [each.name for each in form.inputs] == named
    assert (form.target is not None) == (kind == "array-regression")


@pytest.mark.parametrize(
    ("arrays", "asked", "message"),
    [
        ({"x": np.zeros((2, 2)), "y": np.zeros(3)}, {}, r"different numbers of rows \(x 2, y 3\)"),
        ({"y": np.zeros(3)}, {}, "its only array is 'y'"),
        ({"x": np.zeros((2, 2)), "y": np.zeros((2, 3), int)}, {}, "neither one class nor fractions"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(2, int)}, {}, "the same class in every row"),
        ({"x": np.full((2, 2), np.nan)}, {}, "all 2 rows hold NaN"),
        ({"x": np.zeros((2, 2), complex)}, {}, "complex128, which no module takes"),
        ({"x": np.array(3.0)}, {}, r"array 'x' has the shape \(\)"),
        ({"x": np.zeros((2, 2)).astype(object)}, {}, "Python objects"),
        ({"x": np.asfortranarray(np.zeros((2, 2)))}, {}, "stored column by column"),
        ({"x": np.zeros((2, 2))}, {"label_column": "y"}, "no array 'y'"),
        ({"x": np.zeros((2, 2))}, {"task": "array-regression"}, "no array is named like a target"),
        ({"x": np.zeros((2, 2))}, {"task": "causal-lm"}, "the data are arrays in an .npz"),
        (
            {"x": np.zeros((2, 2)), "y": np.array([0.5, 1.0])},
            {"task": "array-classification"},
            "holds a fraction in row 1",
        ),
    ],
)
def test_arrays_that_make_no_rows_are_refused(
    tmp_path: Path, arrays: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        profile(save_npz(tmp_path / "a.npz", **arrays), **asked)


def test_rows_without_numbers_are_set_aside(tmp_path: Path) -> None:
    x = np.array([[0.0, 1.0], [np.nan, 1.0], [2.0, 3.0]])
    found = profile(save_npz(tmp_path / "a.npz", x=x, y=np.array([0, 1, 1])))
    assert (found.rows, found.usable_rows) == (3, 2)
    assert found.notes == ("1 of 3 rows are set aside: they hold NaN or infinity",)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_arrays_are_read_one_by_one(tmp_path: Path, save: Any) -> None:
    arrays = {
        "small": np.arange(12, dtype=np.uint8).reshape(6, 2),
        "whole": np.arange(6),
        "half": np.arange(6, dtype=np.float16),
        "on": np.arange(6) > 2,
        "word": np.array(["a", "b"] * 3),
    }
    save(tmp_path / "a.npz", **arrays)
    headers = {header.name: header.kind for header in npz_arrays(tmp_path / "a.npz")}
    assert headers == {
        "small": "float32",
        "whole": "int64",
        "half": "float32",
        "on": "bool",
        "word": "text",
    }
    rows = list(read_npz(tmp_path / "a.npz", list(arrays), every=2))
    assert [row["word"] for row in rows] == ["a", "a", "a"]
    assert [int(row["whole"]) for row in rows] == [0, 2, 4]
    np.testing.assert_array_equal(rows[1]["small"], [4, 5])
    assert [bool(row["on"]) for row in rows] == [False, False, True]


def test_an_archive_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", x=np.zeros((100, 10)))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"a\.npz: not readable as an archive of arrays"):
        profile(path)


def test_formats_that_start_other_programs_are_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(RowError, match="not readable as an image"):
        read_image(tmp_path / "a.png", (3, 2, 2), (0.0,) * 3, (1.0,) * 3)
