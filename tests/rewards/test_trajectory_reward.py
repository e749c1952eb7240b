"""Rewards of whole trajectories, by hand."""

import json

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from r1router_jax.common import http_client
from r1router_jax.common.records import (
  Answer,
  Malformed,
  Plan,
  Question,
  Round,
  Trajectory,
)
from r1router_jax.policy import openai_client
from r1router_jax.rewards.trajectory_reward import make_trajectory_reward
from tests.fake_chat_server import serve_chat

# No gold of any step is known.
RULER = Question("q/0", "Who rules?", ("Idriss Deby Itno",), hops=None)
HEIGHT = Question("q/1", "How high?", interval=(90.0, 110.0), hops=None)

HERE = "tests.rewards.test_trajectory_reward:"
NO_COSTS = dict(format_weight=0.0, search_cost=0.0, token_cost=0.0)


def walk(text, *searched, question=RULER, faults=(), tokens=10):
  """Return a trajectory with the routes of each round and a final answer."""
  rounds = [
    Round(Plan("", f"{n}?", routes), (), Answer("", "x"))
    for n, routes in enumerate(searched)
  ]
  final = Malformed("<answer>", "no end") if text is None else Answer("", text)
  return Trajectory(question, tuple(rounds), final, faults, tokens)


def make_reward(name, **options):
  return make_trajectory_reward(name, **NO_COSTS | options, max_steps=3)


# Two of three words; all of them among others; one number of two.
ANSWERS = [
  walk("Idriss Deby"),
  walk("Idriss Deby Itno or Hissène Habré"),
  walk("the Idriss Deby Itno!"),
  walk("about 100 metres", question=HEIGHT),
  walk("120", question=HEIGHT),
  walk(None),
]


@pytest.mark.parametrize(
  "name, earned",
  [
    ("em", [0, 0, 1, 1, 0, 0]),
    ("f1", [0.8, 2 / 3, 1, 1, 0, 0]),
    ("recall", [2 / 3, 1, 1, 1, 0, 0]),
  ],
)
def test_answers_are_scored_by_the_rule_of_the_name(name, earned):
  rewards = make_reward(name).score(ANSWERS)
  assert_allclose(rewards.parts["answer"], earned)
  assert_allclose(rewards.total, earned)
  assert rewards.means()["answer"] == pytest.approx(np.mean(earned))


def test_format_searches_and_tokens_count_by_their_weights():
  """By hand: 0.2 wf + 0.8 answer - 0.05 searches - 0.001 tokens."""
  trajectories = [
    walk("Idriss Deby Itno", ("text",), ("table", "image"), tokens=40),
    # A plan that had to be asked for again.
    walk("Idriss Deby Itno", ("text",), faults=("plan: no tag",)),
    walk("Hissène Habré", tokens=0),
    walk(None, ("text",), faults=("final: no end",), tokens=100),
    # A fault that is not the policy's.
    walk("Hissène Habré", faults=("truncated: 3 tokens",), tokens=0),
  ]
  reward = make_reward(
    "em", format_weight=0.2, search_cost=0.05, token_cost=0.001
  )
  rewards = reward.score(trajectories)
  assert rewards.parts["well_formed"].tolist() == [1, 0, 1, 0, 1]
  assert rewards.parts["searches"].tolist() == [3, 1, 0, 1, 0]
  assert rewards.parts["tokens"].tolist() == [40, 10, 0, 100, 0]
  earned = [0.81, 0.74, 0.2, -0.15, 0.2]
  assert_allclose(rewards.total, earned)
  assert rewards.means() == {
    "total": pytest.approx(0.36),
    "answer": pytest.approx(0.4),
    "well_formed": pytest.approx(0.6),
    "searches": pytest.approx(1),
    "tokens": pytest.approx(30),
  }
  # Neither the other trajectories nor their order count.
  alone = [float(reward.score([each]).total[0]) for each in trajectories]
  assert alone == rewards.total.tolist()


def test_question_without_an_answer_is_rejected():
  with pytest.raises(ValueError, match="question q has no answer"):
    make_reward("f1").score([walk("x", question=Question("q", "Who?"))])


# ---- The judge.


def say_verdict(system, user, body):
  """Takes Deby for right, and cannot tell of Habré."""
  given = json.loads(user.splitlines()[-1].removeprefix("Given answer: "))
  if "Habré" in given:
    return "Who knows?"
  return "RIGHT" if "Deby" in given else "WRONG"


def judged(address, path, trajectories):
  options = dict(format_weight=0.1, judge=address, judge_cache=path)
  return make_reward("judge", **options).score(trajectories)


TRAJECTORIES = [
  *(walk("Deby"), walk("Habré"), walk("Tombalbaye"), walk(None)),
  walk("Deby", ("text",), faults=("plan: no tag",)),
]


