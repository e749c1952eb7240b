"""Groups of responses to packed prompts, drawn as fast as they can be.

Each prompt is prefilled once; its G members decode together, reading the keys
of their prompt from one place and each its own from a ring, until they end.
Rows are *slots*: `advance` runs them until so few are unfinished that the host
(`batching.py`) can do better, by putting new prompts into the free ones
(`place`) or by going on with fewer of them (`compact`).  `sample` is all of it
for prompts that have a slot each.

The uniform numbers of a row come from that row's key alone, so a response does
not depend on its neighbours, its slot, or the number of devices, but for the
rounding of sums that a compiler orders differently in another shape.

A response ends with the end token, which it keeps, or with the token in which a
stop string is complete, wherever in the token it ends: an automaton over bytes,
folded over whole tokens, says so (`Tokenizer.stops`).

Axes:  B prompts   G responses per prompt   N rows   T response tokens
  V vocabulary   D hidden   S states of the automaton, the last "complete"
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from r1router_jax.generation.token_sampling import SamplingParams, draw
from r1router_jax.models import layers, qwen2_5_vl
from r1router_jax.models.attention import Caches, Lanes


class Drawn(NamedTuple):
  """Sampled responses; padding after the end token has mask False.

  A row whose logits are not numbers has `failed`, and ends there, the others
  going on.
  """

  tokens: Int[Array, "B G T"]
  logp: Float[Array, "B G T"]  # Nats, at the temperature, before any filter.
  mask: Bool[Array, "B G T"]  # Up to and including the end token.
  failed: Bool[Array, "B G"]


class Rows(NamedTuple):
  """Responses in the making.

  Attributes:
    lane: which member of which prompt, see `attention.Lanes`; beyond the last
      lane where the row is free.
    method: how its tokens are drawn.
    uniform: the numbers that they are drawn with.
    age: how many it has.
    at: state of the stop automaton.
    done, failed: see `Drawn`.
    tokens, logp: so far.
  """

  lane: Int[Array, " N"]
  method: SamplingParams
  uniform: Float[Array, "N T"]
  age: Int[Array, " N"]
  at: Int[Array, " N"]
  done: Bool[Array, " N"]
  failed: Bool[Array, " N"]
  tokens: Int[Array, "N T"]
  logp: Float[Array, "N T"]


class Slots(NamedTuple):
  """Prompts, rows, and the ring of the rows' keys with its next column."""

  prefix: qwen2_5_vl.Prefix
  rows: Rows
  own: Caches
  column: Int[Array, ""]


class Words(NamedTuple):
  """What a token may be, and which ones end a response.

  Attributes:
    allowed: false on ids that are never drawn (padding rows, placeholders).
    end: id of the end token.
    stops: the next state of the automaton after each token, or None.
  """

  allowed: Bool[Array, " V"]
  end: Int[Array, ""] | int
  stops: Int[Array, "S V"] | None = None


