"""One self-contained HTML page of scores, learning curves and trajectories.

The page opens from a file, on a phone as on a screen, in light and in dark.  It
holds no script and loads nothing from outside, and its content security policy
says so to the browser.  Text that a model, a knowledge base or a user wrote is
sanitised and escaped, and images are decoded and encoded anew, so that a page
about hostile data is harmless.

A template writes `{{ value }}`: `finalize` sanitises the value, then autoescape
escapes it.  Only `Markup` is left as it is: macros, whose values went the same
way, and the data URIs of thumbnails.
"""

import base64
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup
from PIL import Image

from r1router_jax.common import images
from r1router_jax.common.records import Answer, Trajectory
from r1router_jax.common.text import sanitize_text
from r1router_jax.metrics import answers
from r1router_jax.protocol import format
from r1router_jax.report import charts
from r1router_jax.report.table import Table

# One line of samples.jsonl: a routing step of one iteration with all responses
# sampled for it, their rewards and their advantages.
SampleGroup = Mapping[str, Any]

MAX_CHARACTERS = 4000  # Characters of one text that the page keeps.
THUMBNAIL_SIDE = 160  # Pixels; larger images are shrunk.


def write_page(
  path: str | epath.PathLike,
  *,
  title: str,
  summary: Sequence[str] = (),
  tables: Mapping[str, Table] | None = None,
  curves: Mapping[str, Mapping[str, charts.Points]] | None = None,
  sample_groups: Mapping[str, Sequence[SampleGroup]] | None = None,
  trajectories: Sequence[Trajectory] = (),
) -> None:
  """Write the page; its folder is created.

  Args:
    path: file to write.
    title: heading of the page and title of the window.
    summary: findings, one line each, shown at the top.
    tables: tables by heading.
    curves: learning curves by heading: the (step, value) points of each named
      line.
    sample_groups: for each run its sampled groups, oldest first; only those of
      the first and the last iteration are shown.
    trajectories: trajectories to show in full; a dozen is plenty.
  """
  figures = [charts.line_chart(*curve) for curve in (curves or {}).items()]
  text = ENVIRONMENT.get_template("page.html.j2").render(
    title=title,
    summary=summary,
    tables=tables or {},
    figures=list(filter(None, figures)),
    samples=list(_shown_samples(sample_groups or {})),
    trajectories=[(each, is_exactly_right(each)) for each in trajectories],
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


def sanitize_value(value: object) -> str:
  """Return a value as one harmless line of bounded length, yet unescaped."""
  if isinstance(value, Markup):
    return value
  return sanitize_text(str(value), limit=MAX_CHARACTERS)


@functools.lru_cache(maxsize=256)
def encode_thumbnail(path: str) -> Markup | None:
  """Return the image at `path` as a data URI, or None if it cannot be used.

  The file is decoded and encoded anew: only its pixels reach the page.
  """
  try:
    image = Image.fromarray(images.load_image(path))
  except images.BadImage:
    return None
  image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
  data = io.BytesIO()
  image.save(data, "PNG", optimize=True)
  code = base64.b64encode(data.getvalue()).decode()
  # Markup, lest the URI be cut at `MAX_CHARACTERS`; base64 needs no escape.
  return Markup(f"data:image/png;base64,{code}")


ENVIRONMENT = jinja2.Environment(
  loader=jinja2.PackageLoader("r1router_jax.report", ""),
  autoescape=True,
  finalize=sanitize_value,
  undefined=jinja2.StrictUndefined,  # A misspelt field is an error, not "".
  trim_blocks=True,
  lstrip_blocks=True,
)
ENVIRONMENT.filters.update(sanitize=sanitize_value, thumbnail=encode_thumbnail)
