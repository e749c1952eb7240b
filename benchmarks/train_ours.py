"""Our rollouts and our update, with the parts that `r1router_jax.train` has."""

import functools
from collections.abc import Callable

import engine
import engine_ours
import jax
import jax.numpy as jnp
import numpy as np

from r1router_jax.generation import group_decode, token_sampling
from r1router_jax.models import inference_params
from r1router_jax.training import grpo_loss, optimizer, train_step
from r1router_jax.training.advantages import group_advantages
from r1router_jax.training.batch import Batch
from r1router_jax.training.config import OptimizerConfig

OPTIMIZER = optimizer.make_optimizer(
  OptimizerConfig(
    name="adamw",
    lr=1e-6,
    b2=0.999,
    muon_lr=0.0,
    warmup=0,
    final=1.0,
    weight_decay=0.01,
    clip_norm=1.0,
  ),
  steps=100,
)

TRAINABLE = ".*"  # All parameters.


def init_state(case: dict, key: jax.Array) -> train_step.TrainState:
  """Return the state before the first update, with random weights."""
  params = engine_ours.init_params(case, key)
  return train_step.init_train_state(params, OPTIMIZER, TRAINABLE)


def make_update(case: dict) -> Callable:
  """Return the jitted update (state, None, batch) -> (state, metrics).

  The None stands for a reference policy, which the loss does not have.
  """
  config = grpo_loss.GrpoLossConfig(
    temperature=1.0,
    max_response_tokens=case["new"],
    clip_low=0.2,
    clip_high=0.2,
    aggregate="token_mean",
    kl="k3",
    kl_coef=0.0,
    entropy_coef=0.0,
  )
  loss = functools.partial(
    grpo_loss.loss,
    engine_ours.make_model(case),
    config,
    allowed=jnp.ones(case["vocab"], bool),
  )
  update = train_step.make_train_step(loss, OPTIMIZER, TRAINABLE)
  # The old state is given up, as in training.
  return jax.jit(update, donate_argnums=0)


def make_batch(
  case: dict,
  responses: group_decode.SampledResponses,
  advantages: np.ndarray,
) -> Batch:
  """Return all groups as one microbatch."""
  batch = Batch(
    engine_ours.make_prompts(case, np.arange(case["prompts"])),
    responses.tokens,
    responses.mask,
    advantages,
    responses.logp,
    responses.mask.sum((1, 2)).astype(np.float32),
  )
  return jax.tree.map(lambda x: x[None], batch)


def run_iterations(case: dict, count: int) -> list[dict[str, float]]:
  """Run iterations of rollout and update; return the seconds of their parts."""
  state = jax.jit(functools.partial(init_state, case))(jax.random.key(0))
  update = make_update(case)
  compute = engine_ours.make_model(case).compute
  to_inference_params = jax.jit(
    functools.partial(
      inference_params.to_inference_params, compute=compute, unrolled=True
    )
  )
  sample = engine_ours.make_sampler(
    case, case["prompts"], case["group"], token_sampling.SamplingParams(1.0)
  )
  iterations = []
  for seed in range(count):
    timer = engine.LapTimer()
    # 1. Rollout: copy the weights to the sampler's layout, and sample groups.
    params = jax.block_until_ready(to_inference_params(state.params))
    timer.end_part("served_s")
    responses = sample(params, seed, case["new"])
    # The copy must not take memory during the update.
    del params
    timer.end_part("rollout_s")
    # 2. Rewards: the share of odd ids.
    rewards = (responses.tokens % 2).mean(-1)
    batch = make_batch(case, responses, group_advantages(rewards))
    timer.end_part("reward_s")
    # 3. Update.
    state, metrics = update(state, None, batch)
    assert jax.device_get(metrics)["skipped"] == 0
    jax.block_until_ready(state)
    timer.end_part("update_s")
    iterations.append(timer.parts)
  return iterations


if __name__ == "__main__":
  engine.time_trainer(run_iterations)
