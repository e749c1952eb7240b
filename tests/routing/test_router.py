import dataclasses

import jax
import pytest

from r1router_jax.common.records import (
  Answer,
  Hop,
  Malformed,
  Passage,
  Plan,
  Query,
  Question,
)
from r1router_jax.protocol import format
from r1router_jax.protocol.templates import STYLES
from r1router_jax.routing import router
from r1router_jax.routing.baselines import registry
from tests import fakes

KEY = jax.random.key(0)

PEOPLE = Question(
  "q/people",
  "How many people live here?",
  ("18 million",),
  "chad.png",
  hops=(
    Hop("Which country is this?", ("image",), ("Chad",)),
    Hop("How many people live in Chad?", ("table", "text"), ("18 million",)),
  ),
)

COLOUR = Question("q/colour", "What colour is grass?", ("green",))


def plan(sub_question, route, *also):
  return format.render_plan(Plan("because", sub_question, route, also))


def answer(text):
  return format.render_answer(Answer("because", text))


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


def walk(script, *questions, of=None, **options):
  policy, kbs = of or fakes.Scripted(script), fakes.kbs()
  found = router.route(policy, kbs, questions, KEY, **options)
  return found, policy, kbs


def test_questions_walk_together_and_each_stops_when_it_wants():
  (people, colour), policy, kbs = walk(gold, PEOPLE, COLOUR, k=2)
  assert [
    (r.plan.route, r.plan.sub_question, r.answer.text) for r in people.rounds
  ] == [
    ("image", "Which country is this?", "Chad"),
    ("table", "How many people live in Chad?", "18 million"),
  ]
  assert [p.text for p in people.rounds[0].passages] == [
    "image on Which country is this?"
  ] * 2
  assert people.final.text == "18 million" and not people.faults
  assert colour.rounds == () and colour.final.text == "green"
  # Only the picture's knowledge base sees the picture.
  assert kbs["image"].queries == [Query("Which country is this?", "chad.png")]
  assert kbs["table"].queries == [Query("How many people live in Chad?")]
  # The last plan of `people` is the stop; the final step is asked for both.
  kinds = [[kind for kind, _ in asked] for asked in policy.asked if asked]
  assert kinds == [
    ["plan"] * 2,
    ["answer"],
    ["plan"],
    ["answer"],
    ["plan"],
    ["final"] * 2,
  ]
  written = [
    plan("Which country is this?", "image"),
    answer("Chad"),
    plan("How many people live in Chad?", "table"),
    answer("18 million"),
    plan("None", "none"),
    answer("18 million"),
  ]
  assert people.tokens == sum(len(text.split()) for text in written)


def test_a_question_does_not_depend_on_its_neighbours():
  together, *_ = walk(gold, PEOPLE, COLOUR)
  assert together == [walk(gold, q)[0][0] for q in (PEOPLE, COLOUR)]


@pytest.mark.parametrize("in_flight", [2, 3, 5])
def test_parts_in_flight_change_nothing(in_flight):
  many = [
    dataclasses.replace(q, id=f"{q.id}/{n}")
    for n in range(2)
    for q in (PEOPLE, COLOUR)
  ]
  kept = lambda **how: (
    seen := [],
    walk(
      gold,
      *many,
      keep=lambda step, group: seen.append((step, group[0].text)),
      **how,
    )[0],
  )
  steps, found = kept(in_flight=in_flight)
  alone, wanted = kept()
  assert found == wanted
  assert sorted(steps, key=repr) == sorted(alone, key=repr)


def test_at_most_max_steps_rounds():
  asked = iter(range(100))
  script = lambda kind, prompt, temperature: (
    plan(f"What is {next(asked)}?", "text") if kind == "plan" else answer("x")
  )
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


