"""Our sampler; without `case["shared"]` each member has a prompt of its own."""

import engine
import jax
import numpy as np

from r1router_jax import batching, drawing, parallel, sampling
from r1router_jax.models import qwen_vl, serving


def model(case: dict) -> qwen_vl.QwenVL:
  return qwen_vl.QwenVL(
      qwen_vl.Config(
          vocab=case["vocab"], hidden=case["hidden"], mlp=case["mlp"],
          layers=case["layers"], heads=case["heads"],
          kv_heads=case["kv_heads"], tied=True, vision=None,
          mrope_section=(case["head_size"] // 2, 0, 0)))


def packed(case: dict, index: np.ndarray) -> qwen_vl.Prompt:
  """Prompts of these indices, without a padded token."""
  length = case["prompt"]
  prompt = qwen_vl.empty_prompt(index.size, length, 0, 0, None)
  prompt.tokens[:] = [np.random.default_rng(i).integers(
      10, case["vocab"], length) for i in index.reshape(-1)]
  prompt.mask[:], prompt.start[:] = True, length
  prompt.positions[:] = np.arange(length)
  return prompt


def initial(case: dict, key: jax.Array) -> dict:
  """Parameters as training has them."""
  return model(case).init(
      key, packed(case, np.zeros(1, int)), np.zeros((1, 1, 2), np.int32)
  )["params"]


def drawer(case: dict, count: int, members: int, method: drawing.Method):
  """(served parameters, seed, tokens) -> responses, none of which ends."""
  one = jax.sharding.Mesh(np.array(jax.devices()[:1]), (parallel.DATA,))
  words = sampling.Words(np.ones(case["vocab"], bool), np.int32(-1))
  server = model(case).clone(unrolled=True)

  def draw(params, seed, tokens):
    keys = np.asarray(jax.random.key_data(
        sampling.keys(jax.random.key(seed), np.arange(count), members)))
    drawn = batching.draw(
        server, params,
        lambda index: jax.tree.map(lambda x: x[None], packed(case, index)),
        keys, method, words, tokens=tokens, rows=count * members, mesh=one)
    assert drawn.mask.all()
    return drawn

  return draw


def make(case):
  count, members = case["prompts"], case["group"]
  if not case["shared"]:
    count, members = count * members, 1
  shapes = jax.eval_shape(lambda: serving.served(
      initial(case, jax.random.key(0)), model(case).compute, unrolled=True))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jax.device_put(
      0.02 * rng.standard_normal(x.shape, np.float32)), shapes)
  draw = drawer(case, count, members, drawing.GREEDY)
  return lambda new: draw(params, 1, new)


if __name__ == "__main__":
  engine.sampler(make)
