"""What a finished study is handed over as: the files to train with, and the report as a page.

Knows nothing of who asks for them.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..optimizer.overview import enumerated_of
from ..runners.ready_files import ready_files, write_texts
from ..store import Store
from .baseline_outcome import baseline_document
from .documents import adapter_config_of
from .report_page import report_page

REPORT = "report.html"


def report_of(store: Store, study_id: str) -> str:
    """The report's text.

    Raises:
        NotFound: there is no such study, or it has no recommendation.
    """
    best, study = store.get_recommendation(study_id), store.get_study(study_id)
    return report_page(
        study,
        store.list_trials(study_id),
        store.list_estimates(study_id),
        best,
        enumerated=enumerated_of(store.events_after(study_id, 0)),
        adapter_config=adapter_config_of(study, best),
    )


def write_report(store: Store, study_id: str, path: Path) -> None:
    """Write the report, in place of what was there.

    Raises:
        NotFound: there is no such study, or it has no recommendation.
        InputError: the file cannot be written.
    """
    text = report_of(store, study_id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", next_step="name another file") from error


def write_results(store: Store, study_id: str, folder: Path) -> list[Path]:
    """Write everything into ``folder`` (made if missing); returns the paths.

    Raises:
        NotFound: the study has no recommendation.
        InputError: the folder cannot be written to.
    """
    return write_texts(result_texts(store, study_id), folder)


def result_texts(store: Store, study_id: str) -> dict[str, str]:
    """File name → text of everything.

    Raises:
        NotFound: the study has no recommendation.
    """
    study, best = store.get_study(study_id), store.get_recommendation(study_id)
    trials = store.list_trials(study_id)
    found = baseline_document(study, trials, best)
    texts = ready_files(
        best,
        study,
        trials,
        store.list_estimates(study_id),
        enumerated=enumerated_of(store.events_after(study_id, 0)),
        baseline=None if found is None else found.model_dump(mode="json"),
    )
    return {**texts, REPORT: report_of(store, study_id)}
