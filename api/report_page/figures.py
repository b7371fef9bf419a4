"""The figures of the page: which evidence is plotted how, each with its numbers as a table.

Knows nothing of sections and of how plots are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from ...optimizer.domain import Measurement, Outcome, Relation, Rung, Trial
from ...optimizer.overview import Place, Sweep
from ..units import format_bytes
from ..wording import (
    UNKNOWN,
    describe_comparison,
    describe_evidence,
    describe_loss,
)
from .plots import Curve, Point, Row, curves, intervals, key, scatter, series_class, smoothed

NORMAL_95 = 1.96
"""Standard errors on each side of a 95 % interval."""

MOST_ROWS = 12
"""Of a plot of intervals; the table below it has all."""

RELATION_CLASSES = {
    Relation.BETTER: "worse",
    Relation.WORSE: "better",
    Relation.NO_DIFFERENCE: "same",
    Relation.UNKNOWN: "unknown",
}
"""Class of another candidate, from what was found of the recommended one beside it."""

CAPTIONS = {
    "same": "no difference found",
    "better": "learnt more",
    "worse": "learnt less",
    "unknown": "not known, or not compared",
    "probed": "measured, not trained to the end",
    "winner": "recommended",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column."""

    name: str
    number: bool = False
    relation: bool = False
    """Coloured by how the row stands to the recommended candidate."""


