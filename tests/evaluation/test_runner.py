import itertools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from r1router_jax.common.records import Answer, Plan
from r1router_jax.data import benchmarks
from r1router_jax.evaluation import runner, tables
from r1router_jax.models import hf_checkpoint
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol import format
from r1router_jax.routing.run_settings import RunSettings
from tests import fakes
from tests.evaluation import census
from tests.evaluation.census import QUESTIONS
from tests.fake_chat_server import serve_chat


def test_scores_of_a_known_policy():
  result, _ = census.evaluate()
  assert result.scores["recall"].tolist() == [1, 1, 1, 0, 0]
  assert result.scores["route"].tolist() == [1] * 5
  assert result.scores["retrievals"].tolist() == [1] * 5
  # A wrong route costs half: the plan that stops is right still.
  text, _ = census.evaluate(method="always_text")
  assert text.scores["route"].tolist() == [0.5] * 5
  assert text.scores["recall"].tolist() == [1, 1, 1, 0, 0]


def test_interrupted_run_resumes(tmp_path):
  path = tmp_path / "predictions.jsonl"
  whole, prompts = census.evaluate()
  census.evaluate(path, questions=QUESTIONS[:2])
  with path.open("a") as file:
    file.write('{"policy": "p", "id": "q/')  # Killed while writing.
  resumed, rest = census.evaluate(path)
  assert 0 < rest < prompts
  assert resumed.trajectories == whole.trajectories
  assert census.evaluate(path)[1] == 0  # Nothing is left to ask.
  # Neither another policy nor a changed question takes over what is saved.
  assert census.evaluate(path, policy="other")[1] == prompts
  changed = [replace(QUESTIONS[0], text="Who lives in Chad?")]
  assert census.evaluate(path, questions=changed)[1] > 0
  rows = [
    json.loads(line)
    for line in path.read_text().splitlines()
    if line.endswith("}")
  ]
  assert [row["id"] for row in rows[:5]] == [q.id for q in QUESTIONS]
  assert rows[0]["scores"]["recall"] == 1 and rows[0]["seconds"] > 0


def test_rows_of_older_versions_are_resumed(tmp_path):
  """The keys of a row are those that runs have been saved with."""
  path = tmp_path / "predictions.jsonl"
  census.evaluate(path)
  # A row is its label, the trajectory, scores and time.
  row = json.loads(path.read_text().splitlines()[0])
  label = dict(policy="p", weights="w", method="r1_router", seed=0)
  label |= dict(max_steps=3, k=1, temperature=0.0, top_k=0, top_p=1.0, sample=0)
  assert row.items() >= label.items()
  assert {*row} - {*label} == {
    *("id", "question", "image", "family", "gold", "rounds", "final"),
    *("faults", "tokens", "cut", "seconds", "scores", "image_digest", "crc"),
  }


def without(name):
  return lambda row: {k: x for k, x in row.items() if k != name}


def with_passage(**change):
  def change_row(row):
    rounds = [
      done | dict(passages=[passage | change for passage in done["passages"]])
      for done in row["rounds"]
    ]
    return row | dict(rounds=rounds)

  return change_row


def with_round(**change):
  return lambda row: (
    row | dict(rounds=[done | change for done in row["rounds"]])
  )


# What the first row becomes.
ODD_ROWS = {
  **{f"without {n}": without(n) for n in ("id", "question", "rounds", "final")},
  **{f"without {n}": without(n) for n in ("faults", "tokens", "seconds")},
  "final a text": lambda row: row | dict(final="x"),
  "final odd": lambda row: row | dict(final=dict(text="x")),
  "tokens a text": lambda row: row | dict(tokens="<script>"),
  "tokens negative": lambda row: row | dict(tokens=-5),
  "tokens NaN": lambda row: row | dict(tokens=float("nan")),
  "tokens endless": lambda row: row | dict(tokens=10**400),
  "seconds a text": lambda row: row | dict(seconds="x"),
  "faults null": lambda row: row | dict(faults=None),
  "faults of numbers": lambda row: row | dict(faults=[1]),
  "rounds null": lambda row: row | dict(rounds=None),
  "route unknown": with_round(route="evil"),
  "answer odd": with_round(answer={}),
  "score a text": with_passage(score="<b>"),
  "id a list": lambda row: row | dict(id=["q/0"]),
  "another answer": lambda row: row | dict(final=dict(thought="", text="7")),
}


