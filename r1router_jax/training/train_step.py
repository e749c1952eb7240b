"""One step of the optimizer: the trainable parameters and their gradient.

  g = sum over devices and microbatches of d numerator / d theta,  divided by
  the sum of denominators

The division comes last, so that the result does not depend on how a batch is
split, over devices or into microbatches, which need less memory.  Where the
loss or the gradient is not finite, the update is skipped: the step and the
skip are counted, and nothing else changes.  An update that leaves a parameter
not finite counts as skipped, too, and its state is never saved.

Rows that come in blocks, one a microbatch, are padded to the longest prompt of
all; each block is computed at the length of its own prompts, and not at all if
it is padding.

`make_train_step` gives one function for both parallel strategies: under
`jax.pmap` sums are taken over `axis_name`; under `jax.jit` arrays are global,
and the compiler adds up over devices.

Axes:  M microbatches of an update   m rows of a microbatch
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Bool

from r1router_jax.common.errors import UserError
from r1router_jax.training.batch import Batch


class TrainState(NamedTuple):
  """The state that an update changes; checkpoints hold these names."""

  step: jax.Array  # Updates so far, including skipped ones.
  skipped: jax.Array  # Updates skipped in a row up to now.
  params: dict  # The trainable ones and the frozen ones.
  opt: optax.OptState  # For the trainable parameters only.


def partition_params(params: dict, trainable: str) -> tuple[dict, dict]:
  """Split parameters into the trainable and the frozen ones.

  The regular expression `trainable` is searched for in paths such as
  "vision/blocks/qkv/w"; if it fits none, the error is a UserError.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  trained = {path: x for path, x in flat.items() if re.search(trainable, path)}
  if not trained:
    raise UserError(
      f"config.trainable_regex {trainable!r} fits none of the "
      f"parameters {', '.join(sorted(flat))}."
    )
  # In the order of the parameters, as are the trained ones.
  frozen = {path: x for path, x in flat.items() if path not in trained}
  unflatten = functools.partial(traverse_util.unflatten_dict, sep="/")
  return unflatten(trained), unflatten(frozen)


def trainable_params(params: dict, trainable: str) -> dict:
  """Return the parameters that are trained; a reference policy keeps these."""
  return partition_params(params, trainable)[0]


def merge_params(trained: dict, frozen: dict) -> dict:
  """Undo `partition_params`."""
  flat = traverse_util.flatten_dict(trained)
  return traverse_util.unflatten_dict(flat | traverse_util.flatten_dict(frozen))


def init_train_state(
  params: dict, optimizer: optax.GradientTransformation, trainable: str
) -> TrainState:
  """Return the state before the first update."""
  # Both counters may share an array: it is copied before it is donated.
  zero = jnp.zeros((), jnp.int32)
  trained = trainable_params(params, trainable)
  return TrainState(zero, zero, params, optimizer.init(trained))


@jax.jit
def is_finite(tree: Any) -> Bool[Array, ""]:
  """Return whether all numbers of a tree are finite."""
  finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.stack(finite).all()


def make_train_step(
  loss: Callable,
  optimizer: optax.GradientTransformation,
  trainable: str,
  axis_name: str | None = None,
  block_lengths: Sequence[int] = (),
) -> Callable[[TrainState, dict | None, Any], tuple[TrainState, dict]]:
  """Return the train step (state, reference, batch) -> (state, metrics).

  The step takes the reference policy as earlier values of the trainable
  parameters, or None, and batches of leaves [M, m, ...].  `trainable` is that
  of `partition_params`, `axis_name` the axis of devices under `pmap`, or None.
  `block_lengths` are the lengths that a microbatch may be computed at, by
  default that of the whole batch; its leaves are then those of `Batch`.

  `loss` maps (params, parameters of the reference policy or None, batch) to
  numerator, denominator, (sum, count) of metrics; a count of 0 gives NaN.
  """

  def train_step(state, reference, batch):
    trained, frozen = partition_params(state.params, trainable)
    if reference is not None:
      reference = merge_params(reference, frozen)

    # 1. Sums over microbatches, then over devices.
    def microbatch_grad(rows):
      def numerator_of(trained):
        params = merge_params(trained, frozen)
        numerator, denominator, metrics = loss(params, reference, rows)
        return numerator, (denominator, metrics)

      return jax.value_and_grad(numerator_of, has_aux=True)(trained)

    function = microbatch_grad
    if block_lengths:
      function = functools.partial(_at_block_length, function, block_lengths)
    sums = _sum_over_microbatches(function, batch)
    if axis_name is not None:
      sums = jax.lax.psum(sums, axis_name)

    # 2. The gradient of the mean.  A batch of padding has denominator 0.
    (total, (count, metrics)), grads = sums
    count = jnp.where(count > 0, count, 1)
    grads = jax.tree.map(lambda g: g / count, grads)
    norm = optax.tree.norm(grads)

    # 3. The update, unless it is not finite.  lax.cond lets XLA update
    # parameters in place; jnp.where would keep the old and the new ones alive.
    def update(trained, opt):
      updates, opt = optimizer.update(grads, opt, trained)
      trained = optax.apply_updates(trained, updates)
      # Looking at the updates would keep all of them in memory at once.
      return trained, opt, is_finite(trained)

    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    trained, opt, finite = jax.lax.cond(
      finite, update, lambda *same: (*same, finite), trained, state.opt
    )
    skipped = jnp.where(finite, 0, state.skipped + 1)
    metrics = {name: value / n for name, (value, n) in metrics.items()}
    metrics |= dict(loss=total / count, grad_norm=norm, skipped=skipped)
    params = merge_params(trained, frozen)
    return TrainState(state.step + 1, skipped, params, opt), metrics

  return train_step


def _at_block_length(
  function: Callable, lengths: Sequence[int], batch: Batch
) -> Any:
  """Return `function` of a batch, its prompts cut to one of the lengths."""
  longest = batch.prompt.tokens.shape[-1]
  lengths = [*(n for n in lengths if n < longest), longest]

  def at_length(length, batch):
    # Only these fields have an axis of prompt tokens; images stay whole.
    fields = ("tokens", "mask", "positions", "image_token")
    cut = {name: getattr(batch.prompt, name)[..., :length] for name in fields}
    return function(batch._replace(prompt=batch.prompt._replace(**cut)))

  def of_padding(batch):
    shapes = jax.eval_shape(function, batch)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  # Rows of padding repeat a prompt: those with responses decide.
  sizes = jnp.sum(batch.prompt.mask, -1) * jnp.any(batch.mask, (1, 2))
  index = 1 + jnp.searchsorted(jnp.array(lengths), jnp.max(sizes))
  is_padding = (jnp.max(sizes) == 0) & (jnp.sum(batch.loss_denominator) == 0)
  branches = [of_padding]
  branches += [functools.partial(at_length, length) for length in lengths]
  return jax.lax.switch(jnp.where(is_padding, 0, index), branches, batch)


def _sum_over_microbatches(function: Callable, batch: Any) -> Any:
  """Return the sum of `function` over the M microbatches of a batch."""
  first = jax.tree.map(lambda x: x[0], batch)
  # A loop of one would only cost memory for its sum.
  if len(jax.tree.leaves(batch)[0]) == 1:
    return function(first)
  # The scan adds to zeros of the shapes that the function returns.
  shapes = jax.eval_shape(function, first)
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total, rows):
    return jax.tree.map(jnp.add, total, function(rows)), None

  total, _ = jax.lax.scan(add, zero, batch)
  return total
