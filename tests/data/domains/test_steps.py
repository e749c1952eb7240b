"""Gold steps of the grammar: in the protocol's language, and answerable."""

import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import MAX_HOPS, Answer, Plan
from r1router_jax.data.domains import steps
from r1router_jax.data.domains.questions import UNKNOWN
from r1router_jax.protocol import format

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def made():
  return {split: list(steps.make_steps(split, 60, 5)) for split in SPLITS}


def all_steps(made):
  return [step for of in made.values() for each in of for step in each]


def test_responses_are_of_the_protocol_and_right(made):
  for step in all_steps(made):
    if step.kind == "plan":
      plan = format.parse_plan(step.response)
      assert isinstance(plan, Plan) and set(plan.routes) <= set(step.routes)
      assert plan.sub_question == step.sub_question
    else:
      answer = format.parse_answer(step.response)
      assert isinstance(answer, Answer) and answer.text == step.answers[0]


def test_answers_stand_in_the_passages_or_are_unknown(made):
  unknown = known = 0
  for step in all_steps(made):
    if step.kind != "answer" or step.question.family.startswith("count"):
      continue
    text = " ".join(passage.text for passage in step.passages).lower()
    if step.answers == UNKNOWN:
      unknown += 1
    else:
      known += 1
      assert any(form.lower() in text for form in step.answers), step
  assert known > unknown > 0


def test_history_goes_on_with_what_each_round_found(made):
  for split in made.values():
    for *_, final in split:
      assert final.kind == "final" and len(final.history) <= MAX_HOPS
  for split in made.values():
    for each in split:
      read = [step for step in each if step.kind == "answer"]
      assert [step.history for step in read] == [
        each[-1].history[:n] for n in range(len(read))
      ]
      for step, said in zip(read, each[-1].history, strict=True):
        assert said[0] == step.sub_question
        # A passage that was missed once is found in the end.
        assert said[1] in step.answers or step.answers == UNKNOWN


def test_plan_after_an_unknown_looks_elsewhere(made):
  elsewhere = 0
  for each in (each for of in made.values() for each in of):
    plans = [step for step in each if step.kind == "plan"]
    routes = {step.history: format.parse_plan(step.response) for step in plans}
    for step in plans:
      *before, last = step.history or [("", "")]
      first, then = routes.get(tuple(before)), routes[step.history]
      # Of stories' vain rounds there is no plan.
      if last[1] == UNKNOWN[0] and first and then.routes:
        elsewhere += 1
        assert then.sub_question == last[0] == first.sub_question
        assert then.routes != first.routes
  assert elsewhere > 10


def test_measures_are_looked_for_in_tables_first(made):
  checked = 0
  for each in (each for of in made.values() for each in of):
    first = each[0]
    if first.question.family.startswith(("count", "extreme")):
      plan = format.parse_plan(first.response)
      # Unless another thing has to be found first.
      if len([step for step in each if step.kind == "answer"]) == 1:
        assert plan.routes == ("table",)
        checked += 1
  assert checked


def test_splits_share_no_question_and_seeds_differ(made):
  # A story's question may name nothing, and so be asked again of other names.
  def texts_of(made_steps):
    asked = (each[0].question for each in made_steps)
    return {q.text for q in asked if not q.family.startswith("story")}

  texts = {split: texts_of(of) for split, of in made.items()}
  assert not texts["train"] & texts["val"]
  assert not texts["train"] & texts["test"]
  again = list(steps.make_steps("train", 60, 5))
  assert again == made["train"]
  assert not texts["train"] & texts_of(steps.make_steps("train", 60, 6))


def test_as_many_questions_as_wanted():
  assert len(list(steps.make_steps("train", 17, 0))) == 17


def test_unknown_split_is_named():
  with pytest.raises(UserError, match="'dev'.*train, val, test"):
    next(steps.make_steps("dev", 1, 0))
