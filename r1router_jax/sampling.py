"""Groups of responses to packed prompts, and log-probabilities of tokens.

Each prompt is prefilled once; its G members decode together, each with its own
cache, until every row has drawn the end token.  A token is drawn by inverting
the cumulative distribution at one uniform number:

  token = min { v : F(v) > u F(V) },   F(v) = sum_{w <= v} exp(logits_w / T)

The uniform numbers of a row come from that row's key alone, so a response does
not depend on its neighbours, the batch, or the number of devices.

Axes:  B prompts   G responses per prompt   N = B G   T response tokens
  V vocabulary   D hidden
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from r1router_jax.models import qwen_vl

CHUNK = 1024  # Tokens whose logits exist at one time.


class Drawn(NamedTuple):
  """Sampled responses; padding after the end token has mask False."""

  tokens: Int[Array, "B G T"]
  logp: Float[Array, "B G T"]  # Nats, at the temperature of sampling.
  mask: Bool[Array, "B G T"]  # Up to and including the end token.


def keys(
  key: Key[Array, ""], prompts: Int[Array, " B"], members: int
) -> Key[Array, "B G"]:
  """A key per response, folded from the prompt's id and the member's index."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(lambda p: fold(jax.random.fold_in(key, p),
                                 jnp.arange(members)))(prompts)


def pick(
  weights: Float[Array, "N V"], u: Float[Array, " N"]
) -> Int[Array, " N"]:
  """The first id whose cumulative weight exceeds `u` times the total.

  XLA sums in a tree, so that rounding may raise the sum, or lower it, where
  nothing is added: ids of weight 0 are left out, or one in some millions of
  tokens would be a forbidden one.
  """
  total = jnp.where(weights > 0, jnp.cumsum(weights, -1), 0)
  return jnp.argmax(total > u[:, None] * total.max(-1, keepdims=True), -1)


@functools.partial(jax.jit, static_argnames=("model", "tokens", "end"))
def sample(
  model: qwen_vl.QwenVL,
  params: dict,
  prompt: qwen_vl.Prompt,
  key: Key[Array, "B G"],
  temperature: Float[Array, ""],
  allowed: Bool[Array, " V"],
  *,
  tokens: int,
  end: int,
) -> Drawn:
  """Draws G responses to each prompt.

  Args:
    model: the module; its parameters are `params`.
    prompt: packed prompts.
    key: one per response, see `keys`.
    temperature: of the softmax; 0 takes the likeliest token.
    allowed: false on ids that are never drawn (padding rows, placeholders).
    tokens: T, the longest response.
    end: id of the end token.
  """
  # Once, or every decoded token would read the larger originals.
  params = jax.tree.map(lambda x: x.astype(model.compute.dtype), params)
  groups, members = key.shape
  rows = groups * members
  apply = functools.partial(model.apply, {"params": params})
  prefix = apply(prompt, method="prefill")
  vocabulary = apply(method="vocabulary")
  greedy = temperature <= 0
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (tokens,)))(
    key.reshape(rows)).T

  def draw(state, u):
    logits = jnp.where(
      allowed,
      jnp.einsum("ND,VD->NV", state, vocabulary,
                 preferred_element_type=jnp.float32), -jnp.inf)
    logits = logits / jnp.where(greedy, 1.0, temperature)
    drawn = pick(jnp.exp(logits - logits.max(-1, keepdims=True)), u)
    token = jnp.where(greedy, jnp.argmax(logits, -1), drawn).astype(jnp.int32)
    logp = jnp.take_along_axis(logits, token[:, None], 1)[:, 0]
    return token, logp - jax.nn.logsumexp(logits, -1)

  def body(carry):
    i, state, cache, done, out, logps, mask = carry
    token, logp = draw(state, uniform[i])
    token = jnp.where(done, end, token)
    out, logps = out.at[i].set(token), logps.at[i].set(logp)
    mask = mask.at[i].set(~done)
    state, cache = apply(prefix, cache, token, i, method="decode")
    return i + 1, state, cache, done | (token == end), out, logps, mask

  def unfinished(carry):
    return (carry[0] < tokens) & ~jnp.all(carry[3])

  start = (
    jnp.int32(0),
    jnp.repeat(prefix.last, members, axis=0),
    qwen_vl.empty_cache(model.config, rows, tokens, prefix.last.dtype),
    jnp.zeros(rows, bool),
    jnp.full((tokens, rows), end, jnp.int32),
    jnp.zeros((tokens, rows)),
    jnp.zeros((tokens, rows), bool),
  )
  _, _, _, _, out, logps, mask = jax.lax.while_loop(unfinished, body, start)
  return Drawn(*(
    a.T.reshape(groups, members, tokens)
    for a in (out, jnp.where(mask, logps, 0), mask)))


def token_logp(
  states: Float[Array, "*B D"],
  targets: Int[Array, "*B"],
  vocabulary: Float[Array, "V D"],
  allowed: Bool[Array, " V"],
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
  """Log-probability of each target and entropy at its position, in nats.

  Logits of `CHUNK` tokens exist at a time, in the backward pass too.
  """
  shape, width = targets.shape, states.shape[-1]
  states, targets = states.reshape(-1, width), targets.reshape(-1)
  count = len(targets)
  size = min(CHUNK, count)
  chunks = -(-count // size)
  pad = chunks * size - count
  states = jnp.pad(states, ((0, pad), (0, 0))).reshape(chunks, size, width)
  targets = jnp.pad(targets, (0, pad)).reshape(chunks, size)

  @jax.checkpoint
  def chunk(x, target):
    logits = jnp.einsum(
      "ND,VD->NV", x, vocabulary, preferred_element_type=jnp.float32)
    logits = jnp.where(allowed, logits, -1e30)
    norm = jax.nn.logsumexp(logits, -1)
    logp = jnp.take_along_axis(logits, target[:, None], 1)[:, 0] - norm
    probs = jnp.exp(logits - norm[:, None])
    return logp, norm - jnp.sum(probs * logits, -1)

  logp, entropy = jax.lax.map(lambda xs: chunk(*xs), (states, targets))
  return tuple(a.reshape(-1)[:count].reshape(shape) for a in (logp, entropy))
