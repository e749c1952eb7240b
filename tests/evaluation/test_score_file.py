"""Files of answers: scored as the reference does, or refused by line."""

import json
import os
import pathlib
import random
import re

import pytest

from r1router_jax.data import benchmarks
from r1router_jax.evaluation.score_file import score_predictions
from r1router_jax.metrics import answers as answers_lib
from tests import slow_bag_f1
from tests.commands import run_command

REFERENCE = pathlib.Path(os.environ.get("R1ROUTER_REFERENCE", "reference"))

needs_reference = pytest.mark.skipif(
  not REFERENCE.exists(), reason="the reference's files are absent"
)


TABFACT = [
  dict(question=f"is it {n}?", answer=answer)
  for n, answer in enumerate(("yes", "no", "yes"))
]

NUMBER = [dict(wikidata=6.75, range=[6.5, 7.0])]
FIELDS = ("data_id", "image_id", "question", "answer", "answer_eval")
INFOSEEK = [
  dict(zip(FIELDS, row, strict=True))
  for row in [
    ("a", "o1", "What?", ["x y"], ["x y", "z"]),
    ("b", "o2", "What?", ["6.5-7.0"], NUMBER),
  ]
]


def write(path, rows):
  with path.open("wb") as file:
    for row in rows:
      line = row if isinstance(row, bytes) else json.dumps(row).encode()
      file.write(line + b"\n")
  return str(path)


def printed(benchmark, n, f1_recall, f1, em, recall, empty=0):
  """The line of scores, as a dict."""
  shares = dict(f1_recall=f1_recall, f1=f1, em=em, recall=recall)
  return dict(benchmark=benchmark, n=n, empty=empty) | shares


def told(rows, *answers):
  pairs = zip(rows, answers, strict=True)
  return [row | dict(llm_answer=answer) for row, answer in pairs]


def data(tmp_path, name, rows):
  write(tmp_path / f"{name}.jsonl", rows)
  return str(tmp_path)


def test_printed_scores(tmp_path):
  answers = "Yes, it is", dict(thought="?", answer="yes and no"), ""
  path = write(tmp_path / "p", told(TABFACT, *answers))
  scores = printed("tabfact", 3, 66.67, 16.67, 0.0, 33.33, empty=1)
  assert score_predictions("tabfact", path) == scores
  folder = data(tmp_path, "tabfact", TABFACT)
  assert score_predictions("tabfact", path, folder) == scores


def test_intervals_by_both_rule_sets(tmp_path):
  path = write(tmp_path / "p", told(INFOSEEK, "X-Y!", "6.7505"))
  found = score_predictions(
    "infoseek", path, data(tmp_path, "infoseek", INFOSEEK)
  )
  # The official rules take "x-y" for one word.
  official = found.pop("official")
  assert found == printed("infoseek", 2, 50.0, 100.0, 100.0, 100.0)
  assert official == dict(exact=50.0)


def test_infoseek_score_is_the_harmonic_mean_of_its_splits(tmp_path):
  """Three of four questions are right, and one of two entities."""
  splits = ["val_unseen_question"] * 4 + ["val_unseen_entity"] * 2
  rows = [
    INFOSEEK[0] | dict(data_id=str(n), data_split=split)
    for n, split in enumerate(splits)
  ]
  path = write(tmp_path / "p", told(rows, "z", "z", "z", "?", "Z.", "?"))
  found = score_predictions("infoseek", path)["official"]
  wanted = dict(exact=66.67, unseen_question=75.0, unseen_entity=50.0)
  assert found == wanted | dict(harmonic_mean=60.0)


def test_predictions_in_the_form_of_their_authors(tmp_path):
  rows = [
    dict(_id="a", question="Who?", answer="Ann Lee", type="bridge"),
    dict(_id="b", question="Is it?", answer="yes", type="comparison"),
  ]
  path = write(tmp_path / "p", told(rows, "the Ann", "yes, it is"))
  (tmp_path / "hotpot_dev_fullwiki_v1.json").write_text(json.dumps(rows))
  found = score_predictions("hotpotqa", path, str(tmp_path))
  assert found["official"] == dict(exact=0.0, f1=33.33)
  assert found["n"] == 2 and found["recall"] == 75.0
  path = write(tmp_path / "p", told([rows[0] | dict(answer="Bo")], "Ann"))
  with pytest.raises(ValueError, match="p:1: .*other golds"):
    score_predictions("hotpotqa", path, str(tmp_path))


