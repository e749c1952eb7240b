"""Our rollouts and our update, with the parts that `r1router_jax.train` has."""

import functools

import engine
import engine_ours
import jax
import jax.numpy as jnp
import numpy as np

from r1router_jax.generation import token_sampling
from r1router_jax.models import inference_params
from r1router_jax.training import grpo_loss, optimizer, train_step
from r1router_jax.training.batch import Batch

TX = optimizer.chain(
  name="adamw",
  lr=1e-6,
  b2=0.999,
  muon_lr=0.0,
  steps=100,
  warmup=0,
  final=1.0,
  weight_decay=0.01,
  clip_norm=1.0,
)

ALL = ".*"


def start(case: dict, key: jax.Array) -> train_step.State:
  return train_step.start(engine_ours.initial(case, key), TX, ALL)


def updater(case: dict):
  """(state, no reference policy, batch) -> the next state and metrics."""
  loss = functools.partial(
    grpo_loss.loss,
    engine_ours.model(case),
    grpo_loss.Objective(
      temperature=1.0,
      longest=case["new"],
      clip_low=0.2,
      clip_high=0.2,
      aggregate="token_mean",
      kl="k3",
      kl_coef=0.0,
      entropy_coef=0.0,
    ),
    allowed=jnp.ones(case["vocab"], bool),
  )
  return jax.jit(train_step.make(loss, TX, ALL), donate_argnums=0)


def learnt(case: dict, drawn, advantage: np.ndarray) -> Batch:
  """What the update sees of all groups, in one pass."""
  batch = Batch(
    engine_ours.packed(case, np.arange(case["prompts"])),
    drawn.tokens,
    drawn.mask,
    advantage,
    drawn.logp,
    drawn.mask.sum((1, 2)).astype(np.float32),
  )
  return jax.tree.map(lambda x: x[None], batch)


def run(case, turns):
  state = jax.jit(functools.partial(start, case))(jax.random.key(0))
  step = updater(case)
  serve = jax.jit(
    lambda params: inference_params.served(
      params, engine_ours.model(case).compute, unrolled=True
    )
  )
  draw = engine_ours.drawer(
    case, case["prompts"], case["group"], token_sampling.SamplingParams(1.0)
  )
  found = []
  for turn in range(turns):
    laps = engine.Laps()
    served = jax.block_until_ready(serve(state.params))
    laps("served_s")
    drawn = draw(served, turn, case["new"])
    del served
    laps("rollout_s")
    advantage = grpo_loss.advantages((drawn.tokens % 2).mean(-1))
    batch = learnt(case, drawn, advantage)
    laps("reward_s")
    state, metrics = step(state, None, batch)
    assert jax.device_get(metrics)["skipped"] == 0
    jax.block_until_ready(state)
    laps("update_s")
    found.append(laps.parts)
  return found


if __name__ == "__main__":
  engine.trainer(run)
