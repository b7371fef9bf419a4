"""``rankwise check``: another trainer's file looked at before it costs hours. Knows nothing of how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ...errors import InputError
from ...optimizer.trainers.reading import FORMATS
from ..units import format_bytes
from .console import EXIT_NOTHING_FITS, EXIT_TOO_CLOSE, EXIT_USAGE, print_json, results
from .options import AsJson
from .places import home_to_read

if TYPE_CHECKING:
    from ..response_schemas.checks import CheckDocument, CheckFinding

EXAMPLES = """\
[bold]Examples[/bold]

rankwise check axolotl.yaml --gpu RTX-4090

rankwise check sft.yaml --gpu A100-80GB --gpus 2 --json

rankwise check --quick --github *.yaml

Exit codes: 0 fine (there may be hints and warnings); 2 bad input or errors in a file, with --strict
warnings too; 3 does not fit; 4 too close to call, or nothing is known of its memory.
"""

STYLES = {"error": "bold red", "warning": "yellow", "hint": "dim"}
ANNOTATIONS = {"error": "error", "warning": "warning", "hint": "notice"}
"""GitHub's words for severities."""

DOES_NOT_FIT = "does-not-fit"


def check(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Of TRL, Axolotl, LLaMA-Factory, a Trainer, accelerate, DeepSpeed or PEFT.",
        ),
    ],
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Judge by this GPU; by the one that is here.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs that train together.", min=1)] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Judge by so much device memory, such as 24GB.")
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help=f"Told from the keys, or {', '.join(FORMATS)}."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", metavar="", help="The files alone: no model, no torch.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", metavar="", help="Warnings count as errors: exit code 2.")
    ] = False,
    github: Annotated[
        bool, typer.Option("--github", metavar="", help="Print annotations for GitHub Actions.")
    ] = False,
    as_json: AsJson = False,
    allow_remote_code: Annotated[
        bool,
        typer.Option(
            "--allow-remote-code", metavar="", help="Run Python code that the model brings. Know its author."
        ),
    ] = False,
) -> None:
    """Tell what is wrong with a trainer's file, whether it fits, and what would do better.

    Nothing of it is executed. A training step is run on tensors without content; with --quick not even that.
    """
    from ..checking import Where, check_alone
    from ..trainer_files import load_trainer_file

    where = Where(
        gpu=gpu,
        gpus=gpus,
        memory_limit=memory,
        is_quick=quick,
        allow_remote_code=allow_remote_code,
    )
    home = home_to_read()
    home = home if quick else home.create()
    documents: list[CheckDocument] = []
    refused: list[InputError] = []
    for name in files:
        try:
            documents.append(check_alone(home, load_trainer_file(name, format_name=format_name), where))
        except InputError as error:
            if len(files) == 1 and not github:
                raise
            refused.append(error)
            _show_refusal(name, error, github=github)
            continue
        if not as_json:
            show(documents[-1], github=github)
    if as_json:
        data = [document.model_dump(mode="json") for document in documents]
        print_json(data[0] if len(files) == 1 and data else data)
    codes = [exit_code_of(document, strict=strict) for document in documents]
    code = worst([*codes, *(EXIT_USAGE for _ in refused)])
    if code:
        raise typer.Exit(code)


def exit_code_of(document: CheckDocument, *, strict: bool) -> int:
    """What one file alone would make the command exit with."""
    others = [each for each in document.findings if each.id not in (DOES_NOT_FIT, "too-close")]
    if any(each.severity == "error" for each in others):
        return EXIT_USAGE
    if document.fits == "no":
        return EXIT_NOTHING_FITS
    if strict and any(each.severity == "warning" for each in others):
        return EXIT_USAGE
    if not document.quick and document.fits != "yes":
        return EXIT_TOO_CLOSE
    return 0


def worst(codes: list[int]) -> int:
    """Of several files: errors before what does not fit, before what is not known."""
    order = (EXIT_USAGE, EXIT_NOTHING_FITS, EXIT_TOO_CLOSE)
    return next((code for code in order if code in codes), 0)


def show(document: CheckDocument, *, github: bool) -> None:
    """Print what was found for a person, or as annotations."""
    if github:
        for finding in document.findings:
            results.print(annotation(document.file, finding), soft_wrap=True)
        return
    results.print(f"{document.file}: a file of {document.format}", style="bold", soft_wrap=True)
    for finding in document.findings:
        place = "" if finding.line is None else f"line {finding.line}: "
        results.print(
            Text.assemble(
                (f"  {finding.severity}: ", STYLES[finding.severity]), place, f"{finding.message}."
            ),
            soft_wrap=True,
        )
        if finding.next_step:
            results.print(f"    → {finding.next_step}", soft_wrap=True)
    results.print(f"  {verdict(document)}", soft_wrap=True)


def verdict(document: CheckDocument) -> str:
    """Whether it fits, in a sentence or two."""
    if document.estimate is None:
        counts = ", ".join(f"{count} {name}s" for name, count in document.counts.items() if count)
        why = f"Nothing is known of its memory: {document.why_unknown}."
        return f"{why} Found: {counts or 'nothing'}."
    from .estimate import verdict as of_estimate

    largest = document.estimate.max_micro_batch
    most = f" The largest micro-batch that fits: {largest:,}." if largest else ""
    left = ""
    if document.fits == "yes" and document.estimate.capacity_bytes is not None:
        free = document.estimate.capacity_bytes - document.estimate.device_bytes
        left = f" {format_bytes(free)} are left over."
    return f"{of_estimate(document.estimate)}{left}{most}"


def annotation(file: str, finding: CheckFinding) -> str:
    """A line that GitHub Actions shows beside the file's own."""
    text = finding.message + (f" — {finding.next_step}" if finding.next_step else "")
    place = f"file={_escaped(file, in_property=True)},line={finding.line or 1},title=rankwise {finding.id}"
    return f"::{ANNOTATIONS[finding.severity]} {place}::{_escaped(text)}"


def _escaped(text: str, *, in_property: bool = False) -> str:
    """As GitHub's workflow commands want it, so that no text can end one and begin another."""
    escapes = {"%": "%25", "\r": "%0D", "\n": "%0A"} | ({":": "%3A", ",": "%2C"} if in_property else {})
    return "".join(escapes.get(char, char) for char in text)


def _show_refusal(name: str, error: InputError, *, github: bool) -> None:
    if not github:
        results.print(Text.assemble(("error: ", STYLES["error"]), str(error)), soft_wrap=True)
        return
    line = getattr(error, "line", None) or 1
    place = f"file={_escaped(name, in_property=True)},line={line},title=rankwise unreadable"
    results.print(f"::error {place}::{_escaped(str(error))}", soft_wrap=True)