def keys(
  key: Key[Array, ""], prompts: Int[Array, " B"], members: int
) -> Key[Array, "B G"]:
  """A key per response, folded from the prompt's id and the member's index."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(
    lambda p: fold(jax.random.fold_in(key, p), jnp.arange(members))
  )(prompts)


def start(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  prompt: qwen2_5_vl.Prompt,
  key: Key[Array, "B G"],
  method: SamplingParams,
  words: Words,
  tokens: int,
) -> tuple[qwen2_5_vl.Prefix, Rows]:
  """Prefills prompts and draws the first token of each response.

  Raises:
    ValueError: where there is no room for a token.
  """
  if tokens < 1:
    raise ValueError(
      f"The longest response has {tokens} tokens: raise the "
      "last of config.policy.settings.response_tokens."
    )
  members, rows = key.shape[1], key.size
  prefix = model.apply({"params": params}, prompt, method="prefill")
  zeros = functools.partial(jnp.zeros, rows)
  fresh = Rows(
    lane=jnp.arange(rows),
    method=SamplingParams(*(jnp.broadcast_to(x, (rows,)) for x in method)),
    uniform=jax.vmap(lambda k: jax.random.uniform(k, (tokens,)))(
      key.reshape(rows)
    ),
    age=zeros(jnp.int32),
    at=zeros(jnp.int32),
    done=zeros(bool),
    failed=zeros(bool),
    tokens=jnp.full((rows, tokens), words.end, jnp.int32),
    logp=jnp.zeros((rows, tokens)),
  )
  logits = jnp.repeat(_logits(model, params, prefix.last), members, axis=0)
  return prefix, _write(fresh, logits, words)


def ring(model: qwen2_5_vl.QwenVL, rows: int, tokens: int) -> Caches:
  """Room for the keys of responses of at most `tokens` tokens.

  The last token is never an input.
  """
  return qwen2_5_vl.empty_cache(
    model.config,
    rows,
    max(tokens - 1, 1),
    model.compute.dtype,
    unrolled=model.unrolled,
  )


def free(
  model: qwen2_5_vl.QwenVL,
  prefix: qwen2_5_vl.Prefix,
  rows: Rows,
  prompts: int,
  count: int,
) -> Slots:
  """So many free slots for prompts, and `count` for rows, like those given."""

  def slots(size, axis, x):
    axis %= x.ndim
    return jnp.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)

  cache = jax.tree.map(functools.partial(slots, prompts, -4), prefix.cache)
  at = functools.partial(slots, prompts, 0)
  empty = jax.tree.map(functools.partial(slots, count, 0), rows)
  return Slots(
    qwen2_5_vl.Prefix(cache, *map(at, prefix[1:])),
    empty._replace(done=jnp.ones(count, bool)),
    ring(model, count, rows.tokens.shape[1]),
    jnp.int32(0),
  )


def advance(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  slots: Slots,
  words: Words,
  live: Int[Array, ""] | int,
  members: int,
) -> Slots:
  """Decodes until at most `live` rows are unfinished."""
  lanes = _lanes(slots, members)
  room = max(slots.rows.tokens.shape[1] - 1, 1)

  def body(slots):
    prefix, rows, own, column = slots
    last = jnp.maximum(rows.age - 1, 0)
    token = jnp.take_along_axis(rows.tokens, last[:, None], 1)[:, 0]
    states, own = model.apply(
      {"params": params},
      prefix,
      own,
      token,
      last,
      column,
      lanes,
      method="decode",
    )
    rows = _write(rows, _logits(model, params, states), words)
    return Slots(prefix, rows, own, (column + 1) % room)

  return jax.lax.while_loop(
    lambda slots: jnp.sum(~slots.rows.done) > live, body, slots
  )


def place(
  slots: Slots,
  prefix: qwen2_5_vl.Prefix,
  fresh: Rows,
  prompts: Int[Array, " b"],
  rows: Int[Array, "b G"],
) -> Slots:
  """Puts new prompts and their rows into free slots.

  Args:
    slots: of which some are free.
    prefix, fresh: as `start` made them.
    prompts: where each prompt goes; beyond the last slot, nowhere.
    rows: where its members go.
  """
  members = rows.shape[1]
  lane = prompts[:, None] * members + jnp.arange(members)
  into = lambda where, old, new: old.at[where].set(new, mode="drop")
  cache = jax.tree.map(
    lambda old, new: jnp.moveaxis(
      into(prompts, jnp.moveaxis(old, -4, 0), jnp.moveaxis(new, -4, 0)), 0, -4
    ),
    slots.prefix.cache,
    prefix.cache,
  )
  # What is done gives its lane away.
  old = slots.rows._replace(
    lane=jnp.where(slots.rows.done, _LOST, slots.rows.lane)
  )
  return slots._replace(
    prefix=qwen2_5_vl.Prefix(
      cache,
      *map(functools.partial(into, prompts), slots.prefix[1:], prefix[1:]),
    ),
    rows=jax.tree.map(
      functools.partial(into, rows.reshape(-1)),
      old,
      fresh._replace(lane=lane.reshape(-1)),
    ),
  )


def compact(
  slots: Slots,
  prompts: Int[Array, " b"],
  rows: Int[Array, " n"],
  lane: Int[Array, " n"],
) -> Slots:
  """Fewer slots: those named, rows with the lanes that they now have."""
  cache = lambda where: lambda a: jnp.take(a, where, -4)
  prefix = qwen2_5_vl.Prefix(
    jax.tree.map(cache(prompts), slots.prefix.cache),
    *(a[prompts] for a in slots.prefix[1:]),
  )
  return Slots(
    prefix,
    jax.tree.map(lambda a: a[rows], slots.rows)._replace(lane=lane),
    jax.tree.map(cache(rows), slots.own),
    slots.column,
  )


@functools.partial(jax.jit, static_argnames=("model", "tokens"))
def sample(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  prompt: qwen2_5_vl.Prompt,
  key: Key[Array, "B G"],
  method: SamplingParams,
  words: Words,
  live: Bool[Array, " B"] | None = None,
  *,
  tokens: int,
) -> Drawn:
  """Draws G responses to each prompt, in one program.

  Args:
    model, params: see `serving.served`.
    prompt: packed prompts.
    key, method: of each response, see `keys` and `Method`.
    words: what may be drawn.
    live: false on rows that wait for nothing; by default none is.
    tokens: T, the longest response, at least 1.
  """
  prefix, rows = start(model, params, prompt, key, method, words, tokens)
  if live is not None:
    rows = rows._replace(done=rows.done | ~jnp.repeat(live, key.shape[1]))
  slots = Slots(prefix, rows, ring(model, key.size, tokens), jnp.int32(0))
  rows = advance(model, params, slots, words, 0, key.shape[1]).rows
  return Drawn(
    *(
      a.reshape(*key.shape, *a.shape[1:])
      for a in (
        rows.tokens,
        rows.logp,
        jnp.arange(tokens) < rows.age[:, None],
        rows.failed,
      )
    )
  )


_LOST = 2**30  # Beyond the last lane.


def _lanes(slots: Slots, members: int) -> Lanes:
  of, lanes = slots.rows.lane, len(slots.prefix.start) * members
  # No scatter: the TPU compiler fails on one whose indices are its values.
  return Lanes(jnp.argmax(of == jnp.arange(lanes)[:, None], 1), of)


def _logits(
  model: qwen2_5_vl.QwenVL, params: dict, states: Float[Array, "N D"]
) -> Float[Array, "N V"]:
  return layers.product(
    states, model.apply({"params": params}, method="vocabulary")
  )


def _write(rows: Rows, logits: Float[Array, "N V"], words: Words) -> Rows:
  """The next token of each unfinished row."""
  count, tokens = rows.tokens.shape
  logits = jnp.where(words.allowed, logits, -jnp.inf)
  u = jnp.take_along_axis(
    rows.uniform, jnp.minimum(rows.age, tokens - 1)[:, None], 1
  )[:, 0]
  token, logp = draw(logits, rows.method, u)
  failed = rows.failed | (~rows.done & jnp.isnan(logp))
  live = ~(rows.done | failed)
  where = jnp.arange(count), jnp.where(live, rows.age, tokens)
  age, at = rows.age + live, rows.at
  done = ~live | (token == words.end) | (age == tokens)
  if words.stops is not None:
    at = jnp.where(live, words.stops[at, token].astype(jnp.int32), at)
    done |= at == len(words.stops) - 1
  return rows._replace(
    age=age,
    at=at,
    done=done,
    failed=failed,
    tokens=rows.tokens.at[where].set(token, mode="drop"),
    logp=rows.logp.at[where].set(logp, mode="drop"),
  )
