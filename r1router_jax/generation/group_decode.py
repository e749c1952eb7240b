"""Sample groups of responses: prefill each prompt once, decode its group.

The G members of a group read the keys and values of their prompt from one
place, and each keeps those of its own response in a ring buffer (the *decode
cache*).  The engine has a fixed number of *prompt slots* and decode *rows*:
`decode_until` runs on the device until few rows are unfinished, and then the
host (`continuous_batching.py`) inserts new prompts into the free slots
(`insert_prompts`) or goes on with fewer rows (`compact_rows`).  `sample` does
everything in one program for prompts that have a slot each.

The uniform numbers of a response come from its own key alone.  A response
therefore does not depend on its neighbours, its slot or the number of devices,
except for the rounding of sums that the compiler orders differently in another
shape.

A response ends with an end token, which it keeps, or with the token in which a
stop string is complete, wherever in the token that is: an automaton over bytes,
folded over whole tokens, detects it (`Tokenizer.stop_table`).

Axes:  B prompts   G responses per prompt   N rows   T response tokens
  V vocabulary   D hidden   S states of the automaton, the last "complete"
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from r1router_jax.common.errors import UserError
from r1router_jax.generation.token_sampling import (
  GREEDY,
  SamplingParams,
  sample_tokens,
)
from r1router_jax.models import layers, qwen2_5_vl
from r1router_jax.models.attention import Caches, GroupLayout

# Group slot of a free row: out of the range of every group layout.
_NO_SLOT = 2**30


class SampledResponses(NamedTuple):
  """Sampled responses; padding after the end token has mask False.

  A response whose logits become NaN is marked as `failed` and ends there; the
  others continue.
  """

  tokens: Int[Array, "B G T"]
  logp: Float[Array, "B G T"]  # Nats, at the temperature, before any filter.
  mask: Bool[Array, "B G T"]  # Up to and including the end token.
  failed: Bool[Array, "B G"]


def empty_responses(
  prompts: int, group_size: int, max_tokens: int
) -> SampledResponses:
  """Return arrays of the host that responses are written to."""
  shape = prompts, group_size, max_tokens
  return SampledResponses(
    tokens=np.zeros(shape, np.int32),
    logp=np.zeros(shape, np.float32),
    mask=np.zeros(shape, bool),
    failed=np.zeros(shape[:2], bool),
  )


class DecodeState(NamedTuple):
  """The unfinished and finished responses of all decode rows.

  `group_slot` is the prompt slot and member of each row as one number, see
  `attention.GroupLayout`; `_NO_SLOT` or beyond the last slot if it is free.
  """

  group_slot: Int[Array, " N"]
  sampling: SamplingParams
  uniform: Float[Array, "N T"]  # The random numbers that select the tokens.
  num_generated: Int[Array, " N"]
  stop_state: Int[Array, " N"]  # State of the stop-string automaton.
  done: Bool[Array, " N"]  # The response has ended, or the row is free.
  failed: Bool[Array, " N"]  # The logits became NaN.
  tokens: Int[Array, "N T"]  # After `num_generated` of them: end tokens.
  logp: Float[Array, "N T"]  # Their log-probabilities, then zeros.


class EngineState(NamedTuple):
  """Everything that decoding reads and writes on one device."""

  prompts: qwen2_5_vl.PromptCache  # One prompt per slot.
  rows: DecodeState
  decode_cache: Caches  # Keys and values of the responses, a ring buffer.
  cache_index: Int[Array, ""]  # Position in the ring of the next token.


class DecodeConstraints(NamedTuple):
  """The tokens that may be sampled, and those that end a response."""

  allowed: Bool[Array, " V"]  # False on padding rows and placeholders.
  eos_ids: Int[Array, " E"]
  # Next state of the stop-string automaton after each token.
  stop_table: Int[Array, "S V"] | None = None


# The life of a response: keys, prefill, insertion into slots, decoding.
def response_keys(
  key: Key[Array, ""],
  prompt_ids: Int[Array, " B"],
  group_size: int,
  first_member: Int[Array, " B"] | int = 0,
) -> Key[Array, "B G"]:
  """Derive a key per response from its prompt's id and its member index.

  The members of each group are numbered from `first_member` on.
  """
  # Folded, not split: a larger group or batch begins with the same keys.
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  prompt_keys = fold(key, prompt_ids)
  first = jnp.broadcast_to(first_member, prompt_ids.shape)
  members = first[:, None] + jnp.arange(group_size)
  return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(prompt_keys, members)


def prefill(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  prompt: qwen2_5_vl.PromptBatch,
  keys: Key[Array, "B G"],
  sampling: SamplingParams,
  constraints: DecodeConstraints,
  max_tokens: int,
) -> tuple[qwen2_5_vl.PromptCache, DecodeState]:
  """Prefill prompts and sample the first token of each response.

  If there is no room for a token, it raises UserError.
  """
  if max_tokens < 1:
    raise UserError(
      f"The longest response has {max_tokens} tokens: raise the "
      "last of config.policy.overrides.response_tokens."
    )
  group_size, rows = keys.shape[1], keys.size
  # Once per prompt, not per response.
  prompts = model.apply({"params": params}, prompt, method="prefill")

  zeros = functools.partial(jnp.zeros, rows)
  # All numbers of a response are drawn at once, so that no step needs a key.
  draw = jax.vmap(lambda k: jax.random.uniform(k, (max_tokens,)))
  # Row b G + g is member g of prompt b.
  new_rows = DecodeState(
    group_slot=jnp.arange(rows),
    sampling=SamplingParams(*(jnp.broadcast_to(x, (rows,)) for x in sampling)),
    uniform=draw(keys.reshape(rows)),
    num_generated=zeros(jnp.int32),
    stop_state=zeros(jnp.int32),
    done=zeros(bool),
    failed=zeros(bool),
    tokens=jnp.full((rows, max_tokens), constraints.eos_ids[0], jnp.int32),
    logp=jnp.zeros((rows, max_tokens)),
  )
  # The first token of all members follows from the last state of their prompt.
  logits = _next_logits(model, params, prompts.last_state)
  logits = jnp.repeat(logits, group_size, axis=0)
  return prompts, _append_tokens(new_rows, logits, constraints)


def init_decode_cache(
  model: qwen2_5_vl.QwenVL, rows: int, max_tokens: int
) -> Caches:
  """Return an empty cache for responses of at most `max_tokens` tokens."""
  # The last token of a response is never an input of the model.
  room = max(max_tokens - 1, 1)
  return qwen2_5_vl.empty_cache(
    model.config, rows, room, model.compute.dtype, unrolled=model.unrolled
  )


def empty_state(
  model: qwen2_5_vl.QwenVL,
  prompts_like: qwen2_5_vl.PromptCache,
  rows_like: DecodeState,
  num_prompts: int,
  num_rows: int,
) -> EngineState:
  """Return an engine state in which every slot and row is free.

  Its shapes are those of the examples, but for the numbers of prompts and rows.
  """

  def resized_zeros(axis, x, size=num_prompts):
    shape = list(x.shape)
    shape[axis] = size
    return jnp.zeros(shape, x.dtype)

  prompts = _map_prompts(resized_zeros, prompts_like)
  rows = jax.tree.map(lambda x: resized_zeros(0, x, num_rows), rows_like)
  # Done rows are skipped by decoding until an insert overwrites them.  Filters
  # of zeros would have all rows sort the vocabulary.
  sampling = SamplingParams(*map(jnp.full_like, rows.sampling, GREEDY))
  return EngineState(
    prompts,
    rows._replace(done=jnp.ones(num_rows, bool), sampling=sampling),
    init_decode_cache(model, num_rows, rows_like.tokens.shape[1]),
    jnp.int32(0),
  )


def decode_until(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  state: EngineState,
  constraints: DecodeConstraints,
  min_active: Int[Array, ""] | int,
  group_size: int,
) -> EngineState:
  """Decode until at most `min_active` rows are unfinished."""
  # Rows keep their group slots for as long as the loop runs.
  layout = _group_layout(state, group_size)
  room = max(state.rows.tokens.shape[1] - 1, 1)

  def enough_active(state):
    return jnp.sum(~state.rows.done) > min_active

  def decode_step(state):
    prompts, rows, decode_cache, cache_index = state
    # The input is the last token so far, at its place in the response.
    last = jnp.maximum(rows.num_generated - 1, 0)
    token = jnp.take_along_axis(rows.tokens, last[:, None], 1)[:, 0]
    # Finished rows run along: what they compute is dropped.
    inputs = prompts, decode_cache, token, last, cache_index, layout
    hidden, decode_cache = model.apply(
      {"params": params}, *inputs, method="decode_step"
    )
    logits = _next_logits(model, params, hidden)
    rows = _append_tokens(rows, logits, constraints)
    return EngineState(prompts, rows, decode_cache, (cache_index + 1) % room)

  return jax.lax.while_loop(enough_active, decode_step, state)


def insert_prompts(
  state: EngineState,
  new_prompts: qwen2_5_vl.PromptCache,
  new_rows: DecodeState,
  prompt_slots: Int[Array, " b"],
  row_indices: Int[Array, "b G"],
) -> EngineState:
  """Insert prefilled prompts and their rows into free slots.

  The ring buffer of the decode cache needs no change: a row reads only as many
  positions back as it has generated tokens.  Prompts whose slot, and members
  whose row, is beyond the last are dropped.
  """

  def scatter(axis, old, new, indices=prompt_slots):
    old, new = jnp.moveaxis(old, axis, 0), jnp.moveaxis(new, axis, 0)
    return jnp.moveaxis(old.at[indices].set(new, mode="drop"), 0, axis)

  prompts = _map_prompts(scatter, state.prompts, new_prompts)
  # Finished rows release their group slot, which a new row may now take.
  released = jnp.where(state.rows.done, _NO_SLOT, state.rows.group_slot)
  group_size = row_indices.shape[1]
  group_slot = prompt_slots[:, None] * group_size + jnp.arange(group_size)
  rows = jax.tree.map(
    lambda old, new: scatter(0, old, new, row_indices.reshape(-1)),
    state.rows._replace(group_slot=released),
    new_rows._replace(group_slot=group_slot.reshape(-1)),
  )
  return state._replace(prompts=prompts, rows=rows)


def compact_rows(
  state: EngineState,
  prompt_slots: Int[Array, " b"],
  row_indices: Int[Array, " n"],
  group_slots: Int[Array, " n"],
) -> EngineState:
  """Gather some prompt slots and rows into a smaller state.

  `group_slots` are the new group slots of the rows that are kept.
  """
  prompts = _map_prompts(
    lambda axis, x: jnp.take(x, prompt_slots, axis), state.prompts
  )
  rows = jax.tree.map(lambda x: x[row_indices], state.rows)
  rows = rows._replace(group_slot=group_slots)
  cache = jax.tree.map(
    lambda x: jnp.take(x, row_indices, -4), state.decode_cache
  )
  return EngineState(prompts, rows, cache, state.cache_index)


@functools.partial(jax.jit, static_argnames=("model", "max_tokens"))
def sample(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  prompt: qwen2_5_vl.PromptBatch,
  keys: Key[Array, "B G"],
  sampling: SamplingParams,
  constraints: DecodeConstraints,
  active: Bool[Array, " B"] | None = None,
  *,
  max_tokens: int,
) -> SampledResponses:
  """Sample G responses to each prompt, in one program.

  Parameters are in inference layout (`to_inference_params`), keys those of
  `response_keys`.  Responses of prompts with `active` false are not needed.
  """
  group_size = keys.shape[1]
  prompts, rows = prefill(
    model, params, prompt, keys, sampling, constraints, max_tokens
  )
  # Rows that are done from the start cost nothing if all others end early.
  if active is not None:
    rows = rows._replace(done=rows.done | ~jnp.repeat(active, group_size))
  decode_cache = init_decode_cache(model, keys.size, max_tokens)
  state = EngineState(prompts, rows, decode_cache, jnp.int32(0))
  rows = decode_until(model, params, state, constraints, 0, group_size).rows
  mask = jnp.arange(max_tokens) < rows.num_generated[:, None]
  fields = SampledResponses(rows.tokens, rows.logp, mask, rows.failed)
  # [B G, ...] -> [B, G, ...]
  return jax.tree.map(lambda x: x.reshape(*keys.shape, *x.shape[1:]), fields)


def _map_prompts(function, *prompts):
  """Apply `function(axis of prompts, *leaves)` to each leaf of prompts."""
  caches, *others = zip(*prompts, strict=True)
  # Caches are [layers, B, K, L, H], or [B, K, L, H] for each unrolled layer.
  cache = jax.tree.map(functools.partial(function, -4), *caches)
  return qwen2_5_vl.PromptCache(cache, *(function(0, *x) for x in others))


def _group_layout(state: EngineState, group_size: int) -> GroupLayout:
  slot_of_row = state.rows.group_slot
  slots = jnp.arange(len(state.prompts.next_position) * group_size)
  # No scatter: the TPU compiler fails on one whose indices are its values.
  return GroupLayout(jnp.argmax(slot_of_row == slots[:, None], 1), slot_of_row)


def _next_logits(
  model: qwen2_5_vl.QwenVL, params: dict, hidden: Float[Array, "N D"]
) -> Float[Array, "N V"]:
  # Not part of `decode_step`: states and logits may have other dtypes.
  embedding = model.apply({"params": params}, method="output_embedding")
  return layers.matmul_few_rows(hidden, embedding)


def _append_tokens(
  rows: DecodeState, logits: Float[Array, "N V"], constraints: DecodeConstraints
) -> DecodeState:
  """Sample the next token of each unfinished row."""
  count, max_tokens = rows.tokens.shape
  # -inf has weight 0 at every temperature, and no share in the log-probability.
  logits = jnp.where(constraints.allowed, logits, -jnp.inf)
  # Finished rows have used up their numbers; what they sample is dropped.
  index = jnp.minimum(rows.num_generated, max_tokens - 1)
  u = jnp.take_along_axis(rows.uniform, index[:, None], 1)[:, 0]
  token, logp = sample_tokens(logits, rows.sampling, u)

  # NaN logits end a response before the token is written.
  failed = rows.failed | (~rows.done & jnp.isnan(logp))
  active = ~(rows.done | failed)
  num_generated, stop_state = rows.num_generated + active, rows.stop_state
  # Any of three ends a response: an end token, its length, or a stop string
  # that is complete.
  is_end = (token[:, None] == constraints.eos_ids).any(-1)
  done = ~active | is_end | (num_generated == max_tokens)
  if constraints.stop_table is not None:
    next_state = constraints.stop_table[stop_state, token].astype(jnp.int32)
    stop_state = jnp.where(active, next_state, stop_state)
    done |= stop_state == len(constraints.stop_table) - 1

  # An index beyond the last token writes nothing.
  column = jnp.where(active, rows.num_generated, max_tokens)
  where = jnp.arange(count), column
  return rows._replace(
    num_generated=num_generated,
    stop_state=stop_state,
    done=done,
    failed=failed,
    tokens=rows.tokens.at[where].set(token, mode="drop"),
    logp=rows.logp.at[where].set(logp, mode="drop"),
  )
