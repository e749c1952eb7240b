"""Line charts: ticks, and lines as places in pixels, for chart.svg.j2 to draw.

Charts are inline SVG, without a script, a font or a further file, in the
colours of the page's style sheet.  A noisy line is drawn faintly below its
moving mean.

Axes:  N points
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from r1router_jax.report.scalar_notes import SCALAR_NOTES

Points = Sequence[tuple[Any, Any]]  # (step, value), as a log holds them.
Line = Float64[np.ndarray, "N 2"]

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 8, 30  # Room for the axes' labels.
MAX_POINTS = 240  # More points are averaged in bins; a screen shows no more.
SMOOTH_FROM = 20  # Points; a shorter line is drawn without a moving mean.
LARGEST = 1e100  # Larger numbers are left out; those below its inverse are 0.


def line_chart(title: str, series: Mapping[str, Points]) -> dict[str, Any]:
  """Return what chart.svg.j2 needs, or nothing if no line has a point.

  Args:
    title: caption of the figure; the name of a scalar adds its note.
    series: (step, value) points of each line, by name; points whose value is
      no finite number are left out.
  """
  lines = {name: _binned_points(points) for name, points in series.items()}
  lines = {name: line for name, line in lines.items() if len(line)}
  if not lines:
    return {}
  # Limits: the horizontal axis ends with the data, the vertical with a tick.
  everything = np.concatenate(list(lines.values()))
  x_low, x_high = _value_range(everything[:, 0])
  y_ticks = axis_ticks(*_value_range(everything[:, 1]))
  # A tick that misses the end of the data by a hair is shown all the same.
  x_ticks, slack = axis_ticks(x_low, x_high), (x_high - x_low) / 50
  x_ticks = x_ticks[(x_ticks >= x_low - slack) & (x_ticks <= x_high + slack)]
  low, high = np.array([(x_low, y_ticks[0]), (x_high, y_ticks[-1])])

  def to_pixels(points: np.ndarray | float) -> np.ndarray:
    # SVG counts downwards.  A lone number stands for both coordinates.
    size = WIDTH - LEFT - RIGHT, TOP + BOTTOM - HEIGHT
    return (points - low) / (high - low) * size + (LEFT, HEIGHT - BOTTOM)

  shown = []
  for name, line in lines.items():
    mean = _moving_mean(line)
    raw = [] if mean is line else to_pixels(line)
    ends = tick_label(mean[0, 1]), tick_label(mean[-1, 1])
    shown.append((name, ends, raw, to_pixels(mean)))
  return dict(
    title=title,
    note=SCALAR_NOTES.get(title, ""),
    size=(WIDTH, HEIGHT),
    plot=(LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM),
    x_ticks=[(to_pixels(x)[0], tick_label(x)) for x in x_ticks],
    y_ticks=[(to_pixels(y)[1], tick_label(y)) for y in y_ticks],
    lines=shown,
  )


def axis_ticks(low: float, high: float) -> np.ndarray:
  """Return round numbers that span `low` to `high`, at most one beyond each."""
  # The smallest round step that needs no more than about four ticks.
  rough = (high - low) / 4
  steps = np.array([1, 2, 2.5, 5, 10]) * 10.0 ** np.floor(np.log10(rough))
  step = steps[np.searchsorted(steps[:-1], rough)]
  return step * np.arange(np.floor(low / step), np.ceil(high / step) + 1)


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


def _binned_points(points: Points) -> Line:
  """Return the points that can be drawn, averaged if there are too many."""
  # Logs hold None for a scalar that a step did not have.
  drawn = [
    point
    for point in points
    if all(isinstance(x, int | float) and abs(x) <= LARGEST for x in point)
  ]
  line = np.array(drawn, np.float64).reshape(-1, 2)
  line[np.abs(line) < 1 / LARGEST] = 0
  if len(line) <= MAX_POINTS:
    return line
  return np.stack([b.mean(axis=0) for b in np.array_split(line, MAX_POINTS)])


def _moving_mean(line: Line) -> Line:
  if len(line) < SMOOTH_FROM:
    return line
  # A window of about an eighth of the line, shorter at its ends.
  window = np.ones(2 * (len(line) // 16) + 1)
  steps, values = line.T
  counts = np.convolve(np.ones(len(line)), window, "same")
  return np.stack([steps, np.convolve(values, window, "same") / counts], axis=1)
