"""The device loop gives the trajectories of the loop that the host drives."""

import dataclasses
import functools

import jax
import pytest

from r1router_jax.common.records import Plan, Query, Step
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.protocol.messages import PassageTokens
from r1router_jax.routing import device_loop
from r1router_jax.routing.answering_methods import STOP, AlwaysRoute, R1Router
from r1router_jax.routing.baselines import registry
from r1router_jax.routing.device_loop import run_routing_on_devices
from tests import tiny_policy, two_processes
from tests.routing.device_loop_cases import (
  KEY,
  load_kbs,
  load_questions,
  load_warm_start,
  make_random_policy,
  run_both_loops,
  run_groups_both_ways,
)


@pytest.mark.slow
@pytest.mark.parametrize(
  "devices", [pytest.param(1, marks=pytest.mark.long), 4]
)
def test_device_loop_equals_host_loop(devices):
  by_host, by_devices = run_groups_both_ways(devices, load_questions())
  # The comparison means something: there are rounds, groups and a fault.
  trajectories, steps = by_host
  assert sum(len(each.rounds) for each in trajectories) > 10 and len(steps) > 10
  assert trajectories[0].faults[0].startswith("input")
  assert by_devices == by_host


@pytest.mark.slow
def test_device_loop_runs_baselines():
  """Prompts, and the texts that end responses, are data of the program."""
  # A method with texts that end a response, and knowledge bases of two kinds.
  search_r1, kbs = registry.METHODS["search_r1"], load_kbs()
  del kbs["table"]
  task = load_warm_start(1), kbs, load_questions(8)
  options = dict(sampling=SamplingParams(0.8), method=search_r1)
  wanted, found = run_both_loops(*task, **options)
  assert found == wanted and sum(len(each.rounds) for each in wanted) > 4
  assert any("route: no table" in " ".join(each.faults) for each in wanted)
  # The stop texts end responses before the route is written.
  task = load_warm_start(1), load_kbs(), load_questions(8)
  cut = dataclasses.replace(search_r1, stop=("</sub-question>",))
  wanted, found = run_both_loops(*task, method=cut)
  assert found == wanted
  first_faults = [each.faults[0] for each in wanted[1:] if each.faults]
  cut_off = "plan: tags are <think> </think> <sub-question> </sub-question>;"
  assert any(fault.startswith(cut_off) for fault in first_faults)


CHILD = """
import jax
from r1router_jax.parallel import multihost
multihost.initialize_distributed()
from tests.routing import device_loop_cases as cases
# Hosts have different questions, and so other numbers of requests.
own = cases.load_questions()[jax.process_index()::2]
by_host, by_devices = cases.run_groups_both_ways(2, own)
assert by_devices == by_host and len(by_host[1]) > 10
print("alike", len(by_host[0]), jax.process_count())
"""


@pytest.mark.long
def test_each_host_answers_its_own_questions(tmp_path):
  outputs = two_processes.run_two_processes(CHILD, tmp_path, timeout=400)
  assert all("alike 7 2" in output for output in outputs)


SHORT = dict(prompt_tokens=(112,), response_tokens=(4,))


@pytest.mark.parametrize("count", [1, 2])
def test_devices_may_have_no_question(count):
  """The first question cannot even be read."""
  policy = make_random_policy(4, **SHORT)
  task = policy, load_kbs(10), load_questions(count)
  wanted, found = run_both_loops(*task, method=AlwaysRoute(kbs=("text",)))
  assert found == wanted and len(found) == count
  assert wanted[0].faults[0].startswith("input")


@dataclasses.dataclass(frozen=True)
class FixedPlans(R1Router):
  """R1-Router with plans of two routes each that are given beforehand."""

  def fixed_plan(self, question, n):
    """Return the plan of round `n`."""
    first = Plan("", "Which flag?", ("image", "text"))
    return (first, Plan("", "How many people?", ("table", "image")), STOP)[n]


def count_shown_images(policy, question, passages):
  step = Step("", "answer", question, sub_question="?", passages=passages)
  return len(policy.processor.encode(policy.config.build_prompt(step)).images)


def test_device_loop_supports_all_extensions():
  """Two routes a plan, images of passages, a missing one, and token limits."""
  options = dict(max_routes=2, passage_images=2, decode_batch_size=4)
  options["passage_tokens"] = PassageTokens(text=9, image=20)
  policy = make_random_policy(1, **SHORT, **options)
  kbs = load_kbs(10)
  # One passage names an image that does not exist.
  passages = kbs["image"].stack.passages
  for n, passage in enumerate(passages):
    if passage.id == "image/flag/argentina":
      passages[n] = dataclasses.replace(passage, image="gone.png")
  options = dict(method=FixedPlans(), k=3, sampling=SamplingParams(0.8))
  wanted, found = run_both_loops(policy, kbs, load_questions(3)[1:], **options)
  assert found == wanted and len(found) == 2
  for each in wanted:
    # In the second round one of the two images is the missing one.
    count = functools.partial(count_shown_images, policy, each.question)
    assert [count(done.passages) for done in each.rounds] == [2, 1]
    assert each.truncated_tokens > 0
    assert [len(done.passages) for done in each.rounds] == [6, 6]
    assert sum(f.startswith("picture: 'gone.png'") for f in each.faults) == 1


def test_policy_of_texts_searches_by_the_image():
  marked = dict(model=tiny_policy.TEXT_MODEL, image_marker=tiny_policy.MARKER)
  policy = make_random_policy(1, **SHORT, **marked, max_routes=2)
  kbs, queries = load_kbs(10), []

  def search(asked, k, search=kbs["image"].search):
    queries.extend(asked)
    return search(asked, k)

  kbs["image"].search = search
  questions = load_questions(4)
  wanted, found = run_both_loops(policy, kbs, questions, method=FixedPlans())
  assert found == wanted and len(found) == 4
  # The image of the first one is missing, and that of the last one is found.
  assert wanted[0].faults[0].startswith("input: 'missing.png'")
  assert questions[3].image and not any(q.image for q in questions[1:3])
  assert Query("Which flag?", questions[3].image) in queries
  assert {query.image for query in queries} == {"", questions[3].image}


def test_knowledge_base_on_the_same_devices_is_refused():
  kbs = load_kbs(5)
  # As an embedder on the accelerator says.
  kbs["table"].stack.embedder.devices = tuple(jax.local_devices())
  with pytest.raises(ValueError, match="table knowledge base .*serve_kb"):
    run_routing_on_devices(load_warm_start(1), kbs, load_questions(2), KEY)


def test_exception_of_a_search_keeps_its_type():
  kbs = load_kbs(5)

  def search(queries, k):
    raise TimeoutError("the server is gone")

  for kb in kbs.values():
    kb.search = search
  with pytest.raises(TimeoutError, match="the server is gone"):
    run_routing_on_devices(load_warm_start(1), kbs, load_questions(4), KEY)
  # States of a failed program are released.
  assert not device_loop._CALLBACK_STATES
