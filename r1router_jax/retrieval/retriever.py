"""The knowledge bases of a run: opened by place, searched side by side."""

import concurrent.futures
import os
import re
from collections.abc import Callable, Mapping, Sequence

from absl import logging

from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from r1router_jax.retrieval.local_kb import open_kb
from r1router_jax.retrieval.remote_kb import RemoteKB

# Kinds of knowledge base, and the embedder that each has unless told otherwise.
KINDS = {"text": "minilm", "image": "picture_caption", "table": "minilm"}


ONE_LOOP = (
  "Hosts that search shards together must do so in step: take the "
  "host's loop, and no parts in flight."
)


# (knowledge base, sub-question, picture) triples to the passages of each.
Retrieve = Callable[[Sequence[tuple[str, str, str]]], list[tuple[Passage, ...]]]


def open_kbs(
  where: str, kbs: Sequence[str] = tuple(KINDS)
) -> dict[str, KnowledgeBase]:
  """Knowledge bases by kind.

  Args:
    where: the folder that `build_kb` wrote, or the place of each, as in
      "text=http://127.0.0.1:8000,image=DIR/image,table=DIR/table": a folder, or
      the address of a server, see remote.py.
    kbs: the kinds to open.

  Raises:
    ValueError: where one is not there, or of another kind.
    service.RetrievalError: where a server does not answer.
  """
  opened = {
    kb: RemoteKB(kb, place) if "://" in place else open_kb(place)
    for kb, place in _places(where, kbs).items()
  }
  for kb, base in opened.items():
    if (kind := base.meta.get("kb", kb)) != kb:
      raise ValueError(
        f"{where}: what should be the {kb} knowledge base is one of kind "
        f"{kind}.  Name it by that."
      )
  logging.info(
    "Knowledge bases: %s.",
    ", ".join(f"{kb} {len(base):,}" for kb, base in opened.items()),
  )
  return opened


def _places(where: str, kbs: Sequence[str]) -> dict[str, str]:
  """Where each knowledge base is."""
  if not re.match(rf"({'|'.join(KINDS)})=", where):
    return {kb: os.path.join(where, kb) for kb in kbs}
  pairs = [part.split("=", 1) for part in where.split(",")]
  named = {pair[0].strip(): pair[-1].strip() for pair in pairs}
  if (
    len(named) < len(pairs)
    or set(named) != set(kbs)
    or not all(len(pair) == 2 and pair[1] for pair in pairs)
  ):
    raise ValueError(
      f"{where}: name the place of each of {', '.join(kbs)} once, as in "
      + ",".join(f"{kb}=PLACE" for kb in kbs)
      + "."
    )
  return named


def together(kbs: Mapping[str, KnowledgeBase]) -> bool:
  """Whether all hosts must search at the same times."""
  return any(base.together for base in kbs.values())


def retriever(
  kbs: Mapping[str, KnowledgeBase], k: int | Mapping[str, int] = 1
) -> Retrieve:
  """Searches many knowledge bases at once, side by side.

  Args:
    kbs: by kind.
    k: passages to return, of each kind or of all alike.

  Returns:
    A function of (knowledge base, sub-question, picture) triples that gives
    the passages of each, best first.  Only the image knowledge base is shown
    the picture.
  """

  def search(kb, asked):
    queries = [
      Query(text, image if kb == "image" else "")
      for other, text, image in asked
      if other == kb
    ]
    return kbs[kb].search(queries, k if isinstance(k, int) else k[kb])

  def retrieve(asked):
    # Those that hosts search together come one by one, in one order.
    due = [kb for kb, base in kbs.items() if base.together]
    found = {kb: search(kb, asked) for kb in due}
    rest = [
      kb for kb in dict.fromkeys(kb for kb, _, _ in asked) if kb not in found
    ]
    if len(rest) < 2:
      found |= {kb: search(kb, asked) for kb in rest}
    else:
      with concurrent.futures.ThreadPoolExecutor(len(rest)) as threads:
        found |= zip(
          rest, threads.map(lambda kb: search(kb, asked), rest), strict=True
        )
    answers = {kb: iter(of) for kb, of in found.items()}
    return [tuple(next(answers[kb])) for kb, _, _ in asked]

  return retrieve


def report(kbs: Mapping[str, KnowledgeBase]) -> dict[str, float]:
  """What each says of its searches since the last time, by
  "retrieval/<kb>/<what>".
  """
  return {
    f"retrieval/{kb}/{name}": value
    for kb, base in kbs.items()
    for name, value in base.report().items()
  }
