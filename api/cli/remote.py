"""``rankwise recommend --remote``: the same question, put to a server. Knows not how it is answered."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...optimizer.domain import StudyRequest, StudyState
from .answers import Form, print_recommended, print_waiting
from .console import print_json, print_note
from .signals import stopped_by_signals

if TYPE_CHECKING:
    from ..client import Client
    from ..response_schemas.events import EventDocument
    from ..response_schemas.studies import StudyDocument


@contextmanager
def opened_client() -> Iterator[Client]:
    """The server that the environment names."""
    from ..client import Client

    with Client() as client:
        yield client


def recommend_remotely(
    request: StudyRequest,
    *,
    upload: bool,
    key: str | None,
    wait: bool,
    form: Form,
    as_json: bool,
    out: Path | None,
    quiet: bool,
) -> None:
    """Ask for a study; with ``wait``, stay until it has ended and print what it recommends.

    Args:
        upload: the dataset is a file here, to be sent first.
    """
    with opened_client() as client:
        if upload:
            request = replace(request, dataset=client.upload(request.dataset).dataset)
        study = client.submit_request(request, key=key)
        if not wait:
            if as_json:
                print_json({"schema_version": study.schema_version, "study": _document(study)})
            else:
                print_waiting(study, form)
            print_note(f"wait for it with: {_command(study.id, form, out)}")
            return
        answer(client, study.id, wait=True, form=form, as_json=as_json, out=out, quiet=quiet)


def answer(
    client: Client, study_id: str, *, wait: bool, form: Form, as_json: bool, out: Path | None, quiet: bool
) -> None:
    """What a study recommends, printed and written to ``out``.

    Raises:
        RankwiseError: the one that the study ended with.
    """
    from ..failure import failure_of

    study = follow(client, study_id, form=form, out=out, quiet=quiet) if wait else client.study(study_id)
    if as_json and study.state.is_final:
        print_json(_report(client, study))
    if error := failure_of(study) if study.state.is_final else None:
        raise error
    if study.state is not StudyState.SUCCEEDED:
        print_waiting(study, form)
        return
    if out is not None:
        from ...runners.ready_files import write_texts

        paths = write_texts(client.files(study_id).files, out)
        print_note(f"written to {out}: {', '.join(sorted(path.name for path in paths))}")
    if not as_json:
        print_recommended(client.recommendation(study_id), form, epochs=study.request.epochs)


def follow(client: Client, study_id: str, *, form: Form, out: Path | None, quiet: bool) -> StudyDocument:
    """The study once it is final; what happens meanwhile is told on standard error."""
    stopped = f"the study goes on at {client.url}; wait for it with: {_command(study_id, form, out)}"
    with stopped_by_signals(stopped):
        for event in client.events(study_id):
            if not quiet and (line := line_of(event)):
                print_note(line)
        return client.study(study_id)


def line_of(event: EventDocument) -> str | None:
    """An event in words; None of one that is for programs."""
    from ..units import format_bytes

    told: dict[str, Any] = event.payload
    match event.kind:
        case "study.created":
            return f"study of {told.get('model')} on {told.get('dataset')}"
        case "study.running":
            return "started"
        case "study.facts":
            return f"{told.get('parameters'):,} parameters, {told.get('train_rows'):,} rows to learn"
        case "trial.planned":
            return f"trial {told.get('number')} ({told.get('rung')}): {told.get('candidate')}"
        case "trial.lost" | "trial.disturbed":
            return f"trial {told.get('number')}, {event.kind.removeprefix('trial.')}: {told.get('reason')}"
        case "trial.finished":
            parts = [str(told.get("outcome"))]
            if told.get("tokens_per_s"):
                parts.append(f"{told['tokens_per_s']:,.0f} tokens/s")
            if told.get("memory_bytes"):
                parts.append(format_bytes(told["memory_bytes"]))
            if told.get("heldout_loss") is not None:
                parts.append(f"held-out loss {told['heldout_loss']:.3f}")
            if told.get("outcome") != "ok" and told.get("reason"):
                parts.append(str(told["reason"]))
            return f"trial {told.get('number')}: {', '.join(parts)}"
        case "study.finished":
            return f"{told.get('state')}{': ' + str(told['reason']) if told.get('reason') else ''}"
    return None


def _report(client: Client, study: StudyDocument) -> dict[str, Any]:
    """As ``rankwise recommend --json`` has it, less what only the program that ran the study knows."""
    trials = client.trials(study.id)
    best = client.recommendation(study.id) if study.state is StudyState.SUCCEEDED else None
    return {
        "schema_version": study.schema_version,
        "study": _document(study),
        "trials": [_document(trial) for trial in trials.trials],
        "ruled_out": [_document(each) for each in trials.ruled_out],
        "recommendation": None if best is None else _document(best),
    }


def _document(part: Any) -> Any:
    return json.loads(part.model_dump_json())


def _command(study_id: str, form: Form, out: Path | None) -> str:
    words = ["rankwise", "client", "recommend", study_id, "--wait"]
    words += [] if form is Form.TEXT else ["--format", form.value]
    return shlex.join(words + ([] if out is None else ["--out", str(out)]))
