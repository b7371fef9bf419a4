"""The files that a recommendation is handed over as.

    recommendation.json   what is recommended, why, and every trial that it rests on
    adapter_config.json   the adapter, for ``PeftConfig.from_pretrained``; none for full fine-tuning
    training_args.json    the rest, as far as a Trainer has arguments for it: ``TrainingArguments(**data)``
    train.py              all of it as one program: the code that the trial ran

``train.py`` is composed from the very sources that the trial ran (see :data:`PROGRAMS`), with the study's
values written in; so are the programs for other trainers. Imports no torch: sources are read as text.
"""

from __future__ import annotations

import ast
import json
import pprint
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..optimizer.codec import to_json
from ..optimizer.domain import Candidate, Estimate, Recommendation, Rung, Study, Trial
from ..optimizer.exports.recommendation import recommendation_document
from ..optimizer.keys import derive_seed
from ..optimizer.overview import enumerated_of
from ..optimizer.recipe import steps_for
from ..optimizer.trainers.formats import launched
from ..optimizer.trainers.writing import deepspeed_config, training_arguments
from ..store import Store
from .handed_over import exported_adapter, training_of

_TEXTS = (
    "probes/rows.py",
    "probes/array_sources.py",
    "runners/recipe.py",
    "runners/samples.py",
    "runners/tokenizer.py",
)
_ARRAYS = ("probes/arrays.py", "runners/array_samples.py")
_MODEL = (
    "runners/team.py",
    "runners/modules.py",
    "runners/weights.py",
    "runners/build.py",
    "runners/adalora.py",
    "runners/losses.py",
    "runners/forward.py",
    "runners/trainee.py",
)
_RESULT = ("runners/saving.py", "runners/trial/evaluation.py")
_SHARED = "runners/scripts/shared.py"
_ANY_ROWS = "runners/scripts/any_rows.py"
_TRAINING = "runners/scripts/training.py"


@dataclass(frozen=True, slots=True)
class Program:
    """What a program is composed of."""

    sources: tuple[str, ...]
    """In the order of their appearance: each uses only names of those before it; the last has ``main``."""
    needs: str
    """The packages to install, in words."""


_PLAIN_ROWS = "runners/scripts/plain_rows.py"
_AS_MEASURED = "runners/scripts/as_measured.py"
_ANY_TRAINING = (*_TEXTS, *_ARRAYS, *_MODEL, *_RESULT, _SHARED, _ANY_ROWS, _TRAINING)

PROGRAMS: Mapping[str, Program] = {
    "train.py": Program(
        (*_ANY_TRAINING, "runners/spreading.py", "runners/trial/loop.py", "runners/scripts/train.py"),
        "torch, transformers, peft and accelerate",
    ),
    "train_pytorch.py": Program(
        (*_ANY_TRAINING, "runners/scripts/train_pytorch.py"), "torch, transformers and peft"
    ),
    "train_transformers.py": Program(
        (*_ANY_TRAINING, _AS_MEASURED, "runners/scripts/train_transformers.py"),
        "torch, transformers, peft and accelerate",
    ),
    "train_trl.py": Program(
        (
            *(*_TEXTS, *_MODEL, *_RESULT, _SHARED, _TRAINING, _AS_MEASURED, _PLAIN_ROWS),
            "runners/scripts/train_trl.py",
        ),
        "torch, transformers, peft, accelerate and trl",
    ),
    "train_lightning.py": Program(
        (*_ANY_TRAINING, "runners/scripts/train_lightning.py"), "torch, transformers, peft and lightning"
    ),
    "prepare_data.py": Program(
        (*_TEXTS, _SHARED, _PLAIN_ROWS, "runners/scripts/prepare_data.py"),
        "torch and transformers",
    ),
}
"""File name → program. All of them import nothing of rankwise. Those for transformers and TRL read
``training_args.json`` beside them."""

FIRST_LOSSES = 20
CHECKPOINT_EVERY_STEPS = 200
VALUES_LINE = "VALUES: Mapping[str, Any] = {}\n"


