"""Our update alone, and what it takes, with full logits if `case["full"]`.

temp_mib    what XLA plans beside parameters, optimiser's state and batch
planned_mib the same with them
peak_mib    of this process: that, and the runtime; of compiling alone, unless
            `case["run"]`
"""

import engine
import jax
import jax.numpy as jnp
import numpy as np
import train_ours

from r1router_jax.generation import group_decode, logprobs


def full_logp(states, targets, vocabulary, allowed):
  """`drawing.token_logp` as one writes it first: all logits at one time."""
  logits = jnp.einsum(
    "...D,VD->...V", states, vocabulary, preferred_element_type=jnp.float32
  )
  every = jax.nn.log_softmax(jnp.where(allowed, logits, -1e30))
  logp = jnp.take_along_axis(every, targets[..., None], -1)[..., 0]
  return logp, -jnp.sum(jnp.exp(every) * every, -1)


def measure(case):
  if case["full"]:
    logprobs.token_logp = full_logp
  shape = case["prompts"], case["group"], case["new"]
  rng = np.random.default_rng(0)
  tokens = rng.integers(10, case["vocab"], shape, np.int32)
  batch = train_ours.learnt(
    case,
    group_decode.Drawn(
      tokens,
      np.full(shape, -np.log(case["vocab"]), np.float32),
      np.ones(shape, bool),
      np.zeros(shape[:2], bool),
    ),
    rng.standard_normal(shape[:2], np.float32),
  )
  key = jax.random.key(0)
  begin = lambda key: train_ours.start(case, key)
  step = (
    train_ours.updater(case)
    .lower(jax.eval_shape(begin, key), None, batch)
    .compile()
  )
  plan = step.memory_analysis()
  found = dict(
    temp_mib=plan.temp_size_in_bytes / 2**20,
    planned_mib=(
      plan.temp_size_in_bytes
      + plan.argument_size_in_bytes
      + plan.output_size_in_bytes
      - plan.alias_size_in_bytes
    )
    / 2**20,
  )
  if not case["run"]:
    return found
  state = jax.jit(begin)(key)

  def turn():
    nonlocal state
    state, metrics = step(state, None, batch)
    assert jax.block_until_ready(metrics)["skipped"] == 0

  return found | dict(update_s=engine.best(turn))


engine.main(measure)
