"""A recommendation, or any trial, in the files of another trainer. Writes none of them by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import Conflict, NotFound
from ..optimizer.domain import Candidate, Measurement, Outcome, Rung, Study, Trial
from ..optimizer.trainers.cells import Gap
from ..optimizer.trainers.formats import Format, outline
from ..optimizer.trainers.writing import ExportRefused
from ..store import Store
from .handed_over import training_of
from .ready_files import compose_program, script_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One training in one format."""

    form: Format
    study_id: str
    trial_id: str
    """That measured it."""
    candidate: Candidate
    files: Mapping[str, str]
    """Name → text."""
    commands: tuple[tuple[str, ...], ...]
    """What to run beside the files, in this order."""
    gaps: tuple[Gap, ...]
    """What the files do not say."""
    warnings: tuple[str, ...] = ()
    """What speaks against training with them, in sentences."""


def export(store: Store, some_id: str, form: Format) -> Export:
    """The files of a study's recommendation, or of a trial's candidate.

    Args:
        some_id: of a study or of a trial.

    Raises:
        NotFound: neither has this id, or the study has no recommendation.
        Conflict: the trial measured nothing, or its study knows nothing of model and data yet.
        ExportRefused: the format cannot say this training.
    """
    study, trial, candidate, measured = _find(store, some_id)
    outlined = outline(training_of(study, trial, candidate, measured), form)
    trained = trial if trial.plan.rung is Rung.TRAIN and trial.measurement else None
    values = script_values(candidate, study, trained)
    programs = {name: compose_program(name, values) for name in outlined.programs}
    return Export(
        form=form,
        study_id=study.id,
        trial_id=trial.id,
        candidate=candidate,
        files={**outlined.files, **programs},
        commands=outlined.commands,
        gaps=outlined.gaps,
        warnings=tuple(_warnings(trial)),
    )


def _warnings(trial: Trial) -> Iterator[str]:
    """What was measured before a trial failed is exported, and that it failed is said."""
    if trial.outcome not in (None, Outcome.OK):
        reason = f": {trial.reason.rstrip('.')}" if trial.reason else ""
        yield f"Trial {trial.number} ended with {trial.outcome}{reason}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Taker:
    """What becomes of a training in one format."""

    form: Format
    refused: str | None
    """Why there are no files; None where there are."""
    remarks: tuple[str, ...] = ()
    """What the files do not say."""


def takers_of(study: Study, trial: Trial, candidate: Candidate, measured: Measurement) -> list[Taker]:
    """Every format, with what it would make of this training."""
    training = training_of(study, trial, candidate, measured)
    takers = []
    for form in Format:
        try:
            outlined = outline(training, form)
        except ExportRefused as refusal:
            takers.append(Taker(form=form, refused=refusal.message))
        else:
            remarks = tuple(f"{gap.setting}: {gap.reason}" for gap in outlined.gaps)
            takers.append(Taker(form=form, refused=None, remarks=remarks))
    return takers


def _find(store: Store, some_id: str) -> tuple[Study, Trial, Candidate, Measurement | None]:
    """What was measured of a recommended candidate may come from several trials."""
    try:
        study = store.get_study(some_id)
    except NotFound:
        try:
            trial = store.get_trial(some_id)
        except NotFound:
            raise NotFound(
                f"there is no study and no trial {some_id:.60}", next_step="see `rankwise studies list`"
            ) from None
        if trial.measurement is None:
            ended = "has not ended" if trial.outcome is None else f"ended with {trial.outcome}"
            raise Conflict(
                f"trial {trial.number} of study {trial.study_id} {ended}, and measured nothing: there is no "
                "telling whether it can be trained",
                next_step="export the study's recommendation, or a trial that was measured",
            ) from None
        return store.get_study(trial.study_id), trial, trial.candidate, trial.measurement
    chosen = store.get_recommendation(study.id)
    return study, store.get_trial(chosen.trial_id), chosen.candidate, chosen.evidence
