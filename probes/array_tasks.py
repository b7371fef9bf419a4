"""The task of data that are no text: what is predicted from images, a series, or the arrays of an ``.npz``.

What the user named always wins. Reads no file: it is given names, tallies and headers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import DatasetError, InputError
from .asked import Asked
from .profiles import ArrayForm, ArrayShape, TaskKind, TaskProfile

if TYPE_CHECKING:
    from .arrays import NpzArray
    from .columns import LabelTally, TextTally

TIME_NAMES = ("time", "timestamp", "datetime", "date", "ds", "day", "week", "month", "year")
TARGET_NAMES = ("labels", "label", "y", "target", "targets", "future_values", "target_values")
"""Names of the array that is to be predicted, preferred first."""

MAX_WORD_CHARACTERS = 30
"""Longer cells are texts, even where they repeat."""

IMAGE_INPUT, SERIES_INPUT, SERIES_TARGET = "pixel_values", "past_values", "future_values"
"""transformers' names for what its models of images and of series take."""


def image_task(asked: Asked, labels: Sequence[str]) -> TaskProfile:
    """The class of each image; the shape of the images is the model's to say.

    Raises:
        InputError: something else was asked for.
    """
    _require_task(asked, (TaskKind.IMAGE_CLASSIFICATION,), "images in folders of classes")
    _refuse_columns(asked, "images have no columns: their folders are their classes")
    return TaskProfile(
        kind=TaskKind.IMAGE_CLASSIFICATION,
        text_column="",
        labels=tuple(sorted(labels)),
        reason=f"images in {len(labels)} folders, each a class",
        arrays=ArrayForm(inputs=(ArrayShape(name=IMAGE_INPUT, shape=()),)),
    )


def is_series(asked: Asked, tallies: Mapping[str, TextTally], labels: Mapping[str, LabelTally]) -> bool:
    """The columns are a time and numbers, or the user says so.

    Columns of words that repeat may lie beside them; texts may not: of these the time says which are last.
    """
    if asked.wants_series:
        return True
    if asked.task is not None or asked.names_content or asked.group_column is not None:
        return False
    time = asked.time_column or _time_column(tallies, labels)
    others = [name for name in tallies if name != time]
    if time is None or any(_is_text(tallies[name], labels[name]) for name in others):
        return False
    return any(_is_numeric(labels[name]) for name in others)


def outline_series(
    asked: Asked, tallies: Mapping[str, TextTally], labels: Mapping[str, LabelTally]
) -> TaskProfile:
    """The next values of all numeric columns, or of those that the user named.

    Raises:
        DatasetError: there are none, or one of them holds no numbers.
    """
    time = asked.time_column or _time_column(tallies, labels)
    for channel in asked.channels:
        if channel not in labels:
            raise DatasetError(
                f"there is no column {channel!r} (it has: {', '.join(labels)})",
                next_step="pass --channel with one of them",
            )
        if objection := labels[channel].no_number:
            raise DatasetError(
                f"column {channel!r} holds {objection}, which is no number", next_step="leave it out"
            )
    channels = asked.channels or tuple(name for name in tallies if name != time and _is_numeric(labels[name]))
    if not channels:
        raise DatasetError(
            f"no column holds numbers to forecast (it has: {', '.join(tallies)})",
            next_step="pass --channel with one that does",
        )
    ordered = "rows stand in the order of time" if time is None else f"column {time!r} is the time"
    left_out = [name for name in tallies if name not in (*channels, time)]
    beside = f"; left out: {', '.join(left_out)}" if left_out else ""
    return TaskProfile(
        kind=TaskKind.FORECASTING,
        text_column="",
        reason=f"{ordered}, and {', '.join(channels)} {'are' if channels[1:] else 'is'} forecast{beside}",
        arrays=ArrayForm(
            inputs=(ArrayShape(name=SERIES_INPUT, shape=()),),
            target=ArrayShape(name=SERIES_TARGET, shape=()),
            time_column=time,
            channels=channels,
        ),
    )


def npz_task(asked: Asked, headers: Sequence[NpzArray]) -> TaskProfile:
    """What the arrays are for; ``labels`` of a classification are still to be counted.

    Whole numbers and words, one a row, are classes; fractions of any shape are numbers to predict. Without a
    target, the module has to return a loss of its own.

    Raises:
        InputError: something else was asked for.
        DatasetError: the arrays make no rows.
    """
    kinds = (TaskKind.ARRAY_CLASSIFICATION, TaskKind.ARRAY_REGRESSION, TaskKind.SELF_SUPERVISED)
    _require_task(asked, kinds, "arrays in an .npz")
    by_name = {header.name: header for header in headers}
    target = _npz_target(asked, by_name)
    inputs = [header for header in headers if header is not target]
    _check_npz(headers, inputs, target)
    shapes = tuple(
        ArrayShape(name=header.name, shape=header.shape[1:], dtype=header.kind) for header in inputs
    )
    if target is None:
        kind, reason = TaskKind.SELF_SUPERVISED, "no array is a target, so the module returns its own loss"
        return TaskProfile(kind=kind, text_column="", reason=reason, arrays=ArrayForm(inputs=shapes))
    kind = TaskKind(asked.task) if asked.task else _kind_of(target)
    how = "given as" if asked.label_column else "named like"
    what = {
        TaskKind.ARRAY_CLASSIFICATION: "one class a row",
        TaskKind.ARRAY_REGRESSION: f"numbers of shape {_shape(target.shape[1:])} a row",
    }
    return TaskProfile(
        kind=kind,
        text_column="",
        label_column=target.name,
        reason=f"array {target.name!r} is {how} a target and holds {what[kind]}",
        arrays=ArrayForm(
            inputs=shapes,
            target=ArrayShape(name=target.name, shape=target.shape[1:])
            if kind is TaskKind.ARRAY_REGRESSION
            else None,
        ),
    )


