"""Plots as inline SVG: scales, axes and marks. Knows nothing of studies.

Colours and sizes of text are classes that the page's style sheet knows: nothing here is light or dark.
Each plot has a title and a description; each mark that means something has a title of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET  # nothing is parsed, only written

from markupsafe import Markup

WIDTH = 560.0
HEIGHT = 340.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 30.0, 30.0, 56.0
SERIES = 6
"""Colours that the style sheet has for series; beyond them, dashes tell series apart."""
TICKS = 5
MOST_POINTS = 160
"""Of a curve: more than there are pixels for on a phone."""
SMOOTHED_SHARE = 20
"""A curve's mean goes over this part of its points …"""
ROW_HEIGHT = 46.0
ROW_EDGE = 34.0
"""Beside a plot of intervals: half of a tick's text."""
LABEL_GAP = 15.0
"""Least distance between the labels at the ends of curves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One mark of a scatter plot."""

    x: float
    y: float
    kind: str
    """Class of its colour and shape: ``winner``, ``same``, ``better``, ``worse``, ``probed``."""
    title: str
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a plot of intervals."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    kind: str
    title: str
    told: float | None = None
    """A second mark, hollow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line through points, in their order; None is a gap."""

    label: str
    points: Sequence[tuple[float, float | None]]
    title: str
    marked: float | None = None
    """The x of a point that is ringed."""
    failed: Sequence[float] = ()
    """Where there is no y because it failed."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log10(self.low), math.log10(self.high), math.log10(value))
            if self.is_log
            else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    front: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Points with two axes. ``front`` is a staircase through what nothing beats in both, smallest x first."""
    svg = _frame(title, description, HEIGHT)
    x = _scale([point.x for point in points], LEFT, WIDTH - RIGHT)
    y = _scale([point.y for point in points], HEIGHT - BOTTOM, TOP)
    _axes(svg, x, y, x_label, y_label)
    if len(front) > 1:
        places = [(x(front[0][0]), y(front[0][1]))]
        for at_x, at_y in front[1:]:
            places += [(x(at_x), places[-1][1]), (x(at_x), y(at_y))]
        _add(svg, "polyline", {"class": "front", "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in places)})
    # The winner last, above all others.
    for point in sorted(points, key=lambda each: (each.kind == "winner", bool(each.label))):
        _mark(svg, x(point.x), y(point.y), point.kind, point.title)
        if point.label:
            near_end = x(point.x) > WIDTH - RIGHT - 40
            _text(
                svg,
                x(point.x) + (-10 if near_end else 10),
                y(point.y) - 9,
                point.label,
                "label",
                anchor="end" if near_end else "start",
            )
    return _written(svg)


def intervals(
    rows: Sequence[Row], *, title: str, description: str, x_label: str, reference: float | None = None
) -> Markup:
    """A line with its interval for each row, one axis for all; ``reference`` draws an upright line."""
    height = TOP + ROW_HEIGHT * len(rows) + BOTTOM
    svg = _frame(title, description, height)
    ends = [e for row in rows for e in (row.value, row.low, row.high, row.told) if e is not None]
    x = _scale([*ends, *([] if reference is None else [reference])], ROW_EDGE, WIDTH - ROW_EDGE)
    bottom = height - BOTTOM
    _x_axis(svg, x, bottom, TOP - 10, x_label)
    if reference is not None:
        _line(svg, x(reference), TOP - 10, x(reference), bottom, "reference")
    for index, row in enumerate(rows):
        at = TOP + ROW_HEIGHT * index + 28
        _text(svg, 4.0, at - 14, row.label, "label")
        group = _add(svg, "g", {})
        _add(group, "title", {}).text = row.title
        if row.low is not None and row.high is not None:
            _line(group, x(row.low), at, x(row.high), at, f"interval {row.kind}")
        if row.told is not None:
            _add(group, "circle", {"class": "told", "cx": _at(x(row.told)), "cy": _at(at), "r": "6"})
        if row.value is not None:
            _mark(group, x(row.value), at, row.kind, row.title)
    return _written(svg)


def curves(
    lines: Sequence[Curve],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    x_ticks: Sequence[float] | None = None,
    with_points: bool = False,
) -> Markup:
    """Lines in the order of their colours, each with its label at its end."""
    svg = _frame(title, description, HEIGHT)
    known = [(at, value) for line in lines for at, value in line.points if value is not None]
    x = _scale(
        [*(at for at, _ in known), *(at for line in lines for at in line.failed)],
        LEFT,
        WIDTH - RIGHT,
        is_log=log_x,
    )
    y = _scale([value for _, value in known], HEIGHT - BOTTOM, TOP)
    _axes(svg, x, y, x_label, y_label, x_ticks=x_ticks)
    ends: list[tuple[float, float, int, str]] = []
    for index, line in enumerate(lines):
        places = [(x(at), y(value)) for at, value in line.points if value is not None]
        colour = f"series s{index % SERIES + 1}{' dashed' if index >= SERIES else ''}"
        group = _add(svg, "g", {"class": colour})
        _add(group, "title", {}).text = line.title
        if places:
            _add(group, "polyline", {"points": " ".join(f"{a:.1f},{b:.1f}" for a, b in places)})
            ends.append((*places[-1], index, line.label))
        for (at, value), (px, py) in zip(
            [(at, value) for at, value in line.points if value is not None], places, strict=True
        ):
            if with_points:
                dot = _add(group, "circle", {"cx": _at(px), "cy": _at(py), "r": "4", "class": "dot"})
                _add(dot, "title", {}).text = f"{line.title}: {value:.4g} at {at:g}"
            if line.marked is not None and at == line.marked:
                _add(group, "circle", {"cx": _at(px), "cy": _at(py), "r": "8", "class": "ring"})
        for at in line.failed:
            cross = _add(group, "path", {"d": _cross(x(at), TOP + 6, 5), "class": "failed"})
            _add(cross, "title", {}).text = f"{line.title}: failed at {at:g}"
    _end_labels(svg, ends)
    return _written(svg)


def bar(share: float) -> Markup:
    """A bar that is so long a part of the whole; decoration beside a number, so it has no title."""
    svg = ET.Element(
        "svg", {"class": "bar", "viewBox": "0 0 100 4", "preserveAspectRatio": "none", "aria-hidden": "true"}
    )
    _add(svg, "rect", {"x": "0", "y": "0", "height": "4", "width": _at(max(0.6, 100 * share)), "rx": "1"})
    return _written(svg)


def key(kind: str) -> Markup:
    """A mark alone, for a legend."""
    svg = ET.Element("svg", {"class": "key", "viewBox": "0 0 20 20", "aria-hidden": "true"})
    if kind.startswith("series"):
        group = _add(svg, "g", {"class": kind})
        _add(group, "polyline", {"points": "0,10 20,10"})
    elif kind == "told":
        _add(svg, "circle", {"class": "told", "cx": "10", "cy": "10", "r": "6"})
    else:
        _mark(svg, 10, 10, kind, "")
    return _written(svg)


def series_class(index: int) -> str:
    """The class of the nth curve, as :func:`curves` gives it."""
    return f"series s{index % SERIES + 1}{' dashed' if index >= SERIES else ''}"


def smoothed(values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    """Step → mean over the steps around it, thinned to what a plot can show; steps count from 1."""
    reach = len(values) // SMOOTHED_SHARE // 2
    stride = max(1, math.ceil(len(values) / MOST_POINTS))
    points: list[tuple[float, float | None]] = []
    for index in [*range(0, len(values), stride), len(values) - 1]:
        around = [v for v in values[max(0, index - reach) : index + reach + 1] if v is not None]
        points.append((index + 1.0, sum(around) / len(around) if around else None))
    return list(dict(points).items())


def nice_ticks(low: float, high: float, most: int = TICKS) -> list[float]:
    """Round numbers between two ends, at most so many."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _scale(values: Sequence[float], start: float, end: float, *, is_log: bool = False) -> _Scale:
    """With a little room at both ends; equal values get a range around them."""
    low, high = min(values), max(values)
    if is_log:
        room = (high / low) ** 0.08 if high > low else 2.0
        return _Scale(low / room, high * room, start, end, is_log=True)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return _Scale(low - room, high + room, start, end)


def _axes(
    svg: ET.Element,
    x: _Scale,
    y: _Scale,
    x_label: str,
    y_label: str,
    *,
    x_ticks: Sequence[float] | None = None,
) -> None:
    _x_axis(svg, x, y.start, y.end, x_label, ticks=x_ticks)
    ticks = nice_ticks(y.low, y.high)
    form = _form(ticks)
    for tick in ticks:
        _line(svg, x.start, y(tick), x.end, y(tick), "grid")
        _text(svg, x.start - 8, y(tick) + 4, form(tick), "tick", anchor="end")
    _text(svg, 4.0, 14.0, y_label, "axis")


def _x_axis(
    svg: ET.Element, x: _Scale, bottom: float, top: float, label: str, *, ticks: Sequence[float] | None = None
) -> None:
    ticks = nice_ticks(x.low, x.high) if ticks is None else ticks
    form = _form(ticks)
    for tick in ticks:
        _line(svg, x(tick), bottom, x(tick), top, "grid")
        _text(svg, x(tick), bottom + 18, form(tick), "tick", anchor="middle")
    _line(svg, x.start, bottom, x.end, bottom, "base")
    _text(svg, x.end, bottom + 42, label, "axis", anchor="end")


def _form(ticks: Sequence[float]) -> Callable[[float], str]:
    largest = max((abs(tick) for tick in ticks), default=0.0)
    return "{:,.0f}".format if largest >= 1000 else "{:g}".format


def _end_labels(svg: ET.Element, ends: Sequence[tuple[float, float, int, str]]) -> None:
    """Beside the last points, pushed apart downwards where they would overlap."""
    last = -math.inf
    for at_x, at_y, index, label in sorted(ends, key=lambda end: end[1]):
        last = max(at_y, last + LABEL_GAP)
        text = _text(svg, at_x + 8, last + 4, label, f"label t{index % SERIES + 1}")
        text.set("aria-hidden", "true")


def _mark(parent: ET.Element, x: float, y: float, kind: str, title: str) -> None:
    if kind == "winner":
        mark = _add(parent, "path", {"d": _star(x, y, 10)})
    elif kind == "worse":
        mark = _add(
            parent, "path", {"d": f"M{x:.1f},{y - 7:.1f} L{x + 7:.1f},{y + 6:.1f} L{x - 7:.1f},{y + 6:.1f}Z"}
        )
    elif kind == "better":
        mark = _add(parent, "rect", {"x": _at(x - 6), "y": _at(y - 6), "width": "12", "height": "12"})
    else:
        mark = _add(parent, "circle", {"cx": _at(x), "cy": _at(y), "r": "4" if kind == "probed" else "6.5"})
    mark.set("class", f"mark {kind}")
    if title:
        _add(mark, "title", {}).text = title


def _star(x: float, y: float, radius: float) -> str:
    places = []
    for corner in range(10):
        reach = radius if corner % 2 == 0 else radius * 0.45
        angle = math.pi * corner / 5 - math.pi / 2
        places.append(f"{x + reach * math.cos(angle):.1f},{y + reach * math.sin(angle):.1f}")
    return f"M{' L'.join(places)}Z"


def _cross(x: float, y: float, reach: float) -> str:
    return (
        f"M{x - reach:.1f},{y - reach:.1f} L{x + reach:.1f},{y + reach:.1f} "
        f"M{x + reach:.1f},{y - reach:.1f} L{x - reach:.1f},{y + reach:.1f}"
    )


def _frame(title: str, description: str, height: float) -> ET.Element:
    name = re.sub("[^a-z]+", "-", title.lower())
    svg = ET.Element(
        "svg",
        {
            "class": "plot",
            "viewBox": f"0 0 {WIDTH:g} {height:g}",
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
        },
    )
    _add(svg, "title", {"id": f"{name}-title"}).text = title
    _add(svg, "desc", {"id": f"{name}-desc"}).text = description
    return svg


def _add(parent: ET.Element, name: str, attributes: dict[str, str]) -> ET.Element:
    return ET.SubElement(parent, name, attributes)


def _line(parent: ET.Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    places = {"x1": _at(x1), "y1": _at(y1), "x2": _at(x2), "y2": _at(y2)}
    _add(parent, "line", {**places, "class": kind})


def _text(
    parent: ET.Element, x: float, y: float, text: str, kind: str, *, anchor: str = "start"
) -> ET.Element:
    element = _add(parent, "text", {"x": _at(x), "y": _at(y), "class": kind, "text-anchor": anchor})
    element.text = text
    return element


def _at(place: float) -> str:
    return f"{place:.1f}"


def _written(svg: ET.Element) -> Markup:
    """Escaped by the writer: what names models or columns stays text."""
    return Markup(ET.tostring(svg, encoding="unicode"))  # noqa: S704 - see above
