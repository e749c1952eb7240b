from dataclasses import replace

import jax
import pytest

from r1router_jax.common.records import (
  KBS,
  Malformed,
  Passage,
  Plan,
  Query,
  Question,
)
from r1router_jax.protocol.templates import STYLES
from r1router_jax.routing import router
from r1router_jax.routing.baselines.registry import METHODS
from r1router_jax.routing.router import RolloutOptions
from tests import fakes
from tests.fakes import (
  COLOUR,
  PEOPLE,
  ScriptedPolicy,
  good_script,
  write_answer,
  write_plan,
)

KEY = jax.random.key(0)


def run_script(script, *questions, policy=None, in_flight=1, **options):
  """Return trajectories, the policy with its prompts, and knowledge bases."""
  # New knowledge bases for each run, since they record their queries.
  policy, kbs = policy or ScriptedPolicy(script), fakes.make_kbs()
  task = policy, kbs, questions, KEY, RolloutOptions(**options)
  return router.run_routing(*task, in_flight=in_flight), policy, kbs


def call_kinds(policy):
  """Return the kinds of the prompts of each call."""
  return [[kind for kind, _ in call] for call in policy.prompts if call]


def fault_kinds(trajectory):
  return [fault.split(":")[0] for fault in trajectory.faults]


def test_questions_stop_independently():
  (people, colour), policy, kbs = run_script(good_script, PEOPLE, COLOUR, k=2)
  which, count = "Which country is this?", "How many people live in Chad?"
  assert [
    (r.plan.routes, r.plan.sub_question, r.answer.text) for r in people.rounds
  ] == [(("image",), which, "Chad"), (("table",), count, "18 million")]
  shown = [p.text for p in people.rounds[0].passages]
  assert shown == [f"image on {which}"] * 2
  assert people.final.text == "18 million" and not people.faults
  assert colour.rounds == () and colour.final.text == "green"
  # Only the image knowledge base is searched with the image.
  assert kbs["image"].queries == [Query(which, "chad.png")]
  # Other knowledge bases get the sub-question alone.
  assert kbs["table"].queries == [Query(count)]
  # The last plan of `people` is the stop; the final step is asked for both.
  rounds = [["plan"] * 2, ["answer"], ["plan"], ["answer"], ["plan"]]
  assert call_kinds(policy) == [*rounds, ["final"] * 2]
  # Tokens of the fake are words; all responses count, plans that stop, too.
  written = [
    *(write_plan(which, "image"), write_answer("Chad")),
    *(write_plan(count, "table"), write_answer("18 million")),
    *(write_plan("None"), write_answer("18 million")),
  ]
  assert people.tokens == sum(len(text.split()) for text in written)


def test_trajectory_is_independent_of_other_questions():
  # Both at once, and each alone.
  together, *_ = run_script(good_script, PEOPLE, COLOUR)
  alone = [run_script(good_script, q)[0][0] for q in (PEOPLE, COLOUR)]
  assert together == alone


@pytest.mark.parametrize("in_flight", [2, 3, 5])
def test_parts_in_flight_give_the_same_trajectories(in_flight):
  # Four questions: parts of equal, of unequal and of no size.
  many = [
    replace(q, id=f"{q.id}/{n}") for n in range(2) for q in (PEOPLE, COLOUR)
  ]
  trajectories, steps = {}, {}
  for count in (1, in_flight):
    seen = steps[count] = []

    def on_step(visited, seen=seen):
      seen.append((visited.step, visited.responses[0].text))

    options = dict(in_flight=count, on_step=on_step)
    trajectories[count], *_ = run_script(good_script, *many, **options)
  assert trajectories[in_flight] == trajectories[1]
  # Steps are reported part by part.
  assert sorted(steps[in_flight], key=repr) == sorted(steps[1], key=repr)


def test_max_steps_limits_rounds():
  # Sub-questions that never repeat, so that only the limit ends planning.
  numbers = iter(range(100))

  def script(kind, prompt, temperature):
    if kind == "plan":
      return write_plan(f"What is {next(numbers)}?", "text")
    return write_answer("x")

  (found,), *_ = run_script(script, COLOUR, max_steps=2)
  assert len(found.rounds) == 2 and not found.faults


