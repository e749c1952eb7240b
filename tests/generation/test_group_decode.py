"""Responses and their log-probabilities, against exact distributions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import group_decode, logprobs, token_sampling
from r1router_jax.generation.group_decode import Words
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.models import qwen2_5_vl
from tests import tiny_policy

CONFIG = dataclasses.replace(tiny_policy.CONFIG, vocab=23)

MODEL = qwen2_5_vl.QwenVL(CONFIG)

END, TOKENS = 2, 4

HOT = 6.0  # A temperature at which every token is drawn now and then.

MANY = 1000


def prompts(count):
  rng = np.random.default_rng(0)
  sizes = (4, 7, 3, 5, 8, 4, 6, 3)
  return [tiny_policy.encoded(rng, CONFIG, size) for size in sizes[:count]]


def sample(
  batch,
  members,
  temperature=HOT,
  allowed=None,
  ids=None,
  end=END,
  stops=None,
  params=None,
  **filters,
):
  ids = np.arange(len(batch)) if ids is None else np.asarray(ids)
  allowed = np.ones(CONFIG.vocab, bool) if allowed is None else allowed
  return jax.device_get(
    group_decode.sample(
      MODEL,
      params or tiny_policy.params(CONFIG),
      tiny_policy.pack(CONFIG, batch, length=8),
      group_decode.keys(jax.random.key(7), jnp.asarray(ids), members),
      SamplingParams(temperature, **filters).validate(),
      Words(allowed, np.int32(end), stops),
      tokens=TOKENS,
    )
  )


@jax.jit
def forward(prompt, response):
  apply = functools.partial(MODEL.apply, {"params": tiny_policy.params(CONFIG)})
  return jnp.einsum(
    "BGTD,VD->BGTV", apply(prompt, response), apply(method="vocabulary")
  )


def scores(batch, response):
  """Logits `B G T V` that predict each token of a response."""
  return np.asarray(
    forward(tiny_policy.pack(CONFIG, batch, length=8), response)
  )


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def chi_square(seen, probability):
  expected = seen.sum() * probability
  assert (expected > 1).all()
  return np.sum((seen - expected) ** 2 / expected)


def test_tokens_come_from_the_softmax():
  """First tokens, and second ones after the commonest first, exactly."""
  batch = prompts(2)
  drawn = sample(batch, MANY).tokens
  for row in range(2):
    first = np.bincount(drawn[row, :, 0], minlength=CONFIG.vocab)
    common = np.where(np.arange(CONFIG.vocab) == END, 0, first).argmax()
    response = np.full((2, 1, TOKENS), common, np.int32)
    wanted = softmax(scores(batch, response) / HOT)[row, 0]
    # 22 degrees of freedom: mean 22, 99.9 % below 48.3.
    assert chi_square(first, wanted[0]) < 48.3
    chosen = drawn[row, drawn[row, :, 0] == common, 1]
    assert len(chosen) > 40
    # Few: their total variation from the exact distribution.
    second = np.bincount(chosen, minlength=CONFIG.vocab) / len(chosen)
    assert np.abs(second - wanted[1]).sum() / 2 < 0.25


def test_members_and_prompts_draw_independently():
  drawn = sample([prompts(1)[0]] * 2, MANY).tokens
  assert len({tuple(t) for t in drawn[0]}) > MANY // 2
  assert (drawn[0] != drawn[1]).any(-1).mean() > 0.5


def test_temperature_0_takes_the_likeliest():
  """The slow way: one whole pass for each token."""
  batch = prompts(2)
  drawn = sample(batch, MANY, temperature=0.0, end=END)
  response = np.zeros((2, 1, TOKENS), np.int32)
  for t in range(TOKENS):
    logits = scores(batch, response)[:, 0, t]
    response[:, 0, t] = logits.argmax(-1)
    logp = np.log(softmax(logits).max(-1))
    np.testing.assert_allclose(
      drawn.logp[:, 0, t], np.where(drawn.mask[:, 0, t], logp, 0), atol=1e-4
    )
  until = drawn.mask[:, :1]
  np.testing.assert_array_equal(drawn.tokens[:, :1][until], response[until])
  assert (drawn.tokens == drawn.tokens[:, :1]).all()


@pytest.fixture(scope="module")
def eight():
  return sample(prompts(8), 2)


@pytest.mark.parametrize("row", [2, 5])
def test_a_response_depends_on_its_own_prompt_and_key_alone(eight, row):
  alone = sample(prompts(8)[row : row + 1], 2, ids=[row])
  np.testing.assert_array_equal(alone.tokens[0], eight.tokens[row])
  np.testing.assert_allclose(alone.logp[0], eight.logp[row], atol=1e-5)


def test_a_larger_group_begins_with_the_smaller(eight):
  more = sample(prompts(2), MANY)
  np.testing.assert_array_equal(more.tokens[:, :2], eight.tokens[:2])


def test_eight_devices_draw_what_one_draws(eight):
  assert jax.local_device_count() == 8
  keys = jax.random.key_data(
    group_decode.keys(jax.random.key(7), jnp.arange(8), 2)
  )

  def one(prompt, keys):
    return group_decode.sample(
      MODEL,
      tiny_policy.params(CONFIG),
      prompt,
      jax.random.wrap_key_data(keys),
      SamplingParams(HOT).validate(),
      Words(np.ones(CONFIG.vocab, bool), END),
      tokens=TOKENS,
    )

  packed = tiny_policy.packer(CONFIG, (8,)).pack(prompts(8), 8, 1)
  got = jax.device_get(jax.pmap(one)(packed, keys[:, None]))
  np.testing.assert_array_equal(got.tokens[:, 0], eight.tokens)
  np.testing.assert_array_equal(got.mask[:, 0], eight.mask)


def test_nothing_follows_the_end_token():
  drawn = sample(prompts(2), MANY)
  ended = 0
  for tokens, logp, mask in zip(
    *(a.reshape(-1, TOKENS) for a in drawn[:3]), strict=True
  ):
    n = mask.sum()
    assert mask[:n].all()  # The mask is a beginning.
    assert (tokens[: n - 1] != END).all()
    assert (tokens[n:] == END).all() and (logp[n:] == 0).all()
    if n < TOKENS:
      assert tokens[n - 1] == END
      ended += 1
  assert ended > 10


def test_forbidden_ids_are_never_drawn():
  allowed = np.ones(CONFIG.vocab, bool)
  allowed[[0, 1, 5, 6, 7, 8, 9, 22]] = False
  for temperature in (0.0, 1.0, 50.0):  # The last is all but uniform.
    drawn = sample(prompts(2), MANY, temperature, allowed)
    assert allowed[drawn.tokens[drawn.mask]].all()
  assert set(drawn.tokens[drawn.mask]) == set(np.flatnonzero(allowed))


def filtered(probability, top_k=0, top_p=1.0, min_p=0.0):
  """The slow way: likeliest first, one filter after another."""
  order = sorted(range(len(probability)), key=lambda v: -probability[v])
  if top_k:
    order = order[:top_k]
  whole, left, held = sum(probability[v] for v in order), [], 0.0
  for v in order:
    if held < top_p:
      left.append(v)
    held += probability[v] / whole
  left = [v for v in left if probability[v] >= min_p * max(probability)]
  out = np.zeros(len(probability))
  out[left] = probability[left] / sum(probability[left])
  return out


FILTERS = [
  dict(top_k=5),
  dict(top_p=0.6),
  dict(min_p=0.3),
  dict(top_k=1),
  dict(top_k=9, top_p=0.7, min_p=0.1),
  dict(top_k=1000),
  {},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_leave_the_distribution_that_they_say(filters):
  """Twenty thousand first tokens."""
  drawn = [
    sample([prompts(1)[0]], 4 * MANY, ids=[i], **filters).tokens[0, :, 0]
    for i in range(5)
  ]
  seen = np.bincount(np.concatenate(drawn), minlength=CONFIG.vocab)
  response = np.zeros((1, 1, TOKENS), np.int32)
  wanted = filtered(
    softmax(scores(prompts(1), response) / HOT)[0, 0, 0], **filters
  )
  assert (seen[wanted == 0] == 0).all()
  # 99.9 % of a chi-square of 22 degrees of freedom, or fewer, is below 48.3.
  assert chi_square(seen[wanted > 0], wanted[wanted > 0]) < 48.3


def test_each_row_is_drawn_its_own_way():
  """And no way of drawing compiles anything."""
  ways = [dict(temperature=0.0), dict(top_k=2), dict(temperature=9.0), {}]
  names = ("temperature", "top_k", "top_p", "min_p")
  plain = dict(temperature=HOT, top_k=0, top_p=1.0, min_p=0.0)
  columns = {
    name: np.array([(plain | way)[name] for way in ways]) for name in names
  }
  before = group_decode.sample._cache_size()
  together = sample(prompts(4), 1, **columns)
  after = group_decode.sample._cache_size()
  for row, way in enumerate(ways):
    alone = sample(
      prompts(4),
      1,
      **{name: np.full(4, value) for name, value in (plain | way).items()},
    )
    np.testing.assert_array_equal(alone.tokens[row], together.tokens[row])
  assert group_decode.sample._cache_size() == after <= before + 1


@pytest.mark.parametrize(
  "method, words",
  [
    (SamplingParams(-1.0), "temperature is -1.0, wanted 0 to inf"),
    (SamplingParams(top_k=-1), "top_k is -1"),
    (SamplingParams(min_p=1.5), "min_p is 1.5"),
    (SamplingParams(top_p=0.0), "top_p is 0.0, wanted 0 to 1, and above 0"),
    (SamplingParams(top_p=float("nan")), "top_p is nan"),
  ],
)
def test_numbers_out_of_range_are_named(method, words):
  with pytest.raises(ValueError, match=words):
    method.checked()


def test_a_row_of_no_numbers_fails_and_the_others_go_on():
  params = jax.tree.map(lambda x: x, tiny_policy.params(CONFIG))
  batch = prompts(2)
  only = next(i for i in batch[1].ids if i not in batch[0].ids)
  params["embed"] = params["embed"].at[only].set(jnp.nan)
  allowed = np.arange(CONFIG.vocab) != only
  drawn = sample(batch, 3, allowed=allowed, params=params)
  wanted = sample(
    batch[:1], 3, allowed=allowed, params=tiny_policy.params(CONFIG)
  )
  assert drawn.failed.tolist() == [[False] * 3, [True] * 3]
  assert not drawn.mask[1].any() and not drawn.logp[1].any()
  np.testing.assert_array_equal(drawn.tokens[0], wanted.tokens[0])


def test_a_stop_ends_a_response_and_is_kept():
  """Token 7, or token 9 right after an 8, completes it."""
  stops = np.zeros((3, CONFIG.vocab), np.int16)
  stops[0, 8] = stops[1, 8] = 1
  stops[:, 7] = stops[1, 9] = stops[2] = 2
  drawn = sample(prompts(2), MANY, stops=stops)
  plain = sample(prompts(2), MANY)
  ended = 0
  for tokens, mask, free, mask_free in zip(
    *(
      a.reshape(-1, TOKENS)
      for each in (drawn, plain)
      for a in (each.tokens, each.mask)
    ),
    strict=True,
  ):
    written = free[mask_free].tolist()
    until = next(
      (
        t
        for t in range(len(written))
        if written[t] == 7 or written[max(0, t - 1) : t + 1] == [8, 9]
      ),
      len(written) - 1,
    )
    assert tokens[mask].tolist() == written[: until + 1]
    ended += until < len(written) - 1
  assert ended > 100


def test_no_room_for_a_token_is_refused():
  with pytest.raises(ValueError, match="has 0 tokens: raise the last of"):
    group_decode.sample(
      MODEL,
      tiny_policy.params(CONFIG),
      tiny_policy.pack(CONFIG, prompts(1), length=8),
      group_decode.keys(jax.random.key(7), jnp.arange(1), 2),
      SamplingParams().validate(),
      Words(np.ones(CONFIG.vocab, bool), END),
      tokens=0,
    )


def test_rounding_draws_no_id_of_weight_0():
  """Thresholds where cumulative sums end, at forbidden ids in between."""
  rng = np.random.default_rng(0)
  weights = np.exp(3 * rng.normal(size=(64, 4096))).astype(np.float32)
  weights[:, 1000:1100] = weights[:, 4000:] = 0
  total = np.asarray(jnp.cumsum(jnp.asarray(weights), -1))
  pick = jax.jit(token_sampling.pick)
  for at in (*range(999, 1100, 3), 3998, 3999, 4000, 4094):
    edge = total[:, at] / total[:, -1]
    for u in (edge, np.nextafter(edge, np.float32(0))):
      u = np.minimum(u, np.float32(1 - 2**-23))  # The largest that is drawn.
      assert (weights[np.arange(64), pick(weights, u)] > 0).all()
  assert (pick(weights, np.zeros(64, np.float32)) == 0).all()


def test_pick_inverts_the_distribution():
  weights = jnp.tile(jnp.array([0, 1.0, 0, 3.0, 4.0, 0]), (6, 1))
  u = jnp.array([0, 0.12, 0.126, 0.49, 0.51, 0.999])
  assert token_sampling.pick(weights, u).tolist() == [1, 1, 3, 3, 4, 4]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_returned_logp_is_that_of_a_second_pass(temperature):
  """What the loss recomputes, forbidden ids left out of the sum in both."""
  allowed = np.arange(CONFIG.vocab) != 5
  drawn = sample(prompts(2), MANY, temperature, allowed)
  drawn = jax.tree.map(lambda a: a[:, :5], drawn)
  prompt = tiny_policy.pack(CONFIG, prompts(2), length=8)
  apply = functools.partial(MODEL.apply, {"params": tiny_policy.params(CONFIG)})
  logp, _ = logprobs.token_logp(
    jax.jit(apply)(prompt, drawn.tokens) / temperature,
    jnp.asarray(drawn.tokens),
    apply(method="vocabulary"),
    jnp.asarray(allowed),
  )
  np.testing.assert_allclose(
    np.asarray(logp)[drawn.mask], drawn.logp[drawn.mask], atol=1e-5
  )


# ---- token_logp.


def naive(states, targets, vocabulary, allowed):
  logits = jnp.where(allowed, states @ vocabulary.T, -jnp.inf)
  logp = jax.nn.log_softmax(logits)
  plain = jnp.where(allowed, logp, 0)
  return (
    jnp.take_along_axis(logp, targets[..., None], -1)[..., 0],
    -jnp.sum(jnp.exp(plain) * plain, -1, where=allowed),
  )


@pytest.mark.parametrize("shape", [(3,), (4,), (2, 3, 3)])
def test_token_logp_is_log_softmax(shape, monkeypatch):
  """Also where tokens do not fill the last chunk, of 4 here."""
  monkeypatch.setattr(logprobs, "CHUNK", 4)
  rng = np.random.default_rng(sum(shape))
  states = jnp.asarray(rng.normal(size=(*shape, 6)), jnp.float32)
  vocabulary = jnp.asarray(rng.normal(size=(9, 6)), jnp.float32)
  allowed = jnp.arange(9) != 4
  targets = jnp.asarray(rng.choice([0, 3, 8], shape))
  weights = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)

  def weighed(function):
    def total(states, vocabulary):
      logp, entropy = function(states, targets, vocabulary, allowed)
      return jnp.sum(weights[0] * logp + weights[1] * entropy)

    return jax.grad(total, (0, 1))(states, vocabulary)

  for got, want in zip(
    logprobs.token_logp(states, targets, vocabulary, allowed),
    naive(states, targets, vocabulary, allowed),
    strict=True,
  ):
    assert got.shape == shape
    np.testing.assert_allclose(got, want, atol=1e-5)
  for got, want in zip(
    weighed(logprobs.token_logp), weighed(naive), strict=True
  ):
    np.testing.assert_allclose(got, want, atol=1e-5)
