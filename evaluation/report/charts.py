"""Line charts as inline SVG, without scripts: axes with ticks, lines, a legend.

Colours are not set here: each series names a CSS class, and the page's style sheet gives that class its `color`
(one for light and one for dark pages). A chart is drawn for about the width of a phone, so that its text stays
legible there, and scales with its column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

WIDTH, HEIGHT = 400, 240  # of the view box; on a phone about one CSS pixel a unit
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 22, 40  # margins around the plot
MAX_POINTS = 800  # of a line; more would not show at this size


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    label: str
    log: bool = False
    limits: tuple[float, float] | None = None  # else from the data, a linear axis from 0
    whole: bool = False  # ticks at whole numbers only


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str  # in the legend; empty: not there
    x: np.ndarray  # [N] finite
    y: np.ndarray  # [N]; what is not finite, or not positive on a log axis, is a gap
    style: str  # CSS class
    dash: str = ""  # SVG's stroke-dasharray; with lines close together colour alone would not tell
    markers: bool = False


def line_chart(title: str, series: Sequence[Series], x_axis: Axis, y_axis: Axis, note: str = "") -> str:
    """A <figure> with the chart, its legend and a note; a sentence instead where there is nothing to draw."""
    visible = [_visible(one, y_axis) for one in series]
    drawn = [_thinned(one) for one in visible]
    heading = f"<figcaption>{escape(title)}</figcaption>"
    if not any(len(one.x) and np.isfinite(one.y).any() for one in drawn):
        return f'<figure class="chart">{heading}<p class="missing">Nothing to draw.</p>{_note(note)}</figure>'
    x_limits = _limits(np.concatenate([one.x for one in drawn]), x_axis)
    y_limits = _limits(np.concatenate([one.y for one in drawn]), y_axis)
    lines = [_draw_series(one, x_axis, y_axis, x_limits, y_limits) for one in drawn]
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_description(title, drawn, x_axis))}">'
        f"{_draw_axes(x_axis, y_axis, x_limits, y_limits)}{''.join(lines)}</svg>"
    )
    gaps = sum(int(np.isnan(one.y).sum()) for one in visible)
    if gaps:
        note = f"{note} {gaps} values that are {'zero or ' * y_axis.log}not finite are left out.".strip()
    return f'<figure class="chart">{heading}{svg}{_legend(series)}{_note(note)}</figure>'


def thin(x: np.ndarray, y: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` of the points [N]: of each stretch the lowest and the highest, so that no peak is lost.

    The first and the last point stay; of stretches without any finite value one point stays, as a gap.
    """
    if len(x) <= most:
        return x, y
    bounds = np.linspace(1, len(x) - 1, (most - 2) // 2 + 1).astype(int)
    kept = {0, len(x) - 1}
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        part = y[first:last]
        finite = np.isfinite(part)
        low = np.argmin(np.where(finite, part, np.inf))
        high = np.argmax(np.where(finite, part, -np.inf))
        kept |= {first + int(low), first + int(high)}
    order = sorted(kept)
    return x[order], y[order]


def linear_ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high], at most about `most`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high], evenly spread over the decades; both positive."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6, 8)):
        ticks = [m * 10.0**decade for decade in decades for m in mantissas]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 7)]
    return linear_ticks(low, high)


def tick_label(value: float) -> str:
    """A short form of a tick's value: 0.05, 20, 15k, 2e-5."""
    value = float(f"{value:.6g}")
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):g}{unit}"
    return f"{value:g}".replace("e-0", "e-")


def _visible(series: Series, y_axis: Axis) -> Series:
    """The series with NaN for what cannot be drawn."""
    y = np.asarray(series.y, np.float64)
    drawable = np.isfinite(y) & (y > 0) if y_axis.log else np.isfinite(y)
    return replace(series, x=np.asarray(series.x, np.float64), y=np.where(drawable, y, np.nan))


def _thinned(series: Series) -> Series:
    x, y = thin(series.x, series.y)
    return replace(series, x=x, y=y)


def _limits(values: np.ndarray, axis: Axis) -> tuple[float, float]:
    """Where an axis begins and ends; never an empty stretch."""
    if axis.limits is not None:
        return axis.limits
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if axis.log:
        return (low, high) if high > low * 1.01 else (low / 2, high * 2)
    low = min(0.0, low)
    return (low, high) if high > low else (low, low + 1.0)