def test_a_plan_that_fails_twice_is_mended():
  """The third prompt says what was written and why it cannot be used."""
  warmths = []

  def script(kind, prompt, temperature):
    if kind == "plan":
      warmths.append(temperature)
      if "Your last reply" not in prompt:
        return "<ret>no</ret> plan"
    return gold(kind, prompt, 0)

  seen = []
  (found,), policy, _ = walk(
    script, COLOUR, keep=lambda step, group: seen.append(step.kind)
  )
  assert warmths == [0.0, 1.0, 0.0] and found.final.text == "green"
  assert [fault.split(":")[0] for fault in found.faults] == ["plan"]
  first, _, mended = (
    asked[0][1] for asked in policy.asked if (asked and asked[0][0] == "plan")
  )
  assert mended.startswith(first) and "no</ret>" not in mended
  assert "It cannot be used: tags are ‹ret> ‹/ret>; wanted" in mended
  # What mends is no step of the protocol, so nobody learns from it.
  assert seen == ["plan", "plan", "final"]


def test_no_plan_in_all_tries_leads_to_the_final_answer():
  script = lambda kind, *rest: (
    "no plan" if kind == "plan" else gold(kind, *rest)
  )
  (found,), *_ = walk(script, COLOUR)
  assert found.rounds == () and found.final.text == "green"
  assert [f.split(":")[0] for f in found.faults] == ["plan", "stuck"]


def test_a_repeated_plan_ends_planning():
  script = lambda kind, *rest: (
    plan("Which?", "text") if kind == "plan" else answer("x")
  )
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
  kinds = [asked[0][0] for asked in policy.asked if asked]
  assert kinds == ["plan", "answer", "answer", "plan", "final", "final"]
  assert "Answer1: it is chad\n" in policy.asked[-1][0][1]


@pytest.mark.parametrize("method", registry.METHODS)
def test_a_missing_picture_harms_only_its_question(method):
  broken = dataclasses.replace(PEOPLE, id="broken", image="missing.png")
  by = registry.METHODS[method](0)
  found, *_ = walk(gold, broken, PEOPLE, COLOUR, by=by)
  assert found[1:] == walk(gold, PEOPLE, COLOUR, by=by)[0]
  assert found[0].final == Malformed("", "missing.png does not exist.")
  assert found[0].faults == ("input: missing.png does not exist.",)
  assert found[0].rounds == () and found[0].tokens == 0


def test_an_empty_question_is_named():
  with pytest.raises(ValueError, match="'q/empty' is empty"):
    walk(gold, COLOUR, Question("q/empty", "  "))
  assert walk(gold)[0] == []


def routes(method, *questions, script=gold):
  found, policy, _ = walk(script, *questions, by=registry.METHODS[method](0))
  plans = sum(kind == "plan" for asked in policy.asked for kind, _ in asked)
  return [[r.plan.route for r in each.rounds] for each in found], plans


def test_baselines_that_need_no_plan():
  assert routes("always_text", PEOPLE, COLOUR) == ([["text"]] * 2, 0)
  assert routes("always_all", COLOUR) == ([["text", "image", "table"]], 0)
  assert routes("never", COLOUR) == ([[]], 0)
  (found,), policy, _ = walk(
    gold, COLOUR, by=registry.METHODS["always_table"](0)
  )
  assert found.rounds[0].plan.sub_question == COLOUR.text
  assert [[kind for kind, _ in a] for a in policy.asked if a] == [
    ["answer"],
    ["final"],
  ]


def test_oracle_route_knows_where_and_when():
  wrong = lambda kind, prompt, temperature: (
    plan(f"What after {len(prompt)}?", "text")
    if kind == "plan"
    else answer("Chad")
  )
  assert routes("oracle_route", PEOPLE, COLOUR, script=wrong) == (
    [["image", "table"], []],
    2,
  )


def test_random_routes_are_uniform_and_the_stop_is_the_policys():
  many = [dataclasses.replace(PEOPLE, id=f"q/{n}") for n in range(300)]
  found, _ = routes("random_route", *many)
  assert {len(each) for each in found} == {2}
  first = [each[0] for each in found]
  assert all(80 < first.count(kb) < 120 for kb in ("text", "image", "table"))
  assert found == routes("random_route", *reversed(many))[0][::-1]


