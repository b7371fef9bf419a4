"""What a dataset is for: which columns are input, target or label, and the task that follows from them.

Two steps, because a label may show only far down in the data: :func:`outline_task` on the first rows finds
conversations and pairs of texts, :func:`choose_task` on all rows decides on labels. What the user named
always wins. Reads no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import DatasetError, InputError
from .array_tasks import is_series, outline_series
from .asked import Asked
from .columns import (
    SCORE_NAMES,
    LabelTally,
    TextTally,
    choose_label_column,
    choose_text_column,
    listed,
    require_column,
)
from .profiles import TEXT_TASKS, TaskKind, TaskProfile

CERTAIN_PAIRS = (
    ("prompt", ("completion", "response", "output", "answer")),
    ("instruction", ("output", "response", "completion", "answer")),
)
"""Names of an input, and of what is to be written from it."""
LIKELY_PAIRS = (
    ("question", ("answer", "response")),
    ("query", ("response", "answer")),
    ("problem", ("solution", "answer")),
    ("input", ("output", "target", "response")),
    ("source", ("target",)),
    ("source_text", ("target_text",)),
    ("input_text", ("target_text",)),
    ("document", ("summary",)),
    ("article", ("summary", "highlights")),
    ("dialogue", ("summary",)),
    ("text", ("summary", "target")),
)
"""Such names, unless the second column's values repeat like labels."""
CONTEXT_NAMES = ("input", "context")
"""What a prompt, an instruction or a question is about."""
SENTENCE_PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
"""Two texts that have one label."""
TRUTHS = frozenset(("true", "false", "True", "False"))


def check_asked(asked: Asked) -> None:
    """Check that task and columns can be asked for together.

    Raises:
        InputError: there is no such task, or it has no use for a column that was named.
    """
    kinds = [kind.value for kind in TaskKind]
    if asked.task is not None and asked.task not in kinds:
        raise InputError(
            f"there is no task {asked.task!r}", next_step=f"pass --task with one of {', '.join(kinds)}"
        )
    if asked.label_column is not None and asked.target_column is not None:
        raise InputError(
            f"--label-column {asked.label_column} and --target-column {asked.target_column} were both given",
            next_step="name a class or a number with the first, or a text to be written with the second",
        )
    uses = {
        "--label-column": (
            TaskKind.TEXT_CLASSIFICATION,
            TaskKind.REGRESSION,
            TaskKind.ARRAY_CLASSIFICATION,
            TaskKind.ARRAY_REGRESSION,
        ),
        "--target-column": (TaskKind.PROMPT_COMPLETION, TaskKind.SEQ2SEQ),
        "--context-column": tuple({*TEXT_TASKS} - {TaskKind.CAUSAL_LM, TaskKind.CHAT}),
        "--text-column": TEXT_TASKS,
        "--time-column": (TaskKind.FORECASTING, *TEXT_TASKS),
        "--group-column": TEXT_TASKS,
        "--channel": (TaskKind.FORECASTING,),
    }
    for option, users in uses.items():
        if asked.task is not None and option in asked.columns and asked.task not in users:
            raise InputError(
                f"the task {asked.task} has no use for a {_use(option)}, "
                f"but {option} {asked.columns[option]} was given",
                next_step="leave one of the two out",
            )
    if asked.group_column is not None and (asked.time_column is not None or asked.channels):
        raise InputError(
            f"--group-column {asked.group_column} was given beside what orders rows in time, "
            "and one of them has to decide which rows are held out",
            next_step="leave --group-column or --time-column out",
        )
    seen: dict[str, str] = {}
    for option, column in asked.columns.items():
        if column in seen:
            raise DatasetError(
                f"column {column!r} cannot be {_use(seen[column])} and {_use(option)} at once",
                next_step=f"pass another {seen[column]} or {option}",
            )
        seen[column] = option


def outline_task(
    asked: Asked, tallies: Mapping[str, TextTally], labels: Mapping[str, LabelTally], rows: int
) -> TaskProfile:
    """Return what the first rows tell; where the kind is causal-lm, a label may still be found in all rows.

    Args:
        asked: checked by :func:`check_asked`.
        tallies: of every column.
        labels: likewise, of the same rows.
        rows: how many these are.

    Raises:
        DatasetError: a column is missing, or nothing can be learnt from those that are there.
    """
    for option, column in asked.columns.items():
        require_column(column, tallies, option=option)
    if is_series(asked, tallies, labels):
        return outline_series(asked, tallies, labels)
    if asked.task is not None and TaskKind(asked.task).reads_arrays:
        raise DatasetError(
            f"it holds columns, of which the task {asked.task} learns nothing",
            next_step="leave --task out, or bring images in folders of classes or arrays in an .npz",
        )
    names = {name.lower(): name for name in reversed([*tallies])}
    if not asked.names_content and asked.task is None:
        _refuse_unsupported(names, tallies, labels)
    if asked.task == TaskKind.CHAT:
        return _chat(asked, tallies)
    if asked.wants_pair:
        return _asked_pair(asked, names, tallies)
    if not asked.wants_label and asked.task is None:
        talk = _conversation_column(tallies)
        if talk and 2 * tallies[talk].conversations >= rows and asked.text_column in (None, talk):
            return TaskProfile(
                kind=TaskKind.CHAT, text_column=talk, reason=f"column {talk!r} holds conversations"
            )
        if (pair := _named_pair(names, tallies, labels, rows)) and asked.text_column in (None, pair[0]):
            return _pair(asked, pair, names, tallies, f"columns {pair[0]!r} and {pair[1]!r} are a pair")
    return _text(asked, names, tallies)


