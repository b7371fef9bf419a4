"""``rankwise merge``: an adapter added to its base, as a model that needs no PEFT."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_json, print_note, results
from .options import AsJson

if TYPE_CHECKING:
    from ...runners.merging import Merge

EXAMPLES = """\
[bold]Examples[/bold]

rankwise merge ./trained --out ./merged

rankwise merge ./trained --base ./all-MiniLM-L6-v2 --out ./merged

rankwise merge ./trained --base lab.models:pretrained --model-arg depth=12 --out ./merged
"""


def merge(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="Folder that PEFT or train.py saved to.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the result; it must not be there.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Folder, hub id, or package.module:factory; left out, that which the adapter names.",
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Argument of the factory; may be repeated."),
    ] = None,
    as_json: AsJson = False,
    allow_remote_code: Annotated[
        bool,
        typer.Option(
            "--allow-remote-code", metavar="", help="Run Python code that the base brings. Know its author."
        ),
    ] = False,
) -> None:
    """Merge a trained adapter into its base, and check that the result answers as both together do.

    The base is read as it is stored, not quantized, and on the CPU. Nothing is written if the method cannot
    be merged, or if the answers differ.
    """
    print_note("Loading torch and the base; merging takes as much memory as two copies of it.")
    import transformers

    from ...runners.merging import merge_adapter
    from ..asking import parse_arguments

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # a base without the adapter's head is as it should be
    done = merge_adapter(
        adapter,
        out,
        base=base,
        arguments=parse_arguments(model_arg or ()),
        allow_remote_code=allow_remote_code,
    )
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    results.print(f"Merged {done.method} on {done.modules} modules into {done.base}.", style="bold")
    results.print(in_words(done))
    results.print(f"\nWritten to {done.out}: {', '.join(done.files)}")


def in_words(done: Merge) -> str:
    """How the result compares with base and adapter."""
    size = f"{done.parameters:,} parameters, {done.dtype}."
    if done.difference is None:
        return f"{size} Not compared: nobody knows what the module is called with; example_inputs would tell."
    if done.moved is not None and done.moved <= done.tolerance:
        return f"{size} The adapter does not change the answer to random inputs: comparing them says nothing."
    return (
        f"{size} On random inputs the adapter moves the base's answer by {done.moved:.2g} of its largest "
        f"number; the merged model is {done.difference:.1e} from both together, where {done.tolerance:.0e} "
        "is rounding."
    )
