import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from r1router_jax import eval
from r1router_jax.common import run_log
from r1router_jax.common.records import Answer, Hop, Plan, Question
from r1router_jax.data import benchmarks, gold_steps
from r1router_jax.evaluation import runner
from r1router_jax.evaluation import step_rewards as step_rewards_lib
from r1router_jax.evaluation import tables as tables_lib
from r1router_jax.metrics import answers
from r1router_jax.models import safetensors_io
from r1router_jax.protocol import format, prompts
from r1router_jax.report import html
from r1router_jax.report import table as table_lib
from r1router_jax.rewards import step_reward
from r1router_jax.routing.baselines import registry
from tests import fakes
from tests.fake_chat_server import chatting

QUESTIONS = [
  Question(
    f"q/{n}",
    f"How many people live in {place}?",
    (str(n),),
    family=f"f{n % 2}",
    hops=(Hop(f"People of {place}?", ("table",), (str(n),)),),
  )
  for n, place in enumerate(("Chad", "Italy", "Peru", "Fiji", "Oman"))
]


def script(kind, prompt, temperature):
  """Asks well; answers right for the first three questions."""
  if kind == "plan":
    done = "Sub-question1" in prompt
    return format.render_plan(
      Plan("t", "None", "none")
      if done
      else Plan("t", prompt.split()[-1], "table")
    )
  places = ("chad?", "italy?", "peru?")
  known = [n for n, place in enumerate(places) if place in prompt.lower()]
  return format.render_answer(Answer("t", str(*known[:1]) or "unknown"))


def run(path=None, policy="p", method="r1_router", questions=QUESTIONS):
  fake = fakes.Scripted(script)
  result = runner.evaluate(
    fake,
    fakes.kbs(),
    questions,
    runner.Settings(method),
    path=path,
    label=dict(policy=policy, weights="w"),
    chunk=2,
  )
  return result, sum(map(len, fake.asked))


def test_scores_of_a_known_policy():
  result, _ = run()
  assert result.columns["recall"].tolist() == [1, 1, 1, 0, 0]
  assert result.columns["route"].tolist() == [1] * 5
  assert result.columns["retrievals"].tolist() == [1] * 5
  text, _ = run(method="always_text")
  assert text.columns["route"].tolist() == [0.5] * 5
  assert text.columns["recall"].tolist() == [1, 1, 1, 0, 0]


def test_an_interrupted_run_goes_on(tmp_path):
  path = tmp_path / "predictions.jsonl"
  whole, asked = run()
  run(path, questions=QUESTIONS[:2])
  with path.open("a") as file:
    file.write('{"policy": "p", "id": "q/')  # Killed while writing.
  again, rest = run(path)
  assert 0 < rest < asked
  assert again.trajectories == whole.trajectories
  assert run(path)[1] == 0  # Nothing left to ask.
  assert run(path, policy="other")[1] == asked
  changed = [dataclasses.replace(QUESTIONS[0], text="Who lives in Chad?")]
  assert run(path, questions=changed)[1] > 0
  rows = [
    json.loads(line)
    for line in path.read_text().splitlines()
    if line.endswith("}")
  ]
  assert [row["id"] for row in rows[:5]] == [q.id for q in QUESTIONS]
  assert rows[0]["scores"]["recall"] == 1 and rows[0]["seconds"] > 0


def test_a_judge_may_look_at_answers_too(tmp_path):
  ask = lambda system, user, body: (
    "RIGHT"
    if (json.loads(user.splitlines()[-1].partition(": ")[2]) == "unknown")
    else "WRONG"
  )
  with chatting(ask) as (address, bodies):
    result = runner.evaluate(
      fakes.Scripted(script),
      fakes.kbs(),
      QUESTIONS,
      runner.Settings("r1_router"),
      path=tmp_path / "predictions.jsonl",
      judged_by=address,
    )
  assert result.columns["judge"].tolist() == [0, 0, 0, 1, 1]
  assert len(bodies) == 5
  (_, *rates), *_ = tables_lib.tables([result], {})["Methods"].rows
  assert (
    tables_lib.tables([result], {})["Methods"].columns[10] == "Judged right %"
  )
  assert rates[9].mean == pytest.approx(0.4)


