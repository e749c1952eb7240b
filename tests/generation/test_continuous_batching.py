"""Continuous batching: who sits where, and that it does not matter."""

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
from r1router_jax.generation.group_decode import Words
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.models import inference_params, qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib
from tests import tiny_policy

CONFIG = dataclasses.replace(tiny_policy.CONFIG, vocab=23)

MODEL = qwen2_5_vl.QwenVL(CONFIG)

END, TOKENS, COUNT, MEMBERS = 2, 7, 11, 3

KEY = jax.random.key(7)


def prompts():
  rng = np.random.default_rng(0)
  return [
    tiny_policy.encoded(rng, CONFIG, size) for size in rng.integers(3, 9, COUNT)
  ]


def words(end=END, stops=None):
  return Words(np.ones(CONFIG.vocab, bool), np.int32(end), stops)


def keys(names, members=MEMBERS):
  return np.asarray(
    jax.random.key_data(group_decode.keys(KEY, jnp.asarray(names), members))
  )


def mesh_of(parts, tensor=1):
  devices = np.array(jax.devices()[: parts * tensor]).reshape(parts, tensor)
  return Mesh(devices, (mesh_lib.DATA, mesh_lib.TENSOR))


def draw(
  order, *, rows, mesh=None, unrolled=True, method=None, key=None, said=None
):
  """Responses to the prompts in some order, put back into theirs."""
  mesh = mesh or mesh_of(1)
  batch, packer = prompts(), tiny_policy.packer(CONFIG, (8,))
  model = dataclasses.replace(MODEL, unrolled=unrolled)
  params = tiny_policy.params(CONFIG)
  if not unrolled:
    params = jax.device_put(
      params, mesh_lib.shardings(params, mesh, without=(mesh_lib.FSDP,))
    )
  params = inference_params.served(params, MODEL.compute, unrolled=unrolled)
  order = np.asarray(order)

  def pack(index):
    return packer.pack(
      [batch[i] for i in order[index.reshape(-1)]], *index.shape
    )

  drawn = continuous_batching.draw(
    model,
    params,
    pack,
    keys(order) if key is None else key,
    method or SamplingParams(3.0),
    said or words(),
    tokens=TOKENS,
    rows=rows,
    mesh=mesh,
  )
  back = np.argsort(order)
  return group_decode.Drawn(*(a[back] for a in drawn))


@pytest.fixture(scope="module")
def alone():
  """Each prompt by itself, in one program without slots."""
  run = functools.partial(
    group_decode.sample,
    MODEL,
    tiny_policy.params(CONFIG),
    method=SamplingParams(3.0).validate(),
    words=words(),
    tokens=TOKENS,
  )
  each = [
    jax.device_get(
      run(
        prompt=tiny_policy.pack(CONFIG, [prompt], length=8),
        key=group_decode.keys(KEY, jnp.array([i]), MEMBERS),
      )
    )
    for i, prompt in enumerate(prompts())
  ]
  drawn = group_decode.Drawn(*map(np.concatenate, zip(*each, strict=True)))
  lengths = drawn.mask.sum(-1)
  assert lengths.min() < 3 and lengths.max() == TOKENS  # Rows end apart.
  return drawn


def same(got, wanted):
  np.testing.assert_array_equal(got.mask, wanted.mask)
  np.testing.assert_array_equal(got.tokens, wanted.tokens)
  np.testing.assert_allclose(
    got.logp * got.mask, wanted.logp * wanted.mask, atol=1e-5
  )


@pytest.mark.parametrize(
  "rows, parts",
  [
    (3, 1),  # One prompt at a time.
    (12, 1),  # Four, refilled one by one.
    (48, 1),  # All at once, then fewer.
    (6, 8),
  ],
)  # Two on each device.
def test_responses_are_those_of_each_prompt_alone(alone, rows, parts):
  forwards = range(COUNT)
  same(draw(forwards, rows=rows, mesh=mesh_of(parts)), alone)
  backwards = [*forwards][::-1]
  same(draw(backwards, rows=rows, mesh=mesh_of(parts)), alone)


@pytest.mark.slow
def test_responses_with_weights_split_over_devices(alone):
  """Four parts, in each of which two devices share the weights."""
  mesh = mesh_of(4, 2)
  same(draw(range(COUNT), rows=6, mesh=mesh, unrolled=False), alone)
  split = mesh_lib.shardings(tiny_policy.params(CONFIG), mesh)["layers"]["q"][
    "w"
  ]
  assert split.spec[2] == mesh_lib.TENSOR