def choose_task(
    outline: TaskProfile, asked: Asked, labels: Mapping[str, LabelTally], *, rows: int
) -> TaskProfile:
    """Return the task, once all rows have been counted.

    Args:
        outline: from :func:`outline_task`.
        asked: the same as there.
        labels: of all columns, in the rows that have an input.
        rows: how many these are.

    Raises:
        DatasetError: a label was asked for and there is none, or nothing can be learnt from it.
    """
    if outline.kind is not TaskKind.CAUSAL_LM or asked.task == TaskKind.CAUSAL_LM:
        return outline
    column = asked.label_column
    if column is not None:
        reason = f"column {column!r} was given as the label"
    elif found := choose_label_column(
        labels,
        but=(outline.text_column, outline.context_column, asked.time_column, asked.group_column),
        rows=rows,
    ):
        column, reason = found
    elif asked.task is None:
        if asked.context_column is not None:
            raise DatasetError(
                "a context column was given, but neither a target nor a label was found to go with it",
                next_step="pass --target-column or --label-column",
            )
        reason = "no column looks like a label, so the texts themselves are learnt"
        return replace(outline, reason=reason, context_column=None)
    else:
        raise DatasetError(
            f"no column looks like a label (it has: {listed(labels)})",
            next_step="pass --label-column with the one to predict",
        )
    return _scored(outline, asked, column, labels.get(column, LabelTally()), reason)


def as_seq2seq(task: TaskProfile) -> TaskProfile:
    """Return a prompt-completion task as an encoder-decoder's; the data cannot tell the two apart."""
    reason = f"{task.reason}; the model is an encoder-decoder"
    return replace(task, kind=TaskKind.SEQ2SEQ, reason=reason)


def _use(option: str) -> str:
    return option.removeprefix("--").removesuffix("-column")


def _refuse_unsupported(
    names: Mapping[str, str], tallies: Mapping[str, TextTally], labels: Mapping[str, LabelTally]
) -> None:
    chosen, rejected = (
        next((name for lower, name in names.items() if lower.startswith(word)), None)
        for word in ("chosen", "rejected")
    )
    if chosen is not None and rejected is not None:
        raise DatasetError(
            f"it holds preference pairs (columns {chosen!r} and {rejected!r}), which are not supported yet",
            next_step=f"pass --text-column {chosen} with --task chat or causal-lm for the chosen ones alone",
        )
    if names.keys() >= {"prompt", "completion", "label"} and set(labels[names["label"]].counts) <= TRUTHS:
        raise DatasetError(
            "it holds completions that are marked as wanted or not (columns 'prompt', 'completion' and "
            "'label'), which is not supported yet",
            next_step="keep the wanted rows and drop the column 'label'",
        )
    if names.keys() >= {"prompt", "completion"} and tallies[names["prompt"]].nested:
        raise DatasetError(
            "column 'prompt' holds lists or objects, not text",
            next_step="join the turns of prompt and completion in one list, in a column 'messages'",
        )


def _chat(asked: Asked, tallies: Mapping[str, TextTally]) -> TaskProfile:
    column = asked.text_column or _conversation_column(tallies)
    if column is None or not tallies[column].conversations:
        where = "no column holds" if column is None else f"the first rows of column {column!r} hold no"
        raise DatasetError(
            f"{where} conversations",
            next_step="write each as a list of objects with role (system, user, assistant or tool) and "
            "content, one of them the assistant's",
        )
    return TaskProfile(kind=TaskKind.CHAT, text_column=column, reason="the task was given")


def _conversation_column(tallies: Mapping[str, TextTally]) -> str | None:
    best = max(tallies, key=lambda name: tallies[name].conversations)
    return best if tallies[best].conversations else None


