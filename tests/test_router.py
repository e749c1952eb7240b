import dataclasses

import jax
import pytest

from r1router_jax import planners, protocol, router
from r1router_jax.records import Answer, Hop, Malformed, Plan, Query, Question
from tests import fakes

KEY = jax.random.key(0)
PEOPLE = Question(
    "q/people", "How many people live here?", ("18 million",), "chad.png",
    hops=(Hop("Which country is this?", ("image",), ("Chad",)),
          Hop("How many people live in Chad?", ("table", "text"),
              ("18 million",))))
COLOUR = Question("q/colour", "What colour is grass?", ("green",))


def plan(sub_question, route):
  return protocol.render_plan(Plan("because", sub_question, route))


def answer(text):
  return protocol.render_answer(Answer("because", text))


def gold(kind, prompt, temperature):
  """What a good policy writes."""
  if kind == "plan":
    if "grass" in prompt or "18 million" in prompt:
      return plan("None", "none")
    if "chad" in prompt:
      return plan("How many people live in Chad?", "table")
    return plan("Which country is this?", "image")
  if kind == "answer":
    return answer("Chad" if "which country" in prompt else "18 million")
  return answer("green" if "grass" in prompt else "18 million")


def walk(script, *questions, **options):
  policy, kbs = fakes.Scripted(script), fakes.kbs()
  found = router.route(policy, kbs, questions, KEY, **options)
  return found, policy, kbs


def test_questions_walk_together_and_each_stops_when_it_wants():
  (people, colour), policy, kbs = walk(gold, PEOPLE, COLOUR, k=2)
  assert [(r.plan.route, r.plan.sub_question, r.answer.text)
          for r in people.rounds] == [
      ("image", "Which country is this?", "Chad"),
      ("table", "How many people live in Chad?", "18 million")]
  assert [p.text for p in people.rounds[0].passages] == [
      "image on Which country is this?"] * 2
  assert people.final.text == "18 million" and not people.faults
  assert colour.rounds == () and colour.final.text == "green"
  # Only the picture's knowledge base sees the picture.
  assert kbs["image"].queries == [Query("Which country is this?", "chad.png")]
  assert kbs["table"].queries == [Query("How many people live in Chad?")]
  # The last plan of `people` is the stop; the final step is asked for both.
  kinds = [[kind for kind, _ in asked] for asked in policy.asked if asked]
  assert kinds == [["plan"] * 2, ["answer"], ["plan"], ["answer"], ["plan"],
                   ["final"] * 2]
  written = [plan("Which country is this?", "image"), answer("Chad"),
             plan("How many people live in Chad?", "table"),
             answer("18 million"), plan("None", "none"), answer("18 million")]
  assert people.tokens == sum(len(text.split()) for text in written)


def test_a_question_does_not_depend_on_its_neighbours():
  together, *_ = walk(gold, PEOPLE, COLOUR)
  assert together == [walk(gold, q)[0][0] for q in (PEOPLE, COLOUR)]


@pytest.mark.parametrize("in_flight", [2, 3, 5])
def test_parts_in_flight_change_nothing(in_flight):
  many = [dataclasses.replace(q, id=f"{q.id}/{n}")
          for n in range(2) for q in (PEOPLE, COLOUR)]
  kept = lambda **how: (seen := [], walk(gold, *many, keep=lambda step, group: (
      seen.append((step, group[0].text))), **how)[0])
  steps, found = kept(in_flight=in_flight)
  alone, wanted = kept()
  assert found == wanted
  assert sorted(steps, key=repr) == sorted(alone, key=repr)


def test_at_most_max_steps_rounds():
  asked = iter(range(100))
  script = lambda kind, prompt, temperature: (
      plan(f"What is {next(asked)}?", "text") if kind == "plan"
      else answer("x"))
  (found,), *_ = walk(script, COLOUR, max_steps=2)
  assert len(found.rounds) == 2 and not found.faults


