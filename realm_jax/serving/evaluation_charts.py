"""Draws lines and histograms as SVG text that stands in an HTML page by itself."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 30, 38  # room for the labels around the plot
_COLORS = ("#1f5fa8", "#c2571a", "#3d7d3d", "#7b4397")

Point = tuple[float, float]


def line_chart(
  title: str,
  x_label: str,
  lines: Mapping[str, Sequence[Point]],
  *,
  intervals: Mapping[str, Sequence[Point]] | None = None,
) -> str:
  """Lines through points (x, y) by name, at most four; what isn't finite is left out, and the title says how many.

  Args:
    intervals: low and high of a line's points, drawn upright through them.
  """
  num_points = sum(map(len, lines.values()))
  finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in lines.items()}
  left_out = num_points - sum(map(len, finite.values()))
  intervals = intervals or {}
  points = [p for points in finite.values() for p in points]
  y_values = [y for _, y in points] + [y for pairs in intervals.values() for pair in pairs for y in pair]
  if not points:
    return _frame(f"{title} (no finite value)", x_label, (0, 1), (0, 1), "")
  x_range, y_range = _range([x for x, _ in points]), _range(y_values)
  place = _placer(x_range, y_range)
  marks = []
  for i, (name, color) in enumerate(zip(finite, _COLORS)):
    path = " ".join("{:.1f},{:.1f}".format(*place(*p)) for p in finite[name])
    marks.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
    for (x, _), (low, high) in zip(finite[name], intervals.get(name, ())):
      (x_low, y_low), (_, y_high) = place(x, low), place(x, high)
      x_low += 3 * i  # beside those of other lines
      marks.append(f'<line x1="{x_low:.1f}" y1="{y_low:.1f}" x2="{x_low:.1f}" y2="{y_high:.1f}" stroke="{color}"/>')
    if len(finite) > 1:
      y = _HEIGHT - _BOTTOM - 8 - 14 * (len(finite) - 1 - i)
      marks.append(_text(_WIDTH - _RIGHT - 6, y, name, anchor="end", color=color))
  return _frame(title + (f" ({left_out} not finite)" if left_out else ""), x_label, x_range, y_range, "".join(marks))


def histogram(title: str, x_label: str, values: Sequence[float], *, num_bins: int = 20) -> str:
  """How many values fall into each of equally wide bins; what isn't finite is left out, and the title says how many."""
  finite = [v for v in values if math.isfinite(v)]
  count, edge = np.histogram(finite, bins=num_bins)
  x_range, y_range = (float(edge[0]), float(edge[-1])), (0.0, float(max(count.max(), 1)))
  place = _placer(x_range, y_range)
  bars = []
  for number, left, right in zip(count.tolist(), edge[:-1].tolist(), edge[1:].tolist()):
    (x, y), (x_end, y_end) = place(left, number), place(right, 0)
    size = f'width="{x_end - x:.1f}" height="{y_end - y:.1f}"'
    bars.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{_COLORS[0]}" stroke="white"/>')
  left_out = len(values) - len(finite)
  return _frame(title + (f" ({left_out} not finite)" if left_out else ""), x_label, x_range, y_range, "".join(bars))


def _range(values: Sequence[float]) -> Point:
  """From the smallest to the largest value, never of no width."""
  low, high = min(values), max(values)
  return (low, high) if low < high else (low - 0.5, high + 0.5)


def _placer(x_range: Point, y_range: Point):
  """Values -> where they stand in the picture."""

  def place(x: float, y: float) -> Point:
    right = (x - x_range[0]) / (x_range[1] - x_range[0])
    up = (y - y_range[0]) / (y_range[1] - y_range[0])
    return _LEFT + right * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

  return place


def _frame(title: str, x_label: str, x_range: Point, y_range: Point, marks: str) -> str:
  place = _placer(x_range, y_range)
  parts = [_text(_WIDTH / 2, 16, title, weight="bold"), _text(_WIDTH / 2, _HEIGHT - 6, x_label)]
  for y in np.linspace(*y_range, 5).tolist():
    _, y_place = place(x_range[0], y)
    parts.append(f'<path d="M{_LEFT} {y_place:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
    parts.append(_text(_LEFT - 5, y_place + 4, f"{y:,.0f}" if 1e3 <= abs(y) < 1e6 else f"{y:.3g}", anchor="end"))
  for x in np.linspace(*x_range, 5).tolist():
    parts.append(_text(place(x, y_range[0])[0], _HEIGHT - _BOTTOM + 15, f"{x:.4g}"))
  return (
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{html.escape(title)}">'
    f"{''.join(parts)}{marks}</svg>"
  )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", color: str = "#333", weight: str = "normal") -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-weight="{weight}" font-size="11">'
    f"{html.escape(text)}</text>"
  )
