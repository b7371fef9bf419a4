"""``rankwise compare``: what an environment changed between two studies. Computes nothing itself."""

from __future__ import annotations

from contextlib import closing
from textwrap import wrap
from typing import Annotated

import typer
from rich.text import Text

from ...optimizer.differences import Change, Difference, Figures, ShapeChange
from ..units import format_bytes
from ..wording import UNKNOWN
from .console import print_json, print_note, results
from .options import AsJson
from .places import home_to_read

EXAMPLES = """\
[bold]Examples[/bold]

rankwise compare 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B    (with the latest before it in another environment)

rankwise compare 01K4AAAAAAAAAAAAAAAAAAAAAA 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B
"""

STYLES = {Change.NO_DIFFERENCE: "green", Change.UNKNOWN: "dim"}


def compare(
    first: Annotated[str, typer.Argument(metavar="ID", help="The older study, or the only one named.")],
    second: Annotated[str | None, typer.Argument(metavar="ID", help="The newer study.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two studies of the same model and data: speed, memory, the recommendation."""
    from ...store import Store
    from ..comparing import compare_studies, find_earlier

    with closing(Store.open(home_to_read().database)) as store:
        # Where only one is named, it is the newer.
        then_id, now_id = (find_earlier(store, first), first) if second is None else (first, second)
        found = compare_studies(store, then_id, now_id)
    if as_json:
        from ..response_schemas.recommendations import DifferenceDocument

        print_json(DifferenceDocument.of(found).model_dump(mode="json"))
        return
    if second is None:
        print_note(f"compared with the latest before it in another environment: {then_id}")
    _print(found)


def _print(found: Difference) -> None:
    results.print(Text.assemble(("Then ", "bold"), found.then_id, ("   now ", "bold"), found.now_id))
    if found.same_environment:
        results.print("The environment is the same: what differs is repeated measuring.", soft_wrap=True)
    for change in found.environment:
        results.print(f"  {change.name}: {change.then or UNKNOWN} → {change.now or UNKNOWN}", soft_wrap=True)
    results.print()
    for shape in found.shapes:
        for line in wrap(shape.description, results.width):
            results.print(Text(line, "bold"), soft_wrap=True)
        _print_figures(
            shape.speed_unit,
            describe_speed(shape.then),
            describe_speed(shape.now),
            _verdict(shape.speed, shape.speed_ratio, "faster", "slower"),
            shape.speed,
        )
        _print_figures(
            "memory",
            describe_memory(shape.then),
            describe_memory(shape.now),
            _verdict(shape.memory, shape.memory_ratio, "more", "less"),
            shape.memory,
        )
        if reused := _reused(shape):
            results.print(Text(f"  {reused}", "yellow"), soft_wrap=True)
    results.print()
    if found.only_then or found.only_now:
        results.print(
            f"Measured in one of them only: {found.only_then} shapes then, {found.only_now} now.",
            soft_wrap=True,
        )
    for note in found.notes:
        results.print(Text(note, "yellow"), soft_wrap=True)
    for line in describe_recommendations(found):
        results.print(line, soft_wrap=True)


def _print_figures(name: str, then: str, now: str, verdict: str, change: Change) -> None:
    results.print(
        Text.assemble(f"  {name:<10} {then:>22} → {now:<22} ", (verdict, STYLES.get(change, "yellow"))),
        soft_wrap=True,
    )


def describe_speed(figures: Figures) -> str:
    """``2,346 ± 2%``."""
    if figures.speed is None:
        return UNKNOWN
    width = figures.speed_rel_halfwidth
    return f"{figures.speed:,.0f}" + ("" if width is None else f" ± {width:.1%}")


def describe_memory(figures: Figures) -> str:
    """``430 MiB``, or ``430 MiB … 441 MiB`` where several trials differed."""
    low, high = figures.memory_low_bytes, figures.memory_high_bytes
    if low is None or high is None:
        return UNKNOWN
    return format_bytes(high) if low == high else f"{format_bytes(low)} … {format_bytes(high)}"


def describe_recommendations(found: Difference) -> list[str]:
    """Whether another configuration is recommended now."""
    if found.recommendation_changed is None:
        ids = {found.then_id: found.recommended_then, found.now_id: found.recommended_now}
        missing = " and ".join(study_id for study_id, best in ids.items() if best is None)
        return [f"Study {missing} recommends nothing, so recommendations cannot be compared."]
    if not found.recommendation_changed:
        return [f"The recommendation is the same: {found.recommended_now}."]
    return [
        "The recommendation changed:",
        f"  then {found.recommended_then}",
        f"  now  {found.recommended_now}",
    ]


def _verdict(change: Change, ratio: float | None, more: str, less: str) -> str:
    if ratio is None:
        return "not measured in both"
    if change is Change.NO_DIFFERENCE:
        return change.value
    amount = f"{abs(ratio - 1):.1%} {more if ratio > 1 else less}"
    return f"{amount}, uncertainty unknown" if change is Change.UNKNOWN else amount


def _reused(shape: ShapeChange) -> str:
    """Figures that were taken over were measured before the study that shows them."""
    names = [name for name, own in (("then", shape.then), ("now", shape.now)) if own.is_reused]
    return f"taken over from an earlier study: {' and '.join(names)}" if names else ""