def write_ready_files(
    store: Store, study_id: str, folder: Path, *, baseline: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a finished study's files into ``folder`` (made if missing); returns their paths.

    Args:
        baseline: see :func:`ready_files`.

    Raises:
        NotFound: the study has no recommendation.
        InputError: the folder cannot be written to.
    """
    chosen = store.get_recommendation(study_id)
    study, trials = store.get_study(study_id), store.list_trials(study_id)
    enumerated = enumerated_of(store.events_after(study_id, 0))
    estimates = store.list_estimates(study_id)
    texts = ready_files(chosen, study, trials, estimates, enumerated=enumerated, baseline=baseline)
    return write_texts(texts, folder)


def write_texts(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write files, name → text, into ``folder`` (made if missing), in place of those of the same names.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}", next_step="name a folder of yours with --out"
        ) from error
    return [folder / name for name in texts]


def ready_files(
    chosen: Recommendation,
    study: Study,
    trials: list[Trial],
    estimates: Mapping[Candidate, Estimate],
    *,
    enumerated: int | None = None,
    baseline: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """File name → text. Full fine-tuning has no ``adapter_config.json``.

    Args:
        enumerated: how many candidates the search began with; None where that is not known.
        baseline: what was found of the present configuration, for ``recommendation.json``.
    """
    assert study.facts is not None  # noqa: S101 - a recommendation is made of facts
    document = recommendation_document(
        chosen, study, trials, estimates, enumerated=enumerated, baseline=baseline
    )
    texts = {
        "recommendation.json": json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    }
    full_steps = steps_for(study.facts.train_rows, study.facts.recipe)
    config = exported_adapter(chosen.candidate, study.facts, full_steps)
    if config is not None:
        texts["adapter_config.json"] = json.dumps(config, indent=2) + "\n"
    values = script_values(chosen.candidate, study, find_trained(chosen, trials))
    arguments = training_arguments(
        chosen.candidate,
        seed=values["seed"],
        on_cpu=not study.facts.hardware.gpus,
    )
    texts["training_args.json"] = json.dumps(arguments, indent=2) + "\n"
    texts["train.py"] = compose_program("train.py", values)
    trial = next(trial for trial in trials if trial.id == chosen.trial_id)
    texts |= launched(training_of(study, trial, chosen.candidate, chosen.evidence))[0]
    return texts


def script_values(candidate: Candidate, study: Study, trained: Trial | None) -> dict[str, Any]:
    """What a program needs to repeat the trial and to go on to the full training.

    Args:
        trained: the candidate's training; None where only its speed and memory were measured.
    """
    facts = study.facts
    assert facts is not None  # noqa: S101 - a candidate is made of facts
    measured = trained.measurement if trained else None
    replicate = trained.plan.replicate if trained else 0
    trial_steps = trained.plan.train_steps if trained else 0
    full_steps = steps_for(facts.train_rows, facts.recipe)
    return {
        "description": f"{candidate.describe()}; measured by rankwise, study {study.id}",
        "model": facts.model.path,
        "dataset": facts.dataset.path,
        "task": {**to_json(facts.dataset.task), "reason": ""},
        "candidate": to_json(candidate),
        "adapter_config": exported_adapter(candidate, facts, full_steps),
        "chat_template": facts.chat_template,
        "every_nth_row": facts.dataset.every_nth_row,
        "has_weights": facts.model.has_weights,
        "seed": derive_seed(study.request.seed, "model", replicate),
        "order_seed": derive_seed(study.request.seed, "order", replicate),
        "split": dict(facts.split) or {"seed": study.request.seed, "share": facts.heldout_share},
        "trust_remote_code": facts.model.runs_remote_code,
        "factory": None if facts.model.factory is None else to_json(facts.model.factory),
        "on_cpu": not facts.hardware.gpus,
        "checkpoint_every": CHECKPOINT_EVERY_STEPS,
        "deepspeed": deepspeed_config(candidate),
        "trial": {
            "steps": trial_steps,
            "adapter_config": exported_adapter(candidate, facts, trial_steps or full_steps),
            "first_losses": list(measured.train_losses[:FIRST_LOSSES]) if measured else [],
            "trainable_sha256": measured.trainable_sha256 if measured else None,
        },
    }


def find_trained(chosen: Recommendation, trials: list[Trial]) -> Trial | None:
    """The recommended trial, if it was taken as far as training."""
    return next(
        (
            trial
            for trial in trials
            if trial.id == chosen.trial_id and trial.plan.rung is Rung.TRAIN and trial.measurement
        ),
        None,
    )


def compose_program(name: str, values: Mapping[str, Any]) -> str:
    """One self-contained program out of its sources: imports, the study's values, then a section a source.

    Args:
        name: one of :data:`PROGRAMS`.
        values: see :func:`script_values`.
    """
    program = PROGRAMS[name]
    imports: dict[str, set[str]] = {}
    sections = []
    for path in program.sources:
        source = files("rankwise").joinpath(path).read_text(encoding="utf-8")
        title, body = split_source(source, imports)
        sections.append(f"# {title}\n\n{body.strip()}\n")
    body = "\n\n".join(sections)
    if body.count(VALUES_LINE) != 1:
        raise AssertionError(f"the sources of {name} no longer have exactly one place for the values")
    written = pprint.pformat(dict(values), width=100, sort_dicts=False)
    parts = [
        "#!/usr/bin/env python3",
        f'"""{values["description"]}.\n\nNeeds {program.needs}; see --help.\n"""\n',
        "from __future__ import annotations\n",
        *format_imports(imports),
        f"\n# What was recommended. Everything below is how it is carried out.\n\nVALUES = {written}\n\n",
        body.replace(VALUES_LINE, ""),
        '\nif __name__ == "__main__":\n    sys.exit(main())\n',
    ]
    return "\n".join(parts)


def format_imports(imports: Mapping[str, set[str]]) -> list[str]:
    """Import lines, the standard library's first; a module with no names is imported whole."""
    ordered = sorted(imports, key=lambda module: (bool(imports[module]), module))
    lines: tuple[list[str], list[str]] = ([], [])
    for module in ordered:
        names = ", ".join(sorted(imports[module]))
        is_other = module.partition(".")[0] not in sys.stdlib_module_names
        lines[is_other].append(f"from {module} import {names}" if names else f"import {module}")
    return [*lines[0], "", *lines[1]]


def split_source(source: str, imports: dict[str, set[str]]) -> tuple[str, str]:
    """The first line of a module's docstring, and its text without docstring and imports.

    Adds its absolute imports to ``imports``: module to names.
    """
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    docstring = ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports.setdefault(f"{alias.name} as {alias.asname}" if alias.asname else alias.name, set())
        elif isinstance(node, ast.ImportFrom):
            if not is_ours(node):
                imports.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
        elif not (node is tree.body[0] and docstring):
            continue
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    return docstring.partition("\n")[0], "".join(lines)


def is_ours(node: ast.ImportFrom) -> bool:
    """Left out of the script: relative imports (their names are in the same file) and ``__future__``."""
    return node.level > 0 or node.module == "__future__"
