"""What a model wants rows to be that are no text: the size of images, the length of windows.

Reads the model's configuration and that of its preprocessor, no weights. What neither says, the request or
the data have to.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, ModelError
from ..optimizer.domain import StudyRequest
from ..probes.array_sources import image_files
from ..probes.arrays import IMAGE_MODES, image_shape, read_series
from ..probes.model_source import read_json_object
from ..probes.profiles import ArrayForm, ModelProfile, TaskProfile
from .array_samples import LEAST_HELDOUT_WINDOWS, heldout_rows
from .recipe import heldout_share

PREPROCESSOR_FILE = "preprocessor_config.json"
USUAL_MEAN, USUAL_STD = 0.5, 0.5
"""Of images whose model does not say: they come to lie between -1 and 1."""
CHANNEL_ARGUMENTS = ("num_channels", "in_channels", "in_chans", "channels")
SIZE_ARGUMENTS = ("image_size", "img_size")
MOST_HELDOUT_SHARE = 0.5


def with_images(task: TaskProfile, model: ModelProfile, folder: Path) -> TaskProfile:
    """The task with the size of images that the model reads; of those in the folder, if it reads any.

    Raises:
        ModelError: images of so many channels are not read.
        RowError: an image cannot be read.
    """
    form = _form(task)
    said = {} if model.factory is not None else _preprocessor(Path(model.path))
    shape = model.image_shape or _common_shape(folder, {**_sizes(said), **_settings(model)})
    if shape[0] not in IMAGE_MODES:
        raise ModelError(
            f"model {model.source} reads images of {shape[0]} channels",
            next_step="bring them as arrays in an .npz",
        )
    mean, std = _normalisation(said, shape[0])
    inputs = (replace(form.inputs[0], shape=shape),)
    return replace(task, arrays=replace(form, inputs=inputs, mean=mean, std=std))


def with_windows(
    task: TaskProfile, model: ModelProfile, request: StudyRequest, data: Path
) -> tuple[TaskProfile, float]:
    """The task with windows as long as the model, or the user, wants them; and which share is held out.

    What is held out has :data:`LEAST_HELDOUT_WINDOWS` if the series is long enough for them.

    Raises:
        DatasetError: the series is too short, or a channel is the same number throughout.
        ModelError: the model reads another number of channels, or nobody says how long windows are.
    """
    form = _form(task)
    config = _settings(model)
    context = _length(request.context_length, config, "context_length", "--context-length", model)
    horizon = _length(request.prediction_length, config, "prediction_length", "--prediction-length", model)
    _check_channels(config, form, model)
    values = read_series(data, time_column=form.time_column, channels=form.channels).values
    rows, length = len(values), context + horizon
    share = max(heldout_share(rows), (length + LEAST_HELDOUT_WINDOWS - 1) / rows)
    if share > MOST_HELDOUT_SHARE:
        share = (length + 1) / rows  # rounds to what a window needs at least
    heldout = heldout_rows(rows, share)
    if share > MOST_HELDOUT_SHARE or heldout < length or rows - heldout <= length:
        raise DatasetError(
            f"a series of {rows:,} rows is too short for windows of {context} + {horizon}",
            next_step=f"bring at least {2 * length + 2:,} rows, or pass a shorter --context-length "
            "or --prediction-length",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of channels that are empty
        mean, std = (np.nan_to_num(of(values[: rows - heldout], axis=0)) for of in (np.nanmean, np.nanstd))
    if any(constant := std <= 0):
        names = ", ".join(
            name for name, is_constant in zip(form.channels, constant, strict=True) if is_constant
        )
        raise DatasetError(
            f"{names}: the same value in all rows to train on", next_step="pass --channel with the others"
        )
    assert form.target is not None  # noqa: S101 - a series has the values that follow
    shape = (replace(form.inputs[0], shape=(context, len(form.channels))),)
    target = replace(form.target, shape=(horizon, len(form.channels)))
    scaled = replace(
        form, inputs=shape, target=target, mean=tuple(map(float, mean)), std=tuple(map(float, std))
    )
    return replace(task, arrays=scaled), share


def _form(task: TaskProfile) -> ArrayForm:
    assert task.arrays is not None  # noqa: S101 - asked of tasks on arrays only
    return task.arrays


def _common_shape(folder: Path, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of images whose model takes any: as its preprocessor or factory says, else as all of them are.

    Args:
        arguments: what these say, and the configuration.
    """
    images = image_files(folder)
    channels, *size = image_shape(images[0].path)
    channels = next((arguments[name] for name in CHANNEL_ARGUMENTS if name in arguments), channels)
    if (given := next((arguments[name] for name in SIZE_ARGUMENTS if name in arguments), None)) is not None:
        height, width = (given, given) if isinstance(given, int) else given
        return channels, height, width
    for image in images:
        if (other := image_shape(image.path)[1:]) != tuple(size):
            raise DatasetError(
                f"images differ in size ({size[1]}×{size[0]} and {other[1]}×{other[0]} pixels), and the "
                "model does not say which it reads",
                next_step="bring them in one size, or let the model say its image_size",
            )
    return channels, size[0], size[1]


