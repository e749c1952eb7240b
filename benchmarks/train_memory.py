"""Measures the memory and time of our update alone.

With `case["full"]` all logits exist at one time.  Prints one JSON line:

  temp_mib      memory that XLA plans besides parameters, optimizer state and
                batch
  planned_mib   the same with these
  peak_mib      most memory of this process: planned_mib and the runtime; that
                of compiling alone, unless `case["run"]`
  update_s      seconds of an update, if `case["run"]`
"""

import functools

import engine
import jax
import jax.numpy as jnp
import numpy as np
import train_ours

from r1router_jax.generation import group_decode, logprobs
from r1router_jax.training.batch import Batch


def full_logp(states, targets, vocabulary, allowed):
  """Compute `logprobs.token_logp` in the simplest way: all logits at once."""
  # [B, G, T, V], and as much again for its gradient.
  logits = jnp.einsum(
    "...D,VD->...V", states, vocabulary, preferred_element_type=jnp.float32
  )
  logps = jax.nn.log_softmax(jnp.where(allowed, logits, -1e30))
  logp = jnp.take_along_axis(logps, targets[..., None], -1)[..., 0]
  return logp, -jnp.sum(jnp.exp(logps) * logps, -1)


def make_random_batch(case: dict) -> Batch:
  """Return a batch of random responses with random advantages."""
  shape = case["prompts"], case["group"], case["new"]
  rng = np.random.default_rng(0)
  responses = group_decode.SampledResponses(
    tokens=rng.integers(10, case["vocab"], shape, np.int32),
    logp=np.full(shape, -np.log(case["vocab"]), np.float32),
    mask=np.ones(shape, bool),
    failed=np.zeros(shape[:2], bool),
  )
  advantages = rng.standard_normal(shape[:2], np.float32)
  return train_ours.make_batch(case, responses, advantages)


def measure_update(case: dict) -> dict[str, float]:
  """Compile the update and return its memory; run it if the case says so."""
  # Replaced before the update is traced.
  if case["full"]:
    logprobs.token_logp = full_logp
  batch, key = make_random_batch(case), jax.random.key(0)
  init_state = functools.partial(train_ours.init_state, case)
  # 1. Compile it, for which no parameters are needed.
  state = jax.eval_shape(init_state, key)
  update = train_ours.make_update(case).lower(state, None, batch).compile()
  plan = update.memory_analysis()
  planned = (
    plan.temp_size_in_bytes
    + plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    # Donated memory is counted as argument and as output.
    - plan.alias_size_in_bytes
  )
  found = dict(
    temp_mib=plan.temp_size_in_bytes / 2**20, planned_mib=planned / 2**20
  )
  if not case["run"]:
    return found

  # 2. Run it.
  state = jax.jit(init_state)(key)

  def run_update():
    nonlocal state
    state, metrics = update(state, None, batch)
    assert jax.block_until_ready(metrics)["skipped"] == 0

  return found | dict(update_s=engine.best_seconds(run_update))


if __name__ == "__main__":
  engine.print_measurement(measure_update)