def test_several_samples_are_counted_alone_and_together():
  """Each of three says another number; one of them is right, once two."""
  said = ["0", "0", "1"], ["1", "3", "3"], ["7", "8", "9"]

  def sample(number):
    def write(kind, prompt, temperature):
      if kind == "plan":
        return format.render_plan(Plan("t", "None", "none"))
      asked = [
        n
        for n, place in enumerate(("Chad", "Italy", "Peru"))
        if place in prompt
      ]
      return format.render_answer(Answer("t", said[asked[0]][number]))

    return runner.evaluate(
      fakes.Scripted(write),
      fakes.kbs(),
      QUESTIONS[:3],
      runner.Settings("r1_router", temperature=1.0, sample=number),
    )

  found = tables_lib.together([sample(n) for n in range(3)])
  assert found.columns["default_exact"] == pytest.approx([2 / 3, 1 / 3, 0])
  assert found.several["pass@1"] == pytest.approx([2 / 3, 1 / 3, 0])
  assert found.several["pass@3"].tolist() == [1, 1, 0]
  assert found.several["majority default_exact"].tolist() == [1, 0, 0]
  assert (
    "pass@3" in tables_lib.tables([found], {})["Several samples, %"].columns
  )


def test_each_sample_is_drawn_by_a_key_of_its_own():
  keys = {
    str(jax.random.key_data(runner.Settings("direct", seed, sample=sample).key))
    for seed in (0, 1)
    for sample in range(3)
  }
  assert len(keys) == 6
  with pytest.raises(ValueError, match="at temperature 0 would all be"):
    runner.settings_of(
      config_dict.create(
        methods="direct", samples=2, max_steps=3, k=1, temperature=0.0
      ),
      0,
    )
  with pytest.raises(ValueError, match="'guess' is no method; choose from"):
    runner.settings_of(config_dict.create(methods="direct, guess"), 0)


def test_a_benchmark_without_gold_traces_and_with_a_missing_picture(tmp_path):
  """The picture's question stays, scores 0, and nobody guesses its routes."""
  file = tmp_path / "own.jsonl"
  file.write_text(
    '{"question": "People of Chad?", "answer": 0}\n'
    '{"question": "People of Italy?", "answer": "1", "image": "missing.png"}'
  )
  asked = benchmarks.load("jsonl", str(file))
  found = runner.evaluate(
    fakes.Scripted(script),
    fakes.kbs(),
    [dataclasses.replace(q, image=q.image and "missing.png") for q in asked],
    runner.Settings("r1_router"),
  )
  assert found.columns["recall"].tolist() == [1, 0]
  assert np.isnan(found.columns["route"]).all()
  assert found.trajectories[1].faults[0].startswith("input: missing.png")
  lines = tables_lib.claims([found], {}, "jsonl")
  assert not any("Route accuracy" in line for line in lines)
  json.dumps(tables_lib.summary([found], {}), allow_nan=False)
  tables = tables_lib.tables([found], {})
  assert tables["F1-Recall % by family"].rows == (("jsonl", 2, 50.0),)
  assert "Route % by family" not in tables
  with pytest.raises(ValueError, match="'jsonl/0' has no gold trace"):
    runner.evaluate(
      fakes.Scripted(script),
      fakes.kbs(),
      asked,
      runner.Settings("oracle_route"),
    )


def step_rewards(questions=QUESTIONS, **options):
  retrieve = lambda asked: [() for _ in asked]
  steps = [
    step for each in gold_steps.gold_steps(questions, retrieve) for step in each
  ]
  embed = lambda texts: np.stack([np.eye(8)[len(t) % 8] for t in texts])
  reward = step_reward.StepReward(embed, preset="reference")
  found = step_rewards_lib.step_rewards(
    fakes.Scripted(script), steps, reward, jax.random.key(0), **options
  )
  one = [
    reward([step], [script(step.kind, prompt(step), 0)])[0] for step in steps
  ]
  return found, one


def prompt(step):
  conversation = prompts.step_conversation(step, style="full")
  return "".join(segment.text for segment in conversation.user)


