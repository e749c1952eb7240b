"""Sampled responses and log-probabilities, against exact distributions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import group_decode, logprobs
from r1router_jax.generation.group_decode import DecodeConstraints
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.models import qwen2_5_vl
from tests import tiny_policy

CONFIG = dataclasses.replace(tiny_policy.MODEL_CONFIG, vocab=23)

MODEL = qwen2_5_vl.QwenVL(CONFIG)

END, TOKENS = 2, 4

HOT = 6.0  # At this temperature every token is sampled now and then.

MANY = 1000


def make_prompts(count):
  rng = np.random.default_rng(0)
  sizes = (4, 7, 3, 5, 8, 4, 6, 3)[:count]
  return [tiny_policy.random_prompt(rng, CONFIG, size) for size in sizes]


ALL = np.ones(CONFIG.vocab, bool)


def make_keys(ids, members):
  ids = jnp.asarray(ids)
  return group_decode.response_keys(jax.random.key(7), ids, members)


def sample_groups(
  batch,
  members,
  temperature=HOT,
  allowed=ALL,
  ids=None,
  stops=None,
  params=None,
  max_tokens=TOKENS,
  ends=(END,),
  **filters,
):
  ids = np.arange(len(batch)) if ids is None else ids
  sampled = group_decode.sample(
    MODEL,
    params or tiny_policy.params(CONFIG),
    tiny_policy.collate(CONFIG, batch, length=8),
    make_keys(ids, members),
    SamplingParams(temperature, **filters).validate(),
    DecodeConstraints(allowed, np.int32(ends), stops),
    max_tokens=max_tokens,
  )
  return jax.device_get(sampled)


@jax.jit
def jitted_logits(prompt, response):
  apply = functools.partial(MODEL.apply, {"params": tiny_policy.params(CONFIG)})
  return jnp.einsum(
    "BGTD,VD->BGTV", apply(prompt, response), apply(method="output_embedding")
  )


def exact_logits(batch, response):
  """Return logits [B, G, T, V] that predict each token of a response."""
  prompts = tiny_policy.collate(CONFIG, batch, length=8)
  return np.asarray(jitted_logits(prompts, response))


# References are written without JAX, so that they share no mistake with what
# they test.
def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def chi_square(counts, probability):
  expected = counts.sum() * probability
  assert (expected > 1).all()
  return np.sum((counts - expected) ** 2 / expected)


def test_tokens_come_from_the_softmax():
  """First tokens, and second ones after the most common first token."""
  batch = make_prompts(2)
  sampled = sample_groups(batch, MANY).tokens
  for row in range(2):
    # Counts of each first token, against its probability.
    first = np.bincount(sampled[row, :, 0], minlength=CONFIG.vocab)
    common = np.where(np.arange(CONFIG.vocab) == END, 0, first).argmax()
    response = np.full((2, 1, TOKENS), common, np.int32)
    wanted = softmax(exact_logits(batch, response) / HOT)[row, 0]
    # 22 degrees of freedom: mean 22, 99.9 % below 48.3.
    assert chi_square(first, wanted[0]) < 48.3
    chosen = sampled[row, sampled[row, :, 0] == common, 1]
    assert len(chosen) > 40
    # Too few for a chi-square: the total variation from the distribution.
    second = np.bincount(chosen, minlength=CONFIG.vocab) / len(chosen)
    assert np.abs(second - wanted[1]).sum() / 2 < 0.25


def test_members_and_prompts_are_sampled_independently():
  sampled = sample_groups([make_prompts(1)[0]] * 2, MANY).tokens
  # Few responses repeat, and equal prompts of another id have others.
  assert len({tuple(t) for t in sampled[0]}) > MANY // 2
  assert (sampled[0] != sampled[1]).any(-1).mean() > 0.5


def test_temperature_0_takes_the_likeliest():
  """Against the slow way: one whole pass for each token."""
  batch = make_prompts(2)
  sampled = sample_groups(batch, MANY, temperature=0.0)
  response = np.zeros((2, 1, TOKENS), np.int32)
  for t in range(TOKENS):
    logits = exact_logits(batch, response)[:, 0, t]
    response[:, 0, t] = logits.argmax(-1)
    logp = np.log(softmax(logits).max(-1)) * sampled.mask[:, 0, t]
    np.testing.assert_allclose(sampled.logp[:, 0, t], logp, atol=1e-4)
  # All members are equal; the slow response goes on after its end token.
  until = sampled.mask[:, :1]
  np.testing.assert_array_equal(sampled.tokens[:, :1][until], response[until])
  assert (sampled.tokens == sampled.tokens[:, :1]).all()


@pytest.fixture(scope="module")
def eight_groups():
  return sample_groups(make_prompts(8), 2)


@pytest.mark.parametrize("row", [2, 5])
def test_a_response_depends_on_its_own_prompt_and_key_alone(eight_groups, row):
  alone = sample_groups(make_prompts(8)[row : row + 1], 2, ids=[row])
  np.testing.assert_array_equal(alone.tokens[0], eight_groups.tokens[row])
  np.testing.assert_allclose(alone.logp[0], eight_groups.logp[row], atol=1e-5)


def test_a_larger_group_begins_with_the_smaller(eight_groups):
  more = sample_groups(make_prompts(2), MANY)
  np.testing.assert_array_equal(more.tokens[:, :2], eight_groups.tokens[:2])


def test_eight_devices_sample_what_one_samples(eight_groups):
  assert jax.local_device_count() == 8
  keys = jax.random.key_data(make_keys(range(8), 2))

  def sample_one(prompt, keys):
    return group_decode.sample(
      MODEL,
      tiny_policy.params(CONFIG),
      prompt,
      jax.random.wrap_key_data(keys),
      SamplingParams(HOT).validate(),
      DecodeConstraints(ALL, np.int32([END])),
      max_tokens=TOKENS,
    )

  batch = tiny_policy.processor(CONFIG, (8,)).collate(make_prompts(8), 8, 1)
  got = jax.device_get(jax.pmap(sample_one)(batch, keys[:, None]))
  np.testing.assert_array_equal(got.tokens[:, 0], eight_groups.tokens)
  np.testing.assert_array_equal(got.mask[:, 0], eight_groups.mask)


def test_nothing_follows_the_end_token():
  sampled = sample_groups(make_prompts(2), MANY)
  # Responses that end early have to be among them.
  ended = 0
  rows = [a.reshape(-1, TOKENS) for a in sampled[:3]]
  for tokens, logp, mask in zip(*rows, strict=True):
    n = mask.sum()
    assert mask[:n].all()  # The mask has no gaps.
    assert (tokens[: n - 1] != END).all()
    assert (tokens[n:] == END).all() and (logp[n:] == 0).all()
    if n < TOKENS:
      assert tokens[n - 1] == END
      ended += 1
  assert ended > 10


def test_forbidden_ids_are_never_sampled():
  allowed = ~np.isin(np.arange(CONFIG.vocab), [0, 1, 5, 6, 7, 8, 9, 22])
  for temperature in (0.0, 1.0, 50.0):  # The last is all but uniform.
    sampled = sample_groups(make_prompts(2), MANY, temperature, allowed)
    assert allowed[sampled.tokens[sampled.mask]].all()
  assert set(sampled.tokens[sampled.mask]) == set(np.flatnonzero(allowed))


def filter_slowly(probability, top_k=0, top_p=1.0):
  """Filter a distribution token by token, the likeliest first."""
  order = sorted(range(len(probability)), key=lambda v: -probability[v])
  if top_k:
    order = order[:top_k]
  total = sum(probability[v] for v in order)
  kept, reached = [], 0.0
  for v in order:
    if reached < top_p:
      kept.append(v)
    reached += probability[v] / total
  out = np.zeros(len(probability))
  out[kept] = probability[kept] / sum(probability[kept])
  return out


FILTERS = [dict(top_k=5), dict(top_p=0.6), dict(top_k=9, top_p=0.7)]
FILTERS += [dict(top_k=1), dict(top_k=1000), {}]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_give_the_filtered_distribution(filters):
  """Twenty thousand first tokens."""
  batch, counts = make_prompts(1), 0
  for i in range(5):
    tokens = sample_groups(batch, 4 * MANY, ids=[i], **filters).tokens[0, :, 0]
    counts += np.bincount(tokens, minlength=CONFIG.vocab)
  response = np.zeros((1, 1, TOKENS), np.int32)
  logits = exact_logits(batch, response)[0, 0, 0]
  wanted = filter_slowly(softmax(logits / HOT), **filters)
  assert (counts[wanted == 0] == 0).all()
  # 99.9 % of a chi-square of 22 degrees of freedom, or fewer, is below 48.3.
  assert chi_square(counts[wanted > 0], wanted[wanted > 0]) < 48.3


def test_each_row_has_its_own_sampling_parameters():
  """Rows of one batch may differ, and no parameter compiles anything."""
  default = dict(temperature=HOT, top_k=0, top_p=1.0)
  changes = [dict(temperature=0.0), dict(top_k=2), dict(temperature=9.0), {}]
  rows = [default | change for change in changes]
  columns = {name: np.array([row[name] for row in rows]) for name in default}
  before = group_decode.sample._cache_size()
  together = sample_groups(make_prompts(4), 1, **columns)
  after = group_decode.sample._cache_size()
  for i, row in enumerate(rows):
    same = {name: np.full(4, value) for name, value in row.items()}
    alone = sample_groups(make_prompts(4), 1, **same)
    np.testing.assert_array_equal(alone.tokens[i], together.tokens[i])
  assert group_decode.sample._cache_size() == after <= before + 1


def test_nan_logits_fail_their_row_alone():
  params = jax.tree.map(lambda x: x, tiny_policy.params(CONFIG))
  batch = make_prompts(2)
  # A token that only the second prompt has gets an embedding of NaN.
  only = next(i for i in batch[1].ids if i not in batch[0].ids)
  params["embed"] = params["embed"].at[only].set(jnp.nan)
  allowed = np.arange(CONFIG.vocab) != only
  sampled = sample_groups(batch, 3, allowed=allowed, params=params)
  wanted = sample_groups(batch[:1], 3, allowed=allowed)
  assert sampled.failed.tolist() == [[False] * 3, [True] * 3]
  assert not sampled.mask[1].any() and not sampled.logp[1].any()
  np.testing.assert_array_equal(sampled.tokens[0], wanted.tokens[0])


def find_stop(tokens):
  """Return the index of the first 7, or first 9 right after an 8."""
  for t in range(len(tokens)):
    if tokens[t] == 7 or tokens[max(0, t - 1) : t + 1] == [8, 9]:
      return t
  return len(tokens) - 1


def test_a_stop_string_ends_a_response_and_is_kept():
  """Token 7, or token 9 right after an 8, completes it."""
  # State 1: an 8 came last; state 2: complete.
  stops = np.zeros((3, CONFIG.vocab), np.int16)
  stops[0, 8] = stops[1, 8] = 1
  stops[:, 7] = stops[1, 9] = stops[2] = 2
  stopped = sample_groups(make_prompts(2), MANY, stops=stops)
  plain = sample_groups(make_prompts(2), MANY)
  ended = 0
  for row in np.ndindex(2, MANY):
    whole = plain.tokens[row][plain.mask[row]].tolist()
    end = find_stop(whole) + 1
    assert stopped.tokens[row][stopped.mask[row]].tolist() == whole[:end]
    ended += end < len(whole)
  assert ended > 100


def test_no_room_for_a_token_is_refused():
  with pytest.raises(ValueError, match="has 0 tokens: raise the last of"):
    sample_groups(make_prompts(1), 2, max_tokens=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_returned_logp_is_that_of_a_second_pass(temperature):
  """The loss recomputes it; forbidden ids are left out of the sum in both."""
  allowed = np.arange(CONFIG.vocab) != 5
  sampled = sample_groups(make_prompts(2), MANY, temperature, allowed)
  # Five members suffice for the second pass.
  sampled = jax.tree.map(lambda a: a[:, :5], sampled)
  prompt = tiny_policy.collate(CONFIG, make_prompts(2), length=8)
  apply = functools.partial(MODEL.apply, {"params": tiny_policy.params(CONFIG)})
  logp, _ = logprobs.token_logp(
    jax.jit(apply)(prompt, sampled.tokens) / temperature,
    jnp.asarray(sampled.tokens),
    apply(method="output_embedding"),
    jnp.asarray(allowed),
  )
  np.testing.assert_allclose(
    np.asarray(logp)[sampled.mask], sampled.logp[sampled.mask], atol=1e-5
  )


def test_free_rows_have_no_filters():
  """One row with a filter has the vocabulary sorted for all, in each step."""
  batch = tiny_policy.collate(CONFIG, make_prompts(2), length=8)
  constraints = DecodeConstraints(ALL, np.int32([END]))
  batch = jax.tree.map(jnp.asarray, batch)
  task = batch, make_keys([0, 1], 2), SamplingParams(HOT).validate()
  prompts, rows = group_decode.prefill(
    MODEL, tiny_policy.params(CONFIG), *task, constraints, TOKENS
  )
  free = group_decode.empty_state(MODEL, prompts, rows, 3, 5).rows
  assert free.done.all() and not free.sampling.top_k.any()
  np.testing.assert_array_equal(free.sampling.top_p, np.ones(5))


def test_any_of_several_end_tokens_ends_a_response():
  """As if it were cut there: its other tokens are the same."""
  batch = make_prompts(3)
  plain = sample_groups(batch, MANY)
  # The most common tokens, so that many responses end earlier.
  counts = np.bincount(plain.tokens[plain.mask], minlength=CONFIG.vocab)
  ends = (END, *np.argsort(counts)[-2:])
  found = sample_groups(batch, MANY, ends=ends)
  is_end = np.isin(plain.tokens, ends) & plain.mask
  behind = np.cumsum(is_end, -1) - is_end > 0
  mask = plain.mask & ~behind
  assert behind.any()
  np.testing.assert_array_equal(found.mask, mask)
  np.testing.assert_array_equal(found.tokens, np.where(mask, plain.tokens, END))
