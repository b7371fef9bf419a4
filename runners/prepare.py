"""The ``prepare`` job: what a study must know before its first trial, and its tokens on disk.

Reads the data, looks at the model, has the recipe decided, writes the token files. Runs in a child of
the warm server. Knows nothing about trials or the database.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DatasetError, InputError, ModelError
from ..optimizer.codec import digest, from_json, to_json
from ..optimizer.domain import LossMask, Recipe, StudyFacts, StudyRequest
from ..optimizer.recipe import choose_recipe
from ..probes.dataset import LengthSample, length_profile, profile_dataset
from ..probes.model import inspect_model, inspect_module, is_encoder_decoder
from ..probes.model_source import read_json_object
from ..probes.profiles import DatasetProfile, Factory, HardwareProfile, ModelProfile, TaskKind
from ..probes.tasks import as_seq2seq
from .factories import made_by
from .messages import Report
from .prepare_arrays import array_facts
from .random_tokens import RandomTokens
from .recipe import Example, count_tokens, pack_training_rows
from .samples import Sample, SampleError, encode, encode_rows, read_samples
from .text_splits import notes_on_classes, split_texts
from .tokenizer import load_tokenizer
from .tokens import COUNTS_NAME, TokenFile, write_token_files

LEAST_VOCABULARY_SHARE = 10
"""A tokenizer has at least the model's vocabulary divided by this: embeddings are padded, not tenfold."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")


def run(spec: Mapping[str, Any], report: Report) -> None:
    """Entry of the job: reports one ``result`` with the study's facts.

    Raises:
        InputError: about the data or the model; the warm server reports it.
    """
    request = from_json(StudyRequest, spec["request"])
    hardware = from_json(HardwareProfile, spec["hardware"])
    report("progress", phase="read data")
    dataset = profile_dataset(Path(spec["dataset_path"]), request.asked, source=request.dataset)
    report("progress", phase="inspect model")
    model_path = Path(spec["model_path"])
    if spec["factory"] is not None:
        model = inspect_made(from_json(Factory, spec["factory"]), seed=request.seed)
    else:
        dataset = suited_to(dataset, model_path, allow_remote_code=spec["allow_remote_code"])
        model = inspect_model(
            model_path,
            source=spec["model_source"],
            revision=spec["revision"],
            task=dataset.task,
            allow_remote_code=spec["allow_remote_code"],
        )
    report("progress", phase="tokenise")
    root = Path(spec["tokens_root"])
    if dataset.task.kind.reads_arrays:
        facts = array_facts(dataset, model, request, hardware, root=root)
    else:
        facts = text_facts(dataset, model, request, hardware, root=root)
    report("result", facts=to_json(facts))


def text_facts(
    dataset: DatasetProfile,
    model: ModelProfile,
    request: StudyRequest,
    hardware: HardwareProfile,
    *,
    root: Path,
) -> StudyFacts:
    """The facts of a study on texts; their tokens are written below ``root``.

    Raises:
        InputError: data and model do not go together, or nothing can be learnt.
    """
    tokenizer = tokenizer_for(model, seed=request.seed)
    template = given_template(request, dataset)
    template_sha256 = None
    if dataset.task.kind is TaskKind.CHAT:
        template_sha256 = set_chat_template(tokenizer, template, source=model.source)
    try:
        dataset = with_lengths(dataset, tokenizer, seed=request.seed)
        recipe = choose_recipe(dataset, model, request, chat_template_sha256=template_sha256)
        dataset, split = split_texts(dataset, request)
        folder = root / tokens_key(dataset, tokenizer, recipe, split)
        truncated = write_tokens(folder, dataset, tokenizer, recipe, split=split)
        notes = (*notes_on_losses(folder, recipe), *notes_on_classes(folder, dataset.task.labels))
        dataset = dataclasses.replace(dataset, notes=(*dataset.notes, *notes))
    except SampleError as error:
        raise DatasetError(f"{dataset.source}, {error}", next_step=error.next_step) from error
    return StudyFacts(
        hardware=hardware,
        model=model,
        dataset=dataset,
        recipe=recipe,
        tokens_path=str(folder),
        pad_id=tokenizer.pad_token_id,
        heldout_share=split["share"],
        # Trials meet every nth row, the training that they decide about meets all.
        train_rows=len(TokenFile(folder / "train.arrow")) * dataset.every_nth_row,
        heldout_rows=len(TokenFile(folder / "heldout.arrow")),
        truncated_rows=truncated[0],
        truncated_tokens_share=truncated[1],
        chat_template=template,
        tokens_estimated=isinstance(tokenizer, RandomTokens),
        split=split,
    )


