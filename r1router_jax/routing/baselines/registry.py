"""All methods of answering that can be compared, by name."""

import dataclasses

from r1router_jax.common.records import KBS
from r1router_jax.routing.answering_methods import (
  AlwaysRoute,
  AnsweringMethod,
  OracleRoute,
  R1Router,
  RandomRoute,
)
from r1router_jax.routing.baselines import few_shot, rag, search_agents

ROUTER = "r1_router"  # The method in which the policy routes for itself.

METHODS: dict[str, AnsweringMethod] = {
  ROUTER: R1Router(),
  "few_shot": few_shot.FewShotRouter(),
  # No retrieval.
  "direct": rag.DIRECT,
  "cot": rag.COT,
  # Retrieval by the question alone.
  **{f"rag_{kb}": rag.Reader(initial_kbs=(kb,)) for kb in KBS},
  "rag_all": rag.Reader(),
  # Several rounds, all knowledge bases at once.
  "iter_retgen": rag.IterRetgen(),
  "ircot": rag.Ircot(),
  "search_o1": search_agents.SEARCH_O1,
  "search_r1": search_agents.SEARCH_R1,
  "omnisearch": search_agents.OmniSearch(),
  # R1-Router's prompts with routes of others.
  **{f"always_{kb}": AlwaysRoute(kbs=(kb,)) for kb in KBS},
  "always_all": AlwaysRoute(kbs=KBS),
  "never": AlwaysRoute(),
  "random_route": RandomRoute(),
  "oracle_route": OracleRoute(),
}


def make_method(name: str, seed: int) -> AnsweringMethod:
  """Return a method by name; one that draws routes at random takes the seed."""
  method = METHODS[name]
  if isinstance(method, RandomRoute):
    return dataclasses.replace(method, seed=seed)
  return method