@dataclass(frozen=True, slots=True)
class Line:
    """A table's row."""

    cells: Sequence[str]
    is_winner: bool = False
    relation: str = ""
    note: str = ""
    """Small, below the second cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns, and rows with as many cells."""

    columns: Sequence[Column]
    rows: Sequence[Line]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot with what it shows in words and, for those who cannot see it, in numbers."""

    title: str
    svg: Markup
    caption: str
    columns: Sequence[Column] = ()
    rows: Sequence[Line] = ()
    legend: Sequence[tuple[Markup, str]] = field(default=())


_Told = tuple[str, tuple[float | None, float, float | None], float]
"""What a trial is called; the least, middle and most that were told; what was measured."""


def pareto(places: Sequence[Place], trials: Sequence[Trial]) -> Figure | None:
    """Everything of which speed and memory are known; trained to the end or not."""
    found = [
        (
            place.measurement,
            kind_of(place),
            f"{place.scored.rank}",
            f"{place.trial.candidate.describe()}: {describe_evidence(place.measurement)}",
        )
        for place in places
    ]
    shapes = {place.trial.candidate.shape_key for place in places}
    for trial in trials:
        is_new = trial.plan.rung is Rung.PROBE and trial.candidate.shape_key not in shapes
        if is_new and trial.measurement and trial.outcome is Outcome.OK:
            title = f"#{trial.number} {trial.candidate.describe()}: {describe_evidence(trial.measurement)}"
            found.append((trial.measurement, "probed", "", title))
    known = [(m.speed, m.memory_bytes, kind, label, title) for m, kind, label, title in found]
    largest = max((size for _, size, *_ in known if size), default=0)
    unit, divisor = ("GiB", 2**30) if largest >= 1.5 * 2**30 else ("MiB", 2**20)
    points = [
        Point(x=size / divisor, y=speed, kind=kind, label=label, title=title)
        for speed, size, kind, label, title in known
        if speed and size
    ]
    if not points:
        return None
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda each: (each.x, -each.y)):
        if not front or point.y > front[-1][1]:
            front.append((point.x, point.y))
    speed_unit = unit_of(measurement for measurement, *_ in found)
    return Figure(
        title="Speed against memory",
        svg=scatter(
            points,
            title="Speed against memory",
            description=f"{len(points)} configurations by memory and {speed_unit}. Up and left is better.",
            x_label=f"peak memory, {unit}",
            y_label=speed_unit,
            front=front,
        ),
        caption=(
            "Up and left is better. The dashed line joins what nothing beats in both; numbers are places "
            "in the comparison. Axes do not begin at zero."
        ),
        columns=[Column("configuration"), Column(speed_unit, number=True), Column("memory", number=True)],
        rows=[
            Line(
                (title.partition(": ")[0], speed_of(measurement), size_of(measurement.memory_bytes)),
                is_winner=kind == "winner",
            )
            for measurement, kind, _, title in found
        ],
        legend=_legend({point.kind for point in points}),
    )


def estimated(trials: Sequence[Trial]) -> Iterator[Figure]:
    """Memory, then speed, of all trials that were told of before they were measured."""
    probed = [
        (trial, trial.estimate, trial.measurement)
        for trial in trials
        if trial.plan.rung is Rung.PROBE and trial.estimate is not None and trial.measurement is not None
    ]
    memory: list[_Told] = []
    speed: list[_Told] = []
    for trial, told, measured in probed:
        label = f"#{trial.number} {trial.candidate.adapter.describe()}"
        column = next(
            (
                name
                for name in ("peak_device_bytes", "peak_reserved_bytes", "peak_process_bytes")
                if getattr(told, name) is not None and getattr(measured, name) is not None
            ),
            None,
        )
        if column is not None:
            told_bytes = (told.low_bytes, float(getattr(told, column)), told.high_bytes)
            memory.append((label, told_bytes, float(getattr(measured, column))))
        if told.tokens_per_s is not None and measured.speed is not None:
            told_speed = (told.tokens_per_s_low, told.tokens_per_s, told.tokens_per_s_high)
            speed.append((label, told_speed, measured.speed))
    largest = max((measured for _, _, measured in memory), default=0.0)
    unit, divisor = ("GiB", 2**30) if largest >= 1.5 * 2**30 else ("MiB", 2**20)
    if memory:
        yield _told_and_measured(
            memory, "Memory", f"peak memory, {unit}", divisor, lambda size: format_bytes(round(size))
        )
    if speed:
        unit = unit_of(trial.measurement for trial in trials)
        yield _told_and_measured(speed, "Speed", unit, 1, "{:,.0f}".format)


def quality_plots(places: Sequence[Place]) -> Iterator[Figure]:
    """Held-out losses with their intervals, and the differences that decide."""
    learnt = [(place, place.heldout_loss) for place in places if place.heldout_loss is not None]
    rows, lines = [], []
    for place, loss in learnt:
        error = place.measurement.heldout_loss_se
        low, high = (None, None) if error is None else (loss - NORMAL_95 * error, loss + NORMAL_95 * error)
        label = f"{place.scored.rank} {place.trial.candidate.adapter.describe()}"
        title = f"{label}: {describe_loss(loss, error)}"
        rows.append(Row(label=label, value=loss, low=low, high=high, kind=kind_of(place), title=title))
        lines.append(Line((label, describe_loss(loss), _between(low, high)), is_winner=place.is_recommended))
    if rows:
        yield Figure(
            title="Held-out loss",
            svg=intervals(
                rows[:MOST_ROWS],
                title="Held-out loss",
                description="Of each compared candidate, with its 95 % interval. Left is better.",
                x_label="held-out loss",
            ),
            caption=(
                "Left is better. Lines are 95 % intervals over the rows that are held out; since all were "
                "measured on the same rows, differences are known better than these overlap."
            ),
            columns=[
                Column("candidate"),
                Column("held-out loss", number=True),
                Column("95 % interval", number=True),
            ],
            rows=lines,
            legend=_legend({row.kind for row in rows}),
        )
    rows, lines = [], []
    for place in places:
        found = place.comparison
        if found is None:
            continue
        # Turned round: how much more the other lost than the recommended one. An interval that tells nothing
        # is far wider than all others.
        tells = found.relation is not Relation.UNKNOWN
        low = -found.high if tells and found.high is not None else None
        high = -found.low if tells and found.low is not None else None
        label = f"{place.scored.rank} {place.trial.candidate.adapter.describe()}"
        words = describe_comparison(found)
        rows.append(
            Row(
                label=label,
                value=-found.difference,
                low=low,
                high=high,
                kind=kind_of(place),
                title=f"{label}: {words}",
            )
        )
        lines.append(
            Line((label, f"{-found.difference:+.4f}", _between(low, high), words), relation=kind_of(place))
        )
    if rows:
        yield Figure(
            title="Differences from the recommended candidate",
            svg=intervals(
                rows[:MOST_ROWS],
                title="Differences from the recommended candidate",
                description=(
                    "How much more held-out loss each other candidate has than the recommended one. "
                    "Intervals that touch zero tell no difference."
                ),
                x_label="held-out loss beyond the recommended one's",
                reference=0.0,
            ),
            caption="On the same held-out rows. Right of zero learnt less; touching zero, no difference.",
            columns=[
                Column("candidate"),
                Column("difference", number=True),
                Column("interval", number=True),
                Column("found", relation=True),
            ],
            rows=lines,
        )


def loss_curves(places: Sequence[Place]) -> Figure | None:
    """Training losses of the compared candidates, smoothed."""
    lines: list[Curve] = []
    table: list[Line] = []
    legend: list[tuple[Markup, str]] = []
    for place in places:
        losses = (place.trial.measurement or place.measurement).train_losses
        if len([loss for loss in losses if loss is not None]) < 2:
            continue
        name = f"{place.scored.rank} {place.trial.candidate.adapter.describe()}"
        points = smoothed(losses)
        legend.append((key(series_class(len(lines))), name))
        lines.append(Curve(label=str(place.scored.rank), points=points, title=name))
        known = [value for _, value in points if value is not None]
        table.append(
            Line((name, f"{len(losses):,}", f"{known[0]:.4f}", f"{known[-1]:.4f}"), place.is_recommended)
        )
    if not lines:
        return None
    return Figure(
        title="Training loss",
        svg=curves(
            lines,
            title="Training loss",
            description="The smoothed training loss of each compared candidate, step by step.",
            x_label="optimizer step",
            y_label="training loss",
        ),
        caption="Smoothed over a twentieth of the steps. Training losses score nothing: held-out rows do.",
        columns=[
            Column("candidate"),
            Column("steps", number=True),
            Column("first", number=True),
            Column("last", number=True),
        ],
        rows=table,
        legend=legend,
    )


def sweep_curves(sweeps: Sequence[Sweep]) -> Figure | None:
    """Held-out loss against learning rate, a line for each adapter."""
    lines: list[Curve] = []
    table: list[Line] = []
    legend: list[tuple[Markup, str]] = []
    rates: set[float] = set()
    for sweep in sweeps:
        if not any(point.heldout_loss is not None for point in sweep.points):
            continue
        name = f"{sweep.adapter.describe()}, {sweep.train_steps} steps"
        letter = chr(ord("A") + len(lines) % 26)
        rates |= {point.learning_rate for point in sweep.points}
        legend.append((key(series_class(len(lines))), f"{letter} {name}"))
        lines.append(
            Curve(
                label=letter,
                points=[(point.learning_rate, point.heldout_loss) for point in sweep.points],
                title=name,
                marked=sweep.kept,
                failed=[
                    point.learning_rate
                    for point in sweep.points
                    if point.heldout_loss is None and point.outcome is not None
                ],
            )
        )
        for point in sweep.points:
            failed = UNKNOWN if point.outcome is None else point.outcome.value
            loss = (
                failed
                if point.heldout_loss is None
                else describe_loss(point.heldout_loss, point.heldout_loss_se)
            )
            kept = "kept" if point.learning_rate == sweep.kept else ""
            table.append(Line((f"{letter} {name}", f"{point.learning_rate:g}", loss, kept)))
    if not lines:
        return None
    return Figure(
        title="Held-out loss against learning rate",
        svg=curves(
            lines,
            title="Held-out loss against learning rate",
            description="For each adapter, the held-out loss at each rate that was tried. Lower is better.",
            x_label="learning rate",
            y_label="held-out loss",
            log_x=True,
            x_ticks=_thinned(sorted(rates)),
            with_points=True,
        ),
        caption="Lower is better. Rings: what the adapter went on with. Crosses at the top: it failed there.",
        columns=[
            Column("adapter"),
            Column("rate", number=True),
            Column("held-out loss", number=True),
            Column(""),
        ],
        rows=table,
        legend=legend,
    )


def _told_and_measured(
    found: Sequence[_Told],
    what: str,
    x_label: str,
    divisor: int,
    form: Callable[[float], str],
) -> Figure:
    """What was told beside what was then measured, of one quantity."""
    rows, lines = [], []
    for label, (low, told, high), measured in found:
        inside = None if low is None or high is None else low <= measured <= high
        # The interval is the estimate's, the mark what was measured: inside or not is what is asked.
        kind = "unknown" if inside is None else "same" if inside else "worse"
        rows.append(
            Row(
                label=label,
                value=measured / divisor,
                low=None if low is None else low / divisor,
                high=None if high is None else high / divisor,
                told=told / divisor,
                kind=kind,
                title=f"{label}: told {form(told)}, measured {form(measured)}",
            )
        )
        between = UNKNOWN if low is None or high is None else f"{form(low)} … {form(high)}"
        off = f"{told / measured - 1:+.1%}" if measured else UNKNOWN
        lines.append(Line((label, form(told), between, form(measured), off)))
    return Figure(
        title=f"{what}, estimated and measured",
        svg=intervals(
            rows[:MOST_ROWS],
            title=f"{what}, estimated and measured",
            description=f"For each probe, the {what.lower()} that a dry run had told and what was measured.",
            x_label=x_label,
        ),
        caption="Hollow: told by a dry run, with its interval. Filled: measured; a triangle if outside.",
        columns=[
            Column("trial"),
            Column("told", number=True),
            Column("interval", number=True),
            Column("measured", number=True),
            Column("told is off by", number=True),
        ],
        rows=lines,
        legend=[
            (key("told"), "told"),
            (key("same"), "measured, within"),
            (key("worse"), "measured, outside"),
        ],
    )


def _legend(kinds: set[str]) -> list[tuple[Markup, str]]:
    return [(key(kind), text) for kind, text in reversed(CAPTIONS.items()) if kind in kinds]


def kind_of(place: Place) -> str:
    if place.is_recommended:
        return "winner"
    return "unknown" if place.comparison is None else RELATION_CLASSES[place.comparison.relation]


def unit_of(measurements: Iterable[Measurement | None]) -> str:
    units = {measured.speed_unit for measured in measurements if measured and measured.speed}
    return next(iter(units), "tokens/s")


def speed_of(measured: Measurement) -> str:
    return UNKNOWN if measured.speed is None else f"{measured.speed:,.0f}"


def size_of(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else format_bytes(size_bytes)


def _between(low: float | None, high: float | None) -> str:
    return UNKNOWN if low is None or high is None else f"{low:.4f} … {high:.4f}"


def _thinned(rates: Sequence[float]) -> list[float]:
    """Ticks that do not overlap: those at least a factor of two apart."""
    kept: list[float] = []
    for rate in rates:
        if not kept or rate >= 2 * kept[-1]:
            kept.append(rate)
    return kept
