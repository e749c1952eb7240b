"""Every way to answer questions that can be compared, by name."""

import functools
from collections.abc import Callable

from r1router_jax.common.records import KBS
from r1router_jax.routing import route_policies, router
from r1router_jax.routing.baselines import (
  few_shot,
  omnisearch,
  rag,
  search_agents,
  search_loop,
)
from r1router_jax.routing.policy_requests import Approach


def _planned(planner: route_policies.Planner) -> Approach:
  return Approach(functools.partial(router.loop, planner=planner))


def _spoken(
  language: search_loop.Language, *stop: str
) -> Callable[[int], Approach]:
  return lambda seed: Approach(
    functools.partial(search_loop.loop, language=language), stop
  )


METHODS: dict[str, Callable[[int], Approach]] = {  # From a seed.
  "r1_router": lambda seed: Approach(router.loop),
  "few_shot": lambda seed: Approach(few_shot.loop),
  "direct": _spoken(rag.DIRECT),
  "cot": _spoken(rag.COT),
  **{f"rag_{kb}": _spoken(rag.rag(kb)) for kb in KBS},
  "rag_all": _spoken(rag.rag(*KBS)),
  "iter_retgen": _spoken(rag.ITER_RETGEN),
  "ircot": _spoken(rag.IRCOT),
  "search_o1": _spoken(
    search_agents.SEARCH_O1.language(), *search_agents.SEARCH_O1.stop()
  ),
  "search_r1": _spoken(
    search_agents.SEARCH_R1.language(), *search_agents.SEARCH_R1.stop()
  ),
  "omnisearch": _spoken(omnisearch.OMNISEARCH),
  **{
    f"always_{kb}": lambda seed, kb=kb: _planned(route_policies.always(kb))
    for kb in KBS
  },
  "always_all": lambda seed: _planned(route_policies.always(*KBS)),
  "never": lambda seed: _planned(route_policies.always()),
  "random_route": lambda seed: _planned(route_policies.random_route(seed)),
  "oracle_route": lambda seed: _planned(route_policies.oracle_route()),
}


ROUTER = "r1_router"  # The method in which the policy routes for itself.