def _share(values: np.ndarray, limits: tuple[float, float], log: bool) -> np.ndarray:
    """Positions [N] along an axis, 0 at its beginning and 1 at its end."""
    low, high = limits
    if log:
        return np.log(np.asarray(values) / low) / math.log(high / low)
    return (np.asarray(values) - low) / (high - low)


def _to_x(values: np.ndarray, axis: Axis, limits: tuple[float, float]) -> np.ndarray:
    return LEFT + _share(values, limits, axis.log) * (WIDTH - LEFT - RIGHT)


def _to_y(values: np.ndarray, axis: Axis, limits: tuple[float, float]) -> np.ndarray:
    return HEIGHT - BOTTOM - _share(values, limits, axis.log) * (HEIGHT - TOP - BOTTOM)


def _draw_axes(x_axis: Axis, y_axis: Axis, x_limits: tuple[float, float], y_limits: tuple[float, float]) -> str:
    """Grid lines, tick labels and names of both axes; that of y stands above it, where it reads level."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    ticks = log_ticks(*y_limits) if y_axis.log else linear_ticks(*y_limits, whole=y_axis.whole)
    for tick, at in zip(ticks, _to_y(np.array(ticks), y_axis, y_limits).tolist(), strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick_label(tick)}</text>')
    ticks = linear_ticks(*x_limits, whole=x_axis.whole)
    for tick, at in zip(ticks, _to_x(np.array(ticks), x_axis, x_limits).tolist(), strict=True):
        parts.append(f'<line class="axis" x1="{at:.1f}" y1="{bottom}" x2="{at:.1f}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{tick_label(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_axis.label)}</text>')
    parts.append(f'<text x="4" y="12">{escape(y_axis.label)}</text>')
    return "".join(parts)


def _draw_series(
    series: Series, x_axis: Axis, y_axis: Axis, x_limits: tuple[float, float], y_limits: tuple[float, float]
) -> str:
    """A polyline for each stretch without a gap, a dot where a stretch is a single point."""
    x = _to_x(series.x, x_axis, x_limits)
    y = _to_y(series.y, y_axis, y_limits)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], np.isfinite(y), [False]])))
    dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
    parts = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        if last - first > 1:
            points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(x[first:last], y[first:last], strict=True))
            parts.append(f'<polyline points="{points}"{dash}/>')
        for index in range(first, last) if series.markers or last - first == 1 else ():
            value = f"{series.name} {series.y[index]:.4g} at {x_axis.label} {series.x[index]:.4g}".strip()
            parts.append(
                f'<circle cx="{x[index]:.1f}" cy="{y[index]:.1f}" r="3"><title>{escape(value)}</title></circle>'
            )
    return f'<g class="{escape(series.style)}">{"".join(parts)}</g>'


def _legend(series: Sequence[Series]) -> str:
    """Swatches with names, below the chart, where they wrap on a narrow page; none for a lone line."""
    named = [one for one in series if one.name]
    if len(named) < 2:
        return ""
    items = []
    for one in named:
        dash = f' stroke-dasharray="{one.dash}"' if one.dash else ""
        dot = '<circle cx="13" cy="6" r="3"/>' if one.markers else ""
        items.append(
            f'<li><svg class="swatch" viewBox="0 0 26 12" aria-hidden="true"><g class="{escape(one.style)}">'
            f'<polyline points="0,6 26,6"{dash}/>{dot}</g></svg>{escape(one.name)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _description(title: str, series: Sequence[Series], x_axis: Axis) -> str:
    """The chart in words, for those who cannot see it."""
    parts = []
    for one in series:
        seen = np.flatnonzero(np.isfinite(one.y))
        if one.name and len(seen):
            first, last = seen[0], seen[-1]
            parts.append(
                f"{one.name} from {one.y[first]:.3g} at {x_axis.label} {one.x[first]:.4g} "
                f"to {one.y[last]:.3g} at {one.x[last]:.4g}"
            )
    return f"{title}. {'; '.join(parts)}."


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""
