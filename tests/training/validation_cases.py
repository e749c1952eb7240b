"""A validator whose trajectories are known, also in child processes."""

from r1router_jax.policy import policy
from r1router_jax.routing import router
from r1router_jax.routing.router import RolloutOptions
from r1router_jax.training import validation
from tests import fakes, tiny_policy
from tests.evaluation import census


def answer_by_script(_, *task):
  """Walk the routing loop with a scripted policy in place of the real one."""
  return router.run_routing(fakes.ScriptedPolicy(census.write_response), *task)


def make_validator(questions=census.QUESTIONS, drive_loop=answer_by_script):
  """Return a validator of questions, whose trajectories are known."""
  known = policy.Policy(tiny_policy.POLICY_CONFIG, tiny_policy.TOKENIZER, {})
  rest = RolloutOptions(), drive_loop, 0
  return validation.WalkValidator(known, fakes.make_kbs(), questions, *rest)
