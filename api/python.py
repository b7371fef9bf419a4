"""The Python entry: one call from model and data to a measured configuration.

Runs the same study as the command line does. Imports neither torch nor peft until a peft object is asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError
from ..home import Home
from ..optimizer import domain
from ..optimizer.domain import (
    Candidate,
    Measurement,
    Method,
    Objective,
    Scoring,
    Study,
    StudyRequest,
    Trial,
    Weights,
)
from ..runners.ready_files import write_ready_files
from ..store import Store
from .documents import adapter_config_of, report_document
from .following import failure_of, follow
from .submission import check_request
from .units import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from peft import PeftConfig

Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What a study recommends, with the evidence that it rests on."""

    study: Study
    trials: tuple[Trial, ...]
    """Every trial of the study in the order of planning, the failed ones too."""
    choice: domain.Recommendation
    home: Home

    @property
    def candidate(self) -> Candidate:
        """The recommended configuration."""
        return self.choice.candidate

    @property
    def evidence(self) -> Measurement:
        """What was measured of it."""
        return self.choice.evidence

    def explain(self) -> str:
        """Why this one, as sentences."""
        return " ".join((f"{self.candidate.describe()} is recommended.", *self.choice.reasons))

    def to_peft_config(self) -> PeftConfig | None:
        """The adapter for ``peft.get_peft_model``; None for full fine-tuning, which has none.

        Raises:
            ImportError: peft is not installed.
        """
        config = adapter_config_of(self.study, self.choice)
        if config is None:
            return None
        from peft import PeftConfig

        return PeftConfig.from_peft_type(**config)

    def to_dict(self) -> dict[str, Any]:
        """The study, its trials and the recommendation as plain JSON data."""
        return report_document(self.study, self.trials, self.choice)

    def save(self, folder: str | PathLike[str]) -> list[Path]:
        """Write the ready files (evidence, adapter configuration, training script); returns their paths.

        Raises:
            InputError: the folder cannot be written to.
        """
        with closing(Store.open(self.home.database)) as store:
            return write_ready_files(store, self.study.id, Path(folder))


def recommend(
    model: str | PathLike[str],
    dataset: str | PathLike[str],
    *,
    objective: Objective | str = Objective.BALANCED,
    weights: Weights | None = None,
    scoring: Scoring | str = Scoring.COMPARABLE,
    memory_limit: str | int | None = None,
    budget: str | float = "10m",
    max_trials: int = 16,
    seed: int = 0,
    text_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
    max_length: int | None = None,
    effective_batch: int = 16,
    epochs: float = 3.0,
    methods: Collection[Method | str] = (),
    allow_remote_code: bool = False,
    home: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
) -> Recommendation:
    """Measure the configurations that matter on this machine, and recommend one of them.

    Blocks until the study is done. Trials run in processes of their own: this one needs no GPU memory. If
    it is interrupted, ``rankwise recommend --resume ID`` goes on with what was measured.

    Args:
        model: folder with a model, or its id on the hub.
        dataset: CSV, JSON or JSONL file.
        objective: ``balanced``, ``speed``, ``quality`` or ``memory``: what counts most.
        weights: what counts how much, instead of an objective.
        scoring: ``comparable``, or ``classic`` for the first design's formula.
        memory_limit: most memory a trial may take: ``"10GiB"`` or a number of bytes.
        budget: time to spend: ``"10m"`` or a number of seconds.
        max_trials: most trials to run.
        seed: equal seeds make equal choices.
        text_column: column with the text; found by itself if None, like the next two.
        label_column: column with the labels.
        task: ``text-classification`` or ``causal-lm``.
        max_length: tokens per row; from the data if None.
        effective_batch: rows per optimizer step.
        epochs: passes over the data that the final training will make.
        methods: consider only these (``lora``, ``ia3``, ``full``); empty means all.
        allow_remote_code: run code that comes with the model; trust its author.
        home: where studies are kept; ``$RANKWISE_HOME`` if None.
        out: folder to write the ready files to.

    Raises:
        InputError: model, data or an argument are refused.
        NothingFits: no configuration meets the memory limit.
        RunnerError: the study failed.
    """
    place = (Home.from_environment() if home is None else Home(Path(home).expanduser().resolve())).create()
    asked = StudyRequest(
        model=fspath(model),
        dataset=fspath(dataset),
        objective=_choice(Objective, objective),
        weights=weights,
        scoring=_choice(Scoring, scoring),
        memory_limit_bytes=None if memory_limit is None else parse_bytes(memory_limit),
        budget_s=parse_seconds(budget),
        max_trials=max_trials,
        seed=seed,
        text_column=text_column,
        label_column=label_column,
        task=task,
        max_length=max_length,
        effective_batch=effective_batch,
        epochs=epochs,
        methods=tuple(_choice(Method, method) for method in methods),
    )
    request = check_request(asked, roots=None, allow_remote_code=allow_remote_code)
    with closing(Store.open(place.database)) as store:
        study = follow(store, store.create_study(request).id, place, allow_remote_code=allow_remote_code)
        if error := failure_of(study):
            raise error
        found = Recommendation(
            study=study,
            trials=tuple(store.list_trials(study.id)),
            choice=store.get_recommendation(study.id),
            home=place,
        )
    if out is not None:
        found.save(out)
    return found


def _choice(kind: type[Choice], value: str) -> Choice:
    """A member of an enumeration, from itself or its text."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise InputError(
            f"{kind.__name__.lower()} {value!r} is unknown", next_step=f"use one of {known}"
        ) from None