def test_malformed_plan_is_resampled_at_temperature_1():
  temperatures = []

  def script(kind, prompt, temperature):
    if kind == "plan":
      temperatures.append(temperature)
      return good_script(kind, prompt, 0) if temperature else "no plan"
    return good_script(kind, prompt, 0)

  (found,), *_ = run_script(script, PEOPLE)
  # Three plans: two searches and the stop.
  assert temperatures == [0.0, 1.0] * 3
  assert len(found.rounds) == 2 and found.final.text == "18 million"
  assert fault_kinds(found) == ["plan"]


def test_plan_that_fails_twice_is_repaired():
  """The third prompt shows the response and why it cannot be used."""
  temperatures = []

  def script(kind, prompt, temperature):
    if kind == "plan":
      temperatures.append(temperature)
      if "Your last reply" not in prompt:
        return "<ret>no</ret> plan"
    return good_script(kind, prompt, 0)

  seen = []
  (found,), policy, _ = run_script(script, COLOUR, on_step=seen.append)
  assert temperatures == [0.0, 1.0, 0.0] and found.final.text == "green"
  assert fault_kinds(found) == ["plan"]
  calls = [call[0] for call in policy.prompts if call]
  first, _, repair = (prompt for kind, prompt in calls if kind == "plan")
  # The failed response is escaped before it is shown.
  assert repair.startswith(first) and "no</ret>" not in repair
  assert "It cannot be used: tags are ‹ret> ‹/ret>; wanted" in repair
  steps = [(visited.step.kind, visited.is_repair) for visited in seen]
  assert steps == [*[("plan", False)] * 2, ("plan", True), ("final", False)]
  assert seen[2].prompt != seen[1].prompt == seen[0].prompt


def test_no_plan_in_all_tries_leads_to_the_final_answer():
  def script(kind, *rest):
    return "no plan" if kind == "plan" else good_script(kind, *rest)

  (found,), *_ = run_script(script, COLOUR)
  assert found.rounds == () and found.final.text == "green"
  assert fault_kinds(found) == ["plan", "stuck"]


def test_repeated_plan_ends_planning():
  def script(kind, *rest):
    return write_plan("Which?", "text") if kind == "plan" else write_answer("x")

  (found,), *_ = run_script(script, COLOUR)
  # The second, equal plan is not carried out.
  assert len(found.rounds) == 1 and found.faults == ("repeated: Which?",)


@pytest.mark.parametrize(
  ("question", "kinds", "searched"),
  [
    # The only question with an image is one that its own image may answer.
    (COLOUR, KBS, ["table", "text"]),
    (PEOPLE, KBS, ["table", "text", "image"]),
    (PEOPLE, ("table", "image"), ["table", "image"]),
    (COLOUR, ("table", "image"), ["table"]),
    (COLOUR, ("table",), ["table"]),
  ],
)
def test_repeated_plan_goes_elsewhere(question, kinds, searched):
  def script(kind, *rest):
    # Letters of another case make no other sub-question.
    asked = "WHICH?" if "Which?" in rest[0] else "Which?"
    plan = kind == "plan"
    return write_plan(asked, "table") if plan else write_answer("unknown")

  policy = ScriptedPolicy(script, searches_elsewhere=True)
  (found,) = run_with(kinds, script, question, policy=policy)
  assert [r.plan.routes for r in found.rounds] == [(kb,) for kb in searched]
  assert all(p.kb == r.plan.routes[0] for r in found.rounds for p in r.passages)
  moved = [f"route: table again, {kb} was searched" for kb in searched[1:]]
  ended = [] if len(searched) == 3 else ["repeated"]
  assert list(found.faults)[: len(moved)] == moved
  assert fault_kinds(found)[len(moved) :] == ended


def test_malformed_answers_are_kept_without_tags():
  def script(kind, prompt, temperature):
    if kind == "plan":
      done = "it is chad" in prompt
      return write_plan("None") if done else write_plan("Which?", "text")
    return "<think>It is</think> Chad" if kind == "answer" else "green"

  (found,), policy, _ = run_script(script, COLOUR)
  # Both attempts failed, for the answer as for the final answer.
  assert isinstance(found.rounds[0].answer, Malformed)
  assert isinstance(found.final, Malformed) and found.final.text == "green"
  assert fault_kinds(found) == ["answer", "final"]
  kinds = [call[0] for call in call_kinds(policy)]
  assert kinds == "plan answer answer plan final final".split()
  # In the history the malformed answer stands without its tags.
  assert "Answer1: it is chad\n" in policy.prompts[-1][0][1]


