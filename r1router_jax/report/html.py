"""One self-contained HTML page of scores, learning curves and trajectories.

The page opens from a file, on a phone as on a screen, in light and in dark.  It
holds no script and loads nothing from outside, and its content security policy
says so to the browser.  Text that a model, a knowledge base or a user wrote is
sanitised and escaped, and images are decoded and encoded anew, so that a page
about hostile data is harmless.
"""

import base64
import functools
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from r1router_jax.common import images
from r1router_jax.common.records import (
  Answer,
  Malformed,
  Passage,
  Round,
  Trajectory,
)
from r1router_jax.common.text import sanitize_text
from r1router_jax.metrics import answers
from r1router_jax.protocol import format
from r1router_jax.report import charts
from r1router_jax.report.table import Cell, Table

# One line of samples.jsonl: a routing step of one iteration with all responses
# sampled for it, their rewards and their advantages.
SampleGroup = Mapping[str, Any]
Curves = charts.Points | Mapping[str, charts.Points]

THUMBNAIL_SIDE = 160  # Pixels; larger images are shrunk.
FOLD_AFTER = 220  # Characters of a passage or thought shown before the fold.
MAX_CHARACTERS = 4000  # Characters of one text that the page keeps.

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""


_STYLE = """
:root { --page: #fbfbfa; --card: #fff; --ink: #1c1d20; --soft: #676b73;
  --line: #e3e4e8; --c0: #2f6fd6; --c1: #d9701f; --c2: #18957a; --c3: #a04bc4;
  --good: #14804a; --bad: #c2352b; }
@media (prefers-color-scheme: dark) { :root { --page: #15171b; --card: #1e2126;
  --ink: #e8e9ec; --soft: #9da2ac; --line: #343942; --c0: #6ea4ff;
  --c1: #f29a55; --c2: #4cc7a8; --c3: #cc8bea; --good: #5ccf93;
  --bad: #ff8177; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 60rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin: 2.2rem 0 .8rem; }
h3, h4, p { margin: .3rem 0; } small { color: var(--soft); }
.line { display: inline-block; white-space: nowrap; }
.claims { padding: .8rem 1rem .8rem 2rem; background: var(--card);
  border-left: 4px solid var(--c0); border-radius: 6px; font-size: 1.08rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { font-weight: 500; } tbody th, thead th:first-child { text-align: left; }
thead th { color: var(--soft); font-size: .85rem; }
td small { display: block; font-size: .72rem; }
.said { width: 100%; } .said td:last-child { min-width: 14rem;
  text-align: left; white-space: normal; }
.charts { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure, article { margin: 0; padding: .8rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
svg { display: block; width: 100%; } svg text { font-size: 11px;
  fill: var(--soft); } .grid { stroke: var(--line); }
polyline { fill: none; stroke: currentColor; stroke-width: 2;
  stroke-linejoin: round; } .raw { opacity: .3; stroke-width: 1; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .key { display: inline-block; margin: 0 .3em 0 .5em;
  width: .7em; height: .7em; border-radius: 2px; background: currentColor; }
nav { display: flex; flex-wrap: wrap; gap: .4rem .9rem; margin-bottom: 1rem; }
a { color: inherit; } article { margin-bottom: 1.2rem; padding: 1rem; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.right, .wrong { font-weight: 600; } p.wrong { font-weight: 400; }
.badge { padding: .1em .55em; border-radius: 9px; font-size: .8rem;
  font-weight: 600; background: var(--line); white-space: nowrap; }
.text, .image, .table { color: var(--card); } .text { background: var(--c0); }
.image { background: var(--c3); } .table { background: var(--c2); }
.asked, .passages li { display: flex; gap: .7rem; align-items: flex-start; }
.asked { margin: .6rem 0; } img, .missing { flex: none; width: 5rem;
  border: 1px solid var(--line); border-radius: 4px; font-size: .75rem; }
.passages img, .passages .missing { width: 3.2rem; }
section { margin: .8rem 0; padding-left: .8rem;
  border-left: 3px solid var(--line); }
.thought { color: var(--soft); font-style: italic; font-size: .92rem; }
.sub { font-weight: 600; } .passages { padding: 0; list-style: none;
  font-size: .85rem; } .passages li { margin: .4rem 0; }
.passages li > div { min-width: 0; } .answer::before { content: "→ "; }
.final { padding-top: .5rem; border-top: 1px solid var(--line); }
.faults { color: var(--bad); font-size: .85rem; }
summary { cursor: pointer; } summary::after { content: " …"; }
"""


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
  # Every part escapes its own text; here they are only joined.
  figures = "".join(_curve_figure(*curve) for curve in (curves or {}).items())
  body = [
    f"<h1>{escape_text(title)}</h1>",
    _bullet_list("claims", summary),
    *(_table_section(name, table) for name, table in (tables or {}).items()),
  ]
  if figures:
    body.append(f'<h2>Learning curves</h2><div class="charts">{figures}</div>')
  body.append(_sample_section(sample_groups or {}))
  body.append(_trajectory_section(trajectories))
  if notes:
    body.append("<h2>Notes</h2>" + _bullet_list("notes", notes))
  page = epath.Path(path)
  page.parent.mkdir(parents=True, exist_ok=True)
  text = _PAGE.format(
    title=escape_text(title), style=_STYLE, body="\n".join(body)
  )
  page.write_text(text, encoding="utf-8")


