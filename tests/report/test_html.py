"""The page: complete, parseable, and harmless whatever it is about."""

import html.parser
import math
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from r1router_jax.common.records import (
  Answer,
  Hop,
  Malformed,
  Passage,
  Plan,
  Question,
  Round,
  Trajectory,
)
from r1router_jax.common.text import sanitize_text
from r1router_jax.metrics.answers import Interval
from r1router_jax.report import charts, table
from r1router_jax.report import html as html_lib

FIRES = "document.documentElement.dataset.pwned='1'"

HOSTILE = (
  f"<script>{FIRES}</script>",
  f'<img src=x onerror="{FIRES}">',
  f'"><svg onload="{FIRES}">',
  f"</script><script>{FIRES}</script>",
  f'<details open ontoggle="{FIRES}">x</details>',
  f'<iframe srcdoc="<script>parent.{FIRES}</script>"></iframe>',
  f"<!--<script>{FIRES}//-->",
  f"' autofocus onfocus='{FIRES}' x='",
  f"javascript:{FIRES}",
  "<style>*{background:url(x)}</style>",
  f"</textarea></title></style><script>{FIRES}</script>",
  "\u2028\u2029alert(1)",
  f"<math><mtext><table><mglyph><style><img src=x onerror={FIRES}>",
  f"<base href='//evil.invalid/'><script>{FIRES}</script>",
)

VOID = {"meta", "img", "line", "polyline", "br"}


