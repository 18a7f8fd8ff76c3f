"""Marks and axes as SVG text. Whatever comes from a study is escaped here."""

import math
import sys
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

#: Size of a chart's drawing area and its margins, in the units of its view box.
WIDTH, HEIGHT = 720.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 12.0, 10.0, 38.0
#: Characters of a label that are shown.
_LABEL = 24


class Scale(NamedTuple):
    """From values to a place on the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where the value is."""
        if self.log:
            share = (math.log(value) - math.log(self.low)) / ((math.log(self.high) - math.log(self.low)) or 1.0)
        else:
            # In halves, as the span of the largest floats is none.
            share = (value / 2 - self.low / 2) / ((self.high / 2 - self.low / 2) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """A few round values within the scale."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if last - first >= 1:
                return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 5))]
            return [self.low, self.high]
        raw = (self.high / 2 - self.low / 2) / 2.5
        if raw < sys.float_info.min:  # no span, or one that a tenth of is nothing
            return [self.low]
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= raw)
        indices = range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)
        return [step * index for index in indices]


def scale(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Scale:
    """A scale on which all values have room; without values, from 0 to 1."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high and not log:
        low, high = low - 0.5, high + 0.5
    elif low == high:
        low, high = low / 2, high * 2
    return Scale(low, high, start, end, log)


def number(value: float) -> str:
    """A number for people."""
    return f"{value:.5g}"


def short(text: object) -> str:
    """A label, shortened; not escaped yet."""
    words = str(text)
    return words if len(words) <= _LABEL else f"{words[: _LABEL - 1]}…"


def text(x: float, y: float, content: object, kind: str = "", anchor: str = "start") -> str:
    """A line of text."""
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{of_kind}>{escape(short(content))}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def dot(x: float, y: float, kind: str, told: str) -> str:
    """A point that tells more to who points at it."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="{kind}"><title>{escape(told)}</title></circle>'


def bar(x: float, y: float, width: float, height: float, kind: str, told: str) -> str:
    """A rectangle that tells more to who points at it."""
    size = f'width="{max(width, 0.5):.1f}" height="{max(height, 0.5):.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{kind}"><title>{escape(told)}</title></rect>'


def path(points: Sequence[tuple[float, float]], kind: str) -> str:
    """A line through points."""
    steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{steps}" class="{kind}"/>'


def axes(across: Scale | None, up: Scale, x_name: str, y_name: str = "") -> str:
    """Both axes with a grid, ticks and names; without a scale, the one across has no ticks."""
    bottom = HEIGHT - BOTTOM
    parts: list[str] = []
    if across is not None:
        parts += [text(across(value), bottom + 14, number(value), "tick", "middle") for value in across.ticks()]
    for value in up.ticks():
        parts += [
            line(LEFT, up(value), WIDTH - RIGHT, up(value), "grid"),
            text(LEFT - 6, up(value) + 4, number(value), "tick", "end"),
        ]
    parts.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "name", "middle"))
    if y_name:
        middle = (TOP + bottom) / 2
        parts.append(
            f'<text x="14" y="{middle:.1f}" transform="rotate(-90 14 {middle:.1f})" text-anchor="middle" class="name">'
            f"{escape(short(y_name))}</text>"
        )
    return "".join(parts)


def chart(title: str, about: str, content: str, *, width: float = WIDTH, height: float = HEIGHT) -> str:
    """A drawing with what it shows in words, for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(about)}</desc>{content}</svg>"
    )