def test_judged_rewards_are_the_same_after_a_restart(tmp_path, caplog):
  path = tmp_path / "judge.jsonl"
  with serve_chat(say_verdict) as (address, bodies):
    rewards = judged(address, path, TRAJECTORIES)
    # The same answer is asked about once, a malformed one never.
    assert len(bodies) == 3
  assert rewards.parts["answer"].tolist() == [1, 0, 0, 0, 1]
  assert rewards.parts["unjudged"].tolist() == [0, 1, 0, 0, 0]
  assert_allclose(rewards.total, [1, 0.1, 0.1, 0.1, 0.9])
  assert rewards.means()["unjudged"] == pytest.approx(0.2)
  assert "no readable verdict on 1 of 5" in caplog.text
  # Another process, and a model that changed its mind.
  with serve_chat(lambda *_: "RIGHT") as (address, bodies):
    again = judged(address, path, TRAJECTORIES[::-1])
    assert not bodies
  for name, part in rewards.parts.items():
    assert again.parts[name].tolist() == part[::-1].tolist()


def test_each_process_keeps_verdicts_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 3)
  with serve_chat(say_verdict) as (address, _):
    judged(address, tmp_path / "judge.jsonl", TRAJECTORIES)
  assert [path.name for path in tmp_path.iterdir()] == ["judge.3.jsonl"]


def test_judge_wants_a_server_and_a_folder_on_a_disk(tmp_path, monkeypatch):
  monkeypatch.setattr(openai_client, "DEADLINE_SECONDS", 0.1)
  # Said before anything is sampled.
  options = dict(judge="http://127.0.0.1:9/v1#m", judge_cache=tmp_path / "j")
  with pytest.raises(http_client.RemoteServiceError, match="127.0.0.1:9"):
    make_reward("judge", **options)
  with pytest.raises(ValueError, match="gs://runs/judge.jsonl: give a workdir"):
    make_reward("judge", judge_cache="gs://runs/judge.jsonl")


# ---- Functions of the user's.


def reward_lengths(questions, trajectories):
  assert questions == [each.question for each in trajectories]
  return [len(each.final.text) / 10 for each in trajectories]


def reward_parts(questions, trajectories):
  return dict(
    right=np.array([each.final.text in ("a", "b") for each in trajectories]),
    haste=[-0.1 * len(each.rounds) for each in trajectories],
  )


def test_users_function_may_give_numbers_or_named_parts_of_them():
  trajectories = [walk("a", ("text",)), walk("abc")]
  rewards = make_reward(HERE + "reward_lengths").score(trajectories)
  assert_allclose(rewards.total, [0.1, 0.3])
  assert rewards.parts.keys() == {"own"}
  rewards = make_reward(HERE + "reward_parts").score(trajectories)
  assert_allclose(rewards.total, [0.9, 0])
  means = {"total": 0.45, "right": 0.5, "haste": -0.05}
  assert rewards.means() == pytest.approx(means)


def numbers_of(values):
  return lambda questions, trajectories: values


two_numbers, infinite = numbers_of([1, 2]), numbers_of([float("inf")])
text, nothing = numbers_of("high"), numbers_of({})
total_part, odd_name = numbers_of({"total": [1]}), numbers_of({"a/b": [1]})
no_name, bad_part = numbers_of({1: [1]}), numbers_of({"a": [1], "b": 1})
not_a_function = 3


@pytest.mark.parametrize(
  "name, message",
  [
    ("two_numbers", r"part 'own', gave \(2,\) numbers; wanted 1 finite"),
    ("infinite", "wanted 1 finite"),
    ("text", "gave 'high'; wanted 1 finite"),
    ("nothing", r"gave the parts \[\]; wanted one or more"),
    ("total_part", "other than 'total'"),
    ("odd_name", r"gave the parts \['a/b'\]"),
    ("no_name", r"gave the parts \[1\]"),
    ("bad_part", r"part 'b', gave \(\) numbers"),
    ("absent", "cannot be imported"),
    ("not_a_function", "cannot be imported"),
  ],
)
def test_faults_of_a_users_function_are_named(name, message):
  with pytest.raises(ValueError, match=message):
    make_reward(HERE + name).score([walk("a")])
  with pytest.raises(ValueError, match="cannot be imported"):
    make_reward(":f")


calls = []


def changing_parts(questions, trajectories):
  calls.append(1)
  return {f"part{len(calls)}": [1]}


def test_parts_that_change_from_call_to_call_are_rejected():
  reward = make_reward(HERE + "changing_parts")
  reward.score([walk("a")])
  with pytest.raises(ValueError, match="and before .'part1'.: return the same"):
    reward.score([walk("a")])