def is_exactly_right(trajectory: Trajectory) -> bool:
  """Return whether the final answer has the words of an accepted one, only."""
  final, question = trajectory.final, trajectory.question
  if not isinstance(final, Answer):
    return False
  scores = answers.score_answer(final.text, question.answers, question.interval)
  return scores.f1 == 1


def escape_text(text: str) -> str:
  """Sanitise and escape text for element content and quoted attributes."""
  return html.escape(sanitize_text(text, limit=MAX_CHARACTERS), quote=True)


def fold_text(text: str) -> str:
  """Escape text; the tail of a long one unfolds at a click."""
  text = sanitize_text(text, limit=MAX_CHARACTERS)
  head, tail = map(html.escape, (text[:FOLD_AFTER], text[FOLD_AFTER:]))
  if not tail:
    return head
  return f"<details><summary>{head}</summary>{tail}</details>"


def first_and_last_groups(groups: Sequence[SampleGroup]) -> list[SampleGroup]:
  """Return the groups of the first and of the last iteration."""
  steps = [group["step"] for group in groups]
  return [
    group for group in groups if group["step"] in (min(steps), max(steps))
  ]


def _bullet_list(kind: str, lines: Sequence[str]) -> str:
  items = "".join(f"<li>{escape_text(line)}</li>" for line in lines)
  return items and f'<ul class="{kind}">{items}</ul>'


def _curve_figure(name: str, curves: Curves) -> str:
  lines = curves if isinstance(curves, Mapping) else {"": curves}
  return charts.line_chart(
    sanitize_text(name),
    {sanitize_text(line): points for line, points in lines.items()},
  )


