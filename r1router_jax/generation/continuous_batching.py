"""Continuous batching: any number of prompts through few slots.

Each device decodes so many rows at one time, and has a queue of prompts.  It
runs without the host until the host can do better:

  as soon as enough rows are free for the next prompts, these are prefilled and
    take the free rows, wherever they are;
  where no prompt waits and a quarter of the rows is enough, these alone go on,
    as long as there are more than a few.

So a finished row costs little, while shapes remain few: rows come in *levels*,
each a quarter of the one above, and everything is compiled once per prompt
length and level.

Axes:  D devices, or groups of them that share one copy of the weights
   B prompts   G responses per prompt   T response tokens
"""

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from r1router_jax.generation import group_decode
from r1router_jax.generation.group_decode import Drawn, Words
from r1router_jax.generation.token_sampling import SamplingParams
from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib

FEW = 16  # Rows below which weights are what a step reads, and rows are free.


# Indices of prompts `D B` to packed ones, leaves [D, B, ...].
Pack = Callable[[Int[np.ndarray, "D B"]], qwen2_5_vl.Prompt]


class Admission(NamedTuple):
  """Prompts that are next, `B` on each device.

  Attributes:
    prompts: their indices; 0, where there are fewer.
    slots: where they go; beyond the last slot, where there are fewer.
    rows: where their members go.
  """

  prompts: Int[np.ndarray, "D B"]
  slots: Int[np.ndarray, "D B"]
  rows: Int[np.ndarray, "D B G"]