def several(kind, prompt, temperature):
  """Asks two knowledge bases, then the same two, the other way round."""
  if kind == "plan":
    first = "Answer1" not in prompt
    return plan(
      "Which?" if first else "WHICH?",
      *("table", "image")[:: 1 if first else -1],
    )
  return answer("x")


def test_each_named_knowledge_base_is_asked_the_same():
  (one, two), policy, kbs = walk(
    several, PEOPLE, COLOUR, k=2, of=fakes.Scripted(several, routes=2)
  )
  assert kbs["table"].queries == [Query("Which?")]  # The same for both.
  assert kbs["image"].queries == [Query("Which?", "chad.png"), Query("Which?")]
  assert kbs["text"].queries == []
  for found in (one, two):
    (done,) = found.rounds
    assert done.plan == Plan("because", "Which?", "table", ("image",))
    assert [p.id for p in done.passages] == [
      "table/0",
      "table/1",
      "image/0",
      "image/1",
    ]
    assert found.faults == ("repeated: WHICH?",)
  (_, prompt), _ = policy.asked[1]
  assert "tir-0: image on Which?\ntir-1" in prompt and "tar-1: table" in prompt
  # A part of the same question goes its own way.
  alone, *_ = walk(several, COLOUR, k=2, of=fakes.Scripted(several, routes=2))
  assert alone == [two]


def test_other_routes_are_no_repetition():
  def script(kind, prompt, temperature):
    if kind != "plan":
      return answer("x")
    n = prompt.count("Answer")
    return plan("Which?", *(("text",), ("text", "table"), ("text",))[n])

  (found,), *_ = walk(script, COLOUR, of=fakes.Scripted(script, routes=2))
  assert [r.plan.routes for r in found.rounds] == [("text",), ("text", "table")]
  assert found.faults == ("repeated: Which?",)


def test_several_routes_are_a_fault_where_one_may_be_named():
  (found,), *_ = walk(several, COLOUR)
  assert found.rounds == () and [f.split(":")[0] for f in found.faults] == [
    "plan",
    "stuck",
  ]


@pytest.mark.parametrize("method", ["random_route", "oracle_route"])
def test_a_baseline_puts_its_route_in_place_of_all(method):
  (found,), *_ = walk(
    several,
    PEOPLE,
    of=fakes.Scripted(several, routes=3),
    by=registry.METHODS[method](0),
    max_steps=1,
  )
  assert [len(r.plan.routes) for r in found.rounds] == [1]


class Album(fakes.Echo):
  """Finds pictures, every other of which cannot be read."""

  def _find(self, queries, k):
    return [
      [
        Passage(f"{n}", "image", "a b c", f"{('missing', 'good')[n % 2]}{n}")
        for n in range(k)
      ]
      for _ in queries
    ]


def test_a_missing_picture_of_a_passage_costs_nothing():
  class Seeing(fakes.Scripted):
    def generate(self, conversations, *of, **how):
      self.pictures += [c.pictures for c in conversations if c.kind == "answer"]
      return super().generate(conversations, *of, **how)

    pictures = []

  bases = fakes.kbs() | dict(image=Album("image"))
  policy = Seeing(gold, passage_pictures=2)
  (found,) = router.route(policy, bases, [PEOPLE], KEY, k=3)
  plain = router.route(fakes.Scripted(gold), bases, [PEOPLE], KEY, k=3)
  assert found == dataclasses.replace(
    plain[0], faults=("picture: missing0 does not exist.",)
  )
  assert found.final.text == "18 million" and STYLES["full"].answer_image
  assert policy.pictures == [("missing0", "good1", "chad.png"), ("chad.png",)]


def test_what_passages_lose_is_counted():
  """Rounds read 2 x 5 and 2 x 8 words of passages, of which 6 are shown."""
  (people, colour), *_ = walk(
    gold, PEOPLE, COLOUR, k=2, of=fakes.Scripted(gold, tokens=6)
  )
  words = [len(p.text.split()) for r in people.rounds for p in r.passages]
  assert words == [6, 6, 8, 8]
  assert (
    people.truncated_tokens == (12 - 6) + (16 - 6)
    and colour.truncated_tokens == 0
  )
