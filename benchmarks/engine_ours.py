"""Our sampler, as an engine for `sampling.py`.

The members of a group share their prompt; without `case["shared"]` each member
has a prompt of its own.
"""

from collections.abc import Callable

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


def make_model(case: dict) -> qwen2_5_vl.QwenVL:
  """Return the network of a case, without a vision tower."""
  config = qwen2_5_vl.Config(
    vocab=case["vocab"],
    hidden=case["hidden"],
    mlp=case["mlp"],
    layers=case["layers"],
    heads=case["heads"],
    kv_heads=case["kv_heads"],
    tied=True,
    vision=None,
    # All temporal: rotary positions of text.
    mrope_section=(case["head_size"] // 2, 0, 0),
  )
  return qwen2_5_vl.QwenVL(config)


def make_prompts(case: dict, indices: np.ndarray) -> qwen2_5_vl.PromptBatch:
  """Return the random prompts of these indices, without padding."""
  length = case["prompt"]
  prompts = qwen2_5_vl.empty_prompt_batch(indices.size, length, 0, 0, None)
  # A seed for each prompt, so that a prompt is the same in every batch.
  prompts.tokens[:] = [
    np.random.default_rng(i).integers(10, case["vocab"], length)
    for i in indices.reshape(-1)
  ]
  prompts.mask[:] = True
  prompts.positions[:] = np.arange(length)
  prompts.next_position[:] = length
  return prompts


def init_params(case: dict, key: jax.Array) -> dict:
  """Return random parameters in the layout of training."""
  prompt = make_prompts(case, np.zeros(1, int))
  response = np.zeros((1, 1, 2), np.int32)
  return make_model(case).init(key, prompt, response)["params"]


def make_sampler(
  case: dict,
  num_prompts: int,
  group_size: int,
  sampling: token_sampling.SamplingParams,
) -> Callable[[dict, int, int], group_decode.SampledResponses]:
  """Return a function (inference parameters, seed, tokens) -> responses.

  No response ends early, so that all engines sample equally many tokens.
  """
  # One device: the other engines have no more.
  device = jax.sharding.Mesh(np.array(jax.devices()[:1]), (mesh.DATA,))
  # No token has the id -1, which would end a response.
  constraints = group_decode.DecodeConstraints(
    np.ones(case["vocab"], bool), np.int32([-1])
  )
  model = make_model(case).clone(unrolled=True)

  # Adds the axis of data shards.
  def collate(indices):
    return jax.tree.map(lambda x: x[None], make_prompts(case, indices))

  def sample(params, seed, max_tokens):
    keys = group_decode.response_keys(
      jax.random.key(seed), np.arange(num_prompts), group_size
    )
    responses = continuous_batching.sample_responses(
      model,
      params,
      collate,
      np.asarray(jax.random.key_data(keys)),
      sampling,
      constraints,
      max_tokens=max_tokens,
      max_rows=num_prompts * group_size,
      mesh=device,
    )
    assert responses.mask.all()
    return responses

  return sample


def make_generate(case: dict) -> Callable[[int], None]:
  """Return a function that greedily samples a number of tokens."""
  num_prompts, group_size = case["prompts"], case["group"]
  # Groups of one response share nothing.
  if not case["shared"]:
    num_prompts, group_size = num_prompts * group_size, 1

  def init_inference_params():
    return inference_params.to_inference_params(
      init_params(case, jax.random.key(0)),
      make_model(case).compute,
      unrolled=True,
    )

  # Random weights from numpy: the layout of training would need memory, too.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jax.device_put(0.02 * rng.standard_normal(x.shape, np.float32)),
    jax.eval_shape(init_inference_params),
  )
  sample = make_sampler(case, num_prompts, group_size, token_sampling.GREEDY)
  return lambda new: sample(params, 1, new)


if __name__ == "__main__":
  engine.time_sampler(make_generate)
