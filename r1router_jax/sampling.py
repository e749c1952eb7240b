"""Groups of responses to packed prompts, and log-probabilities of tokens.

Each prompt is prefilled once; its G members decode together, each with its own
cache, until every row has drawn the end token.  A token is drawn by inverting
the cumulative distribution at one uniform number:

  token = min { v : F(v) > u F(V) },   F(v) = sum_{w <= v} exp(logits_w / T)

The uniform numbers of a row come from that row's key alone, so a response does
not depend on its neighbours, the batch, or the number of devices.  How a row is
drawn (`Method`) is data, too: another temperature or filter compiles nothing.

A response ends with the end token, which it keeps, or with the token in which a
stop string is complete, wherever in the token it ends: an automaton over bytes,
folded over whole tokens, says so (`Tokenizer.stops`).

Axes:  B prompts   G responses per prompt   N = B G   T response tokens
  V vocabulary   D hidden   S states of the automaton, the last "complete"
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from r1router_jax.models import qwen_vl

CHUNK = 1024  # Tokens whose logits exist at one time.


class Method(NamedTuple):
  """How tokens are drawn: numbers, or arrays with one for each row `N`.

  Filters apply one after another, each to what the last one left.

  Attributes:
    temperature: of the softmax; 0 takes the likeliest token.
    top_k: draw from the k likeliest alone; 0 from all.
    top_p: from the likeliest that together reach this probability; 1 from all.
    min_p: from those at least this share as likely as the likeliest; 0 all.
  """

  temperature: Float[Array, "*N"] | float = 1.0
  top_k: Int[Array, "*N"] | int = 0
  top_p: Float[Array, "*N"] | float = 1.0
  min_p: Float[Array, "*N"] | float = 0.0

  def checked(self) -> "Method":
    """The same as arrays.

    Raises:
      ValueError: where a number is out of its range, by name.
    """
    ranges = dict(temperature=(0, np.inf), top_k=(0, np.inf), top_p=(0, 1),
                  min_p=(0, 1))
    for name, (low, high) in ranges.items():
      value = np.asarray(getattr(self, name))
      if not ((low <= value) & (value <= high)).all() or (
          name == "top_p" and not value.all()):
        raise ValueError(f"{name} is {getattr(self, name)}, wanted {low} to "
                         f"{high}{', and above 0' * (name == 'top_p')}.")
    kinds = (np.float32, np.int32, np.float32, np.float32)
    return Method(*map(jnp.asarray, self, kinds))


GREEDY = Method(temperature=0.0)


class Drawn(NamedTuple):
  """Sampled responses; padding after the end token has mask False.

  A row whose logits are not numbers has `failed`, and ends there, the others
  going on.
  """

  tokens: Int[Array, "B G T"]
  logp: Float[Array, "B G T"]  # Nats, at the temperature, before any filter.
  mask: Bool[Array, "B G T"]  # Up to and including the end token.
  failed: Bool[Array, "B G"]


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


def kept(logits: Float[Array, "N V"], method: Method) -> Bool[Array, "N V"]:
  """Which tokens pass the filters; equal logits pass together.

  A vocabulary is sorted only where some row asks for it.
  """
  column = lambda x: jnp.broadcast_to(x, logits.shape[:1])[:, None]
  k, p = column(method.top_k), column(method.top_p)

  def by_rank(_):
    falling = -jnp.sort(-logits, -1)
    passes = (jnp.arange(logits.shape[1]) < k) | (k == 0)
    likely = jax.nn.softmax(jnp.where(passes, falling, -jnp.inf), -1)
    passes &= jnp.cumsum(likely, -1) - likely < p
    last = jnp.sum(passes, -1, keepdims=True) - 1
    return logits >= jnp.take_along_axis(falling, last, -1)

  ranked = jax.lax.cond(
    jnp.any((k > 0) | (p < 1)), by_rank, lambda _: jnp.ones_like(
      logits, bool), None)
  floor = jnp.max(logits, -1, keepdims=True) + jnp.log(column(method.min_p))
  return ranked & (logits >= floor)


def draw(
  logits: Float[Array, "N V"], method: Method, u: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
  """A token of each row, and its log-probability before any filter."""
  greedy = method.temperature <= 0
  logits = logits / jnp.where(greedy, 1.0, method.temperature)[:, None]
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  drawn = pick(jnp.where(kept(logits, method), weights, 0), u)
  token = jnp.where(greedy, jnp.argmax(logits, -1), drawn).astype(jnp.int32)
  logp = jnp.take_along_axis(logits, token[:, None], 1)[:, 0]
  return token, logp - jax.nn.logsumexp(logits, -1)


@functools.partial(jax.jit, static_argnames=("model", "tokens"))
def sample(
  model: qwen_vl.QwenVL,
  params: dict,
  prompt: qwen_vl.Prompt,
  key: Key[Array, "B G"],
  method: Method,
  allowed: Bool[Array, " V"],
  *,
  tokens: int,
  end: Int[Array, ""] | int,
  stops: Int[Array, "S V"] | None = None,
) -> Drawn:
  """Draws G responses to each prompt.

  Args:
    model: the module; its parameters are `params`.
    prompt: packed prompts.
    key: one per response, see `keys`.
    method: how; see `Method`.
    allowed: false on ids that are never drawn (padding rows, placeholders).
    tokens: T, the longest response.
    end: id of the end token.
    stops: the next state of the automaton after each token, or None.

  Raises:
    ValueError: where there is no room for a token.
  """
  if tokens < 1:
    raise ValueError(f"The longest response has {tokens} tokens: raise the "
                     "last of config.policy.settings.response_tokens.")
  # Once, or every decoded token would read the larger originals.
  params = jax.tree.map(lambda x: x.astype(model.compute.dtype), params)
  members, rows = key.shape[1], key.size
  apply = functools.partial(model.apply, {"params": params})
  prefix = apply(prompt, method="prefill")
  vocabulary = apply(method="vocabulary")
  method = Method(*(jnp.broadcast_to(x, (rows,)) for x in method))
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (tokens,)))(
    key.reshape(rows)).T

  def body(carry):
    i, state, cache, done, failed, at, out, logps, mask = carry
    logits = jnp.einsum("ND,VD->NV", state, vocabulary,
                        preferred_element_type=jnp.float32)
    token, logp = draw(jnp.where(allowed, logits, -jnp.inf), method, uniform[i])
    failed |= ~done & jnp.isnan(logp)
    done |= failed
    token = jnp.where(done, end, token)
    out, logps = out.at[i].set(token), logps.at[i].set(logp)
    mask = mask.at[i].set(~done)
    done |= token == end
    if stops is not None:
      at = stops[at, token].astype(jnp.int32)
      done |= at == len(stops) - 1
    state, cache = apply(prefix, cache, token, i, method="decode")
    return i + 1, state, cache, done, failed, at, out, logps, mask

  def unfinished(carry):
    return (carry[0] < tokens) & ~jnp.all(carry[3])

  start = (
    jnp.int32(0),
    jnp.repeat(prefix.last, members, axis=0),
    qwen_vl.empty_cache(model.config, rows, tokens, prefix.last.dtype),
    *(jnp.zeros(rows, kind) for kind in (bool, bool, jnp.int32)),
    jnp.full((tokens, rows), end, jnp.int32),
    jnp.zeros((tokens, rows)),
    jnp.zeros((tokens, rows), bool),
  )
  *_, failed, _, out, logps, mask = jax.lax.while_loop(unfinished, body, start)
  return Drawn(*(a.T.reshape(*key.shape, tokens) for a in (
    out, jnp.where(mask, logps, 0), mask)), failed.reshape(key.shape))


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
