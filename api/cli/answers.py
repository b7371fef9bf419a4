"""What was recommended on standard output: as text, as a document, or as lines for a shell.

The same whether it was measured here or on a server. Knows nothing of either.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import print_json, results

if TYPE_CHECKING:
    from ..response_schemas.recommendations import RecommendationDocument
    from ..response_schemas.studies import StudyDocument


class Form(StrEnum):
    """How an answer is written."""

    TEXT = "text"
    ENV = "env"
    JSON = "json"
    YAML = "yaml"


AnswerForm = Annotated[
    Form,
    typer.Option(
        "--format",
        metavar="NAME",
        case_sensitive=False,
        rich_help_panel="Running and results",
        help=f"How the recommendation is printed: {', '.join(Form)}.",
    ),
]


def print_recommended(found: RecommendationDocument, form: Form, *, epochs: float) -> None:
    """A recommendation, in whatever form.

    Args:
        epochs: that were asked for, to say in text how long they take.
    """
    if form is Form.ENV:
        from ..shell_lines import shell_lines

        sys.stdout.write(shell_lines(found))
    elif form is Form.TEXT:
        from .report import print_recommendation

        print_recommendation(found.to_recommendation(), epochs, found.resources)
    else:
        _print_data(json.loads(found.model_dump_json()), form)


def print_waiting(study: StudyDocument, form: Form) -> None:
    """A study that recommends nothing yet."""
    if form is Form.ENV:
        from ..shell_lines import study_lines

        sys.stdout.write(study_lines(study.id, study.state))
    elif form is Form.TEXT:
        results.print(f"Study {study.id} is {study.state}.", soft_wrap=True)
    else:
        _print_data(json.loads(study.model_dump_json()), form)


def _print_data(data: Any, form: Form) -> None:
    if form is Form.JSON:
        print_json(data)
        return
    import yaml

    yaml.safe_dump(data, sys.stdout, sort_keys=False, allow_unicode=True, width=100)