def class_names(counts: Mapping[str, int]) -> tuple[str, ...]:
    """The classes of an array, in the order of their indices.

    Whole numbers from 0 up stand for themselves, those that no row has included: a module's outputs are
    numbered so. Other numbers and words are sorted.
    """
    try:
        numbers = sorted(map(int, counts))
    except ValueError:
        return tuple(sorted(counts))
    if numbers[0] >= 0 and numbers[-1] < 2 * max(len(numbers), 50):
        return tuple(map(str, range(numbers[-1] + 1)))
    return tuple(map(str, numbers))


def _npz_target(asked: Asked, by_name: Mapping[str, NpzArray]) -> NpzArray | None:
    _refuse_columns(asked, "an .npz has arrays and no such columns", but="--label-column")
    if asked.label_column is not None:
        if asked.label_column not in by_name:
            raise DatasetError(
                f"there is no array {asked.label_column!r} (it has: {', '.join(by_name)})",
                next_step="pass --label-column with one of them",
            )
        return by_name[asked.label_column]
    if asked.task == TaskKind.SELF_SUPERVISED:
        return None
    name = next((name for name in TARGET_NAMES if name in by_name), None)
    if name is None and asked.task is not None:
        raise DatasetError(
            f"no array is named like a target (it has: {', '.join(by_name)})",
            next_step="pass --label-column with the one to predict",
        )
    return by_name[name] if name else None


def _check_npz(headers: Sequence[NpzArray], inputs: Sequence[NpzArray], target: NpzArray | None) -> None:
    if not inputs:
        raise DatasetError(
            f"its only array is {target.name if target else '?'!r}", next_step="add the module's inputs"
        )
    rows = {header.name: header.shape[0] for header in headers}
    if len(set(rows.values())) > 1:
        counted = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise DatasetError(
            f"its arrays have different numbers of rows ({counted})",
            next_step="let the first axis of all be the rows",
        )
    for header in inputs:
        if header.kind in ("text", "other"):
            raise DatasetError(
                f"array {header.name!r} holds {header.dtype}, which no module takes",
                next_step="leave it out, or write numbers",
            )
        if target is not None and header.name == "labels":
            raise DatasetError(
                f"array 'labels' is an input where {target.name!r} is the target",
                next_step="name it differently",
            )


def _kind_of(target: NpzArray) -> TaskKind:
    one_a_row = target.shape[1:] in ((), (1,))
    if one_a_row and target.dtype.kind in "iubU":
        return TaskKind.ARRAY_CLASSIFICATION
    if target.kind != "float32" or target.dtype.kind != "f":
        raise DatasetError(
            f"array {target.name!r} holds {target.dtype} of shape {_shape(target.shape[1:])} a row: neither "
            "one class nor fractions",
            next_step="write one whole number a row for classes, or floats for numbers",
        )
    return TaskKind.ARRAY_REGRESSION


def _time_column(tallies: Mapping[str, TextTally], labels: Mapping[str, LabelTally]) -> str | None:
    """A column of moments, one with a telling name first; else numbers with such a name."""
    moments = [name for name, tally in tallies.items() if tally.texts and tally.moments == tally.texts]
    named = [name for name in tallies if name.lower() in TIME_NAMES]
    numbers = [name for name in named if _is_numeric(labels[name])]
    return next(iter([*(name for name in named if name in moments), *moments, *numbers]), None)


def _is_text(tally: TextTally, label: LabelTally) -> bool:
    """More than a few words, or different in most rows; no moments."""
    if tally.moments == tally.texts:
        return False
    return tally.is_text and (label.objection is not None or tally.mean_characters > MAX_WORD_CHARACTERS)


def _is_numeric(tally: LabelTally) -> bool:
    return tally.numbers > 0 and tally.no_number is None


def _require_task(asked: Asked, kinds: Sequence[TaskKind], what: str) -> None:
    if asked.task is not None and asked.task not in kinds:
        raise InputError(
            f"the task {asked.task} was asked for, and the data are {what}",
            next_step=f"leave --task out, or pass {' or '.join(kinds)}",
        )


def _refuse_columns(asked: Asked, cause: str, *, but: str | None = None) -> None:
    for option, column in asked.columns.items():
        if option != but:
            raise InputError(f"{option} {column} was given, and {cause}", next_step=f"leave {option} out")


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "1"
