"""Counted operations agree with XLA's own count; rates."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import logprobs
from r1router_jax.inputs.processor import EncodedPrompt, ImagePatches
from r1router_jax.models import qwen2_5_vl
from r1router_jax.training import throughput
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


def make_prompts(*lengths, grid=None):
  images = (ImagePatches(np.zeros(0), grid, 0),) if grid else ()
  return [EncodedPrompt([1] * n, images) for n in lengths]


def xla_flops(function, *shapes):
  """Return XLA's count for arrays of the given shapes."""
  return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
  "length, members, tokens", [(64, 1, 33), (256, 4, 17), (1024, 2, 9)]
)
def test_work_agrees_with_xla(length, members, tokens, tied):
  config = dataclasses.replace(WIDE, tied=tied)
  model = qwen2_5_vl.QwenVL(config)

  def forward(params, prompt, response):
    states = model.apply({"params": params}, prompt, response)
    vocabulary = model.apply({"params": params}, method="output_embedding")
    allowed = jnp.ones(config.vocab, bool)
    return logprobs.token_logp(states, response, vocabulary, allowed)

  prompt = qwen2_5_vl.empty_prompt_batch(1, length, 0, 0, VISION)
  found = xla_flops(
    forward,
    tiny_policy.param_shapes(config),
    jax.tree.map(jnp.asarray, prompt),
    jnp.zeros((1, members, tokens), jnp.int32),
  )
  lengths = np.full((1, members), tokens)
  work = throughput.count_work(config, make_prompts(length), lengths)
  assert work[:2] == (length + members * tokens, members)
  # XLA also counts the pairs that the mask hides.
  own = tokens - 1
  hidden = length * (length - 1) // 2 + members * own * (own - 1) // 2
  wanted = work.flops + 4 * hidden * config.heads * config.head_size
  assert found == pytest.approx(wanted, rel=0.01)
  assert found > wanted  # Norms and softmax are not products.


def test_image_agrees_with_xla():
  model = qwen2_5_vl.Vision(VISION, qwen2_5_vl.RuntimeConfig(), WIDE.hidden)
  prompt = qwen2_5_vl.empty_prompt_batch(1, 8, 1, 16, VISION)
  shown = jax.tree.map(jnp.asarray, prompt)
  params = jax.eval_shape(model.init, jax.random.key(0), shown)
  # Sixteen windows of four by four patches.
  wanted = throughput.image_flops(WIDE, (16, 16))
  assert xla_flops(model.apply, params, shown) == pytest.approx(
    wanted, rel=0.02
  )


@pytest.mark.parametrize("grid", [(4, 4), (2, 10), (6, 14), (16, 6)])
def test_image_counts_the_pairs_within_its_windows(grid):
  vision = tiny_policy.VISION  # One block of three sees the whole image.
  config = dataclasses.replace(WIDE, vision=vision)
  patches = int(np.prod(grid))
  # The window layout itself says how many patches share a window.
  windows = qwen2_5_vl.count_windows(*grid, vision)
  valid = qwen2_5_vl.plan_windows(*grid, vision, windows, patches // 4).valid
  pairs = patches**2 + 2 * int(np.sum(valid.sum(-1) ** 2))
  # Everything else costs the same for each of the patches.
  unit = throughput.image_flops(config, (2, 2)) - 4 * 16 * (16 + 2 * 16)
  found = throughput.image_flops(config, grid)
  assert found == unit * patches // 4 + 4 * vision.hidden * pairs


def test_work_counts_the_pairs_that_the_mask_allows():
  # The oracle: count inputs and pairs one by one.
  length, responses = 7, [3, 1, 0, 5]
  pairs = sum(query + 1 for query in range(length))
  inputs = length
  for response in responses:
    for place in range(response - 1):  # The last token is no input.
      inputs += 1
      pairs += length + place + 1
  count = functools.partial(throughput.count_work, WIDE)
  weights = 2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 768
  wanted = 2 * inputs * weights + 4 * pairs * 512 + 2 * 9 * 512 * 2048
  # A member of a group without tokens is padding, and no sample.
  assert count(make_prompts(7), np.array([responses])) == (16, 3, wanted)
  # Prompts, their images and passes add up.
  lengths = np.array([responses] * 2)
  image = throughput.image_flops(WIDE, (8, 4))
  prompts = make_prompts(7, 7, grid=(8, 4))
  assert count(prompts, lengths, 3).flops == 6 * (wanted + image)
  # Of no group that has a gradient nothing is learnt.
  assert count([], lengths[:0]) == (0, 0, 0)


@pytest.mark.parametrize(
  "kind, tera",
  [
    ("TPU v5 lite", 197),
    ("TPU v5", 459),
    ("TPU v5p", 459),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", 756),
    ("cpu", None),
  ],
)
def test_peak_is_found_by_the_start_of_the_kind(kind, tera):
  assert throughput.peak_flops(kind) == (tera and tera * 1e12)


@pytest.mark.parametrize("kind, mfu", [("cpu", None), ("TPU v4", 0.5)])
def test_rates_are_counts_per_second_and_device(monkeypatch, kind, mfu):
  # The meter looks at the clock when it is made and at each reading.
  clock = iter([100.0, 102.0, 110.0])
  monkeypatch.setattr(
    throughput, "time", types.SimpleNamespace(perf_counter=lambda: next(clock))
  )
  device = types.SimpleNamespace(device_kind=kind)
  monkeypatch.setattr(jax, "local_devices", lambda: [device] * 4)
  meter = throughput.ThroughputMeter()
  meter.add_work(throughput.WorkCounts(30, 4, 10**15))
  meter.add_work(throughput.WorkCounts(10, 2, int(0.1e15)))
  rates = {
    "speed/tokens_s": 20.0,
    "speed/samples_s": 3.0,
    "speed/tflops_s": 137.5,
  }
  assert meter.read_rates() == rates | ({"speed/mfu": mfu} if mfu else {})
  # The counts start anew.
  meter.add_work(throughput.WorkCounts(8, 0, 0))
  assert meter.read_rates()["speed/tokens_s"] == 1.0
