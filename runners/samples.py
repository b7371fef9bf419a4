"""From a row to what a model learns from it: the sample's texts, its tokens, and which of them are learnt.

Imports nothing of rankwise but :mod:`..probes.rows`, :mod:`..probes.array_sources` and :mod:`.recipe`, which
are free of it too: trials and the exported script share this source. A *task* and a *recipe* are plain
mappings with the fields of ``TaskProfile`` and ``Recipe``.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ..probes.array_sources import read_time
from ..probes.rows import cell, conversation, read_rows, row_label, row_number, row_text
from .recipe import Example, heldout_rule, is_heldout

PROMPT_SHARE = 4
"""A long completion leaves its prompt one token in so many of ``max_length``, if it has as many."""

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class SampleError(ValueError):
    """A row that the recipe cannot be applied to: which one, why, and what to do."""

    def __init__(self, row: int, cause: str, next_step: str) -> None:
        super().__init__(f"row {row}: {cause}")
        self.next_step = next_step


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row says, as text; only what the task needs is set."""

    text: str = ""
    context: str = ""
    """A second column of the input."""
    target: str = ""
    """The text to be written."""
    label: int | None = None
    """Classification: the class's index."""
    value: float | None = None
    """Regression: the number."""
    messages: tuple[dict[str, str], ...] = ()
    row: int = 0
    """Number of the row in the data, from 1."""
    group: str = ""
    """Rows that have one in common stay on one side of the split."""
    time: float | None = None
    """Where rows are split by it: seconds, or a number of the data's own."""

    @property
    def split_key(self) -> str:
        """Equal for rows that must fall on the same side of the split: those of a group, else with the same
        input."""
        return f"\0{self.group}" if self.group else self.input_key

    @property
    def input_key(self) -> str:
        """Equal for rows with the same input."""
        if self.messages:
            return json.dumps(self.messages, ensure_ascii=False, sort_keys=True)
        return f"{self.text}\0{self.context}" if self.context else self.text

    def __len__(self) -> int:
        """Characters."""
        return sum(map(len, (self.text, self.context, self.target))) + sum(
            len(message["content"]) for message in self.messages
        )


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample's tokens, with what became of them."""

    example: Example | None
    """None where truncation left nothing to be learnt."""
    length: int
    """Tokens before truncation, of source or target whichever is longer: ``max_length`` cuts each of them."""
    cut: int
    """Tokens that truncation took away."""


def encode_rows(
    path: Path,
    *,
    every: int,
    tokenizer: Any,
    task: Mapping[str, Any],
    recipe: Mapping[str, Any],
    split: Mapping[str, Any],
) -> Iterator[tuple[Encoded, bool]]:
    """Every nth row of the data that can be used, tokenised, and whether it is held out.

    Raises:
        RowError: a row cannot be read.
        SampleError: see :func:`encode`.
    """
    is_listed, border = heldout_rule(split), split.get("border")
    for sample in read_samples(path, every=every, task=task, split=split):
        encoded = encode(sample, tokenizer=tokenizer, task=task, recipe=recipe)
        if border is None or sample.time is None:
            yield encoded, is_listed(sample.split_key)
        elif sample.time < border:
            yield encoded, False
        elif is_heldout(sample.input_key, seed=split["seed"], share=split["late_share"]):
            yield encoded, True


def read_samples(
    path: Path, *, every: int, task: Mapping[str, Any], split: Mapping[str, Any] | None = None
) -> Iterator[Sample]:
    """Every nth row of the data, without those that cannot be used.

    With what the split looks at, which may be no more than the names of its columns; where that is the time,
    rows without one cannot be used.
    """
    group, time = ((split or {}).get(name) for name in ("group_column", "time_column"))
    for number, row in enumerate(read_rows(path, every=every)):
        sample = read_sample(row, task, number=1 + every * number)
        if sample is None:
            continue
        if group is not None:
            sample = replace(sample, group=row_text(row, group).strip())
        if time is not None:
            sample = replace(sample, time=read_time(cell(row, time)))
        if time is None or sample.time is not None:
            yield sample


