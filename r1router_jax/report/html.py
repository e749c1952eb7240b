"""One self-contained HTML page of scores, learning curves and trajectories.

The page opens from a file, on a phone as on a screen, in light and in dark.  It
holds no script and loads nothing from outside, and its content security policy
says so to the browser.  Text that a model, a knowledge base or a user wrote is
sanitised and escaped, and images are decoded and encoded anew (see
`report.templates`), so that a page about hostile data is harmless.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from r1router_jax.common.records import Answer, Trajectory
from r1router_jax.metrics import answers
from r1router_jax.protocol import format
from r1router_jax.report import charts, templates
from r1router_jax.report.table import Cell, Table

# One line of samples.jsonl: a routing step of one iteration with all responses
# sampled for it, their rewards and their advantages.
SampleGroup = Mapping[str, Any]
Curves = charts.Points | Mapping[str, charts.Points]


def write_page(
  path: str | epath.PathLike,
  *,
  title: str,
  summary: Sequence[str] = (),
  tables: Mapping[str, Table] | None = None,
  curves: Mapping[str, Curves] | None = None,
  sample_groups: Mapping[str, Sequence[SampleGroup]] | None = None,
  trajectories: Sequence[Trajectory] = (),
  notes: Sequence[str] = (),
) -> None:
  """Write the page; its folder is created.

  Args:
    path: file to write.
    title: heading of the page and title of the window.
    summary: findings, one line each, shown at the top.
    tables: tables by heading.
    curves: learning curves by heading: the (step, value) points of one line, or
      several named lines.
    sample_groups: for each run its sampled groups, oldest first; only those of
      the first and the last iteration are shown.
    trajectories: trajectories to show in full; a dozen is plenty.
    notes: paragraphs at the end: how the numbers were made, what is left out.
  """
  # A curve without a name of its own gets none in the key of its chart.
  curves = {
    name: lines if isinstance(lines, Mapping) else {"": lines}
    for name, lines in (curves or {}).items()
  }
  figures = [charts.line_chart(*curve) for curve in curves.items()]
  text = templates.ENVIRONMENT.get_template("page.html.j2").render(
    title=title,
    summary=summary,
    tables=[
      (name, table.columns, list(mark_best_cells(table)))
      for name, table in (tables or {}).items()
    ],
    figures=list(filter(None, figures)),
    samples=list(_shown_samples(sample_groups or {})),
    trajectories=[(each, is_exactly_right(each)) for each in trajectories],
    notes=notes,
    route_names=format.ROUTE_NAMES,
  )
  page = epath.Path(path)
  page.parent.mkdir(parents=True, exist_ok=True)
  page.write_text(text, encoding="utf-8")


def is_exactly_right(trajectory: Trajectory) -> bool:
  """Return whether the final answer has the words of an accepted one, only."""
  final, question = trajectory.final, trajectory.question
  if not isinstance(final, Answer):
    return False
  scores = answers.score_answer(final.text, question.answers, question.interval)
  return scores.f1 == 1


def mark_best_cells(table: Table) -> Iterator[list[tuple[Cell, bool]]]:
  """Yield each row's cells, and whether each is the greatest of its column."""
  columns = zip(*table.rows, strict=True)
  best = [max(map(_cell_number, column)) for column in columns]
  # Nothing is best where there is no choice, or no number at all.
  marks = table.highlight and len(table.rows) > 1
  for row in table.rows:
    yield [
      (cell, marks and _cell_number(cell) == top > -math.inf)
      for cell, top in zip(row, best, strict=True)
    ]


def _cell_number(cell: Cell) -> float:
  if isinstance(cell, answers.Interval):
    return cell.mean
  return -math.inf if isinstance(cell, str | None) else float(cell)


def _shown_samples(
  runs: Mapping[str, Sequence[SampleGroup]],
) -> Iterator[tuple[str, SampleGroup, list[tuple[float, float, str]]]]:
  """Yield the groups of each run's first and last iteration, with responses."""
  for run, groups in runs.items():
    steps = [group["step"] for group in groups]
    for group in groups:
      if group["step"] in (min(steps), max(steps)):
        # Reward, advantage and text of each response.
        columns = (group[k] for k in ("rewards", "advantages", "responses"))
        yield run, group, list(zip(*columns, strict=True))
