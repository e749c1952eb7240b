"""One step of the optimiser: which parameters learn, and their gradient.

  g = sum over devices of d numerator / d theta,  divided by the sum of
  denominators

The division comes last, so that the result does not depend on how a batch is
split.  Where the loss or the gradient is not finite, the update is skipped: it
is counted, and nothing else changes.

`make` gives one body for both drivers: under `jax.pmap` sums are taken over
`axis`; under `jax.jit` arrays are global, and there is nothing to sum.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util


class State(NamedTuple):
  """What an update changes; under `pmap` leaves have the axis of devices.

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
    raise ValueError(f"config.trainable {trainable!r} fits none of the "
                     f"parameters {', '.join(sorted(flat))}.")
  return tuple(
      traverse_util.unflatten_dict(
          {path: leaf for path, leaf in flat.items() if (path in learn) == it},
          sep="/") for it in (True, False))


def join(trained: dict, frozen: dict) -> dict:
  """The inverse of `split`."""
  flat = (traverse_util.flatten_dict(each) for each in (trained, frozen))
  return traverse_util.unflatten_dict(
      {path: leaf for each in flat for path, leaf in each.items()})


def start(
    params: dict, tx: optax.GradientTransformation, trainable: str
) -> State:
  """The state before the first update."""
  zero = np.zeros((), np.int32)
  return State(zero, zero.copy(), params,
               tx.init(split(params, trainable)[0]))


def make(
    loss: Callable, tx: optax.GradientTransformation, trainable: str,
    axis: str | None = None,
) -> Callable[[State, Any], tuple[State, dict]]:
  """One step of the optimiser.

  Args:
    loss: (params, batch) -> numerator, denominator, (sum, count) of metrics.
    tx: the optimiser.
    trainable: see `split`.
    axis: the name of the axis of devices, under `pmap`.
  """

  def update(state, batch):
    trained, frozen = split(state.params, trainable)

    def objective(trained):
      numerator, denominator, metrics = loss(join(trained, frozen), batch)
      return numerator, (denominator, metrics)

    (total, (count, metrics)), grads = jax.value_and_grad(
        objective, has_aux=True)(trained)
    if axis is not None:
      total, count, metrics, grads = jax.lax.psum(
          (total, count, metrics, grads), axis)
    count = jnp.maximum(count, 1)
    grads = jax.tree.map(lambda g: g / count, grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    updates, opt = tx.update(grads, state.opt, trained)
    trained, opt = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (optax.apply_updates(trained, updates), opt), (trained, state.opt))
    skipped = jnp.where(finite, 0, state.skipped + 1)
    metrics = {name: part / jnp.maximum(n, 1)
               for name, (part, n) in metrics.items()}
    metrics |= dict(loss=total / count, grad_norm=norm, skipped=skipped)
    return State(state.step + 1, skipped, join(trained, frozen), opt), metrics

  return update
