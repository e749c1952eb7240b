"""Continuous batching: sample any number of prompts in a few decode slots.

Each data shard decodes a fixed number of rows at one time, and has a queue of
prompts.  It runs without the host until the host can improve the batch:

  as soon as enough rows are free for the next prompts, these are prefilled and
    take the free rows, wherever they are;
  if no prompt waits and a quarter of the rows suffices, the unfinished rows
    continue in a smaller batch, down to a minimum.

So a finished row costs little, and there are few shapes: the number of groups
that decode together goes through *levels*, each a quarter of the one above, and
every program is compiled once per prompt length and level.

Not all members of a group need to be wanted: rows are taken by those that are,
and if these are few, there are more slots for the same rows.

Axes:  D data shards (devices, or groups of devices that share the weights)
  B prompts   G responses per prompt   N rows   T response tokens
"""

import collections
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from r1router_jax.generation import group_decode
from r1router_jax.generation.group_decode import (
  DecodeConstraints,
  DecodeState,
  SampledResponses,
)
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib

# Minimum decode batch.  Below it a step is bound by weight bandwidth, so
# shrinking further saves nothing.
MIN_DECODE_ROWS = 16

# Members of a group for each one that is wanted: below `DENSE` a group has one
# slot, up to the other number that many, and beyond one for each member.
DENSE, SLOTS_PER_SPARSE_GROUP = 1.2, 4


# Collates the prompts of given indices, [D, B]; leaves are [D, B, ...].
CollateFn = Callable[[Int[np.ndarray, "D B"]], qwen2_5_vl.PromptBatch]


# The schedule is plain NumPy on the host, so that it can be tested without
# devices.
class PrefillBatch(NamedTuple):
  """The next prompts, `B` on each shard, and where they go.

  For padding the prompt is 0, its slot and its rows are out of range.
  """

  prompts: Int[np.ndarray, "D B"]  # Indices of the prompts.
  slots: Int[np.ndarray, "D B"]  # Prompt slot of each.
  row_indices: Int[np.ndarray, "D B G"]  # Decode row of each member.


