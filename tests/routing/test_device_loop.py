"""The fused loop gives the trajectories of the one that the host drives."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from r1router_jax.common.records import Plan, Step
from r1router_jax.data import georouter
from r1router_jax.generation import token_sampling
from r1router_jax.parallel import mesh
from r1router_jax.policy import policy
from r1router_jax.protocol.messages import PassageTokens
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.index import exact
from r1router_jax.routing import (
  device_loop,
  policy_requests,
  route_policies,
  router,
)
from r1router_jax.routing.baselines import registry
from tests import tiny_policy, two_processes
from tests.retrieval.fakes import Words

KEY = jax.random.key(3)

by = lambda planner: policy_requests.Approach(
  functools.partial(router.loop, planner=planner)
)

WARM = dict(method=token_sampling.SamplingParams(0.8), members=2, k=2)


def kbs(count=80):
  """Real knowledge bases over some of the world, searched without JAX."""
  return {
    kb: local_kb.LocalKB(
      local_kb.Content(some, Words(), exact.ExactIndex(Words()(some)))
    )
    for kb in ("text", "image", "table")
    for some in [list(georouter.passages(kb))[:count]]
  }


def questions(count=14):
  """Every third with a picture, and one with none that can be read."""
  asked = georouter.questions("test")
  shown = [q for q in asked if q.image]
  told = [q for q in asked if not q.image]
  some = [shown[n] if n % 3 == 0 else told[n] for n in range(count)]
  return [
    dataclasses.replace(some[0], id="broken", image="missing.png"),
    *some[1:],
  ]


def warm(devices):
  """The shipped policy, on so many devices."""
  made = policy.load("warm_start")
  return dataclasses.replace(
    made,
    settings=dataclasses.replace(
      made.settings,
      prompt_tokens=(96, 160),
      response_tokens=(40,),
      batch_rows=8,
    ),
    mesh=jax.sharding.Mesh(
      np.array(jax.local_devices()[:devices]), (mesh.DATA,)
    ),
  )


def both(devices, asked):
  """Trajectories and kept steps, driven by the host and fused."""
  of, bases = warm(devices), kbs()
  for walk in (router.route, device_loop.route):
    kept = []
    yield (
      walk(
        of,
        bases,
        asked,
        KEY,
        **WARM,
        keep=lambda step, group, kept=kept: kept.append(
          (step, [response.text for response in group])
        ),
      ),
      kept,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
  "devices", [pytest.param(1, marks=pytest.mark.long), 4]
)
def test_as_driven_by_the_host(devices):
  (wanted, kept), (found, fused_kept) = both(devices, questions())
  assert sum(len(each.rounds) for each in wanted) > 10
  assert wanted[0].faults[0].startswith("input")
  assert found == wanted
  order = lambda kept: sorted(kept, key=repr)
  assert order(fused_kept) == order(kept)


@pytest.mark.slow
def test_a_baseline_is_driven_as_well():
  """Its prompts, and the texts that end its responses, are data, too."""
  wanted, found = (
    walk(
      warm(1),
      kbs(),
      questions(8),
      KEY,
      method=token_sampling.SamplingParams(0.8),
      by=registry.METHODS["search_r1"](0),
    )
    for walk in (router.route, device_loop.route)
  )
  assert found == wanted and sum(len(each.rounds) for each in wanted) > 4
  ends = registry.METHODS["search_r1"](0)._replace(stop=("</sub-question>",))
  wanted, found = (
    walk(warm(1), kbs(), questions(8), KEY, by=ends)
    for walk in (router.route, device_loop.route)
  )
  assert found == wanted and any(
    each.faults[0].startswith(
      "plan: tags are <think> </think> <sub-question> </sub-question>;"
    )
    for each in wanted[1:]
    if each.faults
  )


CHILD = """
import jax
from r1router_jax import pods
pods.join_pod()
from tests import test_fused
mine = test_fused.questions()[jax.process_index()::2]
(wanted, kept), (found, _) = test_fused.both(2, mine)
assert found == wanted and len(kept) > 10
print("alike", len(found), jax.process_count())
"""


@pytest.mark.long
def test_each_host_walks_its_own_questions(tmp_path):
  assert all(
    "alike 7 2" in said
    for said in two_processes.run(CHILD, tmp_path, timeout=400)
  )


@pytest.mark.parametrize("count", [1, 2])
def test_devices_may_have_no_question(count):
  """Nor one that can be read, which the first is not."""
  of = policy.Policy(
    dataclasses.replace(
      tiny_policy.SETTINGS,
      prompt_tokens=(112,),
      response_tokens=(4,),
      batch_rows=2,
    ),
    tiny_policy.TOKENIZER,
    tiny_policy.params(tiny_policy.SPOKEN),
    jax.sharding.Mesh(np.array(jax.local_devices()[:4]), (mesh.DATA,)),
  )
  planner = route_policies.always("text")
  wanted, found = (
    walk(of, kbs(10), questions(count), KEY, by=by(planner))
    for walk in (router.route, device_loop.route)
  )
  assert found == wanted and len(found) == count
  assert wanted[0].faults[0].startswith("input")


def test_options_change_nothing_about_who_drives():
  """Two routes a plan, pictures of passages, one that is gone, and limits."""
  options = dict(
    routes=2,
    passage_pictures=2,
    passage_tokens=PassageTokens(text=9, image=20),
    prompt_tokens=(112,),
    response_tokens=(4,),
    batch_rows=4,
  )
  of = policy.Policy(
    dataclasses.replace(tiny_policy.SETTINGS, **options),
    tiny_policy.TOKENIZER,
    tiny_policy.params(tiny_policy.SPOKEN),
    jax.sharding.Mesh(np.array(jax.local_devices()[:1]), (mesh.DATA,)),
  )
  bases = kbs(10)
  flags = bases["image"].content.passages
  flags[:] = [
    dataclasses.replace(passage, image="gone.png")
    if passage.id == "image/flag/argentina"
    else passage
    for passage in flags
  ]
  plans = [
    Plan("", "Which flag?", "image", ("text",)),
    Plan("", "How many people?", "table", ("image",)),
    route_policies.STOP,
  ]
  planner = route_policies.Planner(fixed=lambda question, n: plans[n])
  wanted, found = (
    walk(
      of,
      bases,
      questions(3)[1:],
      KEY,
      by=by(planner),
      k=3,
      method=token_sampling.SamplingParams(0.8),
    )
    for walk in (router.route, device_loop.route)
  )
  assert found == wanted and len(found) == 2
  for each in wanted:
    shown = [
      len(
        of.packer.encode(
          of.settings.conversation(
            Step(
              "",
              "answer",
              each.question,
              sub_question="?",
              passages=done.passages,
            )
          )
        ).pictures
      )
      for done in each.rounds
    ]
    assert shown == [2, 1] and each.truncated_tokens > 0
    assert [len(done.passages) for done in each.rounds] == [6, 6]
    assert sum(f.startswith("picture: 'gone.png'") for f in each.faults) == 1


def test_a_knowledge_base_that_would_wait_is_refused():
  of, bases = warm(1), kbs(5)
  bases["table"].content.embedder.devices = tuple(jax.local_devices())
  with pytest.raises(ValueError, match="table knowledge base .*serve_kb"):
    device_loop.route(of, bases, questions(2), KEY)


def test_a_fault_of_a_search_keeps_its_kind():
  of, bases = warm(1), kbs(5)

  def search(queries, k):
    raise TimeoutError("the server is gone")

  for base in bases.values():
    base.search = search
  with pytest.raises(TimeoutError, match="the server is gone"):
    device_loop.route(of, bases, questions(4), KEY)
  assert not device_loop._HOSTS