@pytest.mark.parametrize("name", METHODS)
def test_missing_image_affects_only_its_question(name):
  broken = replace(PEOPLE, id="broken", image="missing.png")
  method = METHODS[name]
  # Neighbours are as without the broken question.
  found, *_ = run_script(good_script, broken, PEOPLE, COLOUR, method=method)
  assert found[1:] == run_script(good_script, PEOPLE, COLOUR, method=method)[0]
  assert found[0].final == Malformed("", "missing.png does not exist.")
  assert found[0].faults == ("input: missing.png does not exist.",)
  assert found[0].rounds == () and found[0].tokens == 0


def test_empty_question_is_rejected():
  with pytest.raises(ValueError, match="'q/empty' is empty"):
    run_script(good_script, COLOUR, Question("q/empty", "  "))
  # No question at all is no fault.
  assert run_script(good_script)[0] == []


def run_method(name, *questions, script=good_script):
  """Return the route of each round, and how many plans the policy wrote."""
  found, policy, _ = run_script(script, *questions, method=METHODS[name])
  plans = sum(kinds.count("plan") for kinds in call_kinds(policy))
  routes = [[kb for r in each.rounds for kb in r.plan.routes] for each in found]
  return routes, plans


def test_fixed_routes_need_no_plan():
  assert run_method("always_text", PEOPLE, COLOUR) == ([["text"]] * 2, 0)
  assert run_method("always_all", COLOUR) == ([["text", "image", "table"]], 0)
  # No route: straight to the final answer.
  assert run_method("never", COLOUR) == ([[]], 0)
  (found,), policy, _ = run_script(
    good_script, COLOUR, method=METHODS["always_table"]
  )
  assert found.rounds[0].plan.sub_question == COLOUR.text
  assert call_kinds(policy) == [["answer"], ["final"]]


def test_oracle_route_follows_the_gold_hops():
  def wrong(kind, prompt, temperature):
    if kind == "plan":
      return write_plan(f"What after {len(prompt)}?", "text")
    return write_answer("Chad")

  found = run_method("oracle_route", PEOPLE, COLOUR, script=wrong)
  assert found == ([["image", "table"], []], 2)


def test_random_routes_are_uniform_and_policy_decides_to_stop():
  many = [replace(PEOPLE, id=f"q/{n}") for n in range(300)]
  found, _ = run_method("random_route", *many)
  assert {len(each) for each in found} == {2}
  # Each question has two searches, by the policy's own decision.
  first = [each[0] for each in found]
  # 300 draws of three routes: 100 each, within about 2.5 standard deviations.
  assert all(80 < first.count(kb) < 120 for kb in ("text", "image", "table"))
  # The draw depends on the question, not on its place.
  assert found == run_method("random_route", *reversed(many))[0][::-1]


# Two routes in one plan.
def ask_two_kbs(kind, prompt, temperature):
  """Ask two knowledge bases, then the same two, the other way round."""
  if kind == "plan":
    if "Answer1" in prompt:
      return write_plan("WHICH?", "image", "table")
    return write_plan("Which?", "table", "image")
  return write_answer("x")


def test_all_named_knowledge_bases_are_searched():
  script, policy = ask_two_kbs, ScriptedPolicy(ask_two_kbs, max_routes=2)
  options = dict(k=2, policy=policy)
  (one, two), _, kbs = run_script(script, PEOPLE, COLOUR, **options)
  assert kbs["table"].queries == [Query("Which?")]  # The same for both.
  assert kbs["image"].queries == [Query("Which?", "chad.png"), Query("Which?")]
  # Only the named ones are searched.
  assert kbs["text"].queries == []
  for found in (one, two):
    (done,) = found.rounds
    assert done.plan == Plan("because", "Which?", ("table", "image"))
    ids = " ".join(p.id for p in done.passages)
    assert ids == "table/0 table/1 image/0 image/1"
    # The order of routes, and case, make no other search.
    assert found.faults == ("repeated: WHICH?",)
  # Passages stand by knowledge base in the prompt, not by route.
  (_, prompt), _ = policy.prompts[1]
  assert "tir-0: image on Which?\ntir-1" in prompt and "tar-1: table" in prompt
  # The trajectory is the same without the other question.
  assert run_script(script, COLOUR, **options)[0] == [two]


