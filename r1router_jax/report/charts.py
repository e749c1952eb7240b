"""Line charts as inline SVG, without a script, a font or a further file.

Colours come from the page's style sheet (`--c0`, `--c1`, ...), so that a chart
suits light and dark.  A noisy line is drawn faintly below its moving mean.
"""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

Points = Sequence[tuple[int | float, int | float | None]]

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 8, 30  # Room for the axes' labels.
MAX_POINTS = 240  # More points are averaged in bins; a screen shows no more.
NUM_COLOURS = 4
SMOOTH_FROM = 20  # Points; a shorter line is drawn without a moving mean.


def line_chart(
  title: str, series: Mapping[str, Points], x_label: str = "step"
) -> str:
  """Return a figure of named lines; points without a value are left out.

  Args:
    title: caption of the figure.
    series: (x, y) points of each line, by name.
    x_label: label of the horizontal axis.

  Returns:
    HTML, empty if no line has a point.
  """
  lines = {name: _binned_points(points) for name, points in series.items()}
  lines = {name: line for name, line in lines.items() if len(line)}
  if not lines:
    return ""
  # Limits: the horizontal axis ends with the data, the vertical with a tick.
  everything = np.concatenate(list(lines.values()))
  x_low, x_high = _value_range(everything[:, 0])
  x_ticks = axis_ticks(x_low, x_high)
  y_ticks = axis_ticks(*_value_range(everything[:, 1]))
  y_low = min(y_ticks[0], everything[:, 1].min())
  y_high = max(y_ticks[-1], everything[:, 1].max())

  def place(line: np.ndarray) -> np.ndarray:
    # From data to pixels; those of SVG count downwards.
    unit = (line - (x_low, y_low)) / (x_high - x_low, y_high - y_low)
    size, origin = (
      (WIDTH - LEFT - RIGHT, TOP + BOTTOM - HEIGHT),
      HEIGHT - BOTTOM,
    )
    return unit * size + (LEFT, origin)

  # The grid, the ticks and the axis label.
  parts = []
  for y in y_ticks:
    _, v = place(np.array([x_low, y]))
    parts.append(
      f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v:.1f}" '
      f'y2="{v:.1f}"/><text x="{LEFT - 6}" y="{v + 4:.1f}" '
      f'text-anchor="end">{tick_label(y)}</text>'
    )
  slack = (x_high - x_low) / 50
  for x in (x for x in x_ticks if x_low - slack <= x <= x_high + slack):
    u, _ = place(np.array([x, y_low]))
    parts.append(
      f'<text x="{u:.1f}" y="{HEIGHT - BOTTOM + 15}" '
      f'text-anchor="middle">{tick_label(x)}</text>'
    )
  parts.append(
    f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 2}" '
    f'text-anchor="middle">{html.escape(x_label)}</text>'
  )
  # The lines, and their key with the first and the last value.
  key = []
  for number, (name, line) in enumerate(lines.items()):
    colour = f"c{number % NUM_COLOURS}"
    mean = _moving_mean(line)
    if mean is not line:
      parts.append(_polyline(place(line), f"{colour} raw"))
    parts.append(_polyline(place(mean), colour))
    change = f"{tick_label(mean[0, 1])} → {tick_label(mean[-1, 1])}"
    key.append(
      f'<span class="line"><span class="key {colour}"></span>'
      f"{html.escape(name)} {change}</span>"
    )
  return (
    f"<figure><figcaption><b>{html.escape(title)}</b> "
    f"<small>{' '.join(key)}</small></figcaption>"
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    f'aria-label="{html.escape(title, quote=True)}">{"".join(parts)}</svg>'
    "</figure>"
  )


def axis_ticks(low: float, high: float, about: int = 4) -> list[float]:
  """Return round numbers that span `low` to `high`, at most one beyond each."""
  # The smallest round step that needs no more than about `about` ticks.
  rough = (high - low) / about
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(
    size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough
  )
  first, last = math.floor(low / step), math.ceil(high / step)
  return [number * step for number in range(first, last + 1)]


def tick_label(value: float) -> str:
  """Format a number as short as an axis needs."""
  if abs(value) >= 10_000:
    return f"{value / 1000:.4g}k"
  return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"


def _value_range(values: np.ndarray) -> tuple[float, float]:
  low, high = float(values.min()), float(values.max())
  if high - low > 1e-9 * max(abs(low), abs(high)):
    return low, high
  # A constant gets a range of its own, so that it is drawn in the middle.
  room = abs(low) / 10 or 1.0
  return low - room, high + room


def _binned_points(points: Points) -> np.ndarray:
  """Return the points with a finite value, averaged if there are too many."""
  # Logs hold None for a scalar that a step did not have, and may hold NaN.
  kept = [
    (x, y)
    for x, y in points
    if y is not None and math.isfinite(x) and math.isfinite(y)
  ]
  line = np.array(kept, np.float64).reshape(-1, 2)
  if len(line) <= MAX_POINTS:
    return line
  return np.array(
    [part.mean(axis=0) for part in np.array_split(line, MAX_POINTS)]
  )


def _moving_mean(line: np.ndarray) -> np.ndarray:
  if len(line) < SMOOTH_FROM:
    return line
  # A window of about an eighth of the line, shorter at its ends.
  half = max(1, len(line) // 16)
  spans = [line[max(0, n - half) : n + half + 1, 1] for n in range(len(line))]
  return np.stack([line[:, 0], [span.mean() for span in spans]], axis=1)


def _polyline(places: np.ndarray, colour: str) -> str:
  points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
  return f'<polyline class="{colour}" points="{points}"/>'
