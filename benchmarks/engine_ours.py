"""Our sampler; without `case["shared"]` each member has a prompt of its own."""

import engine
import jax
import numpy as np

from r1router_jax.generation import (
  continuous_batching,
  group_decode,
  token_sampling,
)
from r1router_jax.models import inference_params, qwen2_5_vl
from r1router_jax.parallel import mesh


def model(case: dict) -> qwen2_5_vl.QwenVL:
  return qwen2_5_vl.QwenVL(
    qwen2_5_vl.Config(
      vocab=case["vocab"],
      hidden=case["hidden"],
      mlp=case["mlp"],
      layers=case["layers"],
      heads=case["heads"],
      kv_heads=case["kv_heads"],
      tied=True,
      vision=None,
      mrope_section=(case["head_size"] // 2, 0, 0),
    )
  )


def packed(case: dict, index: np.ndarray) -> qwen2_5_vl.Prompt:
  """Prompts of these indices, without a padded token."""
  length = case["prompt"]
  prompt = qwen2_5_vl.empty_prompt(index.size, length, 0, 0, None)
  prompt.tokens[:] = [
    np.random.default_rng(i).integers(10, case["vocab"], length)
    for i in index.reshape(-1)
  ]
  prompt.mask[:], prompt.start[:] = True, length
  prompt.positions[:] = np.arange(length)
  return prompt


def initial(case: dict, key: jax.Array) -> dict:
  """Parameters as training has them."""
  return model(case).init(
    key, packed(case, np.zeros(1, int)), np.zeros((1, 1, 2), np.int32)
  )["params"]


def drawer(
  case: dict, count: int, members: int, method: token_sampling.SamplingParams
):
  """(served parameters, seed, tokens) -> responses, none of which ends."""
  one = jax.sharding.Mesh(np.array(jax.devices()[:1]), (mesh.DATA,))
  words = group_decode.Words(np.ones(case["vocab"], bool), np.int32(-1))
  server = model(case).clone(unrolled=True)

  def draw(params, seed, tokens):
    keys = np.asarray(
      jax.random.key_data(
        group_decode.keys(jax.random.key(seed), np.arange(count), members)
      )
    )
    drawn = continuous_batching.draw(
      server,
      params,
      lambda index: jax.tree.map(lambda x: x[None], packed(case, index)),
      keys,
      method,
      words,
      tokens=tokens,
      rows=count * members,
      mesh=one,
    )
    assert drawn.mask.all()
    return drawn

  return draw


def make(case):
  count, members = case["prompts"], case["group"]
  if not case["shared"]:
    count, members = count * members, 1
  shapes = jax.eval_shape(
    lambda: inference_params.served(
      initial(case, jax.random.key(0)), model(case).compute, unrolled=True
    )
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jax.device_put(0.02 * rng.standard_normal(x.shape, np.float32)),
    shapes,
  )
  draw = drawer(case, count, members, token_sampling.GREEDY)
  return lambda new: draw(params, 1, new)


if __name__ == "__main__":
  engine.sampler(make)
