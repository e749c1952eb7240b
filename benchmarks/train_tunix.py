"""The GRPO learner that google-tunix brings, with its vanilla rollouts.

All responses are drawn at one time.  The update goes prompt by prompt, as the
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


def cluster(case: dict, turns: int) -> rl_cluster.RLCluster:
  device = jax.sharding.Mesh(
    np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp")
  )
  return rl_cluster.RLCluster(
    actor=engine_tunix.model(case),
    tokenizer=engine_tunix.Ids(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(
        (rl_cluster.Role.ACTOR, rl_cluster.Role.ROLLOUT), device
      ),
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(
          optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.01)
        ),
        eval_every_n_steps=turns + 1,
        max_steps=turns,
        mini_batch_size=case["prompts"],
        train_micro_batch_size=1,
        rollout_micro_batch_size=case["prompts"],
      ),
      rollout_config=base_rollout.RolloutConfig(
        max_tokens_to_generate=case["new"],
        temperature=1.0,
        top_p=1.0,
        max_prompt_length=case["prompt"],
        kv_cache_size=case["prompt"] + case["new"],
        eos_tokens=[-1],
      ),
    ),
  )


def run(case, turns):
  actors = cluster(case, turns)
  parts, laps = [], None

  def lap(part):
    if laps is not None:
      jax.block_until_ready(nnx.state(actors.actor_trainer.model))
      laps(part)

  def batches():  # The learner asks for one when it has done with the last.
    nonlocal laps
    for _ in range(turns):
      lap("update_s")
      laps = engine.Laps()
      parts.append(laps.parts)
      yield dict(prompts=np.array(engine_tunix.texts(case)))

  def reward(prompts, completions, **_):
    lap("rollout_s")
    ids = [[int(word) for word in text.split()] for text in completions]
    assert {len(each) for each in ids} == {case["new"]}
    return [np.mean(np.array(each) % 2) for each in ids]

  learner = grpo_learner.GRPOLearner(
    actors,
    grpo_learner.GRPOConfig(
      num_generations=case["group"], num_iterations=1, beta=0.0
    ),
    reward,
  )
  learner.train(batches())
  lap("update_s")
  return parts


engine.trainer(run)
