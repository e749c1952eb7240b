import dataclasses
import json
import re

import numpy as np
import pytest

from r1router_jax.common import run_log
from r1router_jax.evaluation import tables as tables_lib
from r1router_jax.metrics import answers
from r1router_jax.report import html
from r1router_jax.report import table as table_lib
from tests.evaluation import census


@pytest.fixture(scope="module")
def results():
  """A policy, one that scores 0 everywhere, and a baseline."""
  # Differences are of the last policy to all others.
  good, _ = census.evaluate(policy="later")
  zeros = {name: column * 0 for name, column in good.scores.items()}
  poor = dataclasses.replace(good, policy="early", scores=zeros)
  baseline, _ = census.evaluate(method="always_all")
  return [poor, good, baseline]


STEP_REWARDS = {
  "early": dict(greedy=np.zeros(4)),
  "later": dict(greedy=np.full(4, 0.25)),
}


def test_summary_lines_are_written_from_the_numbers(results):
  lines = tables_lib.summary_lines(results, STEP_REWARDS, "unseen countries")
  text = "\n".join(lines)
  told = "Route accuracy of later on unseen countries: 1.00 (1.00 to 1.00)"
  assert told in text
  assert "F1-Recall, later minus early: +60.0 points (95 % inter" in text
  interval = "(95 % interval +0.250 to +0.250)."
  assert f"Greedy step reward, later minus early: +0.250 {interval}" in lines
  counts = "early 0.00, later 1.00, always_all 3.00."
  assert lines[-1] == f"Retrievals per question: {counts}"


def test_judge_is_the_main_column_of_every_table(results):
  judged = [
    dataclasses.replace(
      r, scores=r.scores | dict(judge=np.array([1, 0, 1, np.nan, 1.0]))
    )
    for r in results
  ]
  tables = tables_lib.make_tables(judged, {})
  assert tables["Methods"].columns[:2] == ("Method", "Judge accuracy %")
  assert tables["Methods"].rows[0][1].mean == pytest.approx(0.75)
  assert tables["Differences, x 100"].columns[1] == "Judge accuracy"
  # Verdicts that could not be read do not count.
  families = tables["Judge accuracy % by family"].rows
  assert families[1] == ("f1", 1, 0, 0, 0) and families[0][1] == 3
  lines = tables_lib.summary_lines(judged, {}, "all")
  assert "Judge accuracy of later: 75.0 (25.0 to 100.0)." in lines
  # Without a judge nothing speaks of one.
  plain = tables_lib.make_tables(results, {})
  assert not any(
    "Judge" in str(t.columns) or "Judge" in n for n, t in plain.items()
  )


def test_infoseek_score_stands_beside_the_tables(results):
  """Of the policy that scores: 0 and 2 are unseen questions, 1 and 3 not."""
  families = ["val_unseen_question", "val_unseen_entity"] * 2 + ["other"]
  good = results[1]
  asked = [
    dataclasses.replace(
      t,
      question=dataclasses.replace(t.question, benchmark="infoseek", family=f),
    )
    for t, f in zip(good.trajectories, families, strict=True)
  ]
  exact = dict(official_exact=np.array([1, 1, 1, 0, 0.0]))
  found = dataclasses.replace(
    good, trajectories=tuple(asked), scores=good.scores | exact
  )
  (row,) = tables_lib.summarize_results([found], {})["results"]
  wanted = dict(unseen_question=1.0, unseen_entity=0.5)
  assert row["infoseek"] == wanted | dict(harmonic_mean=pytest.approx(2 / 3))
  told = "InfoSeek's score of later: 66.7, the harmonic mean of unseen "
  told += "questions 100.0 and unseen entities 50.0."
  assert told in tables_lib.summary_lines([found], {}, "all")
  table = tables_lib.make_tables([found], {})["Methods"]
  assert "Official exact %" in table.columns
  assert "Official F1 %" not in table.columns


def test_tables_are_complete(results):
  tables = tables_lib.make_tables(results, STEP_REWARDS)
  for table in tables.values():
    assert {len(row) for row in table.rows} == {len(table.columns)}
    lines = table_lib.format_table(table).splitlines()
    assert len(lines) == 1 + len(table.rows)
  # Questions q/0, q/2, q/4 are of family f0, the others of f1.
  families = tables["F1-Recall % by family"].rows
  assert [row[:3] for row in families] == [("f0", 3, 0.0), ("f1", 2, 0.0)]
  assert families[0][3] == pytest.approx(200 / 3)  # q/0, q/2, not q/4.
  assert families[1][3] == pytest.approx(50)
  # Of policies alone, paired by question.
  differences = tables["F1-Recall % by family, differences"]
  assert differences.columns[2:] == ("later minus early",)
  apart = results[1].scores["recall"] - results[0].scores["recall"]
  wanted = answers.bootstrap_interval(apart[::2], 0)
  assert differences.rows[0] == ("f0", 3, wanted)


def test_summary_file_has_means_and_paired_differences(results):
  poor, good, _ = results
  summary = tables_lib.summarize_results(results, STEP_REWARDS)
  json.dumps(summary, allow_nan=False)
  assert summary["results"][1]["recall"]["mean"] == pytest.approx(0.6)
  # Paired by question, so the interval is that of differences.
  by_question = good.scores["recall"] - poor.scores["recall"]
  wanted = answers.bootstrap_interval(by_question, 0)._asdict()
  assert summary["differences"]["later minus early"]["recall"] == wanted


def test_page_shows_tables_and_learning_curves(results, tmp_path):
  # A training run that has logged some scalars.
  log = run_log.RunLog(tmp_path / "run")
  log.write_scalars(1, {"loss": 2.0, "entropy": 0.5, "validation/f1": 0.25})
  curves = tables_lib.load_curves({"sft": str(tmp_path / "run")})
  wanted = {"validation/f1": 0.25, "entropy": 0.5, "loss": 2.0}
  assert curves == {name: {"sft": [(1, x)]} for name, x in wanted.items()}
  # What held-out questions say comes first.
  assert [*curves] == [*wanted]
  html.write_page(
    tmp_path / "page.html",
    title="t",
    summary=tables_lib.summary_lines(results, STEP_REWARDS, "all"),
    tables=tables_lib.make_tables(results, STEP_REWARDS),
    curves=curves,
    trajectories=results[1].trajectories,
  )
  page = (tmp_path / "page.html").read_text()
  assert "later minus early" in page
  # Known scalars say below their curve what they are.
  captions = re.findall("<figcaption>(.*?)</figcaption>", page, re.DOTALL)
  notes = [re.findall("<br>(.*?)\n?</small>", caption) for caption in captions]
  assert notes[0] == ["F1 of greedy answers to held-out questions."]
  assert len(notes[1]) == 1 and notes[2] == []


def test_curves_of_a_run_without_metrics_are_rejected():
  with pytest.raises(ValueError, match="nowhere has no metrics.jsonl"):
    tables_lib.load_curves({"x": "nowhere"})
