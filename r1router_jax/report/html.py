"""Scores, learning curves and trajectories as one self-contained HTML page.

The page opens from a file, on a phone as on a screen, in light and in dark.  It
holds no script and asks for nothing from outside, and its content policy says
so to the browser.  Whatever a model, a knowledge base or a user wrote is
cleaned and escaped, pictures are decoded and written anew: a page about hostile
data is as harmless as any other.
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
from r1router_jax.common import text as text_lib
from r1router_jax.common.records import (
  Answer,
  Malformed,
  Passage,
  Round,
  Trajectory,
)
from r1router_jax.metrics import answers
from r1router_jax.protocol import format
from r1router_jax.report import charts
from r1router_jax.report.table import Cell, Table

Group = Mapping[str, Any]
Curves = charts.Points | Mapping[str, charts.Points]


PICTURE_SIDE = 160  # Pixels; larger pictures are shrunk.


def write(
  path: str | epath.PathLike,
  *,
  title: str,
  claims: Sequence[str] = (),
  tables: Mapping[str, Table] | None = None,
  curves: Mapping[str, Curves] | None = None,
  sampled: Mapping[str, Sequence[Group]] | None = None,
  trajectories: Sequence[Trajectory] = (),
  notes: Sequence[str] = (),
) -> None:
  """Writes the page.

  Args:
    path: of the page; its folder is made.
    title: heading and title.
    claims: what the page shows, one line each, on top.
    tables: by heading.
    curves: by heading, the (step, value) points of a line, or named lines.
    sampled: by run, groups of samples, oldest first; the ends are shown.
    trajectories: shown in full; a dozen is plenty.
    notes: paragraphs at the end: how it was run, what is not shown.
  """
  figures = "".join(_curves(*curve) for curve in (curves or {}).items())
  body = [
    f"<h1>{safe(title)}</h1>",
    _list("claims", claims),
    *(_table(name, table) for name, table in (tables or {}).items()),
    f'<h2>Learning curves</h2><div class="charts">{figures}</div>'
    if figures
    else "",
    section(sampled or {}),
    _trajectories(trajectories),
    "<h2>Notes</h2>" + _list("notes", notes) if notes else "",
  ]
  page = epath.Path(path)
  page.parent.mkdir(parents=True, exist_ok=True)
  page.write_text(
    _PAGE.format(title=safe(title), style=_STYLE, body="\n".join(body)),
    encoding="utf-8",
  )


def right(trajectory: Trajectory) -> bool:
  """Whether the final answer holds just the words of an accepted one."""
  final, asked = trajectory.final, trajectory.question
  return isinstance(final, Answer) and (
    answers.score(final.text, asked.answers, asked.interval).f1 == 1
  )


def _list(kind: str, lines: Sequence[str]) -> str:
  items = "".join(f"<li>{safe(line)}</li>" for line in lines)
  return items and f'<ul class="{kind}">{items}</ul>'


def _curves(name: str, curves: Curves) -> str:
  lines = curves if isinstance(curves, Mapping) else {"": curves}
  clean = text_lib.clean
  return charts.line_chart(
    clean(name), {clean(line): points for line, points in lines.items()}
  )


def _table(name: str, table: Table) -> str:
  def number(cell: Cell) -> float | None:
    if isinstance(cell, answers.Interval):
      return cell.mean
    return None if isinstance(cell, str | None) else float(cell)

  several = table.highlight and len(table.rows) > 1
  best = [
    max((x for x in map(number, column) if x is not None), default=None)
    for column in zip(*table.rows, strict=True)
  ]
  rows = []
  for row in table.rows:
    cells = [f'<th scope="row">{_cell(row[0])}</th>']
    for cell, top in zip(row[1:], best[1:], strict=True):
      bold = several and top is not None and number(cell) == top
      shown = f"<b>{_cell(cell)}</b>" if bold else _cell(cell)
      cells.append(f"<td>{shown}</td>")
    rows.append(f"<tr>{''.join(cells)}</tr>")
  head = "".join(f'<th scope="col">{safe(top)}</th>' for top in table.columns)
  return (
    f'<h2>{safe(name)}</h2><div class="wide"><table><thead><tr>{head}</tr>'
    f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def _cell(cell: Cell) -> str:
  if cell is None:
    return "–"
  if isinstance(cell, answers.Interval):
    mean, low, high = (100 * value for value in cell)
    return f"{mean:.1f}<small>{low:.0f}–{high:.0f}</small>"
  if isinstance(cell, float):
    return f"{cell:.3g}"
  return safe(str(cell))


def _trajectories(trajectories: Sequence[Trajectory]) -> str:
  if not trajectories:
    return ""
  marks = list(map(right, trajectories))
  links = "".join(
    f'<a href="#t{n}">{_mark(mark)} {n}</a>' for n, mark in enumerate(marks, 1)
  )
  shown = "".join(map(_trajectory, range(1, 1 + len(marks)), trajectories))
  return f"<h2>Trajectories</h2><nav>{links}</nav>{shown}"


def _mark(good: bool) -> str:
  word, sign = ("right", "✓") if good else ("wrong", "✗")
  return f'<span class="{word}">{sign} {word}</span>'


def _trajectory(number: int, trajectory: Trajectory) -> str:
  question = trajectory.question
  evidence = {id for hop in question.hops or () for id in hop.evidence}
  rounds = "".join(
    _round(n, done, evidence) for n, done in enumerate(trajectory.rounds, 1)
  )
  family = f'<span class="badge">{safe(question.family or "question")}</span>'
  gold = " · ".join(map(safe, question.answers)) or "–"
  return (
    f'<article id="t{number}"><header>{_mark(right(trajectory))} {family} '
    f"<small>{number} · {trajectory.tokens} tokens</small></header>"
    f'<div class="asked">{_picture(question.image)}'
    f"<h3>{safe(question.text)}</h3></div>{rounds}"
    f'<div class="final"><b>Final answer</b> {_answer(trajectory.final)}'
    f'<div class="gold"><b>Accepted</b> {gold}</div></div>'
    f"{_list('faults', trajectory.faults)}</article>"
  )


def _round(number: int, done: Round, evidence: set[str]) -> str:
  plan = done.plan
  routes = [
    route if route in format.ROUTE_NAMES else "none" for route in plan.routes
  ]
  badges = " ".join(
    f'<span class="badge {route}">{format.ROUTE_NAMES[route]}</span>'
    for route in routes
  )
  passages = "".join(_passage(each, evidence) for each in done.passages)
  return (
    f"<section><h4>Round {number} {badges}</h4>"
    f'{_thought(plan.thought)}<p class="sub">{safe(plan.sub_question)}</p>'
    f'<ol class="passages">{passages}</ol>{_answer(done.answer)}</section>'
  )


def _passage(passage: Passage, evidence: set[str]) -> str:
  hit = '<span class="right">evidence</span>' * (passage.id in evidence)
  return (
    f"<li>{_picture(passage.image)}<div><small>{safe(passage.kb)} "
    f"{passage.score:.2f} {hit} {safe(passage.id)}</small><br>"
    f"{folded(passage.text)}</div></li>"
  )


def _thought(thought: str) -> str:
  return thought and f'<div class="thought">{folded(thought)}</div>'


def _answer(answer: Answer | Malformed) -> str:
  if isinstance(answer, Malformed):
    return (
      f'<p class="wrong">Malformed: {safe(answer.reason)}</p>'
      f"{_thought(answer.text)}"
    )
  return f'{_thought(answer.thought)}<p class="answer">{safe(answer.text)}</p>'


@functools.lru_cache(maxsize=256)
def _picture(path: str) -> str:
  """The picture at `path`, decoded, shrunk and written anew into the page."""
  if not path:
    return ""
  try:
    picture = Image.fromarray(images.load(path))
  except images.BadImage:
    return '<span class="missing">no picture</span>'
  picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
  data = io.BytesIO()
  picture.save(data, "PNG", optimize=True)
  code = base64.b64encode(data.getvalue()).decode()
  return f'<img alt="" src="data:image/png;base64,{code}">'


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


SHOWN = 220  # Characters of a passage or thought before it is folded.

KEPT = 4000  # Characters of it in the page.


def safe(text: str) -> str:
  """The text, fit for element content and quoted attributes."""
  return html.escape(text_lib.clean(text, limit=KEPT), quote=True)


def folded(text: str) -> str:
  """The text, whose tail unfolds at a touch where it is long."""
  text = text_lib.clean(text, limit=KEPT)
  head, tail = map(html.escape, (text[:SHOWN], text[SHOWN:]))
  if not tail:
    return head
  return f"<details><summary>{head}</summary>{tail}</details>"


def section(runs: Mapping[str, Sequence[Group]]) -> str:
  """The first and the last groups of each run; nothing where there are none."""
  shown = "".join(
    _group(run, group) for run, groups in runs.items() for group in ends(groups)
  )
  return shown and f"<h2>What was sampled while it learned</h2>{shown}"


def ends(groups: Sequence[Group]) -> list[Group]:
  """Those of the first and of the last iteration."""
  steps = [group["step"] for group in groups]
  return [
    group for group in groups if group["step"] in (min(steps), max(steps))
  ]


def _group(run: str, group: Group) -> str:
  rows = "".join(
    f'<tr><th scope="row">{reward:.2f}</th><td>{advantage:+.2f}</td>'
    f"<td>{folded(response)}</td></tr>"
    for reward, advantage, response in zip(
      group["rewards"], group["advantages"], group["responses"], strict=True
    )
  )
  asked = "".join(
    f'<p class="sub">{safe(text)}</p>'
    for text in (
      *(f"{asked} {answer}" for asked, answer in group["history"]),
      group["sub_question"],
    )
    if text
  )
  gold = " · ".join(map(safe, group["gold"]))
  return (
    f'<article><header><span class="badge">{safe(group["kind"])}</span> '
    f"<small>{safe(run)}, iteration {group['step']:d} · "
    f"{safe(group['id'])}</small></header>"
    f"<h3>{safe(group['question'])}</h3>{asked}"
    f"<div><b>Accepted</b> {gold}</div>"
    '<div class="wide"><table class="said"><thead><tr>'
    '<th scope="col">Reward</th><th scope="col">Advantage</th>'
    f'<th scope="col">Response</th></tr></thead><tbody>{rows}</tbody></table>'
    "</div></article>"
  )
