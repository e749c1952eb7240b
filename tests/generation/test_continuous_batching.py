"""Continuous batching: the schedule, and that responses do not depend on it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from r1router_jax.generation import continuous_batching, group_decode
from r1router_jax.generation.group_decode import DecodeConstraints
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.models import inference_params, qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib
from tests import tiny_policy

# So few ids that groups end at different times.
CONFIG = dataclasses.replace(tiny_policy.MODEL_CONFIG, vocab=23)

MODEL = qwen2_5_vl.QwenVL(CONFIG)

END, TOKENS, COUNT, MEMBERS = 2, 7, 11, 3

KEY = jax.random.key(7)

HOT = SamplingParams(3.0)


def make_prompts():
  rng = np.random.default_rng(0)
  sizes = rng.integers(3, 9, COUNT)
  return [tiny_policy.random_prompt(rng, CONFIG, size) for size in sizes]


def make_constraints(eos_id=END, stop_table=None):
  allowed = np.ones(CONFIG.vocab, bool)
  return DecodeConstraints(allowed, np.int32([eos_id]), stop_table)


def make_keys(key, prompt_ids):
  keys = group_decode.response_keys(key, jnp.asarray(prompt_ids), MEMBERS)
  return np.asarray(jax.random.key_data(keys))


def make_mesh(shards, tensor=1):
  devices = np.array(jax.devices()[: shards * tensor]).reshape(shards, tensor)
  return Mesh(devices, (mesh_lib.DATA, mesh_lib.TENSOR))


def sample_in_order(
  order,
  *,
  rows,
  mesh=None,
  unrolled=True,
  sampling=HOT,
  keys=None,
  stops=None,
  wanted=None,
):
  """Sample responses to the prompts in an order; return them in the first."""
  mesh = mesh or make_mesh(1)
  batch, processor = make_prompts(), tiny_policy.processor(CONFIG, (8,))
  model = dataclasses.replace(MODEL, unrolled=unrolled)
  params = tiny_policy.params(CONFIG)
  if not unrolled:
    layout = mesh_lib.tree_shardings(params, mesh, without=(mesh_lib.FSDP,))
    params = jax.device_put(params, layout)
  to_inference_params = inference_params.to_inference_params
  params = to_inference_params(params, MODEL.compute, unrolled=unrolled)
  order = np.asarray(order)

  def collate(index):
    prompts = [batch[i] for i in order[index.reshape(-1)]]
    return processor.collate(prompts, *index.shape)

  responses = continuous_batching.sample_responses(
    model,
    params,
    collate,
    make_keys(KEY, order) if keys is None else keys,
    sampling,
    stops or make_constraints(),
    max_tokens=TOKENS,
    max_rows=rows,
    mesh=mesh,
    wanted=wanted if wanted is None else wanted[order],
  )
  back = np.argsort(order)
  return group_decode.SampledResponses(*(a[back] for a in responses))


@pytest.fixture(scope="module")
def each_alone():
  """Responses to each prompt by itself, in one program without slots."""
  each = [
    jax.device_get(
      group_decode.sample(
        MODEL,
        tiny_policy.params(CONFIG),
        tiny_policy.collate(CONFIG, [prompt], length=8),
        group_decode.response_keys(KEY, jnp.array([i]), MEMBERS),
        HOT.validate(),
        make_constraints(),
        max_tokens=TOKENS,
      )
    )
    for i, prompt in enumerate(make_prompts())
  ]
  responses = group_decode.SampledResponses(
    *map(np.concatenate, zip(*each, strict=True))
  )
  lengths = responses.mask.sum(-1)
  assert lengths.min() < 3 and lengths.max() == TOKENS  # Rows end apart.
  return responses


def assert_same_responses(got, wanted):
  np.testing.assert_array_equal(got.mask, wanted.mask)
  np.testing.assert_array_equal(got.tokens, wanted.tokens)
  known = got.logp * got.mask, wanted.logp * wanted.mask
  np.testing.assert_allclose(*known, atol=1e-5)


@pytest.mark.parametrize(
  "rows, shards",
  [
    (3, 1),  # One prompt at a time.
    (12, 1),  # Four, refilled one by one.
    (48, 1),  # All at once, then fewer.
    (6, 8),  # Two on each device.
  ],
)
def test_responses_are_those_of_each_prompt_alone(each_alone, rows, shards):
  mesh = make_mesh(shards)
  # Another order puts each prompt into another slot, next to other prompts.
  for order in (range(COUNT), range(COUNT)[::-1]):
    got = sample_in_order(order, rows=rows, mesh=mesh)
    assert_same_responses(got, each_alone)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_wanted_members_are_those_of_whole_groups(each_alone, share):
  wanted = np.random.default_rng(0).random((COUNT, MEMBERS)) < share
  wanted[:, 1] |= ~wanted.any(1)
  got = sample_in_order(range(COUNT)[::-1], rows=6, wanted=wanted)
  # The others stay empty.
  assert not got.mask[~wanted].any()
  kept = [
    group_decode.SampledResponses(*(x[wanted] for x in responses))
    for responses in (got, each_alone)
  ]
  assert_same_responses(*kept)


@pytest.mark.slow
def test_responses_with_weights_split_over_devices(each_alone):
  """Four data shards, in each of which two devices share the weights."""
  mesh = make_mesh(4, 2)
  got = sample_in_order(range(COUNT), rows=6, mesh=mesh, unrolled=False)
  assert_same_responses(got, each_alone)
  split = mesh_lib.tree_shardings(tiny_policy.params(CONFIG), mesh)
  assert split["layers"]["q"]["w"].spec[2] == mesh_lib.TENSOR


def test_programs_compile_once_per_level():
  """One program per prompt length and level, whatever the sampling."""
  programs = continuous_batching.compiled_programs(
    dataclasses.replace(MODEL, unrolled=True), TOKENS, MEMBERS, make_mesh(1)
  )

  def count_compiled():
    return (programs.prefill._cache_size(), programs.decode_until._cache_size())

  before = count_compiled()[1]
  sample_in_order(range(COUNT), rows=15)
  known = count_compiled()
  assert known[1] == before + 1
  # Neither other filters nor other keys, prompts or end tokens compile.
  other = make_keys(jax.random.key(8), np.arange(COUNT))
  others = dict(keys=other[:7], stops=make_constraints(4))
  temperatures = 0.0, np.full((COUNT, MEMBERS), 0.3)
  filters = SamplingParams(2.0, top_k=3), SamplingParams(top_p=0.5)
  for sampling in (*map(SamplingParams, temperatures), *filters):
    sample_in_order(range(COUNT), rows=15, sampling=sampling)
    sample_in_order(range(7), rows=15, **others)
  assert count_compiled() == known
  # Stop strings do, once.
  stop_table = np.zeros((2, CONFIG.vocab), np.int16)
  stops = make_constraints(stop_table=stop_table)
  sample_in_order(range(COUNT), rows=15, stops=stops)
  assert count_compiled()[1] == known[1] + 1


def test_members_share_the_keys_of_their_prompt():
  """The prompt's cache is as large for eight members as for one."""
  sampling = dict(sampling=SamplingParams(1.0).validate())
  sampling |= dict(constraints=make_constraints(), max_tokens=TOKENS)
  params = tiny_policy.params(CONFIG)
  prefill = functools.partial(group_decode.prefill, MODEL, params, **sampling)
  batch = tiny_policy.collate(CONFIG, make_prompts(), length=8)

  def cache_shapes(members):
    keys = jax.random.split(KEY, (COUNT, members))
    prompts, _ = jax.eval_shape(lambda *args: prefill(*args), batch, keys)
    return [leaf.shape for leaf in jax.tree.leaves(prompts.cache)]

  assert cache_shapes(1) == cache_shapes(8)