def test_user_file(tmp_path):
  rows = [
    dict(question="q", answer=3, interval=[2, 4], id="x"),
    dict(question="r", answer=["a", "b"]),
    dict(question="s", answer="c"),
  ]
  path = write(tmp_path / "p", told(rows, "3.5", "b", "d")[::-1])
  questions = write(tmp_path / "mine.jsonl", rows)
  found = score_predictions("jsonl", path, questions)
  assert (found["n"], found["em"]) == (3, 66.67)


def test_row_count_is_checked(tmp_path, caplog):
  score_predictions(
    "tabfact", write(tmp_path / "p", told(TABFACT, "yes", "no", "no"))
  )
  assert "has 3 rows, tabfact was published with 1000" in caplog.text


# ---- Rows that are refused.


@pytest.mark.parametrize(
  "row, reason",
  [
    (TABFACT[0], 'has no "llm_answer"'),
    (TABFACT[0] | dict(llm_answer=None), '"llm_answer" is None'),
    (TABFACT[0] | dict(llm_answer=["yes"]), r'"llm_answer" is \[\'yes'),
    (TABFACT[0] | dict(llm_answer=1), '"llm_answer" is 1'),
    (TABFACT[0] | dict(llm_answer={}), 'the "answer" None'),
    (TABFACT[0] | dict(llm_answer=dict(answer=["a"])), r'the "answer" \[\'a'),
    (dict(question="q", llm_answer="x"), '"answer" is None'),
    (b'{"question": "q", "ans', "not JSON"),
    (b'{"question": "\xe9"}', "not UTF-8"),
    (b"7", "it is no object"),
    (dict(id="r/0", question="q", gold=["x"], final={}), '"answer" is None'),
  ],
)
def test_broken_row_is_named(tmp_path, row, reason):
  path = write(tmp_path / "p", [*told(TABFACT, "a", "b", "c"), row])
  with pytest.raises(ValueError) as caught:
    score_predictions("tabfact", path)
  said = str(caught.value)
  assert f"{path}:4: " in said and "1 of 4 rows" in said
  assert re.search(reason, said), said


def test_unknown_benchmark_or_missing_file_is_rejected(tmp_path):
  with pytest.raises(ValueError, match="georouter.*choose from infoseek"):
    score_predictions("georouter", "p")
  with pytest.raises(ValueError, match="wants --predictions"):
    score_predictions("tabfact", "")
  with pytest.raises(FileNotFoundError):
    score_predictions("tabfact", str(tmp_path / "absent"))
  with pytest.raises(ValueError, match="is empty"):
    score_predictions("tabfact", write(tmp_path / "p", []))
  path = write(tmp_path / "p", told(INFOSEEK, "", ""))
  with pytest.raises(FileNotFoundError, match="infoseek_val"):
    score_predictions("infoseek", path, str(tmp_path))


def test_duplicate_id_is_rejected(tmp_path):
  rows = told([*INFOSEEK, INFOSEEK[0]], "x", "y", "z")
  path = write(tmp_path / "p", rows)
  with pytest.raises(ValueError, match=r"p:1 and \S+p:3 both have the id"):
    score_predictions("infoseek", path)


# ---- Predictions against the question file.


SEVERAL = [*TABFACT, TABFACT[0], TABFACT[0] | dict(answer="no")]

ANSWERS = ["a", "b", "c", "d", "e"]


def test_order_is_irrelevant_and_duplicates_count(tmp_path):
  folder = data(tmp_path, "tabfact", SEVERAL)
  rows = told(SEVERAL, *ANSWERS)
  random.Random(0).shuffle(rows)
  path = write(tmp_path / "p", rows)
  assert score_predictions("tabfact", path, folder)["n"] == 5


@pytest.mark.parametrize(
  "change, reason",
  [
    (lambda rows: rows[:-1], r"0 are of no .*1 of its 5 .*tabfact/4 has no pr"),
    (lambda rows: rows[1:], r"0 are of no .*1 of its 5 .*tabfact/3 has no pr"),
    (lambda rows: [*rows, rows[2]], r"1 are of no .*0 of its 5 .*p:6: .*twice"),
    (
      lambda rows: [*rows, dict(question="?", answer="x", llm_answer="")],
      r"1 are of no .*0 of its 5 .*p:6: answers no question",
    ),
    (
      lambda rows: [rows[0] | dict(answer="Yes"), *rows[1:]],
      r"1 are of no .*1 of its 5 .*p:1: .*other golds.*tabfact/3 has no",
    ),
    (lambda rows: [], "is empty"),
  ],
)
def test_each_question_has_one_prediction(tmp_path, change, reason):
  folder = data(tmp_path, "tabfact", SEVERAL)
  path = write(tmp_path / "p", change(told(SEVERAL, *ANSWERS)))
  with pytest.raises(ValueError, match=reason):
    score_predictions("tabfact", path, folder)