def _preprocessor(folder: Path) -> Mapping[str, Any]:
    file = folder / PREPROCESSOR_FILE
    return read_json_object(file) if file.is_file() else {}


def _sizes(preprocessor: Mapping[str, Any]) -> Mapping[str, Any]:
    """The size that images are brought to, under the name that a configuration has for it."""
    size = preprocessor.get("crop_size") or preprocessor.get("size")
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")] if "height" in size else size.get("shortest_edge")
    return {"image_size": size} if size else {}


def _normalisation(preprocessor: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], ...]:
    """Mean and spread of each channel, of values between 0 and 1."""
    if not preprocessor.get("do_normalize", True):
        return (0.0,) * channels, (1.0,) * channels
    # What is not brought to 0 … 1 first has means and spreads of 0 … 255.
    unit = 1.0 if preprocessor.get("do_rescale", True) else 255.0
    mean = _per_channel(preprocessor.get("image_mean"), USUAL_MEAN * unit, channels)
    std = _per_channel(preprocessor.get("image_std"), USUAL_STD * unit, channels)
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)


def _per_channel(values: Any, usual: float, channels: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) not in (1, channels):
        return (usual,) * channels
    return tuple(map(float, values * (channels if len(values) == 1 else 1)))


def _settings(model: ModelProfile) -> Mapping[str, Any]:
    """All that the model's configuration says, defaults of its class included; the arguments of a factory."""
    if model.factory is not None:
        return model.factory.arguments
    from transformers import AutoConfig

    config: Mapping[str, Any] = AutoConfig.from_pretrained(
        model.path, trust_remote_code=model.runs_remote_code, local_files_only=True
    ).to_dict()
    return config


def _length(asked: int | None, config: Mapping[str, Any], name: str, option: str, model: ModelProfile) -> int:
    own = config.get(name)
    if asked is not None and isinstance(own, int) and asked != own:
        raise ModelError(
            f"{option} {asked} was given, and model {model.source} is made for {own}",
            next_step=f"leave it out, or set {name} in the model's configuration",
        )
    found = asked if asked is not None else own
    if not isinstance(found, int) or found < 1:
        raise ModelError(
            f"model {model.source} does not say its {name.replace('_', ' ')}", next_step=f"pass {option}"
        )
    return found


def _check_channels(config: Mapping[str, Any], form: ArrayForm, model: ModelProfile) -> None:
    wanted = config.get("num_input_channels") or config.get("input_size")
    if isinstance(wanted, int) and wanted != len(form.channels):
        raise ModelError(
            f"model {model.source} reads {wanted} channels, and the data have {len(form.channels)} "
            f"({', '.join(form.channels)})",
            next_step=f"pass --channel {wanted} times, or set num_input_channels in its configuration",
        )
