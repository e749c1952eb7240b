"""MultimodalQA's questions: gold hops of each type, for scores and training."""

import gzip
import json

import pytest

from r1router_jax.common.records import Hop, Passage
from r1router_jax.data import (
  benchmark_formats,
  gold_steps,
  multimodalqa,
  question_files,
)
from r1router_jax.data.benchmarks import load_benchmark
from tests.data.mmqa_rows import COMPOSED, GRAMMAR, LISTED, answer, question
from tests.data.shared_rows import write_rows


def hops_of(row):
  """Return (sub-question, route, answer, evidence) of each hop."""
  own = benchmark_formats.to_own("multimodalqa", row)
  return [
    (hop["sub_question"], *hop["routes"], *hop["answers"], hop["evidence"])
    for hop in own["hops"]
  ]


TABLE = answer("The Kite", "table")
TEXT = [answer("Bo", "text", "x1"), answer("Cy", "text", "x2")]
IMAGE = answer("Tower", "image", "i1")


@pytest.mark.parametrize(
  "kind, final, between, grammar, wanted",
  [
    ("TextQ", TEXT[0], [], None, [("When was it?", "text", "Bo", ["x1"])]),
    # The type tells the route of a question about a table's links, too.
    ("TableQ", TEXT[0], [], None, [("When was it?", "table", "Bo", ["t1"])]),
    (
      "Compose(TextQ,TableQ)",
      answer("1976", "text", "x1"),
      [[TABLE]],
      GRAMMAR,
      [
        (
          "What is the Title in the Roles of Ann when the Year was 1976?",
          "table",
          "The Kite",
          ["t1"],
        ),
        ("When did The Kite come out?", "text", "1976", ["x1"]),
      ],
    ),
    (
      "Compose(TableQ,ImageListQ)",
      TABLE,
      [[IMAGE]],
      "In [Roles] of [Ann] what was the [Title](s) if the [City] {has a hat?}",
      [
        ("Which City has a hat?", "image", "Tower", ["i1"]),
        (
          "In Roles of Ann what was the Title if the City is Tower?",
          "table",
          "The Kite",
          ["t1"],
        ),
      ],
    ),
    (
      "Compose(TextQ,ImageListQ)",
      answer("9 m", "text", "x1"),
      [[IMAGE]],
      "{how tall is the {[City(s), in Roles of Ann] that has a hat}, arch}",
      [
        (
          "Which City, in Roles of Ann that has a hat?",
          "image",
          "Tower",
          ["i1"],
        ),
        ("How tall is the Tower arch?", "text", "9 m", ["x1"]),
      ],
    ),
    (
      "Intersect(TableQ,TextQ)",
      answer("Bo", "table"),
      [TEXT, [TABLE]],
      "{who sings} and was the [Artist](s), in [Songs] when the [Year] was [1]",
      [
        ("Who sings?", "text", "Bo, Cy", ["x1", "x2"]),
        (
          "What was the Artist, in Songs when the Year was 1?",
          "table",
          "The Kite",
          ["t1"],
        ),
      ],
    ),
    (
      "Compare(TableQ,Compose(TableQ,TextQ))",
      answer("Bo", "table"),
      [TEXT[:1], [TABLE]],
      "In [Songs], which [Artist] has lower [Pos] : [Di] or {{who sang}}?",
      [
        ("Who sang?", "text", "Bo", ["x1"]),
        (
          "In Songs, which Artist has lower Pos: Di or Bo?",
          "table",
          "Bo",
          ["t1"],
        ),
      ],
    ),
    # The answers come in another order than the questions in braces.
    (
      "Compare(Compose(TableQ,ImageQ),Compose(TableQ,TextQ))",
      answer("Bo", "table"),
      [[IMAGE], TEXT[:1]],
      "Which [Film] is first: {what is new} or {the [Film(s)] with a hat?}?",
      [
        ("What is new?", "text", "Bo", ["x1"]),
        ("What is the Film with a hat?", "image", "Tower", ["i1"]),
        ("Which Film is first: Bo or Tower?", "table", "Bo", ["t1"]),
      ],
    ),
    # Routes and answers hold without a sentence that shows the parts.
    (
      "Compose(ImageQ,TableQ)",
      IMAGE,
      [[TABLE]],
      "no braces",
      [
        ("When was it?", "table", "The Kite", ["t1"]),
        ("When was it?", "image", "Tower", ["i1"]),
      ],
    ),
  ],
)
def test_gold_hops_of_each_type(kind, final, between, grammar, wanted):
  assert hops_of(question(kind, [final], between, grammar)) == wanted


