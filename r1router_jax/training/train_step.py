"""One step of the optimiser: which parameters learn, and their gradient.

  g = sum over devices and passes of d numerator / d theta,  divided by the sum
  of denominators

The division comes last, so that the result does not depend on how a batch is
split: over devices, or into passes of fewer rows, for which less memory is
enough.  Where the loss or the gradient is not finite, the update is skipped: it
is counted, and nothing else changes.

`make` gives one body for both drivers: under `jax.pmap` sums are taken over
`axis`; under `jax.jit` arrays are global, and there is nothing to sum.

Axes:  M passes of an update   m rows of a pass
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util


class State(NamedTuple):
  """What an update changes.

  Attributes:
    step: updates so far, with those skipped.
    skipped: how many of the last ones were skipped, in a row.
    params, opt: parameters, and what the optimiser remembers.
  """

  step: jax.Array
  skipped: jax.Array
  params: dict
  opt: optax.OptState


def split(params: dict, trainable: str) -> tuple[dict, dict]:
  """The parameters that learn, and those that do not.

  Args:
    params: nested dicts.
    trainable: a regular expression, searched for in paths such as
      "vision/blocks/qkv/w".

  Raises:
    ValueError: where nothing would learn.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  learn = {path for path in flat if re.search(trainable, path)}
  if not learn:
    raise ValueError(
      f"config.trainable {trainable!r} fits none of the "
      f"parameters {', '.join(sorted(flat))}."
    )
  return tuple(
    traverse_util.unflatten_dict(
      {path: leaf for path, leaf in flat.items() if (path in learn) == it},
      sep="/",
    )
    for it in (True, False)
  )


def join(trained: dict, frozen: dict) -> dict:
  """The inverse of `split`."""
  flat = (traverse_util.flatten_dict(each) for each in (trained, frozen))
  return traverse_util.unflatten_dict(
    {path: leaf for each in flat for path, leaf in each.items()}
  )


def start(
  params: dict, tx: optax.GradientTransformation, trainable: str
) -> State:
  """The state before the first update."""
  zero = jnp.zeros((), jnp.int32)
  return State(zero, zero, params, tx.init(split(params, trainable)[0]))


def make(
  loss: Callable,
  tx: optax.GradientTransformation,
  trainable: str,
  axis: str | None = None,
) -> Callable[[State, dict | None, Any], tuple[State, dict]]:
  """One step of the optimiser: (state, reference, batch) -> state, metrics.

  `reference` are former values of the parameters that learn, or None; leaves of
  a batch are [M, m, ...].

  Args:
    loss: (params, parameters of the reference policy or None, batch) ->
      numerator, denominator, (sum, count) of metrics, whose mean over nothing
      is not a number.
    tx: the optimiser.
    trainable: see `split`.
    axis: the name of the axis of devices, under `pmap`.
  """

  def update(state, reference, batch):
    trained, frozen = split(state.params, trainable)
    reference = None if reference is None else join(reference, frozen)

    def objective(trained, rows):
      numerator, denominator, metrics = loss(
        join(trained, frozen), reference, rows
      )
      return numerator, (denominator, metrics)

    def one(rows):
      return jax.value_and_grad(objective, has_aux=True)(trained, rows)

    found = _added(one, batch)
    if axis is not None:
      found = jax.lax.psum(found, axis)
    (total, (count, metrics)), grads = found
    count = jnp.where(count > 0, count, 1)
    grads = jax.tree.map(lambda g: g / count, grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(total) & jnp.isfinite(norm)

    def moved(trained, opt):
      updates, opt = tx.update(grads, opt, trained)
      return optax.apply_updates(trained, updates), opt

    # A branch writes over what it reads; to choose between results takes more.
    trained, opt = jax.lax.cond(
      finite, moved, lambda *same: same, trained, state.opt
    )
    skipped = jnp.where(finite, 0, state.skipped + 1)
    metrics = {name: part / n for name, (part, n) in metrics.items()}
    metrics |= dict(loss=total / count, grad_norm=norm, skipped=skipped)
    return State(state.step + 1, skipped, join(trained, frozen), opt), metrics

  return update


def _added(function: Callable, batch: Any) -> Any:
  """The sum of what a function gives for each pass of a batch."""
  first = jax.tree.map(lambda x: x[0], batch)
  if len(jax.tree.leaves(batch)[0]) == 1:
    return function(first)
  zero = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first)
  )
  return jax.lax.scan(
    lambda total, rows: (jax.tree.map(jnp.add, total, function(rows)), None),
    zero,
    batch,
  )[0]
