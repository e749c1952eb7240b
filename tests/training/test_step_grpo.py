"""Iterations of Step-GRPO: rollouts, resampling, and the batches they give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1router_jax.data import georouter, gold_steps
from r1router_jax.parallel import strategy
from r1router_jax.policy import policy
from r1router_jax.training import step_grpo
from r1router_jax.training.batch import split_microbatches
from tests import fakes
from tests.train_runs import make_run_config

OPTIONS = {
  "total_steps": 10,
  "data.prompts_per_shard": 1,
  "step_grpo.group_size": 3,
  "step_grpo.update_batch_size": 2,
}

ONLINE = {"step_grpo.rollout_mode": "online", "data.kb_dir": "somewhere"}


@functools.lru_cache(maxsize=1)
def load_warm_start():
  return policy.load("warm_start", dtype=np.float32)


def make_algorithm(kbs=None, **changes):
  """Return Step-GRPO with one prompt for each of eight devices."""
  return step_grpo.StepGrpo(
    load_warm_start(),
    strategy.make_strategy("pmap", dict(data=-1), dict(data=-1)),
    make_run_config("step_grpo", "tiny", **OPTIONS | changes),
    kbs or {},
    epath.Path("no workdir"),
  )


def logp_drift(algorithm, batch):
  """Return how far the trainer's log-probabilities are from the sampler's."""
  # [D, M, m]: eight shards of one microbatch of two prompts.
  denominator = split_microbatches(batch, 0).loss_denominator
  assert denominator.shape == (8, 1, 2)
  first_shard = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
  start = load_warm_start()
  *_, metrics = algorithm.loss(
    start.params, None, first_shard, jnp.asarray(start.allowed_tokens)
  )
  total, count = metrics["logp_drift"]
  return total / count


@pytest.mark.slow
def test_online_rollouts_search_and_align_golds():
  kbs, questions = fakes.make_kbs(), georouter.load_questions("train")[:8]
  params = load_warm_start().params
  algorithm = make_algorithm(kbs, **ONLINE)
  assert algorithm.examples_per_iteration == 8
  # One question for each device.
  (batch,), report = algorithm.make_batches(params, lambda i: questions, 0)
  assert sum(len(kb.queries) for kb in kbs.values()) >= 8
  # Every kind of step was rewarded, with golds that follow the question.
  scalars = report.scalars
  assert {"reward/plan", "reward/answer", "reward/final"} <= scalars.keys()
  assert 0 < scalars["reward/total"] < 1 and scalars["cut_tokens"] == 0
  assert logp_drift(algorithm, batch) < 1e-4

  # Prompts show what was retrieved.
  decode = load_warm_start().processor.tokenizer.decode
  prompts = batch.prompt.tokens.reshape(-1, batch.prompt.tokens.shape[-1])
  assert any(" on Wh" in decode(tokens) for tokens in prompts)

  # Another routing loop gives the same batch.
  halves = make_algorithm(kbs, **ONLINE, **{"step_grpo.routing_loop": "halves"})
  again, same = halves.make_batches(params, lambda i: questions, 0)
  assert same.scalars == scalars
  jax.tree.map(np.testing.assert_array_equal, again[0], batch)


@pytest.mark.slow
def test_too_few_groups_with_signal_are_resampled():
  trajectories = gold_steps.make_gold_steps(
    georouter.load_questions("val")[:20], lambda queries: [()] * len(queries)
  )
  steps = [
    step for each in trajectories for step in each if step.kind == "plan"
  ]
  params, asked = load_warm_start().params, []

  def examples_for(index):
    # Each round sees other steps.
    asked.append(index)
    return steps[len(asked) * 8 :][:8]

  # The warm start knows most answers, so most groups have equal rewards.
  algorithm = make_algorithm(**{"step_grpo.max_resample_rounds": 2})
  (batch,), report = algorithm.make_batches(params, examples_for, 3)
  assert asked == [3, 13, 23] and report.scalars["refills"] == 2
  useful = int(batch.mask.any((2, 3)).sum())
  assert useful == round((1 - report.scalars["equal_groups"]) * 24) < 16
  assert logp_drift(algorithm, batch) < 1e-4

  # More prompts and a higher temperature need no second round.
  algorithm = make_algorithm(
    **{
      "step_grpo.max_resample_rounds": 2,
      "step_grpo.update_batch_size": 1,
      "step_grpo.temperature": 1.5,
    }
  )
  _, report = algorithm.make_batches(params, lambda index: steps[:24], 3)
  assert report.scalars["refills"] == 0
