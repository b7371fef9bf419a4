"""Which trainers take the recommendation, as a table: the command, or why there are no files."""

from __future__ import annotations

from collections.abc import Sequence

from ...optimizer.domain import Recommendation, Study, Trial
from ...runners.exporting import takers_of
from ..wording import as_sentence
from .figures import Column, Line, Table


def takers_table(study: Study, trials: Sequence[Trial], best: Recommendation) -> Table | None:
    """None where the recommended trial is not among the trials."""
    trial = next((trial for trial in trials if trial.id == best.trial_id), None)
    if trial is None or study.facts is None:
        return None
    rows = []
    for taker in takers_of(study, trial, best.candidate, best.evidence):
        command = f"rankwise export {study.id} --format {taker.form}"
        remarks = " ".join(as_sentence(remark) for remark in taker.remarks)
        said = as_sentence(taker.refused) if taker.refused else command
        rows.append(Line((taker.form.value, said), note=remarks))
    return Table(columns=[Column("format"), Column("command, or why there is none")], rows=rows)
