"""Every way to answer questions that can be compared, by name."""

import functools
from collections.abc import Callable

from r1router_jax import planners, router
from r1router_jax.asking import Approach
from r1router_jax.methods import (
  few_shot,
  omnisearch,
  reading,
  searching,
  turns,
)
from r1router_jax.records import KBS


def _planned(planner: planners.Planner) -> Approach:
  return Approach(functools.partial(router.loop, planner=planner))


def _spoken(language: turns.Language, *stop: str) -> Callable[[int], Approach]:
  return lambda seed: Approach(
      functools.partial(turns.loop, language=language), stop)


METHODS: dict[str, Callable[[int], Approach]] = {  # From a seed.
    "r1_router": lambda seed: Approach(router.loop),
    "few_shot": lambda seed: Approach(few_shot.loop),
    "direct": _spoken(reading.DIRECT),
    "cot": _spoken(reading.COT),
    **{f"rag_{kb}": _spoken(reading.rag(kb)) for kb in KBS},
    "rag_all": _spoken(reading.rag(*KBS)),
    "iter_retgen": _spoken(reading.ITER_RETGEN),
    "ircot": _spoken(reading.IRCOT),
    "search_o1": _spoken(searching.SEARCH_O1.language(),
                         *searching.SEARCH_O1.stop()),
    "search_r1": _spoken(searching.SEARCH_R1.language(),
                         *searching.SEARCH_R1.stop()),
    "omnisearch": _spoken(omnisearch.OMNISEARCH),
    **{f"always_{kb}": lambda seed, kb=kb: _planned(planners.always(kb))
       for kb in KBS},
    "always_all": lambda seed: _planned(planners.always(*KBS)),
    "never": lambda seed: _planned(planners.always()),
    "random_route": lambda seed: _planned(planners.random_route(seed)),
    "oracle_route": lambda seed: _planned(planners.oracle_route()),
}