def test_a_malformed_plan_is_drawn_once_more_at_temperature_1():
  warmths = []

  def script(kind, prompt, temperature):
    if kind == "plan":
      warmths.append(temperature)
      return gold(kind, prompt, 0) if temperature else "no plan"
    return gold(kind, prompt, 0)

  (found,), *_ = walk(script, PEOPLE)
  assert warmths == [0.0, 1.0] * 3
  assert len(found.rounds) == 2 and found.final.text == "18 million"
  assert [fault.split(":")[0] for fault in found.faults] == ["plan"]


def test_no_plan_in_two_tries_leads_to_the_final_answer():
  script = lambda kind, *rest: (
      "no plan" if kind == "plan" else gold(kind, *rest))
  (found,), *_ = walk(script, COLOUR)
  assert found.rounds == () and found.final.text == "green"
  assert [f.split(":")[0] for f in found.faults] == ["plan", "stuck"]


def test_a_repeated_plan_ends_planning():
  script = lambda kind, *rest: (
      plan("Which?", "text") if kind == "plan" else answer("x"))
  (found,), *_ = walk(script, COLOUR)
  assert len(found.rounds) == 1 and found.faults == ("repeated: Which?",)


def test_malformed_answers():
  def script(kind, prompt, temperature):
    if kind == "plan":
      done = "it is chad" in prompt
      return plan("None", "none") if done else plan("Which?", "text")
    return "<think>It is</think> Chad" if kind == "answer" else "green"

  (found,), policy, _ = walk(script, COLOUR)
  assert isinstance(found.rounds[0].answer, Malformed)
  assert isinstance(found.final, Malformed) and found.final.text == "green"
  assert [f.split(":")[0] for f in found.faults] == ["answer", "final"]
  assert "Answer1: it is chad\n" in policy.asked[-1][0][1]


@pytest.mark.parametrize("method", planners.METHODS)
def test_a_missing_picture_harms_only_its_question(method):
  broken = dataclasses.replace(PEOPLE, id="broken", image="missing.png")
  planner = planners.METHODS[method](0)
  found, *_ = walk(gold, broken, PEOPLE, COLOUR, planner=planner)
  assert found[1:] == walk(gold, PEOPLE, COLOUR, planner=planner)[0]
  assert found[0].final == Malformed("", "missing.png does not exist.")
  assert found[0].faults == ("input: missing.png does not exist.",)
  assert found[0].rounds == () and found[0].tokens == 0


def test_an_empty_question_is_named():
  with pytest.raises(ValueError, match="'q/empty' is empty"):
    walk(gold, COLOUR, Question("q/empty", "  "))
  assert walk(gold)[0] == []


def routes(method, *questions, script=gold):
  found, policy, _ = walk(
      script, *questions, planner=planners.METHODS[method](0))
  plans = sum(kind == "plan" for asked in policy.asked for kind, _ in asked)
  return [[r.plan.route for r in each.rounds] for each in found], plans


def test_baselines_that_need_no_plan():
  assert routes("always_text", PEOPLE, COLOUR) == ([["text"]] * 2, 0)
  assert routes("always_all", COLOUR) == ([["text", "image", "table"]], 0)
  assert routes("never", COLOUR) == ([[]], 0)
  (found,), policy, _ = walk(gold, COLOUR, planner=planners.always("table"))
  assert found.rounds[0].plan.sub_question == COLOUR.text
  assert [[kind for kind, _ in a] for a in policy.asked if a] == [
      ["answer"], ["final"]]


def test_oracle_route_knows_where_and_when():
  wrong = lambda kind, prompt, temperature: (
      plan(f"What after {len(prompt)}?", "text") if kind == "plan"
      else answer("Chad"))
  assert routes("oracle_route", PEOPLE, COLOUR, script=wrong) == (
      [["image", "table"], []], 2)


def test_random_routes_are_uniform_and_the_stop_is_the_policys():
  many = [dataclasses.replace(PEOPLE, id=f"q/{n}") for n in range(300)]
  found, _ = routes("random_route", *many)
  assert {len(each) for each in found} == {2}
  first = [each[0] for each in found]
  assert all(80 < first.count(kb) < 120 for kb in ("text", "image", "table"))
  assert found == routes("random_route", *reversed(many))[0][::-1]
