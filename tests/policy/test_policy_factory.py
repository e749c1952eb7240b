"""A policy gets ready for its first response before it is asked."""

import pytest

from r1router_jax.common.records import Question
from r1router_jax.policy import policy as policy_lib
from r1router_jax.policy import policy_factory
from tests import tiny_policy


@pytest.mark.parametrize("image, is_ready", [("", True), ("none.png", False)])
def test_warm_up_makes_what_the_first_response_waits_for(image, is_ready):
  policy = policy_lib.init_policy(
    tiny_policy.POLICY_CONFIG, tiny_policy.TOKENIZER, 0
  )
  # An image that cannot be read is told by the routing loop.
  policy_factory.warm_up(policy, Question("", "Who?", image=image))
  assert ("inference_params" in vars(policy)) == is_ready
