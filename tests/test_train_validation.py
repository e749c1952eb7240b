"""Runs that are validated by walking the routing loop as they go."""

import jax
import numpy as np
import pytest

from r1router_jax.policy import policy
from r1router_jax.train import train
from tests import tiny_policy
from tests.train_runs import load_config, read_scalars, train_and_interrupt


@pytest.mark.long
def test_validation_changes_nothing_and_the_best_state_outlives_a_restart(
  kbs, tmp_path, caplog
):
  """A tiny policy, which is never right, is scored after each update."""
  params = tiny_policy.params(tiny_policy.FULL_VOCAB_CONFIG)
  start = policy.Policy(
    tiny_policy.POLICY_CONFIG, tiny_policy.TOKENIZER, params
  )
  start.save(tmp_path / "start")
  config = load_config(
    "sft",
    **{
      "policy.start_from": str(tmp_path / "start"),
      "policy.induction": False,
      "data.kb_dir": str(kbs),
      "data.split": "train[:1%]",
      "sft.recall_warmup_steps": 0,
      "sft.recall_prob": 0.0,
      "validation.steps": 3,
      "total_steps": 2,
      "checkpoint_every": 1,
    },
  )
  config.policy.overrides = dict(prompt_tokens=(160,), response_tokens=(48,))
  plain = train(config, tmp_path / "plain")

  # The same run, validated and stopped, and started again.
  config.validation.every = 1
  train_and_interrupt(config, tmp_path / "validated", after=1)
  with caplog.at_level("INFO"):
    validated = train(config, tmp_path / "validated")
  jax.tree.map(np.testing.assert_array_equal, plain.params, validated.params)
  rest, scores = [], []
  for line in read_scalars(tmp_path / "validated"):
    parts = {}, {}
    for name, x in line.items():
      parts[name.startswith("validation/")][name] = x
    rest.append(parts[0])
    scores.append(parts[1])
  assert rest == read_scalars(tmp_path / "plain")

  # Both states earn nothing, so the earlier one stays the best.
  assert [found["validation/f1"] for found in scores] == [0, 0]
  best = tmp_path / "validated" / "best"
  told = f"Best: validation/f1 0 after iteration 1, in {best}."
  assert told in caplog.messages
  first = policy.load(best).params["embed"]
  last = policy.load(best.with_name("policy")).params["embed"]
  assert np.abs(first - last).max() > 0
