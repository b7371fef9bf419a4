"""What somebody trains with now, as they give it: a file, its text or its keys. Knows nothing of studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..optimizer.domain import Baseline, Method
from ..optimizer.trainers.reading import TRAINING_FORMATS, Reading
from .trainer_files import TrainerFile, load_trainer_file, read_trainer_text
from .trainer_options import estimate_options, model_of

_STORED = {"name", "trainer", "settings", "said"}


def read_baseline(value: Any) -> Baseline:
    """From a path, a file's keys, or what was stored of one.

    Raises:
        InputError: it cannot be read, or is no training's.
    """
    if isinstance(value, Baseline):
        return value
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, str | PathLike):
        return baseline_in(load_trainer_file(fspath(value)))
    raise InputError(f"{value!r:.80} is no baseline", next_step="name a trainer's file")


def baseline_of_text(text: str) -> Baseline:
    """From a file's text, which came without a place.

    Raises:
        InputError: as :func:`read_baseline`.
    """
    return baseline_in(read_trainer_text(text, "baseline"))


def baseline_in(file: TrainerFile) -> Baseline:
    """The settings of a file that was read.

    Raises:
        InputError: it is no training's, or a value in it cannot be understood.
    """
    reading = file.reading
    if reading.trainer not in TRAINING_FORMATS:
        raise InputError(
            f"{file.name} is a file of {reading.trainer}, which says too little of a training",
            next_step=f"name a file of {', '.join(TRAINING_FORMATS)}",
        )
    if reading.bad:
        bad = reading.bad[0]
        raise InputError(
            f"{file.name}: {bad.key} is {bad.value!r:.80}, and has to be {bad.wanted}",
            next_step="correct it: rankwise check tells all that is wrong",
        )
    estimate_options(reading)  # refuses patterns that take long to match
    settings = _plain(reading)
    if reading.trainer == "transformers" and file.adapter is None:
        # Without an adapter's file beside it, a Trainer's arguments train all weights.
        settings = {"method": Method.FULL.value, "weight_dtype": "float32", **settings}
    return Baseline(
        name=file.name, trainer=reading.trainer, settings=settings, said=tuple(sorted(reading.said))
    )


def frame_of(baseline: Baseline) -> dict[str, Any]:
    """What a study takes from its baseline where nobody says otherwise: rows a step, and passes."""
    settings, said = baseline.settings, baseline.said
    frame: dict[str, Any] = {}
    if settings.get("micro_batch") and {"micro_batch", "accumulation"} & set(said):
        frame["effective_batch"] = settings["micro_batch"] * (settings.get("accumulation") or 1)
    if "epochs" in said:
        frame["epochs"] = settings["epochs"]
    return frame


def sources_in(file: TrainerFile) -> dict[str, str]:
    """The model and the data that a file names, where they are on this machine."""
    found: dict[str, str] = {}
    model = model_of(file, None)
    if model is not None and Path(model).exists():
        found["model"] = model
    for name in _data_names(file.reading):
        places = [Path(name)] if file.folder is None else [Path(name), file.folder / name]
        if (place_found := next((path for path in places if path.exists()), None)) is not None:
            found["dataset"] = str(place_found)
            break
    return found


def _data_names(reading: Reading) -> Sequence[str]:
    keys = reading.keys
    named = [keys.get("dataset_name")]
    datasets = keys.get("datasets")
    for each in datasets if isinstance(datasets, list) else ():
        if isinstance(each, Mapping):
            data_files = each.get("data_files")
            named += data_files if isinstance(data_files, list) else [data_files, each.get("path")]
    return [name for name in named if isinstance(name, str) and name.strip()]


def _from_mapping(value: Mapping[str, Any]) -> Baseline:
    if set(value) <= _STORED and {"trainer", "settings"} <= set(value):
        settings, trainer = value["settings"], value["trainer"]
        if isinstance(settings, Mapping) and trainer in TRAINING_FORMATS:
            made = Baseline(
                name=str(value.get("name", "baseline")),
                trainer=trainer,
                settings=dict(settings),
                said=tuple(map(str, value.get("said", ()))),
            )
            estimate_options(Reading(trainer=trainer, keys={}, settings=settings, said=frozenset(made.said)))
            return made
    import yaml

    # Through a text, so that what is no plain value is refused as in a file.
    try:
        text = yaml.safe_dump(dict(value), sort_keys=False)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(
            f"the baseline holds what no file could: {str(error)[:80]}", next_step="use plain values"
        ) from None
    return baseline_of_text(text)


def _plain(reading: Reading) -> dict[str, Any]:
    """Values that a store and a wire take."""
    return {
        name: str(value) if isinstance(value, str) else value
        for name, value in reading.settings.items()
        if value is not None and name not in ("model", "row_order")
    }