def _table_section(name: str, table: Table) -> str:
  # The greatest number of each column is bold, if there is a choice at all.
  bolds = table.highlight and len(table.rows) > 1
  best = [
    max((x for x in map(_cell_number, column) if x is not None), default=None)
    for column in zip(*table.rows, strict=True)
  ]
  rows = []
  for row in table.rows:
    cells = [f'<th scope="row">{_cell_html(row[0])}</th>']
    for cell, top in zip(row[1:], best[1:], strict=True):
      shown = _cell_html(cell)
      if bolds and top is not None and _cell_number(cell) == top:
        shown = f"<b>{shown}</b>"
      cells.append(f"<td>{shown}</td>")
    rows.append(f"<tr>{''.join(cells)}</tr>")
  head = "".join(
    f'<th scope="col">{escape_text(top)}</th>' for top in table.columns
  )
  return (
    f'<h2>{escape_text(name)}</h2><div class="wide"><table><thead><tr>{head}'
    f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def _cell_number(cell: Cell) -> float | None:
  if isinstance(cell, answers.Interval):
    return cell.mean
  return None if isinstance(cell, str | None) else float(cell)


def _cell_html(cell: Cell) -> str:
  if cell is None:
    return "–"
  if isinstance(cell, answers.Interval):
    mean, low, high = (100 * value for value in cell)
    return f"{mean:.1f}<small>{low:.0f}–{high:.0f}</small>"
  if isinstance(cell, float):
    return f"{cell:.3g}"
  return escape_text(str(cell))


def _trajectory_section(trajectories: Sequence[Trajectory]) -> str:
  if not trajectories:
    return ""
  verdicts = [is_exactly_right(trajectory) for trajectory in trajectories]
  links = "".join(
    f'<a href="#t{n}">{_verdict_badge(right)} {n}</a>'
    for n, right in enumerate(verdicts, 1)
  )
  shown = "".join(
    _trajectory_article(n, trajectory)
    for n, trajectory in enumerate(trajectories, 1)
  )
  return f"<h2>Trajectories</h2><nav>{links}</nav>{shown}"


def _verdict_badge(right: bool) -> str:
  word, sign = ("right", "✓") if right else ("wrong", "✗")
  return f'<span class="{word}">{sign} {word}</span>'


def _trajectory_article(number: int, trajectory: Trajectory) -> str:
  question = trajectory.question
  # Passages that hold a gold answer are marked.
  evidence = {id for hop in question.hops or () for id in hop.evidence}
  rounds = "".join(
    _round_section(n, done, evidence)
    for n, done in enumerate(trajectory.rounds, 1)
  )
  verdict = _verdict_badge(is_exactly_right(trajectory))
  family = escape_text(question.family or "question")
  gold = " · ".join(map(escape_text, question.answers)) or "–"
  return (
    f'<article id="t{number}"><header>{verdict} '
    f'<span class="badge">{family}</span> '
    f"<small>{number} · {trajectory.tokens} tokens</small></header>"
    f'<div class="asked">{_inline_image(question.image)}'
    f"<h3>{escape_text(question.text)}</h3></div>{rounds}"
    f'<div class="final"><b>Final answer</b> {_answer_block(trajectory.final)}'
    f'<div class="gold"><b>Accepted</b> {gold}</div></div>'
    f"{_bullet_list('faults', trajectory.faults)}</article>"
  )


def _round_section(number: int, done: Round, evidence: set[str]) -> str:
  plan = done.plan
  routes = [
    route if route in format.ROUTE_NAMES else "none" for route in plan.routes
  ]
  badges = " ".join(
    f'<span class="badge {route}">{format.ROUTE_NAMES[route]}</span>'
    for route in routes
  )
  # The thought, the sub-question, the passages, and the answer.
  passages = "".join(_passage_item(each, evidence) for each in done.passages)
  sub_question = escape_text(plan.sub_question)
  return (
    f"<section><h4>Round {number} {badges}</h4>{_thought_block(plan.thought)}"
    f'<p class="sub">{sub_question}</p><ol class="passages">{passages}</ol>'
    f"{_answer_block(done.answer)}</section>"
  )


def _passage_item(passage: Passage, evidence: set[str]) -> str:
  hit = ""
  if passage.id in evidence:
    hit = '<span class="right">evidence</span>'
  return (
    f"<li>{_inline_image(passage.image)}<div><small>{escape_text(passage.kb)} "
    f"{passage.score:.2f} {hit} {escape_text(passage.id)}</small><br>"
    f"{fold_text(passage.text)}</div></li>"
  )


def _thought_block(thought: str) -> str:
  return thought and f'<div class="thought">{fold_text(thought)}</div>'


def _answer_block(answer: Answer | Malformed) -> str:
  if isinstance(answer, Malformed):
    return (
      f'<p class="wrong">Malformed: {escape_text(answer.reason)}</p>'
      f"{_thought_block(answer.text)}"
    )
  text = escape_text(answer.text)
  return f'{_thought_block(answer.thought)}<p class="answer">{text}</p>'


@functools.lru_cache(maxsize=256)
def _inline_image(path: str) -> str:
  """Return the image at `path` as a data URI, or a note that there is none.

  The file is decoded, shrunk and encoded anew: nothing of it but its pixels
  reaches the page.
  """
  if not path:
    return ""
  try:
    image = Image.fromarray(images.load_image(path))
  except images.BadImage:
    return '<span class="missing">no image</span>'
  image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
  data = io.BytesIO()
  image.save(data, "PNG", optimize=True)
  code = base64.b64encode(data.getvalue()).decode()
  return f'<img alt="" src="data:image/png;base64,{code}">'


def _sample_section(runs: Mapping[str, Sequence[SampleGroup]]) -> str:
  """Show the first and the last groups of each run, if there are any."""
  shown = "".join(
    _sample_article(run, group)
    for run, groups in runs.items()
    for group in first_and_last_groups(groups)
  )
  return shown and f"<h2>Samples drawn during training</h2>{shown}"


def _sample_article(run: str, group: SampleGroup) -> str:
  rows = "".join(
    f'<tr><th scope="row">{reward:.2f}</th><td>{advantage:+.2f}</td>'
    f"<td>{fold_text(response)}</td></tr>"
    for reward, advantage, response in zip(
      group["rewards"], group["advantages"], group["responses"], strict=True
    )
  )
  # The sub-questions asked before with their answers, then the present one.
  asked = [f"{question} {answer}" for question, answer in group["history"]]
  asked.append(group["sub_question"])
  history = "".join(
    f'<p class="sub">{escape_text(text)}</p>' for text in asked if text
  )
  gold = " · ".join(map(escape_text, group["gold"]))
  return (
    f'<article><header><span class="badge">{escape_text(group["kind"])}</span> '
    f"<small>{escape_text(run)}, iteration {group['step']:d} · "
    f"{escape_text(group['id'])}</small></header>"
    f"<h3>{escape_text(group['question'])}</h3>{history}"
    f"<div><b>Accepted</b> {gold}</div>"
    '<div class="wide"><table class="said"><thead><tr>'
    '<th scope="col">Reward</th><th scope="col">Advantage</th>'
    f'<th scope="col">Response</th></tr></thead><tbody>{rows}</tbody></table>'
    "</div></article>"
  )
