"""Batches of an iteration's updates, made of groups of sampled responses.

A group whose advantages are all 0 has no gradient and is left out, unless a
penalty gives it one.  The loss remains a mean over all groups: its denominator
counts also those that are left out.

  steps         an update has a fixed number of rows, and more groups are
                sampled: the groups beyond it are dropped, with their part of
                those of equal rewards.  With a penalty these come last, the
                penalty is a mean over the groups that are kept, and the
                advantages are scaled to their share of the mean over all
  trajectories  no step of a trajectory is dropped: an update has as many blocks
                of rows as its trajectories fill, a power of two of them, so
                that few shapes are compiled; blocks of padding cost nothing

Axes:  B groups   G responses per group   T response tokens   D data shards
  W responses per row   R rows of a shard
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from r1router_jax.inputs.processor import EncodedPrompt, next_power_of_two
from r1router_jax.parallel import multihost
from r1router_jax.policy.policy import Policy
from r1router_jax.training.batch import Batch, pad_to_shards
from r1router_jax.training.grpo_loss import GrpoLossConfig
from r1router_jax.training.rollouts import RolloutGroups
from r1router_jax.training.trajectory_rollouts import TrajectoryGroups

# (number of batches, data shards of this host, rows)
BatchShape = tuple[int, int, int]


# Two responses in a row are taken unless they make so many times the tokens of
# the best number.
WIDTH_TOLERANCE = 1.25


class BatchRows(NamedTuple):
  """The rows of a batch on this host: prompts with responses to each."""

  prompts: list[EncodedPrompt]
  tokens: Int[np.ndarray, "N W T"]
  mask: Bool[np.ndarray, "N W T"]
  advantage: Float[np.ndarray, "N W"]
  logp: Float[np.ndarray, "N W T"]


def make_step_batches(
  policy: Policy,
  groups: RolloutGroups,
  advantage: Float[np.ndarray, "B G"],
  loss_config: GrpoLossConfig,
  shape: BatchShape,
) -> tuple[list[Batch], Int[np.ndarray, " kept"]]:
  """Make batches of the groups that have a gradient, as many as fit.

  Returns the batches, and the indices of the groups in them.  `shape` has the
  rows of a shard.
  """
  sizes = loss_config.loss_denominator(groups.sampled.mask)
  minibatches, *shard_rows = shape
  total_rows = math.prod(shape)

  # 1. The groups that have a gradient; the last of them may not fit.
  unequal = advantage.any(axis=1)
  order = np.argsort(~unequal, kind="stable")
  useful = order if loss_config.has_penalty else order[: unequal.sum()]
  kept = np.sort(useful[:total_rows])

  # 2. The denominator, spread evenly over the rows, and the advantages.
  def kept_fraction(of):
    # Of no group, or of groups whose responses are all dropped, it is 1.
    part, whole = sizes[np.intersect1d(kept, of)].sum(), sizes[of].sum()
    return part / whole if part else 1

  fraction = kept_fraction(useful)
  denominator = sizes.sum() * fraction / total_rows
  denominators = np.full(shard_rows, denominator, np.float32)
  scale = fraction / kept_fraction(np.flatnonzero(unequal))
  advantage = advantage * np.float32(scale)

  # 3. The batches.
  everyone = np.arange(advantage.shape[1])
  rows = [
    _take_rows(groups, advantage, states, np.tile(everyone, (len(states), 1)))
    for states in (kept[n::minibatches] for n in range(minibatches))
  ]
  order = np.arange(math.prod(shard_rows))
  denominators = [denominators] * minibatches
  return _collate(policy, rows, groups.prompts, denominators, order), kept


def make_trajectory_batches(
  policy: Policy,
  groups: TrajectoryGroups,
  advantage: Float[np.ndarray, "B G"],
  loss_config: GrpoLossConfig,
  shape: BatchShape,
) -> tuple[list[Batch], Int[np.ndarray, " kept"]]:
  """Make batches of all states that have a gradient.

  Of several batches each has other questions.  `shape` has the rows of a block;
  see `make_step_batches` for the rest.
  """
  minibatches, shards, block = shape
  sizes = loss_config.loss_denominator(groups.sampled.mask)
  lengths = np.array(
    [policy.processor.padded_length(prompt.ids) for prompt in groups.prompts]
  )

  # 1. The states of each batch that have a gradient, those with long prompts
  # first, so that the prompts of a block are of one length.
  useful = advantage.any(axis=1) | loss_config.has_penalty
  order = np.argsort(-lengths, kind="stable")
  order, batch_of = order[useful[order]], groups.questions % minibatches
  states = [order[batch_of[order] == n] for n in range(minibatches)]

  # 2. Rows of as many responses as makes the fewest tokens.
  present, room = groups.present, policy.config.response_tokens[-1]
  width = _choose_width(present[order], lengths[order], room)
  (width,) = multihost.max_over_hosts([width])
  rows = [
    _take_rows(groups, advantage, *_split_members(present, of, width))
    for of in states
  ]

  # 3. As many blocks as the largest batch of any host needs.  Neighbours go to
  # the same block of all shards.
  most = max(len(each.prompts) for each in rows)
  blocks = next_power_of_two(max(-(-most // (shards * block)), 1))
  (blocks,) = multihost.max_over_hosts([blocks])
  places = np.arange(blocks * shards * block).reshape(blocks, shards, block)
  places = places.transpose(1, 0, 2).reshape(-1)

  # 4. Each batch with the denominator of its own questions, in the first block,
  # which is always computed.
  denominators = []
  for n in range(minibatches):
    each = np.zeros((shards, blocks * block), np.float32)
    each[:, :block] = sizes[batch_of == n].sum() / (shards * block)
    denominators.append(each)
  batches = _collate(policy, rows, groups.prompts, denominators, places)
  return batches, order


def _choose_width(
  present: Bool[np.ndarray, "B G"], lengths: Int[np.ndarray, " B"], room: int
) -> int:
  """Return the number W of responses in a row that makes few tokens.

  A row is a prompt and W responses of `room` tokens: with a large W few
  trajectories leave padding, with a small one prompts are repeated.
  """
  members = present.sum(1)
  widths = [1 << n for n in range(present.shape[1].bit_length())]

  def count_tokens(width):
    return np.sum(-(-members // width) * (lengths + width * room))

  # Another number than the usual one compiles another program.
  usual, best = widths[:2][-1], min(widths, key=count_tokens)
  is_close = count_tokens(usual) <= WIDTH_TOLERANCE * count_tokens(best)
  return usual if is_close else best


def _split_members(
  present: Bool[np.ndarray, "B G"], states: Int[np.ndarray, " n"], width: int
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N W"]]:
  """Return the state of each row, and its members; -1 where there is none."""
  rows = [
    (state, members[start : start + width])
    for state in states
    for members in [np.flatnonzero(present[state])]
    for start in range(0, len(members), width)
  ]
  padded = np.full((len(rows), width), -1)
  for row, (_, members) in enumerate(rows):
    padded[row, : len(members)] = members
  return np.array([state for state, _ in rows], int), padded


def _take_rows(
  groups: RolloutGroups | TrajectoryGroups,
  advantage: Float[np.ndarray, "B G"],
  states: Int[np.ndarray, " N"],
  members: Int[np.ndarray, "N W"],
) -> BatchRows:
  """Return rows of some members of some groups."""
  sampled, at = groups.sampled, (states[:, None], members)
  there = members >= 0
  return BatchRows(
    [groups.prompts[state] for state in states],
    sampled.tokens[at],
    sampled.mask[at] & there[..., None],
    advantage[at] * there,
    sampled.logp[at],
  )


def _collate(
  policy: Policy,
  batches: Sequence[BatchRows],
  prompts: Sequence[EncodedPrompt],
  denominators: Sequence[Float[np.ndarray, "D R"]],
  places: Int[np.ndarray, " rows"],
) -> list[Batch]:
  """Return batches of rows; row n of all shards is row `places[n]`, or padding.

  A batch without rows takes the first of `prompts` for its shapes.
  """
  # Cut to the longest response of all batches on any host.
  longest = max(int(of.mask.sum(-1).max(initial=0)) for of in batches)
  length = policy.config.response_length(*multihost.max_over_hosts([longest]))
  made = []
  for of, denominator in zip(batches, denominators, strict=True):
    shard_rows = denominator.shape
    # Prompts beyond the last row are ignored.
    chosen = [*(of.prompts or prompts[:1])]
    chosen += chosen[:1] * (len(places) - len(chosen))
    prompt = policy.processor.collate(
      [chosen[place] for place in places], *shard_rows, multihost.max_over_hosts
    )
    tokens, mask, logp = (
      x[..., :length] for x in (of.tokens, of.mask, of.logp)
    )
    arrays = [
      pad_to_shards(x, 1, len(places))[0, places].reshape(
        *shard_rows, *x.shape[1:]
      )
      for x in (tokens, mask, of.advantage, logp)
    ]
    made.append(Batch(prompt, *arrays, denominator))
  return made
