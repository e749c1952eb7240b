"""Tables of a report, and their form in a terminal."""

import dataclasses

from r1router_jax.common.text import sanitize_text
from r1router_jax.metrics.answers import Interval

Cell = str | int | float | Interval | None


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of numbers, in which intervals are shown in per cent.

  Attributes:
    columns: names of the columns; the first column names the rows.
    rows: cells of each row; None is an empty cell.
  """

  columns: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]


def format_table(table: Table) -> str:
  """Return the table as aligned lines of text for a terminal."""
  rows = [table.columns, *([*map(_format_cell, row)] for row in table.rows)]
  columns = []
  for column in zip(*rows, strict=True):
    width = max(map(len, column))
    # The first column names the rows and is left-aligned.
    align = str.rjust if columns else str.ljust
    columns.append([align(cell, width) for cell in column])
  return "\n".join(map("  ".join, zip(*columns, strict=True)))


def _format_cell(cell: Cell) -> str:
  if cell is None:
    return "-"
  if isinstance(cell, Interval):
    mean, low, high = (100 * x for x in cell)
    return f"{mean:.1f} ({low:.0f}..{high:.0f})"
  shown = f"{cell:.3g}" if isinstance(cell, float) else str(cell)
  return sanitize_text(shown)
