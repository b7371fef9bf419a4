from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rankwise.errors import DatasetError, ModelError
from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import StudyRequest
from rankwise.probes.asked import Asked
from rankwise.probes.dataset import profile_dataset
from rankwise.probes.profiles import DatasetProfile, Factory, ModelProfile
from rankwise.runners.array_files import ArrayFile, array_layout, open_rows
from rankwise.runners.array_samples import array_examples, array_keys
from rankwise.runners.input_forms import with_images, with_windows
from rankwise.runners.prepare_arrays import every_nth, shaped, write_rows
from rankwise.runners.recipe import collate, count_scored, count_tokens
from rankwise.runners.tokens import read_classes, write_token_files

HALF: dict[str, Any] = {"seed": 0, "share": 0.5}


def make_model(**changes: Any) -> ModelProfile:
    """A module that a factory makes, with these arguments."""
    return ModelProfile(
        source="lab:net",
        path="/lab",
        revision=None,
        architecture="Net",
        model_type="module",
        parameters=1,
        weight_bytes=4,
        structure_sha256="0" * 64,
        hidden_size=None,
        layers=None,
        max_positions=None,
        supports_gradient_checkpointing=False,
        modules=(),
        new_modules=(),
        factory=Factory(name="lab:net", folder="/lab", arguments=changes),
    )


def profile(path: Path, **asked: Any) -> DatasetProfile:
    return profile_dataset(path, Asked(**asked), source=path.name)


def make_request(**changes: Any) -> StudyRequest:
    return StudyRequest(model="m", dataset="d", **changes)


@pytest.fixture
def series_csv(tmp_path: Path) -> Path:
    """100 days; `b` lacks the 10th."""
    lines = [f"{day},{day},{'' if day == 10 else 2 * day}\n" for day in range(100)]
    path = tmp_path / "series.csv"
    path.write_text("day,a,b\n" + "".join(lines))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(40):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    return tmp_path / "images"


def test_windows_of_both_sides_share_no_row_and_lack_no_value(series_csv: Path) -> None:
    request = make_request(context_length=6, prediction_length=2)
    dataset, split = shaped(profile(series_csv), make_model(), request)
    task = to_json(dataset.task)
    assert task["arrays"]["mean"][0] == pytest.approx(np.arange(round(100 - 100 * split["share"])).mean())
    rows = list(array_examples(series_csv, every=1, task=task, split=split))
    days: tuple[list[int], list[int]] = ([], [])
    for example, heldout in rows:
        assert example.arrays is not None
        assert example.numbers is not None
        window = np.concatenate([example.arrays["past_values"], example.numbers])
        found = window * task["arrays"]["std"] + task["arrays"]["mean"]
        np.testing.assert_allclose(found[:, 1], 2 * found[:, 0], atol=1e-3)
        np.testing.assert_allclose(np.diff(found[:, 0]), 1, atol=1e-3)
        days[heldout].extend(map(round, found[:, 0]))
        assert not heldout or len(example.numbers) == 2
    assert 10 not in days[0]
    assert max(days[0]) < min(days[1])
    assert max(days[1]) == 99
    heldout_rows = [example for example, heldout in rows if heldout]
    assert len(heldout_rows) >= 20
    every_third = list(array_examples(series_csv, every=3, task=task, split=split))
    assert sum(not heldout for _, heldout in every_third) == pytest.approx(len(days[0]) / 8 / 3, abs=2)


