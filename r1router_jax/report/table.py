"""Holds tables of a report and formats them as plain text."""

import dataclasses

from r1router_jax.common import text
from r1router_jax.metrics import answers
from r1router_jax.metrics.answers import Interval

Cell = str | int | float | answers.Interval | None


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; intervals are shown in per cent.

  Attributes:
    columns: names; the first column names the rows.
    rows: cells by row, None where there is nothing to say.
    highlight: whether the greatest number of each column is set in bold.
  """

  columns: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  highlight: bool = True


def as_text(table: Table) -> str:
  """The table for a terminal."""
  rows = [table.columns, *([_cell(cell) for cell in row] for row in table.rows)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if at == 0 else cell.rjust(width)
      for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  )


def _cell(cell: Cell) -> str:
  if cell is None:
    return "-"
  if isinstance(cell, Interval):
    mean, low, high = (100 * x for x in cell)
    return f"{mean:.1f} ({low:.0f}..{high:.0f})"
  shown = f"{cell:.3g}" if isinstance(cell, float) else str(cell)
  return text.clean(shown)
