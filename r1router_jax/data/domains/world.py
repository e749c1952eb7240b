"""Draw a world: domains whose documents are searched together.

No name stands for two things of a world, and no description of a question fits
two, so that a question has one right answer in all documents.  The first kind
of thing of a domain is not that of an earlier one as long as others are left.
"""

from typing import NamedTuple

import numpy as np

from r1router_jax.data.domains.documents import Documents, write_documents
from r1router_jax.data.domains.domain import Domain, make_domain
from r1router_jax.data.domains.lexicon import HALVES, Lexicon, load_lexicon
from r1router_jax.data.domains.questions import QuestionMaker, Trace
from r1router_jax.data.domains.steps import SPLITS


class WorldDomain(NamedTuple):
  """A domain of a world, with its documents and questions."""

  domain: Domain
  documents: Documents
  traces: list[Trace]


class World(NamedTuple):
  """A world: the words that it is made of, and its domains."""

  lexicon: Lexicon
  domains: list[WorldDomain]


def make_world(half: str, domains: int, questions: int, seed: int) -> World:
  """Draw a world, and questions spread evenly over its domains.

  Args:
    half: whose words are used, "train" or "test"; another is a UserError.
    domains: number of domains.
    questions: number of questions.
    seed: seed of all draws.  No domain is one that training draws.
  """
  lexicon = load_lexicon(half)
  # Places before these are those of the splits of training.
  place = len(SPLITS) + HALVES.index(half)
  rngs = [np.random.default_rng((seed, place, n)) for n in range(domains)]

  # 1. All domains, since a description of one must fit nothing of another.
  drawn: list[Domain] = []
  used: set[str] = set()
  for rng in rngs:
    taken = [domain.groups[0].kind for domain in drawn]
    drawn.append(make_domain(lexicon, rng, taken, used))

  # 2. Their documents and questions.
  members = []
  for number, (domain, rng) in enumerate(zip(drawn, rngs, strict=True)):
    documents = write_documents(lexicon, domain, str(number), rng)
    others = [g for other in drawn if other is not domain for g in other.groups]
    make_question = QuestionMaker(lexicon, domain, documents, rng, others)
    count = len(range(number, questions, domains))
    traces = [make_question(f"{number}/{n}") for n in range(count)]
    members.append(WorldDomain(domain, documents, traces))
  return World(lexicon, members)