def inspect_made(factory: Factory, *, seed: int) -> ModelProfile:
    """The structure of what a factory makes.

    Raises:
        ModelError: it makes no module, or fails.
    """
    return inspect_module(made_by(factory, seed=seed), factory)


def suited_to(dataset: DatasetProfile, model_path: Path, *, allow_remote_code: bool) -> DatasetProfile:
    """The profile with the task as this model learns it: an encoder-decoder rewrites what others continue."""
    is_pair = dataset.task.kind is TaskKind.PROMPT_COMPLETION
    if is_pair and is_encoder_decoder(model_path, allow_remote_code=allow_remote_code):
        return dataclasses.replace(dataset, task=as_seq2seq(dataset.task))
    return dataset


def tokenizer_for(model: ModelProfile, *, seed: int) -> Any:
    """The model's tokenizer; random tokens where there is none because only a configuration is at hand."""
    path = Path(model.path)
    if model.has_weights or any(any(path.glob(pattern)) for pattern in TOKENIZER_FILES):
        return load_tokenizer_or_explain(path, trust_remote_code=model.runs_remote_code)
    config = read_json_object(path / "config.json")
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not isinstance(vocabulary, int):
        raise ModelError(
            f"{path / 'config.json'} names no vocab_size, and there is no tokenizer",
            next_step="put the model's tokenizer files beside it",
        )
    return RandomTokens(vocabulary, seed=seed)


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


def given_template(request: StudyRequest, dataset: DatasetProfile) -> str | None:
    """The text of the chat template that the user named.

    Raises:
        InputError: it cannot be read, or nothing is written by it.
    """
    if request.chat_template is None:
        return None
    if dataset.task.kind is not TaskKind.CHAT:
        raise InputError(
            f"a chat template was given, and the task is {dataset.task.kind}: {dataset.task.reason}",
            next_step="leave --chat-template out, or pass --task chat",
        )
    try:
        return Path(request.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the chat template {request.chat_template} cannot be read: {error}",
            next_step="pass --chat-template with a file that holds a Jinja template",
        ) from error