class Scheduler:
  """Host-side state of all slots and rows.

  Attributes:
    levels: numbers of groups that may decode together, descending.
    level: number of groups that decode together now.
    prompt: [D, slots], index of the prompt in each slot, or -1.
    slot: [D, N], slot that each row reads, or -1.
    member: [D, N], group member that each row holds.
  """

  def __init__(
    self, wanted: Bool[np.ndarray, "B G"], max_rows: int, shards: int
  ):
    """Queue the wanted members of all prompts.

    Each shard has `max_rows` rows; each prompt has a member that is wanted.
    """
    num_prompts, self._group_size = wanted.shape
    self._wanted, self._num_wanted = wanted, wanted.sum(1)
    # Prompts are dealt out in turn, so that no shard gets only the long ones of
    # a sorted list.
    self._queues = [
      collections.deque(range(shard, num_prompts, shards))
      for shard in range(shards)
    ]
    rows = max(self._num_wanted[shard::shards].sum() for shard in range(shards))
    per_shard = -(-int(rows) // self._group_size)
    self.levels = _decode_levels(max(max_rows // self._group_size, 1))
    largest = self.levels[0]
    # The lowest level that all prompts fit into, or the highest.
    sufficient = [n for n in self.levels if n >= per_shard]
    self.level = min(sufficient, default=largest)
    # Slots for a group's rows: as many as prompts that fill them, since rows
    # without a slot would idle.  Of three numbers: few shapes are compiled.
    spread = num_prompts * self._group_size / max(self._num_wanted.sum(), 1)
    some = min(SLOTS_PER_SPARSE_GROUP, self._group_size)
    self._slots_per_group = 1 if spread < DENSE else self._group_size
    if DENSE <= spread <= some:
      self._slots_per_group = some
    # While prompts are queued, allocate slots for one more prefill batch: a
    # slot stays taken until the last member of its group ends.
    self._max_slots = largest * self._slots_per_group
    if per_shard > largest:
      self._max_slots += self._prefill_size(largest)

    self.prompt = np.full((shards, self.num_slots), -1)
    self.slot = np.full((shards, self.num_rows), -1)
    self.member = np.zeros((shards, self.num_rows), int)

  @property
  def num_rows(self) -> int:
    """Return the number of decode rows of a shard."""
    return self.level * self._group_size

  @property
  def num_slots(self) -> int:
    """Return the number of prompt slots of a shard; each needs a row."""
    return min(self._max_slots, self.num_rows)

  @property
  def has_work(self) -> bool:
    """Return whether any prompt is queued or any row unfinished."""
    return any(self._queues) or bool((self.slot >= 0).any())

  def _prefill_size(self, level: int) -> int:
    """Return the number of prompts that are prefilled at one time."""
    return max(level * self._slots_per_group // 4, 1)

  def _next_prompts(self, shard: int) -> list[int]:
    """Return the next prompts of a shard, as many as ever fit together."""
    size, queue = self._prefill_size(self.level), self._queues[shard]
    batch = list(itertools.islice(queue, size))
    ends = np.cumsum(self._num_wanted[batch])
    return batch[: int(np.searchsorted(ends, self.num_rows, "right"))]

  def admit_prompts(self) -> PrefillBatch | None:
    """Take the next prompts for shards that have room, or None without any."""
    size = self._prefill_size(self.level)
    prompts = np.zeros((len(self._queues), size), int)
    slots = np.full_like(prompts, self.num_slots)
    rows = np.full((*prompts.shape, self._group_size), self.num_rows)
    for shard, queue in enumerate(self._queues):
      # A shard takes a whole batch or, at the end of its queue, the rest.
      batch = self._next_prompts(shard)
      n, count = len(batch), int(self._num_wanted[batch].sum())
      free_slots = np.flatnonzero(self.prompt[shard] < 0)[:n]
      free_rows = np.flatnonzero(self.slot[shard] < 0)[:count]
      room = len(free_slots) == n and len(free_rows) == count
      if not n or not room:
        continue
      for _ in batch:
        queue.popleft()
      prompts[shard, :n], slots[shard, :n] = batch, free_slots
      # All members of a group start in the same step, in whichever rows are
      # free.
      position, member = np.nonzero(self._wanted[batch])
      rows[shard, position, member] = free_rows
      self.prompt[shard, free_slots] = batch
      self.slot[shard, free_rows] = free_slots[position]
      self.member[shard, free_rows] = member
    if (slots == self.num_slots).all():
      return None
    return PrefillBatch(prompts, slots, rows)

  def return_threshold(self) -> Int[np.ndarray, " D"]:
    """Return, per shard, at how many unfinished rows decoding should return."""
    # A shard returns alone, but the host waits for all of them: thresholds
    # differ only with queues.
    active = (self.slot >= 0).sum(1)
    # Without a queue: as soon as the next smaller level suffices.
    smaller = max(self._smaller_levels(), default=0) * self._group_size
    threshold = np.full(len(active), smaller if active.max() > smaller else 0)
    # With a queue: as soon as the next prompts fit.
    for shard, queue in enumerate(self._queues):
      if queue:
        needed = self._num_wanted[self._next_prompts(shard)].sum()
        # If rows are free already, slots are not: a slot becomes free at the
        # earliest when a group's worth of rows has ended.
        running = self.prompt[shard][self.prompt[shard] >= 0]
        smallest = self._num_wanted[running].min(initial=self._group_size)
        wanted = min(self.num_rows - needed, active[shard] - smallest)
        threshold[shard] = max(wanted, 0)
    return threshold

  def try_shrink(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Shrink the decode batch to the smallest level that holds active rows.

    Returns, per shard, the prompt slots and the rows that are kept, and the new
    group slots of these rows; or None if the level stays.
    """
    active = self.slot >= 0
    if any(self._queues) or not active.any():
      return None
    # All shards have one shape: the fullest one decides.
    needed = active.sum(1).max() / self._group_size
    levels = [n for n in self._smaller_levels() if n >= needed]
    if not levels:
      return None
    self.level = min(levels)

    # Slots and rows in use come first; free ones fill up the rest.
    slots = _first_true(self.prompt >= 0, self.num_slots)
    rows = _first_true(active, self.num_rows)

    # Number the kept slots anew.  The last column is what -1 looks up.
    new_slots = np.full((len(slots), self.prompt.shape[1] + 1), -1)
    np.put_along_axis(new_slots, slots, np.arange(self.num_slots)[None], 1)
    self.prompt = np.take_along_axis(self.prompt, slots, 1)
    self.member = np.take_along_axis(self.member, rows, 1)
    old_slots = np.take_along_axis(self.slot, rows, 1)
    self.slot = np.take_along_axis(new_slots, old_slots, 1)

    group_slots = self.slot * self._group_size + self.member
    free = self.num_slots * self._group_size  # Out of range.
    return slots, rows, np.where(self.slot < 0, free, group_slots)

  def _smaller_levels(self) -> list[int]:
    """Return levels below the present one that are worth shrinking to."""
    least = MIN_DECODE_ROWS / self._group_size
    return [n for n in self.levels if least <= n < self.level]

  def release_finished(
    self, done: Bool[np.ndarray, "D N"]
  ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Free finished rows, and slots that no row reads any more.

    Returns prompts and members of the finished rows, and these rows' indices.
    """
    finished = np.nonzero(done & (self.slot >= 0))
    prompts = self.prompt[finished[0], self.slot[finished]]
    members = self.member[finished]
    # Members of one group end at different times; its slot is free when the
    # last one has.
    self.slot[finished] = -1
    for shard, slots in enumerate(self.prompt):
      slots[~np.isin(np.arange(len(slots)), self.slot[shard])] = -1
    return prompts, members, finished


def _first_true(mask: np.ndarray, count: int) -> np.ndarray:
  """Return the first `count` columns of each row, true ones first."""
  return np.argsort(~mask, 1, kind="stable")[:, :count]


def _decode_levels(groups: int) -> list[int]:
  """Return `groups`, a quarter of it, and so on down to 1."""
  levels = [groups]
  while levels[-1] > 1:
    levels.append(max(levels[-1] // 4, 1))
  return levels


def sample_responses(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  collate: CollateFn,
  keys: np.ndarray,
  sampling: SamplingParams,
  constraints: DecodeConstraints,
  *,
  max_tokens: int,
  max_rows: int,
  mesh: Mesh,
  wanted: Bool[np.ndarray, "B G"] | None = None,
) -> SampledResponses:
  """Sample G responses to each of any number of prompts of one padded length.

  Parameters are in inference layout, whole on each data shard or split along
  other axes of the mesh.  `keys` is the data of a random key for each response,
  [B, G, ...]; the fields of `sampling` broadcast to [B, G], and one out of
  range raises UserError.  A data shard decodes `max_rows` rows at one time.
  Members that are not `wanted` cost nothing and stay empty, by default none.
  """
  num_prompts, group_size = keys.shape[:2]
  shards = mesh.shape[mesh_lib.DATA]
  # One value per response, so that those of any rows can be gathered below.
  sampling = jax.tree.map(
    lambda x: np.broadcast_to(x, keys.shape[:2]), sampling.validate()
  )
  constraints = jax.tree.map(np.asarray, constraints)
  if wanted is None:
    wanted = np.ones((num_prompts, group_size), bool)
  scheduler = Scheduler(wanted, max_rows, shards)
  programs = compiled_programs(model, max_tokens, group_size, mesh)
  # The host's copy of all responses, filled in any order.
  responses = group_decode.empty_responses(num_prompts, group_size, max_tokens)
  state = None
  while scheduler.has_work:
    # 1. Admit: prefill queued prompts into free slots while there is room.
    while (batch := scheduler.admit_prompts()) is not None:
      chosen, *places = batch
      filters = SamplingParams(
        *(x[chosen].reshape(shards, -1) for x in sampling)
      )
      inputs = collate(chosen), keys[chosen], filters, constraints
      prompts, rows = programs.prefill(params, *inputs)
      # The shapes of caches are known from the first prefill.
      if state is None:
        sizes = scheduler.num_slots, scheduler.num_rows
        state = programs.empty_state(*sizes)(prompts, rows)
      state = programs.insert_prompts(state, prompts, rows, *places)
    # 2. Shrink: at the end, go on with fewer rows.
    if (kept := scheduler.try_shrink()) is not None:
      state = programs.compact_rows(state, *kept)
    # 3. Decode: the devices run alone until so few rows are unfinished.
    state = programs.decode_until(
      params, state, constraints, scheduler.return_threshold()
    )
    # 4. Collect: copy finished responses and free their rows.
    _collect_finished(responses, scheduler, state.rows)
  return responses


def _collect_finished(
  responses: SampledResponses, scheduler: Scheduler, rows: DecodeState
) -> None:
  """Copy finished rows, [D, N, ...], into `responses` and release them."""
  # One transfer for all arrays: each would wait for the devices.
  num_generated, done, failed, tokens, logp = jax.device_get(
    (rows.num_generated, rows.done, rows.failed, rows.tokens, rows.logp)
  )
  prompt, member, finished = scheduler.release_finished(done)
  responses.tokens[prompt, member] = tokens[finished]
  responses.logp[prompt, member] = logp[finished]
  responses.failed[prompt, member] = failed[finished]
  positions = np.arange(tokens.shape[-1])
  responses.mask[prompt, member] = positions < num_generated[finished][:, None]


class Programs(NamedTuple):
  """The functions of `group_decode`, compiled for all data shards at once.

  Arguments have a leading axis of shards; the model, the group size and the
  longest response are fixed.
  """

  prefill: Callable
  empty_state: Callable[[int, int], Callable]
  insert_prompts: Callable
  compact_rows: Callable
  decode_until: Callable


@functools.lru_cache(maxsize=8)
def compiled_programs(
  model: qwen2_5_vl.QwenVL, max_tokens: int, group_size: int, mesh: Mesh
) -> Programs:
  """Return the programs; the same arguments return the same programs."""
  on_shards = functools.partial(mesh_lib.shard_map_over_data, mesh=mesh)

  def prefill(params, prompt, keys, sampling, constraints):
    keys = jax.random.wrap_key_data(keys)
    return group_decode.prefill(
      model, params, prompt, keys, sampling, constraints, max_tokens
    )

  def decode_until(params, state, constraints, min_active):
    return group_decode.decode_until(
      model, params, state, constraints, min_active, group_size
    )

  @functools.cache
  def empty_state(num_prompts, num_rows):
    sizes = dict(num_prompts=num_prompts, num_rows=num_rows)
    empty = functools.partial(group_decode.empty_state, model, **sizes)
    return on_shards(empty)

  # Parameters and constraints are the same on all shards.  States are donated:
  # the caches are the largest arrays of sampling, and must not exist twice.
  return Programs(
    prefill=on_shards(prefill, shared=(0, 4)),
    empty_state=empty_state,
    insert_prompts=on_shards(group_decode.insert_prompts, donate_argnums=0),
    compact_rows=on_shards(group_decode.compact_rows),
    decode_until=on_shards(decode_until, shared=(0, 2), donate_argnums=1),
  )
