"""All methods of answering that can be compared, by name."""

from collections.abc import Callable

from r1router_jax.common.records import KBS
from r1router_jax.routing.answering_methods import AnsweringMethod, R1Router
from r1router_jax.routing.baselines import (
  few_shot,
  omnisearch,
  rag,
  search_agents,
)
from r1router_jax.routing.route_policies import (
  AlwaysRoute,
  OracleRoute,
  RandomRoute,
)


def _ignore_seed(method: AnsweringMethod) -> Callable[[int], AnsweringMethod]:
  return lambda seed: method


# Functions from a seed to the method.
METHODS: dict[str, Callable[[int], AnsweringMethod]] = {
  "r1_router": _ignore_seed(R1Router()),
  "few_shot": _ignore_seed(few_shot.FewShotRouter()),
  # No retrieval.
  "direct": _ignore_seed(rag.DIRECT),
  "cot": _ignore_seed(rag.COT),
  # Retrieval by the question alone.
  **{f"rag_{kb}": _ignore_seed(rag.make_rag(kb)) for kb in KBS},
  "rag_all": _ignore_seed(rag.make_rag(*KBS)),
  # Several rounds, all knowledge bases at once.
  "iter_retgen": _ignore_seed(rag.ITER_RETGEN),
  "ircot": _ignore_seed(rag.IRCOT),
  "search_o1": _ignore_seed(search_agents.SEARCH_O1),
  "search_r1": _ignore_seed(search_agents.SEARCH_R1),
  "omnisearch": _ignore_seed(omnisearch.OMNISEARCH),
  # R1-Router's prompts with routes of others.
  **{f"always_{kb}": _ignore_seed(AlwaysRoute(kbs=(kb,))) for kb in KBS},
  "always_all": _ignore_seed(AlwaysRoute(kbs=KBS)),
  "never": _ignore_seed(AlwaysRoute()),
  "random_route": lambda seed: RandomRoute(seed=seed),
  "oracle_route": _ignore_seed(OracleRoute()),
}


ROUTER = "r1_router"  # The method in which the policy routes for itself.