def test_sampling_out_of_range_is_refused():
  with pytest.raises(ValueError, match="temperature is -1"):
    sample_in_order(range(COUNT), rows=12, sampling=SamplingParams(-1.0))


class FakeDevices:
  """Devices that know the (prompt, member) of each row and slot by heart."""

  def __init__(self, scheduler, shards, members):
    self.members = members
    self.row = np.full((shards, scheduler.num_rows, 2), -1)
    self.slot = np.full((shards, scheduler.num_slots), -1)
    self.active = np.zeros((shards, scheduler.num_rows), bool)

  def insert_prompts(self, batch, num_slots):
    for shard, b in np.argwhere(batch.slots < num_slots):
      # Members that are not wanted have a row out of range.
      members = np.flatnonzero(
        batch.row_indices[shard, b] < self.active[0].size
      )
      rows = batch.row_indices[shard, b, members]
      assert not self.active[shard, rows].any()
      # A slot is free if no row reads it.
      read = self.row[shard, self.active[shard], 0]
      assert not (read == self.slot[shard, batch.slots[shard, b]]).any()
      prompt = batch.prompts[shard, b]
      self.slot[shard, batch.slots[shard, b]] = prompt
      self.row[shard, rows] = [(prompt, g) for g in members]
      self.active[shard, rows] = True

  def compact_rows(self, slots, rows, group_slots, num_slots):
    before = self.active.sum(1)
    self.slot = np.take_along_axis(self.slot, slots, 1)
    self.row = np.take_along_axis(self.row, rows[..., None], 1)
    self.active = np.take_along_axis(self.active, rows, 1)
    assert (self.active.sum(1) == before).all()
    # Each row still reads its own prompt; free rows are out of range.
    for shard, row in np.argwhere(self.active):
      slot, member = divmod(group_slots[shard, row], self.members)
      prompt = self.slot[shard, slot]
      assert (prompt, member) == tuple(self.row[shard, row])
    assert (group_slots[~self.active] == num_slots * self.members).all()

  def decode_until(self, threshold, random):
    active = self.active.sum(1)
    assert (threshold < active).any()  # Otherwise nothing would happen.
    for shard, rows in enumerate(self.active):
      ending = max(active[shard] - threshold[shard], 0)
      rows[random.sample(np.flatnonzero(rows).tolist(), int(ending))] = False


@settings(max_examples=60, deadline=None)
@given(
  *(st.integers(1, most) for most in (40, 5, 90, 3)),
  st.randoms(use_true_random=False),
)
def test_scheduler_runs_wanted_members_once(
  count, members, rows, shards, random
):
  wanted = np.ones((count, members), bool)
  if random.random() < 0.5:  # At least one member of each prompt is wanted.
    wanted[:] = np.random.default_rng(count).random(wanted.shape) < 0.3
    wanted[np.arange(count), np.arange(count) % members] = True
  scheduler = continuous_batching.Scheduler(wanted, rows, shards)
  devices = FakeDevices(scheduler, shards, members)
  finished = []
  while scheduler.has_work:
    while (batch := scheduler.admit_prompts()) is not None:
      devices.insert_prompts(batch, scheduler.num_slots)
    if (kept := scheduler.try_shrink()) is not None:
      devices.compact_rows(*kept, scheduler.num_slots)
    devices.decode_until(scheduler.return_threshold(), random)
    prompt, member, where = scheduler.release_finished(~devices.active)
    # The scheduler names the same prompts and members as the devices.
    named = np.stack([prompt, member], 1)
    np.testing.assert_array_equal(devices.row[where], named)
    finished += zip(prompt.tolist(), member.tolist(), strict=True)
  assert sorted(finished) == list(map(tuple, np.argwhere(wanted).tolist()))
