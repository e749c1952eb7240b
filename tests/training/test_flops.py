"""Counted operations agree with XLA's own count, and with loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import logprobs
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training import flops
from tests import tiny_policy

# Wide, so that products dominate.  XLA counts the body of a loop once, so there
# is one layer.
VISION = qwen2_5_vl.VisionConfig(
  hidden=256, mlp=640, layers=1, heads=4, patch=4, window=16, full_blocks=(0,)
)

WIDE = qwen2_5_vl.Config(
  vocab=2048,
  hidden=512,
  mlp=768,
  layers=1,
  heads=8,
  kv_heads=2,
  mrope_section=(8, 12, 12),
  vision=VISION,
)


def xla_flops(function, *shapes):
  """Return XLA's count for arrays of the given shapes."""
  return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def make_prompt(rows, length, images=0, windows=0):
  return jax.tree.map(
    jnp.asarray,
    qwen2_5_vl.empty_prompt_batch(rows, length, images, windows, VISION),
  )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
  "length, members, tokens", [(64, 1, 33), (256, 4, 17), (1024, 2, 9)]
)
def test_group_without_masks_agrees_with_xla(length, members, tokens, tied):
  """XLA also counts what the mask hides: all pairs with own and prompt keys."""
  config = dataclasses.replace(WIDE, tied=tied)
  model = qwen2_5_vl.QwenVL(config)
  params = tiny_policy.param_shapes(config)

  def forward(params, prompt, response):
    states = model.apply({"params": params}, prompt, response)
    vocabulary = model.apply({"params": params}, method="output_embedding")
    return logprobs.token_logp(
      states, response, vocabulary, jnp.ones(config.vocab, bool)
    )

  found = xla_flops(
    forward,
    params,
    make_prompt(1, length),
    jnp.zeros((1, members, tokens), jnp.int32),
  )
  # The last token of a response is no input.
  inputs = tokens - 1
  pairs = length**2 + members * inputs * (length + inputs)
  wanted = flops.decoder_flops(
    config, length + members * inputs, pairs
  ) + flops.head_flops(config, members * tokens)
  assert found == pytest.approx(wanted, rel=0.01)
  assert found > wanted  # Norms and softmax are not products.


@pytest.mark.parametrize("layers, full", [(1, (0,)), (1, (0, 7))])
@pytest.mark.parametrize("images, windows", [(1, 1), (2, 16)])
def test_vision_tower_without_masks_agrees_with_xla(
  images, windows, layers, full
):
  config = dataclasses.replace(
    WIDE, vision=dataclasses.replace(VISION, layers=layers, full_blocks=full)
  )
  model = qwen2_5_vl.Vision(
    config.vision, qwen2_5_vl.RuntimeConfig(), config.hidden
  )
  shown = make_prompt(1, 8, images, windows)
  params = jax.eval_shape(model.init, jax.random.key(0), shown)
  found = xla_flops(model.apply, params, shown)
  # Every slot of every window counts, also those without a patch.
  slots = windows * (VISION.window // VISION.patch) ** 2
  wanted = images * flops.vision_tower_flops(config, slots, slots**2, 0)
  assert found == pytest.approx(wanted, rel=0.02)


def count_weights(tree):
  """Return the number of weights in the kernels of a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return sum(x.size for path, x in leaves if path[-1].key == "w")


def test_token_costs_two_operations_per_weight():
  config = qwen2_5_vl.SIZES["7b"]
  shapes = tiny_policy.param_shapes(config)
  assert flops.decoder_flops(config, 1, 0) == 2 * count_weights(
    shapes["layers"]
  )
  assert flops.head_flops(config, 1) == 2 * shapes["head"].size
  vision = shapes["vision"]
  # The smallest image that the merger takes.
  unit = config.vision.merge**2
  merger = count_weights([vision["merge1"], vision["merge2"]])
  assert flops.vision_tower_flops(config, unit, 0, 0) == 2 * (
    unit * count_weights([vision["blocks"], vision["patch"]]) + merger
  )


def test_group_counts_the_pairs_that_the_mask_allows():
  # The oracle: count inputs and pairs one by one.
  length, responses = 7, [3, 1, 0, 5]
  inputs = pairs = 0
  for query in range(length):
    inputs += 1
    pairs += query + 1
  for response in responses:
    for place in range(response - 1):  # The last token is no input.
      inputs += 1
      pairs += length + place + 1
  assert flops.group_flops(WIDE, length, responses) == (
    flops.decoder_flops(WIDE, inputs, pairs)
    + flops.head_flops(WIDE, sum(responses))
  )
  assert flops.group_flops(WIDE, length, responses, [(8, 4), (2, 2)]) == (
    flops.group_flops(WIDE, length, responses)
    + flops.image_flops(WIDE, 8, 4)
    + flops.image_flops(WIDE, 2, 2)
  )


@pytest.mark.parametrize("rows, columns", [(4, 4), (2, 10), (6, 14), (16, 6)])
def test_image_counts_the_pairs_within_its_windows(rows, columns):
  config = dataclasses.replace(
    WIDE, vision=tiny_policy.VISION
  )  # 1 of 3 is full.
  windows = qwen2_5_vl.count_windows(rows, columns, tiny_policy.VISION)
  _, valid, *_ = qwen2_5_vl.plan_windows(
    rows,
    columns,
    tiny_policy.VISION,
    windows=windows,
    tokens=rows * columns // 4,
  )
  # The window layout itself says how many patches share a window.
  near = int(np.sum(valid.sum(-1) ** 2))
  assert flops.image_flops(config, rows, columns) == flops.vision_tower_flops(
    config, rows * columns, (rows * columns) ** 2, near
  )
  # 4 p h of each block: one block sees the image, two see windows.
  bare = flops.vision_tower_flops(config, rows * columns, 0, 0)
  assert flops.image_flops(config, rows, columns) - bare == 4 * 16 * (
    (rows * columns) ** 2 + 2 * near
  )


@pytest.mark.parametrize(
  "kind, tera",
  [
    ("TPU v3", 61.5),
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5", 459),
    ("TPU v5p", 459),
    ("TPU v6 lite", 918),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", 756),
    ("cpu", None),
    ("NVIDIA L4", None),
  ],
)
def test_peak_is_found_by_the_start_of_the_kind(kind, tera):
  assert flops.peak_flops(kind) == (tera and tera * 1e12)