def test_nothing_is_compiled_twice():
  """One program per prompt length and level, whatever is asked of it."""
  stops = np.zeros((2, CONFIG.vocab), np.int16)
  run = continuous_batching._programs(
    dataclasses.replace(MODEL, unrolled=True), TOKENS, MEMBERS, mesh_of(1)
  )
  before = run.advance._cache_size()
  draw(range(COUNT), rows=15)
  known = run.start._cache_size(), run.advance._cache_size()
  assert known[1] == before + 1
  other = np.asarray(
    jax.random.key_data(
      group_decode.keys(jax.random.key(8), jnp.arange(COUNT), MEMBERS)
    )
  )
  for method in (
    SamplingParams(0.0),
    SamplingParams(2.0, top_k=3),
    SamplingParams(top_p=0.5),
    SamplingParams(min_p=0.2),
    SamplingParams(np.full((COUNT, MEMBERS), 0.3)),
  ):
    draw(range(COUNT), rows=15, method=method)
    draw(range(COUNT)[:7], rows=15, key=other[:7], said=words(end=4))
  assert (run.start._cache_size(), run.advance._cache_size()) == known
  draw(range(COUNT), rows=15, said=words(stops=stops))
  assert run.advance._cache_size() == known[1] + 1  # With an automaton.


def test_members_share_the_keys_of_their_prompt():
  """The prompt's cache is as large for eight members as for one."""

  def size(members):
    prefix, _ = jax.eval_shape(
      lambda prompt, key: group_decode.start(
        MODEL,
        tiny_policy.params(CONFIG),
        prompt,
        key,
        SamplingParams(1.0).validate(),
        words(),
        TOKENS,
      ),
      tiny_policy.pack(CONFIG, prompts(), length=8),
      jax.random.split(KEY, (COUNT, members)),
    )
    return [leaf.shape for leaf in jax.tree.leaves(prefix.cache)]

  assert size(1) == size(8)


def test_what_is_no_method_is_refused():
  with pytest.raises(ValueError, match="temperature is -1"):
    draw(range(COUNT), rows=12, method=SamplingParams(-1.0))


@settings(max_examples=60, deadline=None)
@given(
  st.integers(1, 40),
  st.integers(1, 5),
  st.integers(1, 90),
  st.integers(1, 3),
  st.randoms(use_true_random=False),
)
def test_table_seats_each_member_once(count, members, rows, parts, random):
  """Against a device that holds (prompt, member) in each row and slot."""
  table = continuous_batching.Table(count, members, rows, parts)
  held = np.full((parts, table.rows, 2), -1)
  kept = np.full((parts, table.slots), -1)
  live = np.zeros((parts, table.rows), bool)
  seen = []
  while table.busy:
    while (new := table.admit()) is not None:
      for d, b in np.argwhere(new.slots < table.slots):
        at = new.rows[d, b]
        assert not live[d, at].any()
        # A slot is free when no row reads it.
        assert not (held[d, live[d], 0] == kept[d, new.slots[d, b]]).any()
        kept[d, new.slots[d, b]] = new.prompts[d, b]
        held[d, at] = [(new.prompts[d, b], g) for g in range(members)]
        live[d, at] = True
    if (fewer := table.shrink()) is not None:
      slots, at, lane = fewer
      was = live.sum(1)
      kept = np.take_along_axis(kept, slots, 1)
      held = np.take_along_axis(held, at[..., None], 1)
      live = np.take_along_axis(live, at, 1)
      assert (live.sum(1) == was).all()
      for d, r in np.argwhere(live):
        slot, member = divmod(lane[d, r], members)
        assert kept[d, slot] == held[d, r, 0] and member == held[d, r, 1]
      assert (lane[~live] == table.slots * members).all()
    until = table.until()
    assert (until < live.sum(1)).any()  # Else nothing would happen.
    for d in range(parts):
      ending = random.sample(
        np.flatnonzero(live[d]).tolist(), int(max(live[d].sum() - until[d], 0))
      )
      live[d, ending] = False
    prompt, member, where = table.release(~live)
    np.testing.assert_array_equal(held[where], np.stack([prompt, member], 1))
    seen += zip(prompt.tolist(), member.tolist(), strict=True)
  assert sorted(seen) == [(p, g) for p in range(count) for g in range(members)]
