"""Rerank passages: score each of the best passages together with the question.

A cross-encoder is a BERT over the pair, [CLS] question [SEP] passage [SEP],
with a linear layer that gives one score, the log-odds that the passage answers
the question.  Every pair is a pass through the model, so only the first
`RERANK_DEPTH` passages are scored.

Passages of a query with an image keep their order: its words do not say what
the image shows.

Axes:  n queries   m passages of each   k passages wanted   B pairs
Sources: arxiv.org/abs/1901.04085 (cross-encoders over passages); configs and
names of weights are those of transformers' BertForSequenceClassification
(cross-encoder/ms-marco-MiniLM-L-6-v2) and XLMRobertaForSequenceClassification
(BAAI/bge-reranker-base).
"""

from collections.abc import Callable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Float32, Int

from r1router_jax.common.records import Passage, Query
from r1router_jax.models import bert, safetensors_io
from r1router_jax.retrieval.encoders import batched_encoder
from r1router_jax.retrieval.index.exact import SearchResult

RERANK_DEPTH = 30  # Passages of each query that are scored.


class Reranker:
  """A cross-encoder over questions and passages.

  The `pooling` of the BERT's config is "score"; `fingerprint`, a digest of the
  weights, and `devices` are attributes.
  """

  def __init__(
    self,
    config: bert.BertConfig,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    fingerprint: str,
  ):
    self.fingerprint = fingerprint
    self._num_segments, self._tokenizer = config.num_segments, tokenizer
    # Batches are padded by `BatchedEncoder`, to fewer shapes.
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(config.max_tokens)
    model = bert.Bert(config, batched_encoder.compute_dtype())
    self._encode = batched_encoder.BatchedEncoder(model.apply, params, 1)
    self.devices = self._encode.devices

  def rerank(
    self,
    queries: Sequence[Query],
    candidates: tuple[Float32[np.ndarray, "n m"], Int[np.ndarray, "n m"]],
    get_passage: Callable[[int], Passage],
    k: int,
  ) -> SearchResult:
    """Return the k best candidates of each query, with this model's scores.

    The candidates are scores and rows of passages, best first, filled up with
    row -1; k is at most m.
    """
    # The caller's arrays stay as they are.
    scores, rows = candidates[0].copy(), candidates[1]
    # Score real passages of queries without an image; all others keep theirs.
    scored = rows >= 0
    scored[[i for i, query in enumerate(queries) if query.image]] = False
    pairs = [
      (queries[i].text, get_passage(int(rows[i, j])).text)
      for i, j in np.argwhere(scored).tolist()
    ]
    scores[scored] = self.score_pairs(pairs)
    # A stable sort keeps the order of equal scores.
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, best, axis=1)
    return scores, np.take_along_axis(rows, best, axis=1)

  def score_pairs(
    self, pairs: Sequence[tuple[str, str]]
  ) -> Float32[np.ndarray, " B"]:
    """Return the score of each (question, passage)."""
    # Table markers are unknown to published cross-encoders.
    plain = batched_encoder.replace_table_markers
    encodings = self._tokenizer.encode_batch([(q, plain(p)) for q, p in pairs])
    tokens = [encoding.ids for encoding in encodings]
    # Encoders with one segment, such as XLM-R, do not tell the texts apart.
    segments = [
      encoding.type_ids if self._num_segments > 1 else [0] * len(encoding)
      for encoding in encodings
    ]
    return self._encode.encode_texts(tokens, segments=segments)[:, 0]


def load_reranker(folder: str) -> Reranker:
  """Load the cross-encoder in `folder`.

  Raises:
    UserError: one of its files is absent or does not fit.
  """
  config = bert.read_config(folder, pooling="score")
  tokenizer = batched_encoder.load_tokenizer(folder)
  params = bert.load_params(folder, config)
  return Reranker(config, params, tokenizer, safetensors_io.fingerprint(folder))