def test_a_step_that_cannot_be_read_earns_nothing(caplog):
  """As where a policy of texts alone is shown pictures; its neighbours do."""
  broken = dataclasses.replace(QUESTIONS[0], image="missing.png")
  found, one = step_rewards([broken, *QUESTIONS[1:]])
  steps = len(one) // len(QUESTIONS)  # Of each question.
  assert min(one[:steps]) > 0  # It would have earned something.
  assert found.tolist() == [0] * steps + one[steps:]
  assert f"{steps} of {len(one)} gold steps cannot be read" in caplog.text
  assert "missing.png does not exist" in caplog.text


def test_step_rewards_are_those_of_each_step_alone(monkeypatch):
  monkeypatch.setattr(step_rewards_lib, "CHUNK", 3)
  found, one = step_rewards()
  assert found.tolist() == one and len(set(one)) > 1
  assert step_rewards(samples=2)[0].tolist() == one


def test_tables_claims_and_page(tmp_path):
  good, _ = run(policy="later")
  poor = dataclasses.replace(
    good,
    policy="early",
    columns={name: column * 0 for name, column in good.columns.items()},
  )
  baseline, _ = run(method="always_all")
  earned = {
    "early": dict(greedy=np.zeros(4)),
    "later": dict(greedy=np.full(4, 0.25)),
  }
  found = [poor, good, baseline]
  lines = tables_lib.claims(found, earned, "unseen countries")
  text = "\n".join(lines)
  assert (
    "Route accuracy of later on unseen countries: 1.00 (1.00 to 1.00) "
    "(wanted: at least 0.85)."
  ) in lines
  assert "F1-Recall, later minus early: +60.0 points (95 % inter" in text
  assert (
    "Greedy step reward, later minus early: +0.250 (95 % interval "
    "+0.250 to +0.250)."
  ) in lines
  assert lines[-1] == (
    "Retrievals per question: early 0.00, later 1.00, always_all 3.00."
  )
  tables = tables_lib.tables(found, earned)
  for table in tables.values():
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert len(table_lib.as_text(table).splitlines()) == 1 + len(table.rows)
  families = tables["F1-Recall % by family"].rows
  assert [row[:3] for row in families] == [("f0", 3, 0.0), ("f1", 2, 0.0)]
  assert families[0][3] == pytest.approx(200 / 3)  # q/0, q/2, not q/4.
  assert families[1][3] == pytest.approx(50)
  summary = tables_lib.summary(found, earned)
  json.dumps(summary, allow_nan=False)
  assert summary["results"][1]["recall"]["mean"] == pytest.approx(0.6)
  assert summary["differences"]["later minus early"]["recall"] == (
    answers.paired_difference(
      good.columns["recall"], poor.columns["recall"], 0
    )._asdict()
  )
  log = run_log.Telemetry(tmp_path / "run")
  log.write(1, dict(loss=2.0))
  curves = tables_lib.curves({"sft": str(tmp_path / "run")})
  assert curves == {"loss": {"sft": [(1, 2.0)]}}
  html.write(
    tmp_path / "page.html",
    title="t",
    claims=lines,
    tables=tables,
    curves=curves,
    trajectories=good.trajectories,
    notes=tables_lib.NOTES,
  )
  assert "later minus early" in (tmp_path / "page.html").read_text()


def test_options_tell_a_policy_from_itself_without(monkeypatch):
  """So that no trajectory of the one is taken for one of the other."""
  monkeypatch.setattr(safetensors_io, "files", lambda folder: [])
  weights = lambda **options: runner.label_of(
    "p", fakes.Scripted(script, **options), fakes.kbs()
  )["weights"]
  assert weights() == ""
  assert weights(routes=2, passage_pictures=1) == "routes=2 passage_pictures=1"


def test_what_the_user_can_put_right():
  folders = lambda *pairs: eval._named(pairs, "policy")
  assert folders("a=x/policy", "runs/sft/policy", "warm_start") == dict(
    a="x/policy", sft="runs/sft/policy", warm_start="warm_start"
  )
  for pairs in (("a=",), ("a=x", "a=y")):
    with pytest.raises(ValueError, match="--policy="):
      folders(*pairs)
  with pytest.raises(ValueError, match="nowhere has no metrics.jsonl"):
    tables_lib.curves({"x": "nowhere"})
  assert registry.ROUTER in registry.METHODS