def _asked_pair(asked: Asked, names: Mapping[str, str], tallies: Mapping[str, TextTally]) -> TaskProfile:
    """The pair that the user asked for; names complete it."""
    text, target = asked.text_column, asked.target_column
    if text is None or target is None:
        pairs = [*_translations(tallies), *_pairs_by_name(CERTAIN_PAIRS + LIKELY_PAIRS, names)]
        found = [pair for pair in pairs if text in (None, pair[0]) and target in (None, pair[1])]
        if found:
            text, target = found[0]
        elif target is None:
            raise DatasetError(
                f"no column is named like a text to be written (it has: {listed(tallies)})",
                next_step="pass --target-column with the one that holds it",
            )
        else:
            text = choose_text_column(
                tallies, but=(target, asked.context_column, asked.time_column, asked.group_column)
            )
    reason = "the task was given" if asked.task else f"column {target!r} was given as the text to be written"
    return _pair(asked, (text, target), names, tallies, reason)


def _named_pair(
    names: Mapping[str, str],
    tallies: Mapping[str, TextTally],
    labels: Mapping[str, LabelTally],
    rows: int,
) -> tuple[str, str] | None:
    """The first pair of columns whose names and values suggest that one text is written from another."""
    for pair in _translations(tallies):
        return pair
    for text, target in _pairs_by_name(CERTAIN_PAIRS, names):
        if tallies[text].is_text and labels[target].values and not tallies[target].nested:
            return text, target
    for text, target in _pairs_by_name(LIKELY_PAIRS, names):
        if tallies[text].is_text and tallies[target].is_text and not labels[target].looks_like_label(rows):
            return text, target
    return None


def _pairs_by_name(
    pairs: Sequence[tuple[str, Sequence[str]]], names: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    for text, targets in pairs:
        yield from ((names[text], names[target]) for target in targets if text in names and target in names)


def _translations(tallies: Mapping[str, TextTally]) -> Iterator[tuple[str, str]]:
    """The two languages of a column ``translation`` of objects, as in the datasets of WMT."""
    for column, tally in tallies.items():
        if column.lower() in ("translation", "translations") and tally.pairs:
            source, target = tally.pairs.most_common(1)[0][0]
            yield f"{column}.{source}", f"{column}.{target}"


def _pair(
    asked: Asked,
    pair: tuple[str, str],
    names: Mapping[str, str],
    tallies: Mapping[str, TextTally],
    reason: str,
) -> TaskProfile:
    alike = [names[name] for name in CONTEXT_NAMES if name in names]
    contexts = [name for name in alike if name not in pair and not tallies[name].nested]
    return TaskProfile(
        kind=TaskKind(asked.task or TaskKind.PROMPT_COMPLETION),
        text_column=pair[0],
        context_column=asked.context_column or next(iter(contexts), None),
        target_column=pair[1],
        reason=reason,
    )


def _text(asked: Asked, names: Mapping[str, str], tallies: Mapping[str, TextTally]) -> TaskProfile:
    """Text columns of a task whose label is still to be found, or that has none."""
    text, context = asked.text_column, asked.context_column
    if context is None and asked.task != TaskKind.CAUSAL_LM:
        for first, second in SENTENCE_PAIRS:
            if first in names and second in names and text in (None, names[first]):
                text, context = names[first], names[second]
                break
    if text is None:
        text = choose_text_column(
            tallies, but=(asked.label_column, context, asked.time_column, asked.group_column)
        )
    reason = "the task was given" if asked.task else ""
    return TaskProfile(kind=TaskKind.CAUSAL_LM, text_column=text, context_column=context, reason=reason)


def _scored(outline: TaskProfile, asked: Asked, column: str, tally: LabelTally, reason: str) -> TaskProfile:
    """Classification or regression, as the user or the values of the label column say."""
    named = column.lower() in SCORE_NAMES and tally.is_number and len(tally.counts) > 2
    scaled = tally.is_measured or named or (tally.is_constant and tally.has_fractions)
    measured = asked.task == TaskKind.REGRESSION or (asked.task is None and scaled)
    objection = tally.number_objection if measured else tally.objection
    if objection and not (tally.is_constant and (tally.no_number is None or not measured)):
        raise DatasetError(
            f"label column {column!r} {objection}",
            next_step="pass --label-column with another column, or --task causal-lm to learn the texts alone",
        )
    if measured:
        reason = f"{reason} and its values are numbers on a scale"
        return replace(outline, kind=TaskKind.REGRESSION, label_column=column, reason=reason)
    return replace(
        outline,
        kind=TaskKind.TEXT_CLASSIFICATION,
        label_column=column,
        labels=tuple(sorted(tally.counts)) if len(tally.counts) > 1 else _and_another(*tally.counts),
        reason=f"{reason} and has {len(tally.counts)} distinct value{'s' if len(tally.counts) > 1 else ''}",
    )


def _and_another(label: str) -> tuple[str, str]:
    """The only class, and one that no row has: a model tells at least two apart."""
    return label, f"not {label}"