def test_same_sub_question_by_other_routes_is_not_repeated():
  def script(kind, prompt, temperature):
    if kind != "plan":
      return write_answer("x")
    # Rounds so far, as the prompt shows them.
    n = prompt.count("Answer")
    return write_plan("Which?", *(("text",), ("text", "table"), ("text",))[n])

  policy = ScriptedPolicy(script, max_routes=2)
  (found,), *_ = run_script(script, COLOUR, policy=policy)
  assert [r.plan.routes for r in found.rounds] == [("text",), ("text", "table")]
  assert found.faults == ("repeated: Which?",)


def test_several_routes_are_malformed_by_default():
  (found,), *_ = run_script(ask_two_kbs, COLOUR)
  assert found.rounds == () and fault_kinds(found) == ["plan", "stuck"]


def run_with(kinds, script, *questions, **options):
  """Return trajectories over the knowledge bases of some kinds."""
  kbs = {kind: kb for kind, kb in fakes.make_kbs().items() if kind in kinds}
  policy = options.pop("policy", None) or ScriptedPolicy(script)
  options = RolloutOptions(**options)
  return router.run_routing(policy, kbs, questions, KEY, options)


@pytest.mark.parametrize(
  ("kinds", "searched"),
  [
    (("text", "image"), ["image", "text"]),
    (("text", "table"), ["text", "table"]),
    (("image",), ["image", "image"]),
    (("table",), ["table", "table"]),
    (("text",), ["text", "text"]),
  ],
)
def test_route_to_a_missing_knowledge_base_goes_to_another(kinds, searched):
  # The policy asks for an image, then for a table.
  (found,) = run_with(kinds, good_script, PEOPLE)
  assert [r.plan.routes for r in found.rounds] == [(kb,) for kb in searched]
  for done, kb in zip(found.rounds, searched, strict=True):
    assert [p.kb for p in done.passages] == [kb]
  assert found.final.text == "18 million"
  assert list(found.faults) == [
    f"route: no {wanted} knowledge base, {kb} was searched"
    for wanted, kb in zip(("image", "table"), searched, strict=True)
    if wanted != kb
  ]


def test_substitute_is_searched_once():
  policy = ScriptedPolicy(ask_two_kbs, max_routes=3)
  (found,) = run_with(("text", "table"), ask_two_kbs, COLOUR, policy=policy)
  # Texts take the place of images; the order of the routes is no other search.
  assert [r.plan.routes for r in found.rounds] == [("table", "text")]
  assert fault_kinds(found) == ["route", "repeated"]
  # Nor does the same question to texts bring anything, if these took its place.
  (found,) = run_with(("text",), ask_two_kbs, COLOUR, policy=policy)
  assert [r.plan.routes for r in found.rounds] == [("text",)]
  assert fault_kinds(found) == ["route", "route", "repeated"]


def test_search_without_any_knowledge_base_ends_planning():
  (found,) = run_with((), good_script, PEOPLE)
  assert found.rounds == () and found.final.text == "18 million"
  assert found.faults == (
    "route: no image knowledge base, nothing was searched",
  )


@pytest.mark.parametrize("name", METHODS)
def test_methods_search_the_knowledge_bases_that_are_there(name):
  for kinds in (("text",), ("table", "image")):
    for found in run_with(kinds, good_script, PEOPLE, method=METHODS[name]):
      searched = {kb for done in found.rounds for kb in done.plan.routes}
      assert searched <= set(kinds)
      assert {p.kb for done in found.rounds for p in done.passages} <= searched