def set_chat_template(tokenizer: Any, template: str | None, *, source: str) -> str | None:
    """Let the tokenizer use the template, else its own; returns its SHA-256, None for random tokens.

    Raises:
        ModelError: there is none.
    """
    if isinstance(tokenizer, RandomTokens):
        return None
    if template is not None:
        tokenizer.chat_template = template
    try:
        text: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(
            f"the tokenizer of {source} has no chat template, so conversations cannot be turned into text",
            next_step="pass --chat-template FILE with a Jinja template, or take the model's chat variant",
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def with_lengths(dataset: DatasetProfile, tokenizer: Any, *, seed: int) -> DatasetProfile:
    """The profile with token lengths, from a seeded sample where there are many rows."""
    task = to_json(dataset.task)
    sample = LengthSample(seed)
    for row in read_samples(Path(dataset.path), every=dataset.every_nth_row, task=task):
        sample.add(row)
    if not sample.sampled:
        raise DatasetError(
            f"{dataset.source} has no row that the task {dataset.task.kind} can be learnt from",
            next_step="check its columns: rankwise probe dataset shows what was found in them",
        )
    # Nothing is cut, and looking for the assistant's part would cost several times as much.
    whole = {"max_length": sys.maxsize, "loss_mask": LossMask.ALL}

    def count(rows: list[Sample]) -> list[int]:
        return [encode(row, tokenizer=tokenizer, task=task, recipe=whole).length for row in rows]

    lengths = length_profile(
        count(sample.sampled), estimated=not sample.is_complete, longest=count(sample.longest)
    )
    return dataclasses.replace(dataset, lengths=lengths)


def tokens_key(dataset: DatasetProfile, tokenizer: Any, recipe: Recipe, split: Mapping[str, Any]) -> str:
    """Equal for equal token files: data, tokenizer, task, split and what of the recipe shapes a row."""
    is_by_chance = split.keys() == {"seed", "share"}  # older keys knew of no other
    task = to_json(dataset.task) | {"reason": ""}
    del task["arrays"]  # there are none, and older keys knew of none
    return digest(
        {
            "v": 3,
            "data": dataset.sha256,
            "every_nth_row": dataset.every_nth_row,
            "task": task,
            "tokenizer": tokenizer_sha256(tokenizer),
            "special": [tokenizer.eos_token_id, tokenizer.pad_token_id],
            "max_length": recipe.max_length,
            "packing": recipe.packing,
            "chat_template": recipe.chat_template_sha256,
            "loss_mask": recipe.loss_mask,
            "split_seed": split["seed"],
            **({} if is_by_chance else {"split": split}),
        }
    )


def tokenizer_sha256(tokenizer: Any) -> str:
    """Of everything that decides which tokens a text becomes."""
    if isinstance(tokenizer, RandomTokens):
        text = f"random {tokenizer.vocabulary}"
    elif (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        text = backend.to_str()
    else:
        text = repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def write_tokens(
    folder: Path,
    dataset: DatasetProfile,
    tokenizer: Any,
    recipe: Recipe,
    *,
    split: Mapping[str, Any],
) -> tuple[int, float]:
    """Write the token files unless they are there; returns truncated rows and the share of tokens cut off.

    Raises:
        DatasetError: too few rows to train on some and hold out others.
        SampleError: the recipe cannot be applied to a row.
    """
    if not folder.is_dir():
        reading = {"truncated_rows": 0, "kept": 0, "cut": 0, "lost_rows": 0}
        examples = counted_examples(dataset, tokenizer, recipe, split, reading)
        if recipe.packing and recipe.max_length is not None:
            examples = pack_training_rows(examples, max_length=recipe.max_length, seed=split["seed"])
        write_token_files(folder, examples, reading)
    counts = json.loads((folder / COUNTS_NAME).read_text(encoding="utf-8"))
    train_rows, heldout_rows = (len(TokenFile(folder / name)) for name in ("train.arrow", "heldout.arrow"))
    if train_rows < 2 or heldout_rows < 1:
        lost = f" ({counts['lost_rows']} rows have nothing left to learn within {recipe.max_length} tokens)"
        raise DatasetError(
            f"{dataset.source} leaves {train_rows} rows to train on and {heldout_rows} to hold out"
            f"{lost if counts['lost_rows'] else ''}",
            next_step="name a larger max_length"
            if counts["lost_rows"]
            else "bring at least a few dozen different rows",
        )
    return counts["truncated_rows"], counts["cut"] / max(1, counts["kept"] + counts["cut"])


def notes_on_losses(folder: Path, recipe: Recipe) -> tuple[str, ...]:
    """What truncation left without anything to learn, in a sentence."""
    lost = json.loads((folder / COUNTS_NAME).read_text(encoding="utf-8"))["lost_rows"]
    note = f"{lost:,} rows are set aside: nothing is left to learn within {recipe.max_length} tokens"
    return (note,) if lost else ()


def counted_examples(
    dataset: DatasetProfile,
    tokenizer: Any,
    recipe: Recipe,
    split: Mapping[str, Any],
    reading: dict[str, int],
) -> Iterator[tuple[Example, bool]]:
    """Pairs of example and held out; what was cut off, or lost by that, is added up in ``reading``."""
    rows = encode_rows(
        Path(dataset.path),
        every=dataset.every_nth_row,
        tokenizer=tokenizer,
        task=to_json(dataset.task),
        recipe=to_json(recipe),
        split=split,
    )
    for encoded, heldout in rows:
        reading["truncated_rows"] += encoded.cut > 0
        reading["cut"] += encoded.cut
        if encoded.example is None:
            reading["lost_rows"] += 1
        else:
            reading["kept"] += count_tokens(encoded.example)
            yield encoded.example, heldout