@pytest.mark.parametrize("name", ODD_ROWS)
def test_odd_row_is_named_and_made_again(tmp_path, caplog, name):
  path = tmp_path / "predictions.jsonl"
  whole, _ = census.evaluate(path)
  lines = path.read_text().splitlines()
  lines[0] = json.dumps(ODD_ROWS[name](json.loads(lines[0])))
  path.write_text("\n".join(lines) + "\n")
  again, prompts = census.evaluate(path)
  assert again.trajectories == whole.trajectories and prompts > 0
  assert f"{path}: 1 damaged lines (1)" in caplog.text
  # It is made again once.
  assert census.evaluate(path)[1] == 0


def test_two_questions_with_one_id_are_rejected():
  # Rows are found by id, so the second would get the first's answer.
  again = replace(QUESTIONS[1], id="q/0")
  with pytest.raises(ValueError, match="Two questions have the id 'q/0'"):
    census.evaluate(questions=[QUESTIONS[0], again])


def test_judge_scores_answers_too(tmp_path):
  # The last line of the judge's prompt holds the prediction as JSON.
  def give_verdict(system, user, body):
    prediction = json.loads(user.splitlines()[-1].partition(": ")[2])
    return "RIGHT" if prediction == "unknown" else "WRONG"

  with serve_chat(give_verdict) as (address, bodies):
    path = tmp_path / "predictions.jsonl"
    result, _ = census.evaluate(path, judge=address)
  assert result.scores["judge"].tolist() == [0, 0, 0, 1, 1]
  assert len(bodies) == 5
  table = tables.make_tables([result], {})["Methods"]
  # The judge's rate is the first column behind the name.
  assert table.columns[1] == "Judge accuracy %"
  assert table.rows[0][1].mean == pytest.approx(0.4)


def test_several_samples_are_scored_alone_and_together(tmp_path):
  """Each of three samples gives another number; one is right, once twice."""
  # Rows are questions, columns are samples; the gold answers are 0, 1, 2.
  texts = ["0", "0", "1"], ["1", "3", "3"], ["7", "8", "9"]

  def evaluate_sample(number):
    def write_response(kind, prompt, temperature):
      if kind == "plan":
        return format.render_plan(Plan("t", "None", ()))
      places = enumerate(("Chad", "Italy", "Peru"))
      (asked,) = [n for n, place in places if place in prompt]
      return format.render_answer(Answer("t", texts[asked][number]))

    policy, kbs = fakes.ScriptedPolicy(write_response), fakes.make_kbs()
    settings = RunSettings("r1_router", temperature=1.0, sample=number)
    path, label = tmp_path / "predictions.jsonl", dict(policy="p")
    task = policy, kbs, QUESTIONS[:3], settings
    return runner.evaluate_method(*task, path=path, label=label)

  found = tables.aggregate_samples([evaluate_sample(n) for n in range(3)])
  assert found.scores["default_exact"] == pytest.approx([2 / 3, 1 / 3, 0])
  assert found.sample_scores["pass@1"] == pytest.approx([2 / 3, 1 / 3, 0])
  assert found.sample_scores["pass@3"].tolist() == [1, 1, 0]
  assert found.sample_scores["majority default_exact"].tolist() == [1, 0, 0]
  table = tables.make_tables([found], {})["Several samples, %"]
  assert "pass@3" in table.columns


def test_each_sample_has_its_own_key():
  keys = set()
  for seed, sample in itertools.product(range(2), range(3)):
    settings = RunSettings("direct", seed=seed, sample=sample)
    keys.add(str(jax.random.key_data(settings.random_key)))
  assert len(keys) == 6


def test_policy_says_how_many_passages_are_read_unless_the_run_does():
  reads_two = PromptOptions(passages=2)
  for given, expected in ((0, 2), (1, 1), (5, 5)):
    settings = RunSettings.for_policy(reads_two, "direct", k=given, seed=3)
    assert settings == RunSettings("direct", k=expected, seed=3)