@pytest.mark.parametrize(
  "change",
  [
    dict(answer_eval=["x y"]),
    dict(question="Who?"),
    dict(answer_eval=[dict(range=[1, 2])]),
  ],
)
def test_accepted_answers_match_the_question_file(tmp_path, change):
  folder = data(tmp_path, "infoseek", INFOSEEK)
  rows = told(INFOSEEK, "x", "y")
  path = write(tmp_path / "p", [rows[1], rows[0] | change])
  with pytest.raises(ValueError, match="p:2: .*has other golds"):
    score_predictions("infoseek", path, folder)
  assert score_predictions("infoseek", path)["n"] == 2  # As they stand.


def test_only_the_first_faults_are_named(tmp_path):
  folder = data(tmp_path, "tabfact", SEVERAL * 4)
  path = write(tmp_path / "p", told(SEVERAL, *ANSWERS))
  with pytest.raises(ValueError, match="15 of its 20 .*And 10 more"):
    score_predictions("tabfact", path, folder)


# ---- As a command.


SCORE_TABFACT = "--score_only", "--benchmark=tabfact"


def test_score_only_command(tmp_path):
  path = write(tmp_path / "p", told(TABFACT, "yes", "no", "no"))
  done = run_command("eval", *SCORE_TABFACT, f"--predictions={path}")
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  assert json.loads(line) == printed("tabfact", 3, *[66.67] * 4)
  assert "published with 1000" in done.stderr
  assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_score_only_errors_are_one_line(tmp_path):
  path = write(tmp_path / "p", TABFACT)
  done = run_command("eval", *SCORE_TABFACT, f"--predictions={path}")
  assert (done.returncode, done.stdout) == (2, "")
  (line,) = done.stderr.splitlines()
  assert line.startswith("ERROR: ") and f"{path}:1: has no" in line


# ---- What R1-Router published.


def slow_recalls(name, rows, answers):
  """The reference's, question by question."""
  for row, text in zip(rows, answers, strict=True):
    golds = row["answer_eval" if name == "infoseek" else "answer"]
    golds = golds if isinstance(golds, list) else [golds]
    if isinstance(golds[0], dict):
      low, high = golds[0]["range"]
      # See test_numeric_range.py.
      yield answers_lib.score_answer(text, (), (low, high)).recall
    elif text == "":
      yield 0
    else:
      tokens = map(answers_lib.reference_tokens, map(str, golds))
      yield slow_bag_f1.best(answers_lib.reference_tokens(text), tokens)[1]


@needs_reference
@pytest.mark.parametrize(
  "name",
  [
    name for name, spec in benchmarks.BENCHMARK_SPECS.items() if not spec.is_own
  ],
)
def test_scores_of_published_files(tmp_path, name):
  rng = random.Random(name)
  path = REFERENCE / benchmarks.BENCHMARK_SPECS[name].file
  rows = [json.loads(line) for line in path.open(encoding="utf-8")]
  answers = []
  for row in rows:
    golds = row["answer"]
    gold = str(rng.choice(golds if isinstance(golds, list) else [golds]))
    words = gold.split()
    said = [gold, "", f"It is {gold}.", gold[::-1], "no", f"{gold} or not"]
    mixed = rng.sample(words, len(words))
    answers.append(rng.choice([*said, " ".join(words[1:]), " ".join(mixed)]))
  path = write(tmp_path / "p", told(rows, *answers))
  found = score_predictions(name, path, str(REFERENCE))
  recalls = list(slow_recalls(name, rows, answers))
  assert found["n"] == len(rows) == benchmarks.BENCHMARK_SPECS[name].count
  assert found["f1_recall"] == round(100 * float(sum(recalls)) / len(rows), 2)
  assert found["empty"] == sum(not answer.strip() for answer in answers) > 0
  assert 10 < found["em"] <= found["f1"] < 90
  assert 10 < found["recall"] < 90 and 10 < found["f1_recall"] < 90
