"""The GRPO learner of google-tunix, with its vanilla rollouts.

All responses are sampled at one time.  The update goes prompt by prompt, as the
activations of all would need more memory than a small machine has: this release
cannot compute them again, since its remat of layers breaks sampling from the
same weights.
"""

import engine
import engine_tunix
import jax
import numpy as np
import optax
from flax import nnx
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout


def make_cluster(case: dict, iterations: int) -> rl_cluster.RLCluster:
  """Return google-tunix's cluster: model, optimizer and sampler, one device."""
  devices = np.array(jax.devices()[:1]).reshape(1, 1)
  mesh = jax.sharding.Mesh(devices, ("fsdp", "tp"))
  training_config = rl_cluster.RLTrainingConfig(
    actor_optimizer=optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.01)
    ),
    # Never evaluates.
    eval_every_n_steps=iterations + 1,
    max_steps=iterations,
    mini_batch_size=case["prompts"],
    train_micro_batch_size=1,
    rollout_micro_batch_size=case["prompts"],
  )
  rollout_config = base_rollout.RolloutConfig(
    max_tokens_to_generate=case["new"],
    temperature=1.0,
    top_p=1.0,
    max_prompt_length=case["prompt"],
    kv_cache_size=case["prompt"] + case["new"],
    # No token has the id -1, so no response ends early.
    eos_tokens=[-1],
  )
  roles = rl_cluster.Role.ACTOR, rl_cluster.Role.ROLLOUT
  return rl_cluster.RLCluster(
    actor=engine_tunix.make_model(case),
    tokenizer=engine_tunix.IdTokenizer(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(roles, mesh),
      training_config=training_config,
      rollout_config=rollout_config,
    ),
  )


def run_iterations(case: dict, count: int) -> list[dict[str, float]]:
  """Run iterations of rollout and update; return the seconds of their parts.

  The learner has the loop, so parts end where it calls back: when it asks for
  rewards, and when it asks for the next batch.
  """
  cluster = make_cluster(case, count)
  timers = []

  def end_part(name):
    if timers:
      # Updates run asynchronously.
      jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
      timers[-1].end_part(name)

  def next_batches():
    for _ in range(count):
      # The learner asks for a batch when it has done with the last.
      end_part("update_s")
      timers.append(engine.LapTimer())
      yield dict(prompts=np.array(engine_tunix.make_prompts(case)))

  def compute_rewards(prompts, completions, **_):
    end_part("rollout_s")
    ids = [[int(word) for word in text.split()] for text in completions]
    assert {len(each) for each in ids} == {case["new"]}
    return [np.mean(np.array(each) % 2) for each in ids]

  config = grpo_learner.GRPOConfig(
    num_generations=case["group"], num_iterations=1, beta=0.0
  )
  learner = grpo_learner.GRPOLearner(cluster, config, compute_rewards)
  learner.train(next_batches())
  end_part("update_s")
  return [timer.parts for timer in timers]


if __name__ == "__main__":
  engine.time_trainer(run_iterations)
