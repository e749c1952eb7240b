"""Policies, questions and knowledge bases for tests of the device loop.

A module of its own, because processes that tests start import it, too.
"""

import dataclasses

import jax
import numpy as np

from r1router_jax.data import georouter
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.parallel import mesh
from r1router_jax.policy import policy
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.index import exact
from r1router_jax.routing import device_loop, router
from r1router_jax.routing.router import RolloutOptions
from tests import tiny_policy
from tests.retrieval.fakes import WordEmbedder

KEY = jax.random.key(3)

LOOPS = (router.run_routing, device_loop.run_routing_on_devices)


def load_kbs(count=80):
  """Return real knowledge bases of some passages, searched without JAX."""
  kbs, embed = {}, WordEmbedder()
  for kind in ("text", "image", "table"):
    passages = list(georouter.load_passages(kind))[:count]
    stack = local_kb.SearchStack(
      passages, WordEmbedder(), exact.ExactIndex(embed(passages))
    )
    kbs[kind] = local_kb.LocalKB(stack)
  return kbs


def load_questions(count=14):
  """Return questions, every third with an image; the first one's is missing."""
  questions = georouter.load_questions("test")
  with_image = [q for q in questions if q.image]
  without_image = [q for q in questions if not q.image]
  kinds = with_image, without_image, without_image
  chosen = [kinds[n % 3][n] for n in range(count)]
  # Its episode ends before the first request.
  chosen[0] = dataclasses.replace(chosen[0], id="broken", image="missing.png")
  return chosen


def data_mesh(devices):
  """Return a mesh of so many devices along the batch."""
  some = np.array(jax.local_devices()[:devices])
  return jax.sharding.Mesh(some, (mesh.DATA,))


def load_warm_start(devices):
  """Return the shipped policy on some devices."""
  loaded = policy.load("warm_start")
  config = dataclasses.replace(
    loaded.config,
    # Two lengths, so that requests use both branches of the program.
    prompt_tokens=(96, 160),
    response_tokens=(40,),
    decode_batch_size=8,
  )
  return dataclasses.replace(loaded, config=config, mesh=data_mesh(devices))


def make_random_policy(devices, **fields):
  """Return a tiny policy of random weights on some devices."""
  return policy.Policy(
    dataclasses.replace(tiny_policy.POLICY_CONFIG, **fields),
    tiny_policy.TOKENIZER,
    tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG),
    data_mesh(devices),
  )


def run_both_loops(asked, kbs, questions, **options):
  """Return the trajectories by the host and by the devices."""
  options = RolloutOptions(**options)
  return [run(asked, kbs, questions, KEY, options) for run in LOOPS]


def run_groups_both_ways(devices, questions):
  """Return (trajectories, sorted steps with the texts of their groups)."""
  asked, kbs, results = load_warm_start(devices), load_kbs(), []
  for run in LOOPS:
    # Loops report steps in an order of their own, so they are sorted.
    steps = []

    def on_step(visited, steps=steps):
      texts = [response.text for response in visited.responses]
      steps.append((visited.step, texts))

    options = dict(sampling=SamplingParams(0.8), group_size=2, k=2)
    options = RolloutOptions(on_step=on_step, **options)
    trajectories = run(asked, kbs, questions, KEY, options)
    results.append((trajectories, sorted(steps, key=repr)))
  return results