def test_benchmark_without_gold_traces_and_with_a_missing_image(tmp_path):
  """The image's question stays and scores 0, and no route is scored."""
  # A user's own file may have neither hops nor images.
  file = tmp_path / "own.jsonl"
  file.write_text(
    '{"question": "People of Chad?", "answer": 0}\n'
    '{"question": "People of Italy?", "answer": "1", "image": "missing.png"}'
  )
  questions = benchmarks.load_benchmark("jsonl", str(file))
  found, _ = census.evaluate(
    questions=[replace(q, image=q.image and "missing.png") for q in questions]
  )
  assert found.scores["recall"].tolist() == [1, 0]
  assert np.isnan(found.scores["route"]).all()
  assert found.trajectories[1].faults[0].startswith("input: missing.png")
  # What nobody knows is left out of the summary and is no NaN in it.
  lines = tables.summary_lines([found], {}, "jsonl")
  assert not any("Route accuracy" in line for line in lines)
  json.dumps(tables.summarize_results([found], {}), allow_nan=False)
  made = tables.make_tables([found], {})
  assert made["F1-Recall % by family"].rows == (("jsonl", 2, 50.0),)
  assert "Route % by family" not in made
  assert not {"Route %", "Evidence %"} & {*made["Methods"].columns}
  # A method that follows gold routes cannot answer such questions.
  with pytest.raises(ValueError, match="'jsonl/0' has no gold trace"):
    census.evaluate(method="oracle_route", questions=questions)


@pytest.mark.parametrize(
  "method, route, evidence",
  [
    ("r1_router", [1, 1, 0.5, 0.5], [1, np.nan, 0, np.nan]),
    ("always_text", [0.5, 1, 1, 0.5], [0, np.nan, 1, np.nan]),
  ],
)
def test_gold_hops_of_own_questions_are_scored(
  tmp_path, method, route, evidence
):
  """The router searches tables, then stops; passages are "<route>/0"."""
  golds = [
    # Hops may lack evidence and have several routes; Fiji needs no search.
    ("Chad", [dict(routes=["table"], evidence=["table/0", "table/9"])]),
    ("Italy", [dict(routes=["text", "table"])]),
    ("Peru", [dict(routes=["text"], evidence=["text/0"])]),
    ("Fiji", []),
    ("Oman", None),
  ]
  rows = []
  for place, hops in golds:
    row = dict(question=f"People of {place}?", answer="0", hops=hops)
    for hop in hops or ():
      hop |= dict(sub_question=row["question"], answers=["0"])
    rows.append(json.dumps(row))
  file = tmp_path / "own.jsonl"
  file.write_text("\n".join(rows))
  questions = benchmarks.load_benchmark("jsonl", str(file))
  found, _ = census.evaluate(method=method, questions=questions)
  # Nobody knows the gold rounds of Oman.
  for name, wanted in (("route", route), ("retrieval", evidence)):
    np.testing.assert_array_equal(found.scores[name], [*wanted, np.nan])
  # Means are over the others, four of routes and two of evidence.
  (row,) = tables.summarize_results([found], {})["results"]
  assert [row[name]["mean"] for name in ("route", "retrieval")] == [0.75, 0.5]
  made = tables.make_tables([found], {})
  methods = made["Methods"]
  at = [methods.columns.index(f"{name} %") for name in ("Route", "Evidence")]
  assert [methods.rows[0][n].mean for n in at] == [0.75, 0.5]
  assert made["Route % by family"].rows == (("jsonl", 4, 75.0),)


def test_label_names_the_options_of_a_policy(monkeypatch):
  """So that no trajectory is taken for one of a policy with other options."""
  monkeypatch.setattr(hf_checkpoint, "list_weight_files", lambda source: [])

  def weights(**options):
    policy = fakes.ScriptedPolicy(census.write_response, **options)
    return runner.run_label("p", policy, fakes.make_kbs())["weights"]

  assert weights() == ""
  # Rows of older versions have the older names of options.
  options = weights(max_routes=2, passage_images=1)
  assert options == "routes=2 passage_pictures=1"
