"""The ``prepare`` job: what a study must know before its first trial, and its tokens on disk.

Reads the data, looks at the model, has the recipe decided, writes the token files. Runs in a child of
the warm server. Knows nothing about trials or the database.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DatasetError, ModelError
from ..optimizer.codec import digest, from_json, to_json
from ..optimizer.domain import Recipe, StudyFacts, StudyRequest
from ..optimizer.recipe import choose_recipe
from ..probes.dataset import LengthSample, length_profile, profile_dataset
from ..probes.model import inspect_model
from ..probes.model_source import read_json_object
from ..probes.profiles import DatasetProfile, HardwareProfile
from ..probes.rows import read_rows
from .build import load_tokenizer
from .messages import Report
from .recipe import Example, encode, heldout_share, is_heldout, usable_row
from .tokens import COUNTS_NAME, TokenFile, write_token_files

LEAST_VOCABULARY_SHARE = 10
"""A tokenizer has at least the model's vocabulary divided by this: embeddings are padded, not tenfold."""


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of the job: reports one ``result`` with the study's facts.

    Raises:
        InputError: about the data or the model; the warm server reports it.
    """
    request = from_json(StudyRequest, spec["request"])
    hardware = from_json(HardwareProfile, spec["hardware"])
    report("progress", phase="read data")
    dataset = profile_dataset(
        Path(spec["dataset_path"]),
        source=request.dataset,
        text_column=request.text_column,
        label_column=request.label_column,
        task=request.task,
    )
    report("progress", phase="inspect model")
    model_path = Path(spec["model_path"])
    model = inspect_model(
        model_path,
        source=request.model,
        revision=spec["revision"],
        task=dataset.task,
        allow_remote_code=spec["allow_remote_code"],
    )
    report("progress", phase="tokenise")
    tokenizer = load_tokenizer_or_explain(model_path, trust_remote_code=spec["allow_remote_code"])
    dataset = with_lengths(dataset, tokenizer, seed=request.seed)
    recipe = choose_recipe(dataset, model, request)
    folder = Path(spec["tokens_root"]) / tokens_key(dataset, tokenizer, recipe, request.seed)
    truncated = write_tokens(folder, dataset, tokenizer, recipe, seed=request.seed)
    facts = StudyFacts(
        hardware=hardware,
        model=model,
        dataset=dataset,
        recipe=recipe,
        tokens_path=str(folder),
        pad_id=tokenizer.pad_token_id,
        heldout_share=heldout_share(dataset.usable_rows),
        train_rows=len(TokenFile(folder / "train.arrow")),
        heldout_rows=len(TokenFile(folder / "heldout.arrow")),
        truncated_rows=truncated[0],
        truncated_tokens_share=truncated[1],
    )
    report("result", facts=to_json(facts))


def load_tokenizer_or_explain(model_path: Path, *, trust_remote_code: bool) -> Any:
    """The model's tokenizer, with a padding token."""
    try:
        tokenizer = load_tokenizer(str(model_path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        cause = str(error).splitlines()[0]
        raise ModelError(
            f"model {model_path} has no tokenizer that loads: {cause}",
            next_step="save one beside the weights with tokenizer.save_pretrained(folder)",
        ) from error
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer of {model_path} has neither a padding, an end-of-sequence nor an unknown token",
            next_step="set tokenizer.pad_token and save the tokenizer again",
        )
    # Without its files transformers makes up a tokenizer of a handful of tokens, and every word is unknown.
    expected = read_json_object(model_path / "config.json").get("vocab_size")
    if isinstance(expected, int) and len(tokenizer) * LEAST_VOCABULARY_SHARE < expected:
        raise ModelError(
            f"the tokenizer of {model_path} knows {len(tokenizer)} tokens where the model has {expected}",
            next_step="put the model's own tokenizer files beside the weights",
        )
    return tokenizer


def usable_rows(dataset: DatasetProfile) -> Iterator[tuple[str, str | None]]:
    """Text and label of each row that has them."""
    task = to_json(dataset.task)
    return filter(None, (usable_row(row, task) for row in read_rows(Path(dataset.path))))


def with_lengths(dataset: DatasetProfile, tokenizer: Any, *, seed: int) -> DatasetProfile:
    """The profile with token lengths, from a seeded sample where there are many rows."""
    sample = LengthSample(seed)
    for text, _ in usable_rows(dataset):
        sample.add(text)

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]

    lengths = length_profile(
        count(sample.sampled), estimated=not sample.is_complete, longest=count(sample.longest)
    )
    return dataclasses.replace(dataset, lengths=lengths)


def tokens_key(dataset: DatasetProfile, tokenizer: Any, recipe: Recipe, seed: int) -> str:
    """Equal for equal token files: data, tokenizer, task, split and what of the recipe shapes a row."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return digest(
        {
            "v": 1,
            "data": dataset.sha256,
            "task": to_json(dataset.task) | {"reason": ""},
            "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "special": [tokenizer.eos_token_id, tokenizer.pad_token_id],
            "max_length": recipe.max_length,
            "packing": recipe.packing,
            "chat_template": recipe.chat_template_sha256,
            "loss_mask": recipe.loss_mask,
            "split_seed": seed,
        }
    )


def write_tokens(
    folder: Path, dataset: DatasetProfile, tokenizer: Any, recipe: Recipe, *, seed: int
) -> tuple[int, float]:
    """Write the token files unless they are there; returns truncated rows and the share of tokens cut off.

    Raises:
        DatasetError: too few rows to train on some and hold out others.
    """
    if not folder.is_dir():
        reading = {"truncated_rows": 0, "tokens": 0, "kept": 0}
        task, form = to_json(dataset.task), to_json(recipe)
        share = heldout_share(dataset.usable_rows)

        def examples() -> Iterator[tuple[Example, bool]]:
            for text, label in usable_rows(dataset):
                example, full_length = encode(text, label, tokenizer=tokenizer, task=task, recipe=form)
                reading["tokens"] += full_length
                reading["kept"] += len(example.input_ids)
                reading["truncated_rows"] += full_length > len(example.input_ids)
                yield example, is_heldout(text, seed=seed, share=share)

        write_token_files(folder, examples(), reading)
    train_rows, heldout_rows = (len(TokenFile(folder / name)) for name in ("train.arrow", "heldout.arrow"))
    if train_rows < 2 or heldout_rows < 1:
        raise DatasetError(
            f"{dataset.source} leaves {train_rows} rows to train on and {heldout_rows} to hold out",
            next_step="bring at least a few dozen different rows",
        )
    counts = json.loads((folder / COUNTS_NAME).read_text(encoding="utf-8"))
    return counts["truncated_rows"], 1 - counts["kept"] / max(1, counts["tokens"])
