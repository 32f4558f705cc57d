"""Plots as SVG inside a page: lines over an axis, and histograms.

Colours come from the page's style sheet, so that light and dark are its affair. Every plot has a
title and a description for those who do not see it, and every mark says its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 68, 20, 30, 46
MARKERS = 40  # points of a line up to which each is marked; the others say their values, too
TICKS = 6  # at most

Format = Callable[[float], str]


class Series(NamedTuple):
    """A line through points."""

    name: str
    points: Sequence[tuple[float, float]]


class Bar(NamedTuple):
    """One bin of a histogram: [low, high)."""

    low: float
    high: float
    number: int


class Axis(NamedTuple):
    """What is along one side: values in [low, high], some of them written out."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    format: Format
    log: bool = False

    def place(self, value: float) -> float:
        """From 0 at the axis' beginning to 1 at its end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear(label: str, low: float, high: float, fmt: Format, whole: bool = False) -> Axis:
    """An axis whose ticks are round numbers; it ends at the last of them."""
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / TICKS))
    steps = (power * m for m in (1, 2, 5, 10))
    step = next(s for s in steps if span / s <= TICKS)
    if whole:
        step = max(1.0, step)
    first = math.floor(low / step)
    ticks = tuple(step * i for i in range(first, math.ceil((low + span) / step - 1e-9) + 1))
    return Axis(label, ticks[0], ticks[-1], ticks, fmt)


def logarithmic(label: str, low: float, high: float, fmt: Format) -> Axis:
    """An axis from ``low`` to ``high`` with ticks at 1, 2 and 5 times the powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = [m * 10.0**p for p in powers for m in steps]
        ticks = tuple(t for t in every if low * 0.999 <= t <= high * 1.001)
        if len(ticks) <= TICKS + 2:
            break
    return Axis(label, low, high, ticks, fmt, log=True)


def line_plot(name: str, title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Lines over each other; ``name`` is the plot's id in its page."""
    marks = [mark for i, one in enumerate(series) for mark in _line(one, i, x, y)]
    ends = "; ".join(f"{s.name}: {_range(s, y)}" for s in series)
    return _plot(name, title, f"{y.label} by {x.label}. {ends}.", x, y, marks)


def histogram(name: str, title: str, bars: Sequence[Bar], x: Axis, y: Axis) -> str:
    """Bars side by side."""
    marks = []
    for bar in bars:
        left, right = _across(x, bar.low), _across(x, bar.high)
        top = _down(y, bar.number)
        told = f"{x.format(bar.low)} to {x.format(bar.high)}: {bar.number:,}"
        marks.append(
            f'<rect class="s0 bar" x="{left + 0.5:.1f}" y="{top:.1f}" '
            f'width="{max(right - left - 1, 0.5):.1f}" height="{HEIGHT - BOTTOM - top:.1f}">'
            f"<title>{escape(told)}</title></rect>"
        )
    total, most = sum(b.number for b in bars), max(bars, key=lambda b: b.number)
    about = (
        f"{y.label} by {x.label}. {total:,} in all, most of them from {x.format(most.low)} "
        f"to {x.format(most.high)}."
    )
    return _plot(name, title, about, x, y, marks)


def legend(series: Sequence[Series]) -> str:
    """Which line is which."""
    items = "".join(
        f'<li><svg width="28" height="10" aria-hidden="true"><line class="s{i} line" x1="0" '
        f'y1="5" x2="28" y2="5"/></svg> {escape(one.name)}</li>'
        for i, one in enumerate(series)
    )
    return f'<ul class="legend">{items}</ul>'


def _line(series: Series, number: int, x: Axis, y: Axis) -> Iterator[str]:
    path = " ".join(f"{_across(x, a):.1f},{_down(y, b):.1f}" for a, b in series.points)
    yield f'<polyline class="s{number} line" points="{path}"/>'
    marked = len(series.points) <= MARKERS
    # Later lines have larger rings, so that values that are the same are all seen.
    kind, radius = (f"s{number} dot", 3 + 1.5 * number) if marked else ("hover", 5)
    for a, b in series.points:
        told = f"{series.name}, {x.label} {x.format(a)}: {y.format(b)}"
        yield (
            f'<circle class="{kind}" cx="{_across(x, a):.1f}" cy="{_down(y, b):.1f}" '
            f'r="{radius}"><title>{escape(told)}</title></circle>'
        )


def _range(series: Series, y: Axis) -> str:
    values = [b for _, b in series.points]
    return f"from {y.format(min(values))} to {y.format(max(values))}"


def _plot(name: str, title: str, about: str, x: Axis, y: Axis, marks: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{name}-title {name}-about">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-about">{escape(about)}</desc>'
        f"{''.join(_grid(x, y))}{''.join(marks)}</svg>"
    )


def _grid(x: Axis, y: Axis) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    yield f'<text class="label" x="8" y="{TOP - 16}">{escape(y.label)}</text>'
    for tick in y.ticks:
        at = _down(y, tick)
        yield f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>'
        yield f'<text class="y" x="{LEFT - 8}" y="{at + 4:.1f}">{escape(y.format(tick))}</text>'
    yield f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    for tick in x.ticks:
        at = _across(x, tick)
        yield f'<line class="axis" x1="{at:.1f}" y1="{bottom}" x2="{at:.1f}" y2="{bottom + 5}"/>'
        yield f'<text class="x" x="{at:.1f}" y="{bottom + 19}">{escape(x.format(tick))}</text>'
    middle = (LEFT + right) / 2
    yield f'<text class="x label" x="{middle}" y="{HEIGHT - 6}">{escape(x.label)}</text>'


def _across(x: Axis, value: float) -> float:
    return LEFT + x.place(value) * (WIDTH - LEFT - RIGHT)


def _down(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM)
