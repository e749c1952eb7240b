"""Checks names that flags offer against what they name."""

from r1router_jax.common import shared_flags
from r1router_jax.routing import device_loop
from r1router_jax.routing.baselines import registry


def test_names_of_methods_and_loops_are_those_of_the_registries():
  assert shared_flags.METHODS == tuple(registry.METHODS)
  assert shared_flags.ROUTER == registry.ROUTER
  assert shared_flags.ROUTING_LOOPS == tuple(device_loop.ROUTING_LOOPS)
