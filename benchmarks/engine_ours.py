"""Our sampler; without `case["shared"]` each member has a prompt of its own."""

import engine
import jax
import numpy as np

from r1router_jax import batching, drawing, parallel, sampling
from r1router_jax.models import qwen_vl, serving


def make(case):
  model = qwen_vl.QwenVL(
      qwen_vl.Config(
          vocab=case["vocab"], hidden=case["hidden"], mlp=case["mlp"],
          layers=case["layers"], heads=case["heads"],
          kv_heads=case["kv_heads"], tied=True, vision=None,
          mrope_section=(case["head_size"] // 2, 0, 0)),
      qwen_vl.Compute(), unrolled=True)
  length = case["prompt"]
  count, members = case["prompts"], case["group"]
  if not case["shared"]:
    count, members = count * members, 1

  def packed(rows):
    prompt = qwen_vl.empty_prompt(rows, length, 0, 0, None)
    prompt.tokens[:] = np.random.default_rng(0).integers(
        10, case["vocab"], length)
    prompt.mask[:], prompt.start[:] = True, length
    prompt.positions[:] = np.arange(length)
    return prompt

  shapes = jax.eval_shape(lambda: serving.served(
      model.clone(unrolled=False).init(
          jax.random.key(0), packed(1), np.zeros((1, 1, 2), np.int32)
      )["params"], model.compute, unrolled=True))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jax.device_put(
      0.02 * rng.standard_normal(x.shape, np.float32)), shapes)
  keys = np.asarray(jax.random.key_data(
      sampling.keys(jax.random.key(1), np.arange(count), members)))
  one = jax.sharding.Mesh(np.array(jax.devices()[:1]), (parallel.DATA,))
  words = sampling.Words(np.ones(case["vocab"], bool), np.int32(-1))

  def generate(new):
    drawn = batching.draw(
        model, params,
        lambda index: jax.tree.map(lambda x: x[None], packed(index.size)),
        keys, drawing.GREEDY, words, tokens=new, rows=count * members,
        mesh=one)
    assert drawn.mask.all()

  return generate


engine.main(make)
