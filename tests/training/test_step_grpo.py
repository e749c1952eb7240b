"""Iterations of Step-GRPO: what is drawn, and what of it is learnt from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.data import georouter, gold_steps
from r1router_jax.parallel import strategy
from r1router_jax.policy import policy
from r1router_jax.training import step_grpo
from r1router_jax.training.batch import in_passes
from tests import fakes

OPTIONS = dict(
  kbs={},
  passages=1,
  rows=1,
  total_steps=10,
  seed=0,
  rollouts="offline",
  loop="host",
  group_size=3,
  learn_rows=2,
  minibatches=1,
  refill=0,
  temperature=1.0,
  normalise="std1",
  reward="default",
  search_cost=0.0,
  rename=0.0,
  loss=dict(
    clip_low=0.2,
    clip_high=0.2,
    aggregate="token_mean",
    kl="k3",
    kl_coef=0.0,
    entropy_coef=0.0,
  ),
)


@functools.lru_cache(maxsize=1)
def warm():
  return policy.load("warm_start", dtype=np.float32)


def algorithm(**changes):
  driver = strategy.make("pmap", dict(data=-1), dict(data=-1))
  return step_grpo.StepGrpo(warm(), driver, **OPTIONS | changes)


def drift(one, batch):
  """How far the trainer's log-probabilities are from the sampler's."""
  (share,) = jax.tree.leaves(in_passes(batch, 0).count)[:1]
  assert share.shape == (8, 1, 2)
  first = jax.tree.map(lambda x: x[0], batch)
  metrics = one.loss(
    warm().params,
    None,
    jax.tree.map(jnp.asarray, first),
    jnp.asarray(warm().allowed),
  )[2]
  return metrics["logp_drift"][0] / metrics["logp_drift"][1]


@pytest.mark.slow
def test_online_the_policy_walks_and_golds_follow():
  kbs, questions = fakes.kbs(), georouter.questions("train")[:8]
  one = algorithm(kbs=kbs, rollouts="online")
  assert one.online and one.examples == 8
  (batch,), report = one.make_batches(warm().params, lambda i: questions, 0)
  assert sum(len(kb.queries) for kb in kbs.values()) >= 8
  said = report.scalars
  assert {"reward/plan", "reward/answer", "reward/final"} <= said.keys()
  assert 0 < said["reward/total"] < 1 and said["cut_tokens"] == 0
  assert drift(one, batch) < 1e-4
  # What was retrieved stands in prompts.
  read = warm().packer.tokenizer.decode
  assert any(
    " on Wh" in read(tokens)
    for tokens in batch.prompt.tokens.reshape(-1, batch.prompt.tokens.shape[-1])
  )
  halves = algorithm(kbs=kbs, rollouts="online", loop="halves")
  again, same = halves.make_batches(warm().params, lambda i: questions, 0)
  assert same.scalars == said
  jax.tree.map(np.testing.assert_array_equal, again[0], batch)


@pytest.mark.slow
def test_more_is_drawn_where_too_few_groups_teach():
  known = gold_steps.gold_steps(
    georouter.questions("train")[:20], lambda asked: [()] * len(asked)
  )
  steps = [step for walk in known for step in walk if step.kind == "plan"]
  seen = []

  def examples(index):
    seen.append(index)
    return steps[len(seen) * 8 :][:8]

  one = algorithm(refill=2, learn_rows=2)  # The warm start knows most of them.
  (batch,), report = one.make_batches(warm().params, examples, 3)
  assert seen == [3, 13, 23] and report.scalars["refills"] == 2
  teach = int(batch.mask.any((2, 3)).sum())
  assert teach == round((1 - report.scalars["equal_groups"]) * 24) < 16
  assert drift(one, batch) < 1e-4
  _, report = algorithm(refill=2, learn_rows=1, temperature=1.5).make_batches(
    warm().params, lambda index: steps[:24], 3
  )
  assert report.scalars["refills"] == 0


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(group_size=1), "config.step_grpo.group_size is 1"),
    (dict(rollouts="both"), "rollouts is 'both': take one of offline, online"),
    (dict(normalise="std2"), "normalise is 'std2'"),
    (dict(rollouts="online"), "name the folder .* config.data.kb"),
  ],
)
def test_what_cannot_be_is_said(changes, says):
  with pytest.raises(ValueError, match=says):
    algorithm(**changes)