@pytest.mark.parametrize(
    ("model", "asked", "error", "message"),
    [
        ({}, {}, ModelError, "does not say its context length"),
        ({"context_length": 6}, {}, ModelError, "does not say its prediction length"),
        (
            {"context_length": 6, "prediction_length": 2},
            {"context_length": 8},
            ModelError,
            "--context-length 8 was given, and model lab:net is made for 6",
        ),
        (
            {"num_input_channels": 3},
            {"context_length": 6, "prediction_length": 2},
            ModelError,
            r"reads 3 channels, and the data have 2 \(a, b\)",
        ),
        ({}, {"context_length": 60, "prediction_length": 8}, DatasetError, r"too short.*at least 138 rows"),
    ],
)
def test_windows_have_to_suit_model_and_series(
    series_csv: Path, model: dict[str, Any], asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        with_windows(profile(series_csv).task, make_model(**model), make_request(**asked), series_csv)


def test_a_channel_that_never_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("day,a,b\n" + "".join(f"{day},{day},7\n" for day in range(100)))
    request = make_request(context_length=6, prediction_length=2)
    with pytest.raises(DatasetError, match="b: the same value in all rows to train on"):
        with_windows(profile(path).task, make_model(), request, path)


def test_images_take_the_size_that_the_model_says(images: Path) -> None:
    task = profile(images).task
    form = with_images(task, make_model(), images).arrays
    assert form is not None
    assert (form.inputs[0].shape, form.mean) == ((1, 4, 4), (0.5,))
    form = with_images(task, make_model(img_size=[8, 6], in_chans=3), images).arrays
    assert form is not None
    assert form.inputs[0].shape == (3, 8, 6)
    Image.new("L", (5, 4)).save(images / "a" / "other.png")
    with pytest.raises(DatasetError, match=r"differ in size \(4×4 and 5×4 pixels\)"):
        with_images(task, make_model(), images)


@pytest.mark.parametrize(
    ("preprocessor", "size", "mean", "std"),
    [
        ({}, 4, 0.5, 0.5),
        ({"size": {"height": 6, "width": 6}, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}, 6, 0.1, 0.2),
        ({"size": {"shortest_edge": 9}, "crop_size": 8, "do_normalize": False}, 8, 0.0, 1.0),
        ({"size": 6, "do_rescale": False, "image_mean": [51.0] * 3, "image_std": [51.0] * 3}, 6, 0.2, 0.2),
    ],
)
def test_a_preprocessor_says_how_images_are_normalised(
    images: Path, tmp_path: Path, preprocessor: dict[str, Any], size: int, mean: float, std: float
) -> None:
    """Of a network of convolutions, which takes images of any size, but of three channels."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    model = replace(make_model(), factory=None, path=str(tmp_path))
    form = with_images(profile(images).task, model, images).arrays
    assert form is not None
    assert form.inputs[0].shape == (3, size, size)
    assert form.mean == pytest.approx((mean,) * 3)
    assert form.std == pytest.approx((std,) * 3)


def test_rows_are_written_once_and_read_as_they_were(images: Path, tmp_path: Path) -> None:
    dataset, split = shaped(profile(images), make_model(), make_request())
    write_rows(tmp_path / "rows", dataset, split=split)
    sides = [open_rows(tmp_path / "rows" / f"{side}.arrow") for side in ("train", "heldout")]
    assert list(map(len, sides)) == [20, 20]
    pairs = array_examples(images, every=1, task=to_json(dataset.task), split=split)
    expected: tuple[list[Any], list[Any]] = ([], [])
    for example, heldout in pairs:
        expected[heldout].append(example)
    for side, examples in zip(sides, expected, strict=True):
        for found, wanted in zip(side, examples, strict=True):
            assert found.label == wanted.label
            np.testing.assert_array_equal(found.arrays["pixel_values"], wanted.arrays["pixel_values"])
    batch = collate(sides[0][:3], pad_id=0)
    assert batch["pixel_values"].shape == (3, 1, 4, 4)
    assert batch["labels"].tolist() == [row.label for row in sides[0][:3]]
    assert (count_scored(batch), count_tokens(sides[0][0])) == (3, 1)
    assert sides[0].heaviest(5, micro_batch=2)[4].arrays is not None
    with pytest.raises(IndexError):
        sides[0][20]


def test_arrays_of_every_kind_come_back(tmp_path: Path) -> None:
    arrays = {
        "ids": np.arange(8).reshape(4, 2),
        "mask": np.arange(8).reshape(4, 2, 1) > 3,
        "x": np.arange(4, dtype=np.float64),
        "y": np.arange(16, dtype=np.float32).reshape(4, 2, 2),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    task = profile(tmp_path / "a.npz").task
    assert task.arrays is not None
    layout = array_layout(task.arrays, has_class=False)
    pairs = array_examples(tmp_path / "a.npz", every=1, task=to_json(task), split=HALF)
    write_token_files(tmp_path / "rows", ((example, False) for example, _ in pairs), layout=layout)
    batch = collate(ArrayFile(tmp_path / "rows" / "train.arrow")[:], pad_id=0)
    np.testing.assert_array_equal(batch.pop("labels"), arrays.pop("y"))
    for name, tensor in batch.items():
        np.testing.assert_array_equal(tensor, arrays[name])
    assert {name: str(tensor.dtype) for name, tensor in batch.items()} == {
        "ids": "torch.int64",
        "mask": "torch.bool",
        "x": "torch.float32",
    }


def test_equal_inputs_fall_on_the_same_side(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(40) // 2, y=np.arange(40) % 2)
    task = to_json(profile(tmp_path / "a.npz").task)
    sides = [heldout for _, heldout in array_examples(tmp_path / "a.npz", every=1, task=task, split=HALF)]
    assert sides[::2] == sides[1::2]
    assert 0 < sum(sides) < 40
    keys = list(array_keys(tmp_path / "a.npz", every=1, task=task))
    assert len({key for key, _ in keys}) == 20
    assert [label for _, label in keys[:4]] == ["0", "1", "0", "1"]


def test_of_large_data_every_nth_row_is_written(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = shaped(profile(images), make_model(), make_request())
    assert every_nth(dataset) == 1
    monkeypatch.setattr("rankwise.runners.prepare_arrays.STORED_BYTES", 40 * 4 * 16 // 6 + 1)
    assert every_nth(dataset) == 7


def test_an_image_that_cannot_be_read_is_named(images: Path) -> None:
    dataset, split = shaped(profile(images), make_model(), make_request())
    (images / "b" / "1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=re.escape("1.png: not readable as an image")):
        list(array_examples(images, every=1, task=to_json(dataset.task), split=split))


def test_each_class_of_few_arrays_is_on_both_sides(tmp_path: Path) -> None:
    classes = np.repeat([0, 1, 2], [40, 8, 2])
    np.savez(tmp_path / "a.npz", x=np.arange(50.0), y=classes)
    dataset, split = shaped(profile(tmp_path / "a.npz"), make_model(), make_request())
    write_rows(tmp_path / "rows", dataset, split=split)
    assert read_classes(tmp_path / "rows") == {0: (24, 16), 1: (5, 3), 2: (1, 1)}