def lacks(row, key):
  return {k: v for k, v in row.items() if k != key}


@pytest.mark.parametrize(
  "row, fault",
  [
    (lacks(COMPOSED, "answers"), "required field `answers`"),
    (COMPOSED | dict(answers=[]), "length >= 1"),
    (question("VideoQ", [TABLE]), r"`\$.metadata.type`"),
    (question("TextQ", [answer("a", "web")]), r"'web'.*modality"),
    (question("Compose(TextQ,TableQ)", [TABLE]), "has 0 intermediate_answers"),
    (COMPOSED | dict(qid=""), r"`\$.qid`"),
    (COMPOSED | dict(question=7), r"`\$.question`"),
  ],
)
def test_row_of_another_form_is_refused_by_its_line(tmp_path, row, fault):
  path = write_rows(tmp_path / "MMQA_dev.jsonl", [COMPOSED, row])
  with pytest.raises(ValueError, match=f"{path}:2: .*{fault}.*as it was publ"):
    load_benchmark("multimodalqa", str(tmp_path))


def test_benchmark_has_hops_and_lists(tmp_path, caplog):
  lines = b"".join(json.dumps(x).encode() + b"\n" for x in (COMPOSED, LISTED))
  (tmp_path / "MMQA_dev.jsonl.gz").write_bytes(gzip.compress(lines))
  first, second = load_benchmark("multimodalqa", str(tmp_path))
  assert first.id == "multimodalqa/q1" and first.image == ""
  assert first.family == "Compose(TextQ,TableQ)"
  assert [hop.routes for hop in first.hops] == [("table",), ("text",)]
  assert (second.answers, second.members) == (
    ("Rome, Pisa",),
    (("Rome", "Pisa"),),
  )
  assert "was published with 2441" in caplog.text


def test_training_file_costs_bad_rows_alone_and_gives_gold_steps(
  tmp_path, caplog
):
  """A run names the file itself, as config.data.questions."""
  bad = COMPOSED | dict(answers=None)
  path = write_rows(
    tmp_path / "MMQA_train.jsonl", [COMPOSED, bad, b"[", LISTED]
  )
  found = question_files.load_questions(path)
  assert [q.id for q in found] == ["MMQA_train/q1", "MMQA_train/q2"]
  assert "skipped 2 of 4" in caplog.text and f"{path}:2: " in caplog.text
  assert found[1].hops == (
    Hop("When was it?", ("image",), ("Rome, Pisa",), ("i1", "i2")),
  )

  def retrieve(asked):
    return [(Passage(f"{kb}/0", kb, text),) for kb, text, _ in asked]

  steps, _ = gold_steps.make_gold_steps(found, retrieve)
  kinds = [step.kind for step in steps]
  assert kinds == ["plan", "answer", "plan", "answer", "plan", "final"]
  routes = [step.routes for step in steps if step.kind == "plan"]
  assert routes == [("table",), ("text",), ("none",)]
  assert steps[2].history[0][1] == "The Kite"


def test_other_files_are_no_questions_of_multimodalqa():
  names = "MMQA_train.jsonl.gz", "x/MMQA_dev.jsonl"
  assert all(map(multimodalqa.is_question_file, names))
  others = "MMQA_texts.jsonl.gz", "mine.jsonl", "MMQA_train.csv", "MMQA_dev"
  assert not any(map(multimodalqa.is_question_file, others))