def read_sample(row: Mapping[str, Any], task: Mapping[str, Any], *, number: int = 0) -> Sample | None:
    """The texts of a row, or None where one is missing, a label is unknown, or a number is none."""
    kind = task["kind"]
    if kind == "chat":
        messages = conversation(row, task["text_column"])
        return Sample(messages=tuple(messages), row=number) if messages else None
    text = row_text(row, task["text_column"])
    context = row_text(row, task["context_column"]) if task["context_column"] else ""
    target = row_text(row, task["target_column"]) if task["target_column"] else ""
    if not text.strip():
        return None
    if kind == "text-classification":
        label = row_label(row, task["label_column"])
        known = label in task["labels"]
        return Sample(text, context, label=task["labels"].index(label), row=number) if known else None
    if kind == "regression":
        value = row_number(row, task["label_column"])
        return None if value is None else Sample(text, context, value=value, row=number)
    if kind in ("prompt-completion", "seq2seq") and not target.strip():
        return None
    return Sample(text, context, target, row=number)


def encode(sample: Sample, *, tokenizer: Any, task: Mapping[str, Any], recipe: Mapping[str, Any]) -> Encoded:
    """Tokenise a sample and cut it to ``max_length`` tokens.

    * Classification, regression: the tokenizer's own special tokens; a context is the second sentence.
    * Causal language modelling: the text and the end-of-sequence token, from which the model learns where
      texts end; it is cut on the right, and then has no end.
    * Prompt-completion: a prompt that is too long loses its beginning (but no beginning-of-sequence token),
      down to a quarter of ``max_length``; then the completion loses its end.
    * Chat: the tokenizer's chat template; cut on the right.
    * Sequence-to-sequence: source and target are cut on the right, each to ``max_length``.

    Raises:
        SampleError: a conversation that the chat template refuses, or whose assistant's part is not to be
            found.
    """
    kind, limit = task["kind"], recipe["max_length"]
    if kind in ("text-classification", "regression"):
        return encode_scored(sample, tokenizer, limit)
    if kind == "seq2seq":
        source = tokenizer(with_context(sample), verbose=False)["input_ids"]
        target = ended(tokenizer(text_target=sample.target, verbose=False)["input_ids"], tokenizer)
        example = Example(array("i", source[:limit]), target_ids=array("i", target[:limit]))
        cut = max(0, len(source) - limit) + max(0, len(target) - limit)
        return Encoded(example, max(len(source), len(target)), cut)
    if kind == "chat":
        ids, mask = chat_tokens(sample, tokenizer, assistant_only=recipe["loss_mask"] == "assistant")
        return encode_learnt(ids[:limit], mask[:limit], len(ids))
    if kind == "causal-lm":
        ids = ended(tokenizer(with_context(sample), verbose=False)["input_ids"], tokenizer)
        return encode_learnt(ids[:limit], [1] * len(ids[:limit]), len(ids))
    prompt, completion = prompt_and_completion(sample, tokenizer)
    kept, answer = shorten_pair(prompt, completion, limit, tokenizer.bos_token_id)
    learn_prompt = int(recipe["loss_mask"] == "all")
    mask = [learn_prompt] * len(kept) + [1] * len(answer)
    return encode_learnt(kept + answer, mask, len(prompt) + len(completion))


def encode_scored(sample: Sample, tokenizer: Any, limit: int) -> Encoded:
    """A text, or a pair of texts, with its class or its number."""
    pair = {"text_pair": sample.context} if sample.context else {}
    found = tokenizer(sample.text, **pair, verbose=False)
    full_length = len(found["input_ids"])
    if full_length > limit:
        found = tokenizer(sample.text, **pair, truncation=True, max_length=limit)
    types = found.get("token_type_ids", [])
    example = Example(
        array("i", found["input_ids"]),
        label=sample.label,
        value=sample.value,
        token_types=array("b", types) if any(types) else None,
    )
    return Encoded(example, full_length, full_length - len(example.input_ids))


def encode_learnt(ids: Sequence[int], mask: Sequence[int], full_length: int) -> Encoded:
    """A text of which the unmasked tokens are learnt; the first never is, for nothing precedes it."""
    cut = full_length - len(ids)
    if not any(mask[1:]):
        return Encoded(None, full_length, cut)
    example = Example(array("i", ids), mask=None if all(mask) else array("b", mask))
    return Encoded(example, full_length, cut)


def with_context(sample: Sample) -> str:
    """The input as one text."""
    return f"{sample.text}\n{sample.context}" if sample.context.strip() else sample.text