@pytest.mark.parametrize("method", ["random_route", "oracle_route"])
def test_baseline_replaces_all_routes(method):
  policy = ScriptedPolicy(ask_two_kbs, max_routes=3)
  options = dict(policy=policy, method=METHODS[method], max_steps=1)
  (found,), *_ = run_script(ask_two_kbs, PEOPLE, **options)
  assert [len(r.plan.routes) for r in found.rounds] == [1]


class ImageKB(fakes.EchoKB):
  """A knowledge base of images, every other of which cannot be read."""

  def _search_uncached(self, queries, k):
    names = [f"{('missing', 'good')[n % 2]}{n}" for n in range(k)]
    found = [Passage(n[-1], "image", "a b c", n) for n in names]
    return [found for _ in queries]


def test_missing_passage_image_does_not_change_the_trajectory():
  # Images of the answer prompts, in order.
  images = []

  class ImageRecorder(ScriptedPolicy):
    def generate(self, conversations, *args, **options):
      images.extend(c.images for c in conversations if c.kind == "answer")
      return super().generate(conversations, *args, **options)

  kbs = fakes.make_kbs() | dict(image=ImageKB("image"))
  seeing = ImageRecorder(good_script, passage_images=2)
  found, plain = (
    router.run_routing(policy, kbs, [PEOPLE], KEY, RolloutOptions(k=3))[0]
    for policy in (seeing, ScriptedPolicy(good_script))
  )
  assert found == replace(plain, faults=("picture: missing0 does not exist.",))
  assert found.final.text == "18 million" and STYLES["full"].answer_image
  assert images == [("missing0", "good1", "chad.png"), ("chad.png",)]


def test_truncated_passage_tokens_are_counted():
  """Rounds read 2 x 5 and 2 x 8 words of passages, of which 6 are shown."""
  policy = ScriptedPolicy(good_script, max_passage_tokens=6)
  found, *_ = run_script(good_script, PEOPLE, COLOUR, k=2, policy=policy)
  people, colour = found
  # Two passages for each of two rounds.
  words = [len(p.text.split()) for r in people.rounds for p in r.passages]
  assert words == [6, 6, 8, 8]
  assert people.truncated_tokens == (12 - 6) + (16 - 6)
  assert colour.truncated_tokens == 0


class ForkingPolicy(ScriptedPolicy):
  """Odd members of a group stop at once, whatever the script says.

  `asked` are the group size and the members of each call.
  """

  def __init__(self, script):
    super().__init__(script)
    self.asked = []

  def generate(self, conversations, key, size, *rest, members):
    self.asked.append((size, tuple(members)))
    groups = super().generate(conversations, key, 1, *rest)
    for asked, group, member in zip(
      conversations, groups, members, strict=True
    ):
      if asked.kind == "plan" and member % 2:
        group[0] = replace(group[0], text=write_plan("None"))
    return groups


def test_trajectories_of_a_question_are_walked_side_by_side():
  seen, policy = [], ForkingPolicy(good_script)
  options = dict(policy=policy, trajectories=4, in_flight=2)
  found, *_ = run_script(None, COLOUR, PEOPLE, on_step=seen.append, **options)
  # Those of a question stand together; the odd ones have no round.
  assert [t.question for t in found] == [COLOUR] * 4 + [PEOPLE] * 4
  assert [len(t.rounds) for t in found] == [0] * 4 + [2, 0] * 2
  # Each prompt is asked as one member of a group of four.
  assert {size for size, _ in policy.asked} == {4}
  assert (0, 1, 2, 3) in [members for _, members in policy.asked]
  # Responses are reported with the members that they belong to.
  finals = [(v.step.question, v.member) for v in seen if v.step.kind == "final"]
  everyone = [(q, m) for q in (COLOUR, PEOPLE) for m in range(4)]
  assert sorted(finals, key=repr) == sorted(everyone, key=repr)


def test_half_a_surrogate_pair_in_a_question_is_replaced(caplog):
  odd = Question("q/odd", "What \ud83d is it?")
  (colour, found), policy, _ = run_script(good_script, COLOUR, odd)
  assert colour.final.text == "green"
  assert found.question.text == "What \ufffd is it?"
  assert not any(
    "\ud83d" in text for call in policy.prompts for _, text in call
  )
  assert "1 halves of surrogate pairs" in caplog.text