class Table:
  """Who is where: the host's view of the slots of all devices.

  Args:
    count: prompts in all.
    members: G, responses to each.
    rows: that one device decodes at one time, at most.
    devices: D.
  """

  def __init__(self, count: int, members: int, rows: int, devices: int):
    self._members = members
    self.levels = _levels(max(rows // members, 1))
    each = -(-count // devices)
    # Where prompts wait, more slots than rows need: a last member holds one.
    waiting = each > self.levels[0]
    self._slots = self.levels[0] + waiting * _batch(self.levels[0])
    self.level = next(  # The lowest that all fit into, or the highest.
      (p for p in reversed(self.levels) if p >= each), self.levels[0]
    )
    self._queues = [
      collections.deque(range(d, count, devices)) for d in range(devices)
    ]
    self.prompt = np.full((devices, self.slots), -1)  # In each slot, or none.
    self.slot = np.full((devices, self.rows), -1)  # Of each row, or none.
    self.member = np.zeros((devices, self.rows), int)

  @property
  def rows(self) -> int:
    return self.level * self._members

  @property
  def slots(self) -> int:
    return min(self._slots, self.rows)

  @property
  def busy(self) -> bool:
    return any(self._queues) or bool((self.slot >= 0).any())

  def admit(self) -> Admission | None:
    """Takes the next prompts from the queues, where they have room."""
    batch = _batch(self.level)
    prompts = np.zeros((len(self._queues), batch), int)
    slots = np.full_like(prompts, self.slots)
    rows = np.full((*prompts.shape, self._members), self.rows)
    for d, queue in enumerate(self._queues):
      wanted = min(batch, len(queue))
      free_slots = np.flatnonzero(self.prompt[d] < 0)[:wanted]
      free_rows = np.flatnonzero(self.slot[d] < 0)[: wanted * self._members]
      if (
        not wanted
        or len(free_slots) < wanted
        or (len(free_rows) < wanted * self._members)
      ):
        continue
      prompts[d, :wanted] = [queue.popleft() for _ in range(wanted)]
      slots[d, :wanted] = free_slots
      rows[d, :wanted] = free_rows.reshape(wanted, self._members)
      self.prompt[d, free_slots] = prompts[d, :wanted]
      self.slot[d, free_rows] = np.repeat(free_slots, self._members)
      self.member[d, free_rows] = np.tile(np.arange(self._members), wanted)
    if (slots == self.slots).all():
      return None
    return Admission(prompts, slots, rows)

  def until(self) -> Int[np.ndarray, " D"]:
    """How many live rows are worth a look, on each device."""
    live = (self.slot >= 0).sum(1)
    lower = max((p * self._members for p in self._lower()), default=0)
    target = np.full(len(live), lower if live.max() > lower else 0)
    for d, queue in enumerate(self._queues):
      if queue:
        room = min(_batch(self.level), len(queue)) * self._members
        # Where rows were free, but no slot, the next group may end.
        target[d] = max(min(self.rows - room, live[d] - self._members), 0)
    return target

  def shrink(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Goes to the lowest level that holds all live rows, if it is another.

    Returns:
      of each device the slots and rows that go on, and the lanes of these.
    """
    live = self.slot >= 0
    if any(self._queues) or not live.any():
      return None
    fit = [p for p in self._lower() if p * self._members >= live.sum(1).max()]
    if not fit:
      return None
    self.level = min(fit)
    prompts, slot, member = self.prompt, self.slot, self.member
    first = lambda mask, n: np.argsort(~mask, 1, kind="stable")[:, :n]
    slots, rows = first(prompts >= 0, self.slots), first(live, self.rows)
    now = np.full((len(slots), prompts.shape[1] + 1), -1)
    np.put_along_axis(now, slots, np.arange(self.slots)[None], 1)
    take = np.take_along_axis
    self.prompt = take(prompts, slots, 1)
    self.member = take(member, rows, 1)
    old = take(slot, rows, 1)
    self.slot = np.where(old < 0, -1, take(now, old, 1))
    lane = np.where(
      self.slot < 0,
      self.slots * self._members,
      self.slot * self._members + self.member,
    )
    return slots, rows, lane

  def _lower(self) -> list[int]:
    """Levels that are worth going down to."""
    return [
      p for p in self.levels if p < self.level and p * self._members >= FEW
    ]

  def release(
    self, done: Bool[np.ndarray, "D N"]
  ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Frees the rows that are done, and slots without rows.

    Returns:
      prompts and members of these rows, and where the rows are.
    """
    where = np.nonzero(done & (self.slot >= 0))
    prompts = self.prompt[where[0], self.slot[where]]
    members = self.member[where]
    self.slot[where] = -1
    for d, slots in enumerate(self.prompt):
      slots[~np.isin(np.arange(len(slots)), self.slot[d])] = -1
    return prompts, members, where


def _levels(prompts: int) -> list[int]:
  """Prompts that decode together, and a quarter of that, down to one."""
  levels = [prompts]
  while levels[-1] > 1:
    levels.append(max(levels[-1] // 4, 1))
  return levels


def _batch(level: int) -> int:
  """How many prompts are prefilled at one time."""
  return max(level // 4, 1)


def draw(
  model: qwen2_5_vl.QwenVL,
  params: dict,
  pack: Pack,
  keys: np.ndarray,
  method: SamplingParams,
  words: Words,
  *,
  tokens: int,
  rows: int,
  mesh: Mesh,
) -> Drawn:
  """G responses to each of any number of prompts of one padded length.

  Args:
    model: the module.
    params: as `serving.served` lays them out, whole on each part of the mesh,
      or split along its other axes (`parallel.shardings`).
    pack: packs prompts of which it is told the indices.
    keys: the data of a key for each response, [B, G, ..].
    method: numbers, or arrays that broadcast to [B, G].
    words: what may be drawn.
    tokens: T, the longest response.
    rows: that one part of the mesh decodes at one time.
    mesh: whose axis of batches has D parts.

  Raises:
    ValueError: where there is no room for a token, or `method` is not a method.
  """
  count, members = keys.shape[:2]
  parts = mesh.shape[mesh_lib.DATA]
  method = SamplingParams(
    *(np.broadcast_to(x, (count, members)) for x in method.validate())
  )
  table = Table(count, members, rows, parts)
  run = _programs(model, tokens, members, mesh)
  words = Words(*(x if x is None else np.asarray(x) for x in words))
  out = Drawn(
    np.full((count, members, tokens), words.end, np.int32),
    np.zeros((count, members, tokens), np.float32),
    np.zeros((count, members, tokens), bool),
    np.zeros((count, members), bool),
  )
  slots = None
  while table.busy:
    while (new := table.admit()) is not None:
      each = lambda x, at=new.prompts: x[at].reshape(parts, -1)
      prefix, fresh = run.start(
        params,
        pack(new.prompts),
        keys[new.prompts],
        SamplingParams(*map(each, method)),
        words,
      )
      if slots is None:
        slots = run.free(table.slots, table.rows)(prefix, fresh)
      slots = run.place(slots, prefix, fresh, new.slots, new.rows)
    if (fewer := table.shrink()) is not None:
      slots = run.compact(slots, *fewer)
    slots = run.advance(params, slots, words, table.until())
    seen = slots.rows
    age, done, failed, ids, logp = jax.device_get(
      (seen.age, seen.done, seen.failed, seen.tokens, seen.logp)
    )
    prompt, member, at = table.release(done)
    out.tokens[prompt, member], out.logp[prompt, member] = ids[at], logp[at]
    out.mask[prompt, member] = np.arange(tokens) < age[at][:, None]
    out.failed[prompt, member] = failed[at]
  return out


class _Programs(NamedTuple):
  start: Callable
  free: Callable[[int, int], Callable]
  place: Callable
  compact: Callable
  advance: Callable


@functools.lru_cache(maxsize=8)
def _programs(
  model: qwen2_5_vl.QwenVL, tokens: int, members: int, mesh: Mesh
) -> _Programs:
  """Those of `sampling`, on every part of the mesh at once."""
  each = functools.partial(mesh_lib.each_part, mesh=mesh)

  def start(params, prompt, keys, method, words):
    return group_decode.start(
      model,
      params,
      prompt,
      jax.random.wrap_key_data(keys),
      method,
      words,
      tokens,
    )

  def advance(params, slots, words, live):
    return group_decode.advance(model, params, slots, words, live, members)

  @functools.cache
  def free(prompts, rows):
    return each(
      functools.partial(group_decode.free, model, prompts=prompts, count=rows)
    )

  return _Programs(
    each(start, shared=(0, 4)),
    free,
    each(group_decode.place, donate_argnums=0),
    each(group_decode.compact),
    each(advance, shared=(0, 2), donate_argnums=1),
  )
