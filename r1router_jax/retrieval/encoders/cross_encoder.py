"""Reranking: the best passages found, each read together with the question.

A cross-encoder is a BERT over the pair, [CLS] question [SEP] passage [SEP],
and a linear layer that gives one score, the log-odds that the passage answers.
It reads every pair, so it is asked about the first `DEPTH` passages alone.

A query with a picture keeps its order: its words do not say what is shown.

Axes:  n queries   m passages of each   k neighbours   B pairs
Sources: arxiv.org/abs/1901.04085 (cross-encoders over passages); configs and
names of weights are those of transformers' BertForSequenceClassification
(cross-encoder/ms-marco-MiniLM-L-6-v2) and XLMRobertaForSequenceClassification
(BAAI/bge-reranker-base).
"""

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Float32, Int

from r1router_jax.common.records import Passage, Query
from r1router_jax.models import bert, safetensors_io
from r1router_jax.retrieval.encoders import batched_encoder
from r1router_jax.retrieval.index.exact import Found

DEPTH = 30  # Passages of each query that are read.


class Reranker:
  """A cross-encoder over questions and passages.

  Args:
    config: of the BERT, whose `pool` is "score".
    params: its parameters.
    tokenizer: of pairs.
    fingerprint: of its weights.

  Attributes:
    fingerprint: as above.
    devices: that it computes on.
  """

  def __init__(
    self,
    config: bert.BertConfig,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    fingerprint: str,
  ):
    self.fingerprint = fingerprint
    self._segments, self._tokenizer = config.segments, tokenizer
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(config.max_tokens)
    self._encode = batched_encoder.Encoder(
      bert.Bert(config, batched_encoder.dtype()).apply, params, 1
    )
    self.devices = self._encode.devices

  def rerank(
    self,
    queries: Sequence[Query],
    found: tuple[Float32[np.ndarray, "n m"], Int[np.ndarray, "n m"]],
    passage: Callable[[int], Passage],
    k: int,
  ) -> Found:
    """The k best of what was found, with the scores of this model.

    Args:
      queries: n of them.
      found: scores and rows [n m], best first, filled up with row -1.
      passage: gives that of a row.
      k: rows wanted, at most m.
    """
    scores, rows = found[0].copy(), found[1]
    read = rows >= 0
    read[[i for i, query in enumerate(queries) if query.image]] = False
    scores[read] = self.scores(
      [
        (queries[i].text, passage(int(rows[i, j])).text)
        for i, j in np.argwhere(read).tolist()
      ]
    )
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (
      np.take_along_axis(scores, best, axis=1),
      np.take_along_axis(rows, best, axis=1),
    )

  def scores(
    self, pairs: Sequence[tuple[str, str]]
  ) -> Float32[np.ndarray, " B"]:
    """The score of each (question, passage)."""
    read = self._tokenizer.encode_batch(
      [
        (question, batched_encoder.without_marks(passage))
        for question, passage in pairs
      ]
    )
    tokens = [encoding.ids for encoding in read]
    # Encoders of one segment, such as XLM-R, tell no pairs apart.
    kinds = [
      encoding.type_ids if self._segments > 1 else [0] * len(encoding)
      for encoding in read
    ]

    def fill(members, rows, length):
      mask = (
        np.arange(length)
        < np.array(
          [*(len(tokens[i]) for i in members), *[0] * (rows - len(members))]
        )[:, None]
      )
      return (
        batched_encoder.padded(tokens, members, rows, length),
        mask,
        batched_encoder.padded(kinds, members, rows, length),
      )

    return self._encode([len(t) for t in tokens], fill)[:, 0]


@functools.cache
def load(folder: str) -> Reranker:
  """The cross-encoder in `folder`, loaded once; knowledge bases share it.

  Raises:
    ValueError: where config.json, model.safetensors or tokenizer.json is absent
      or does not fit.
  """
  config = bert.read_config(folder, pool="score", normalise=False)
  path = os.path.join(folder, "tokenizer.json")
  if not os.path.isfile(path):
    raise ValueError(f"{path} does not exist.  Put that of the model there.")
  return Reranker(
    config,
    bert.load(folder, config),
    tokenizers.Tokenizer.from_file(path),
    safetensors_io.fingerprint(folder),
  )
