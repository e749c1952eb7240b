"""Opens the knowledge bases of a run and searches them side by side."""

import concurrent.futures
from collections.abc import Callable, Collection, Mapping, Sequence

from absl import logging

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Passage, Query
from r1router_jax.retrieval.kb_meta import kb_places
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from r1router_jax.retrieval.local_kb import open_kb
from r1router_jax.retrieval.remote_kb import RemoteKB

COLLECTIVE_ERROR = "Hosts that search shards together must do so in step: take "
COLLECTIVE_ERROR += "the host's loop, and no parts in flight."

# What is searched in place of a knowledge base that is not there: the first of
# these that is.  Texts tell of most things.
_SUBSTITUTES = ("text", "table", "image")

# A request is (kind of knowledge base, sub-question, path of the image or "").
SubQuestion = tuple[str, str, str]

# Returns the passages of each request, best first.
RetrieveFn = Callable[[Sequence[SubQuestion]], list[tuple[Passage, ...]]]


def open_kbs(
  kb_dir: str, kinds: Sequence[str] = KBS
) -> dict[str, KnowledgeBase]:
  """Open knowledge bases and return them by kind; for `kb_dir` see `kb_places`.

  Raises a UserError if there is none, or one is unfinished or of another kind
  than its place says, and a RemoteServiceError if a server does not answer.
  """
  # A place with a scheme is the address of a server.
  opened = {
    kind: RemoteKB(kind, place) if "://" in place else open_kb(place)
    for kind, place in kb_places(kb_dir, kinds).items()
  }
  # A server of another program does not say its kind.
  for wanted, kb in opened.items():
    kind = kb.meta.get("kb", wanted)
    if kind != wanted:
      fault = f"the {wanted} knowledge base there is one of kind {kind}"
      raise UserError(f"{kb_dir}: {fault}.  Name it by that.")
  sizes = ", ".join(f"{kind} {len(kb):,}" for kind, kb in opened.items())
  logging.info("Knowledge bases: %s.", sizes)
  if missing := ", ".join(kind for kind in kinds if kind not in opened):
    text = "%s: no knowledge base of the kind %s; others are searched instead."
    logging.warning(text, kb_dir, missing)
  return opened


def substitute_kind(kind: str, kinds: Collection[str]) -> str | None:
  """Return which of the `kinds` is searched if a request is for `kind`.

  It is None if there are none.
  """
  return next((each for each in (kind, *_SUBSTITUTES) if each in kinds), None)


def is_collective(kbs: Mapping[str, KnowledgeBase]) -> bool:
  """Return whether all hosts must search at the same times."""
  return any(kb.collective for kb in kbs.values())


def make_retriever(
  kbs: Mapping[str, KnowledgeBase], k: int | Mapping[str, int] = 1
) -> RetrieveFn:
  """Return a function that searches several knowledge bases side by side.

  Only the image knowledge base is given the image of a request.  `k` passages
  are found for each request, of all kinds or by kind.  If a kind is missing,
  another is searched, see `substitute_kind`.
  """

  def search_kind(kind: str, requests: Sequence[SubQuestion]) -> list:
    # An image would only make more distinct queries for the other kinds.
    queries = [
      Query(text, image if kind == "image" else "")
      for other_kind, text, image in requests
      if other_kind == kind
    ]
    return kbs[kind].search(queries, k if isinstance(k, int) else k[kind])

  def retrieve_passages(requests: Sequence[SubQuestion]) -> list:
    requests = [(substitute_kind(kind, kbs), *rest) for kind, *rest in requests]
    # Collective searches run one by one, in an order that all hosts share, even
    # if this host has no request for them.
    collective = [kind for kind, kb in kbs.items() if kb.collective]
    found = {kind: search_kind(kind, requests) for kind in collective}

    # The others run in threads.
    asked_kinds = dict.fromkeys(kind for kind, _, _ in requests)
    rest = [kind for kind in asked_kinds if kind not in found]
    # One search needs no thread, and so Ctrl-C ends it at once.
    if len(rest) < 2:
      found |= {kind: search_kind(kind, requests) for kind in rest}
    else:
      with concurrent.futures.ThreadPoolExecutor(len(rest)) as pool:
        answers = pool.map(lambda kind: search_kind(kind, requests), rest)
        found |= zip(rest, answers, strict=True)

    # Each kind's answers are in the order of its requests.
    next_answer = {kind: iter(answers) for kind, answers in found.items()}
    return [tuple(next(next_answer[kind])) for kind, _, _ in requests]

  return retrieve_passages


def pop_search_metrics(kbs: Mapping[str, KnowledgeBase]) -> dict[str, float]:
  """Return the metrics since the last call as "retrieval/<kind>/<name>"."""
  return {
    f"retrieval/{kind}/{name}": value
    for kind, kb in kbs.items()
    for name, value in kb.pop_search_metrics().items()
  }