class Outline(html.parser.HTMLParser):
  """Tags with the names of their attributes; values of attributes."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.open, self.values = [], [], []
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, tuple(name for name, _ in attributes)))
    self.values += [(tag, *pair) for pair in attributes]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    if tag not in VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def trajectory(word="x", image=""):
  """A trajectory with `word` in every field that holds text."""
  plan = Plan(word, word, ("image",))
  picture = Passage(word, "image", word, image=image, score=0.5)
  passages = (picture, Passage("hit", "text", word))
  about = dict(family=word, benchmark=word, subjects=(word,))
  hops = (Hop(word, ("image",), (word,), evidence=("hit",)),)
  question = Question(
    word, word, answers=(word, word), image=image, hops=hops, **about
  )
  rounds = (
    Round(plan, passages, Answer(word, word)),
    Round(Plan(word, word, (word,)), (), Malformed(word, word)),
  )
  return Trajectory(question, rounds, Answer(word, word), (word,), tokens=7)


def group(step, word="x"):
  """A group of samples as a run writes it."""
  texts = dict.fromkeys(("id", "kind", "question", "sub_question"), word)
  pairs = dict.fromkeys(("gold", "responses"), [word, word])
  numbers = dict(step=step, rewards=[0.25, 1.0], advantages=[-0.7, 0.7])
  return texts | pairs | numbers | dict(history=[[word, ""]])


def write_page(tmp_path, title="t", **parts):
  """Return the page of some parts."""
  path = tmp_path / "sub" / "report.html"
  html_lib.write_page(path, title=title, **parts)
  return path.read_text(encoding="utf-8")


def write(tmp_path, word="x", image=""):
  """Return a page with every part, and `word` in every field."""
  wrong = Trajectory(Question("q", word, (word,)), (), Malformed(word, word))
  two = {word: [(0, 2.0), (5, 1.0)], f"{word}!": [(0, 0.0), (1, math.nan)]}
  return write_page(
    tmp_path,
    title=word,
    summary=[word, word],
    tables={word: table.Table((word, word), ((word, word), (word, None)))},
    curves={word: {"": [(0, 0.0), (1, 1.0)]}, f"{word} two": two},
    sample_groups={word: [group(5, word), group(10, word)]},
    trajectories=[trajectory(word, image), wrong],
  )


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_text_is_escaped(tmp_path, word):
  page, calm = write(tmp_path, word), write(tmp_path, "calm")
  outline = Outline(page)
  assert outline.tags == Outline(calm).tags
  # Jinja2 writes the two quotation marks as decimal references.
  shown = html.escape(sanitize_text(word), quote=True)
  shown = shown.replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
  assert page.count(shown) >= 30
  # In the text of the page every field reads as it was written.
  assert page.count(shown) == calm.count("calm")


@hypothesis.given(
  st.text(max_size=80).filter(lambda text: sanitize_text(text).strip())
)
@hypothesis.settings(
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_no_text_changes_the_page_structure(tmp_path, word):
  wanted = Outline(write(tmp_path, "x")).tags
  assert Outline(write(tmp_path, word)).tags == wanted


def test_page_loads_nothing_from_outside(tmp_path):
  Image.new("RGB", (300, 200), "red").save(tmp_path / "flag.png")
  page = write(tmp_path, image=str(tmp_path / "flag.png"))
  outline = Outline(page)
  tags = {tag for tag, _ in outline.tags}
  assert not tags & {"script", "link", "iframe", "object", "base", "form"}
  for tag, name, value in outline.values:
    assert not name.startswith("on")
    assert name != "style"
    if name == "src":
      assert value.startswith("data:image/png;base64,")
    if name == "href":
      assert re.fullmatch("#t[0-9]+", value)
    assert "//" not in value or name == "src", (tag, name, value)
  assert outline.open == []
  policy = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
  )
  assert ("meta", "content", policy) in outline.values
  # The style sheet is part of the page.
  assert "url(" not in page and "@import" not in page


def test_images_are_encoded_anew(tmp_path):
  path = tmp_path / "flag.png"
  Image.new("RGB", (640, 320), "red").save(path)
  with path.open("ab") as file:
    file.write(b"<script>polyglot</script>")
  page = write(tmp_path, image=str(path))
  outline = Outline(page)
  pictures = [value for _, name, value in outline.values if name == "src"]
  assert len(pictures) == 2  # Of the question and of one passage.
  assert len(pictures[0]) < 2000
  assert "cG9seWdsb3Q" not in page


@pytest.mark.parametrize("name", ["gone.png", "page.html", "."])
def test_bad_image_is_reported_as_missing(tmp_path, name):
  (tmp_path / "page.html").write_text("<script></script>")
  page = write(tmp_path, image=str(tmp_path / name))
  assert page.count("no image") == 2
  assert "<img" not in page


def test_verdicts_routes_and_evidence_are_shown(tmp_path):
  page = write(tmp_path)
  assert page.count("✓ right") == 2  # In the list and over the trajectory.
  assert page.count("✗ wrong") == 2
  assert page.count('class="badge image">Text Image Retriever') == 1
  assert page.count('class="badge none">None') == 1  # An unknown route.
  assert page.count("evidence</span>") == 1
  assert "7 tokens" in page


def test_every_route_has_a_badge(tmp_path):
  done = Round(Plan("t", "x", ("text", "table", "x")), (), Answer("", "x"))
  one = Trajectory(Question("q", "x"), (done,), Answer("", "x"))
  assert (
    'Round 1 <span class="badge text">Text Retriever</span> <span class="'
    'badge table">Table Retriever</span> <span class="badge none">None</span>'
  ) in write_page(tmp_path, trajectories=[one])


@pytest.mark.parametrize(
  "final, mark",
  [
    (Answer("", "the city of Chad"), False),
    (Answer("", "Chad."), True),
    (Answer("", "lake"), True),
    (Malformed("Chad", "tags"), False),
  ],
)
def test_is_exactly_right(final, mark):
  asked = Question("q", "Q?", ("Chad", "Lake"))
  assert html_lib.is_exactly_right(Trajectory(asked, (), final)) == mark


def test_table_cells_are_formatted(tmp_path):
  scores = table.Table(
    ("method", "2Wiki", "steps"),
    (("r1", Interval(0.634, 0.58, 0.689), 2), ("base", 0.25, None)),
  )
  page = write_page(tmp_path, tables={"Scores": scores})
  assert "<td>63.4<small>58–69</small></td><td>2</td>" in page
  assert "<td>0.25</td><td>–</td>" in page
  assert "Learning curves" not in page
  assert "Trajectories" not in page


def test_first_and_last_sample_groups_are_shown(tmp_path):
  steps = dict(early=5, dawn=5, noon=6, late=7)
  some = [group(step, word) for word, step in steps.items()]
  page = write_page(tmp_path, sample_groups={"a": some, "b": []})
  assert "Samples drawn during training" in page
  for word, times in (("early", 9), ("dawn", 9), ("noon", 0), ("late", 9)):
    assert page.count(f">{word}") + page.count(f" {word}") == times, word
  assert (
    '<th scope="row">0.25</th><td>-0.70</td><td>late</td></tr>'
    '<tr><th scope="row">1.00</th><td>+0.70</td><td>late</td>'
  ) in page
  page = write_page(tmp_path, sample_groups={"b": []})
  assert "Samples drawn during training" not in page


def test_long_text_is_folded_and_truncated(tmp_path):
  page = write(tmp_path, "word " * 5000)
  assert "<details><summary>word" in page
  assert len(page) < 300_000


# ---- Charts.


@hypothesis.given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_axis_ticks_are_round_and_span_the_range(low, width):
  high = low + width
  hypothesis.assume((high - low) > 1e-9 * max(abs(low), abs(high)))
  marks = charts.axis_ticks(low, high)
  step = marks[1] - marks[0]
  assert marks[0] <= low + 1e-6 * step
  assert high - 1e-6 * step <= marks[-1]
  assert 2 <= len(marks) <= 7
  mantissa = float(f"{step:e}".partition("e")[0])
  assert min(abs(mantissa - r) for r in (1, 2, 2.5, 5, 10)) < 0.05


def draw_lines(points):
  """Return the lines of a chart as a page draws them, [points, x and y]."""
  figure = charts.line_chart("t", {"": points})
  template = html_lib.ENVIRONMENT.get_template("chart.svg.j2")
  svg = template.render(figure=figure) if figure else ""
  return [
    np.array([pair.split(",") for pair in line.split()], float)
    for line in re.findall('points="([^"]*)"', svg)
  ]


def test_line_is_drawn_at_its_values():
  (line,) = draw_lines([(0, 0), (5, 5), (10, 10)])
  np.testing.assert_allclose(np.diff(line, axis=0), [[140, -76]] * 2, atol=0.1)
  assert line[0] == pytest.approx((charts.LEFT, 160))


def test_long_lines_are_binned_and_smoothed():
  noise = np.random.default_rng(0).normal(size=5000)
  raw, mean = draw_lines(list(enumerate(noise)))
  assert raw.shape == mean.shape == (charts.MAX_POINTS, 2)
  assert mean[:, 1].std() < raw[:, 1].std() / 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
  "points, drawn",
  [
    ([], 0),
    ([(0, None)], 0),
    ([(0, math.nan), (math.inf, 1)], 0),
    ([(0, "<b>"), (1, 10**400), (2, 1e308), (3, -1e308)], 0),
    ([(3, 3)], 1),
    ([(0, 0), (1, 0)], 2),
    ([(0, 0), (1, 5e-324)], 2),
    ([(0, 1e-310), (1, 3e-310)], 2),
    ([(1, 1e9), (2, 1e9)], 2),
    ([(0, -1e-9), (1, 1e-9)], 2),
    ([(0, 1e100), (1, -1e100), (2, "x")], 2),
  ],
)
def test_any_points_are_drawn_or_left_out(points, drawn):
  lines = draw_lines(points)
  assert [len(line) for line in lines] == [drawn] * bool(drawn)
  for line in lines:
    assert np.all((line > 0) & (line < charts.WIDTH))