def ended(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """With the end-of-sequence token, if the tokenizer has one."""
    eos = tokenizer.eos_token_id
    return [*ids] if eos is None or ids[-1:] == [eos] else [*ids, eos]


def prompt_and_completion(sample: Sample, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of both, the completion with its end.

    A line break goes between them where neither has white space there. Both are tokenised as one text, as
    they would be read together; a token that reaches over the border belongs to the prompt.
    """
    prompt = with_context(sample)
    if not (prompt[-1].isspace() or sample.target[0].isspace()):
        prompt += "\n"
    text = prompt + sample.target
    ids, mask = tokens_in_spans(text, [(len(prompt), len(text))], tokenizer, add_special_tokens=True)
    border = mask.index(1) if 1 in mask else len(ids)
    return ids[:border], ended(ids[border:], tokenizer)


def shorten_pair(
    prompt: list[int], completion: list[int], limit: int, bos_id: int | None
) -> tuple[list[int], list[int]]:
    """Cut prompt and completion to ``limit`` tokens together; :func:`encode` says how."""
    kept = max(limit - len(completion), min(len(prompt), limit // PROMPT_SHARE))
    if kept < len(prompt):
        head = prompt[:1] if kept > 1 and prompt[0] == bos_id else []
        prompt = head + prompt[len(prompt) - kept + len(head) :]
    return prompt, completion[: limit - len(prompt)]


def chat_tokens(sample: Sample, tokenizer: Any, *, assistant_only: bool) -> tuple[list[int], list[int]]:
    """A conversation as its chat template writes it, and for each token whether it is learnt.

    What the assistant says is found by the template's ``{% generation %}`` tags, else by comparing texts
    (:func:`assistant_spans`).

    Raises:
        SampleError: the template refuses the conversation, or all of it or nothing would be learnt.
    """
    text = render(sample, tokenizer, len(sample.messages))
    if not assistant_only:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids, [1] * len(ids)
    if tokenizer.is_fast and GENERATION_TAG.search(tokenizer.get_chat_template()):
        found = tokenizer.apply_chat_template(
            list(sample.messages), return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = list(found["input_ids"]), list(found["assistant_masks"])
    else:
        spans = assistant_spans(sample, tokenizer, text)
        ids, mask = tokens_in_spans(text, spans, tokenizer, add_special_tokens=False)
    if all(mask) or not any(mask):
        raise SampleError(
            sample.row,
            f"{'every' if any(mask) else 'no'} token of the conversation counts as the assistant's, "
            "so the chat template does not tell who speaks",
            "pass --chat-template with one that has {% generation %} tags, or --loss-mask all",
        )
    return ids, mask


def assistant_spans(sample: Sample, tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Where in the text the assistant answers: [first, last) characters of each of its turns.

    A turn begins where the conversation before it, with the template's prompt for an answer, ends, and ends
    where the conversation up to it does. Both must be beginnings of the text. Templates that rewrite earlier
    turns (by dropping their reasoning, say) fail that for all turns but the last; such turns are not learnt,
    because the model would never be asked to write them like that.
    """
    spans = []
    for turn, message in enumerate(sample.messages):
        if turn == 0 or message["role"] != "assistant":
            continue
        try:
            before = render(sample, tokenizer, turn, add_generation_prompt=True)
            after = render(sample, tokenizer, turn + 1)
        except SampleError:
            continue  # the template takes the whole conversation, but not its beginning
        if text.startswith(before) and text.startswith(after):
            spans.append((len(before), len(after)))
    return spans


def render(sample: Sample, tokenizer: Any, messages: int, *, add_generation_prompt: bool = False) -> str:
    """The first messages as text."""
    try:
        text: str = tokenizer.apply_chat_template(
            list(sample.messages[:messages]), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError) as error:
        raise SampleError(
            sample.row,
            f"the chat template refuses the conversation ({error})",
            "correct or remove the row, or pass another --chat-template",
        ) from None
    return text


def tokens_in_spans(
    text: str, spans: Sequence[tuple[int, int]], tokenizer: Any, *, add_special_tokens: bool
) -> tuple[list[int], list[int]]:
    """Tokens of a text, and 1 for those that begin within one of the spans of characters.

    A tokenizer that does not tell where its tokens stand gets the text in pieces.
    """
    if tokenizer.is_fast:
        found = tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
        )
        offsets = found["offset_mapping"]
        mask = [
            int(begin < end and any(first <= begin < last for first, last in spans)) for begin, end in offsets
        ]
        return list(found["input_ids"]), mask
    borders = sorted({0, len(text), *(border for span in spans for border in span)})
    ids, mask = [], []
    for first, last in pairwise(borders):
        special = add_special_tokens and first == 0
        piece = tokenizer(text[first:last], add_special_tokens=special, verbose=False)["input_ids"]
        if special and piece[-1:] == [tokenizer.eos_token_id]:
            piece = piece[:-1]
        ids += piece
        mask += [int(any(begin <= first < end for begin, end in spans))] * len(piece)
    return ids, mask
