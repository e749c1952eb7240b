"""Validation: what it says of a policy, and which state it calls the best."""

import dataclasses
import json
import math

import pytest

from r1router_jax.common.records import Answer, Plan
from r1router_jax.protocol import format
from r1router_jax.routing import router
from r1router_jax.training import validation
from tests import fakes, two_processes
from tests.evaluation import census
from tests.training import validation_cases as cases


def tokens_of(text):
  """Words stand for tokens of the scripted policy."""
  return len(text.split())


def test_scalars_of_walked_questions():
  scores = cases.make_validator().score_params({})
  # Each question is searched for once, in tables, and then stopped; the first
  # three of five are answered, and the others have other words.
  plan = format.render_plan(Plan("t", "Chad?", ("table",)))
  stop = format.render_plan(Plan("t", "None", ()))
  answer = format.render_answer(Answer("t", "0"))
  wanted = {
    "f1": 0.6,
    "exact": 0.6,
    "recall": 0.6,
    "route": 1.0,
    "retrievals": 1.0,
    "tokens": sum(map(tokens_of, (plan, answer, stop, answer))),
    "well_formed": 1.0,
    "faults": 0.0,
    "routes/text": 0.0,
    "routes/image": 0.0,
    "routes/table": 0.5,
    "routes/stop": 0.5,
  }
  wanted = {f"validation/{name}": x for name, x in wanted.items()}
  assert scores == pytest.approx(wanted)
  assert [*scores] == [*wanted]


def test_faults_count_and_unknown_traces_have_no_route():
  questions = [dataclasses.replace(q, hops=None) for q in census.QUESTIONS[:2]]

  def drive_loop(_, *task):
    # The first plan comes again and again, and the final answer has no tags.
    broken = fakes.ScriptedPolicy(
      lambda kind, *_: (
        fakes.write_plan("Who?", "image") if kind == "plan" else "18"
      )
    )
    return router.run_routing(broken, *task)

  scores = cases.make_validator(questions, drive_loop).score_params({})
  assert "validation/route" not in scores
  # A malformed answer of the round, the repeated plan, the final answer.
  assert scores["validation/faults"] == 3
  assert scores["validation/well_formed"] == scores["validation/f1"] == 0
  # The policy never chose to stop, and searched once.
  assert scores["validation/routes/stop"] == 0
  assert scores["validation/routes/image"] == 1
  assert scores["validation/retrievals"] == 1


def test_no_choice_at_all_leaves_the_shares_out():
  questions = [dataclasses.replace(fakes.COLOUR, image="missing.png")]
  scores = cases.make_validator(questions).score_params({})
  assert scores["validation/faults"] == 1  # The image.
  assert not [name for name in scores if "routes/" in name]


CHILD = """
import json
from r1router_jax.parallel import multihost
multihost.initialize_distributed()
from tests.training import validation_cases as cases
print("scores", json.dumps(cases.make_validator().score_params({})))
"""


@pytest.mark.slow
def test_hosts_share_questions_and_have_the_same_scores(tmp_path):
  outputs = two_processes.run_two_processes(CHILD, tmp_path)
  one, two = (json.loads(text.split("scores", 1)[1]) for text in outputs)
  assert one == two
  # Of all five questions, and not of a host's two or three.
  assert one == pytest.approx(cases.make_validator().score_params({}))


@pytest.mark.parametrize(
  "saved, wanted",
  [
    # Nothing was validated before.
    ({}, ""),
    (dict(best=-1.0, best_at=0, best_by="validation/f1"), ""),
    (
      dict(best=0.437, best_at=60, best_by="validation/f1"),
      "validation/f1 0.437 after iteration 60",
    ),
    # Scores of another scalar, also of a version that had only one.
    (dict(best=0.437, best_at=60, best_by="validation/exact"), ""),
    (dict(best=0.437), ""),
  ],
)
def test_best_score_of_the_run_that_continues(saved, wanted):
  best = validation.BestScore.from_metadata("validation/f1", saved)
  assert best.describe() == wanted
  again = validation.BestScore.from_metadata(best.scalar, best.to_metadata())
  assert again == best


def test_best_score_of_an_older_version_has_no_iteration():
  best = validation.BestScore.from_metadata("validation/total", dict(best=0.9))
  assert best.describe() == "validation/total 0.9"


def test_of_equal_states_the_earlier_one_is_the_best():
  best = validation.BestScore("f1")
  scores = [math.nan, 0.0, 0.0, 0.25, math.nan, 0.125, 0.25, 0.5, 0.5]
  taken = [best.improve({"f1": x}, n) for n, x in enumerate(scores, 1)]
  assert [n for n, is_better in enumerate(taken, 1) if is_better] == [2, 4, 8]
  assert best == validation.BestScore("f1", 0.5, 8)
