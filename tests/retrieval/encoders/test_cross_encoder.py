"""Tests of cross-encoders: scores against transformers, and the new order."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

from r1router_jax.common.records import Passage, Query
from r1router_jax.models import bert, safetensors_io
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import cross_encoder
from r1router_jax.retrieval.index import bm25, exact
from tests.retrieval.fakes import WordEmbedder
from tests.tiny_encoders import random_tensors, write_tensors

# Special tokens, punctuation, and the words of the texts below.
WORDS = [
  "[PAD]",
  "[CLS]",
  "[SEP]",
  "[UNK]",
  ".",
  ",",
  *("the capital of chad is rome a flag red has many people who".split()),
]

# Fields of config.json.
SIZES = dict(
  vocab_size=len(WORDS),
  hidden_size=12,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=20,
  max_position_embeddings=26,
)

# Short, long and empty texts; the third and fourth are truncated.
PAIRS = [
  ("capital of chad", "the capital of chad is rome"),
  ("red", "a flag"),
  ("who", "many people " * 30),
  ("the flag of chad " * 20, "red " * 20),
  ("is rome", ""),
]


def make_tokenizer(family):
  """Return a tokenizer of whole words in the form of BERT or XLM-R."""
  # XLM-R has the padding second, after the start.
  first, second, *rest = WORDS
  words = WORDS if family == "bert" else [second, first, *rest]
  coder = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, "[UNK]"
    )
  )
  coder.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  pair = (
    "[CLS] $A [SEP] $B:1 [SEP]:1"
    if family == "bert"
    else ("[CLS] $A [SEP] [SEP] $B [SEP]")
  )
  coder.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair=pair,
    special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", 2)],
  )
  return coder


@pytest.mark.oracle
@pytest.mark.parametrize("family", ["bert", "xlm_roberta"])
def test_scores_agree_with_transformers(tmp_path, family):
  torch = pytest.importorskip("torch")
  import transformers

  roberta = family == "xlm_roberta"
  kind = (
    transformers.XLMRobertaForSequenceClassification
    if roberta
    else transformers.BertForSequenceClassification
  )
  torch.manual_seed(0)
  model = kind(
    kind.config_class(
      **SIZES,
      type_vocab_size=1 if roberta else 2,
      num_labels=1,
      layer_norm_eps=1e-5 if roberta else 1e-12,
      pad_token_id=1 if roberta else 0,
      initializer_range=0.5,
    )
  ).eval()
  # An initial bias of 0 would hide one that is not loaded.
  for bias in (p for n, p in model.named_parameters() if n.endswith("bias")):
    torch.nn.init.normal_(bias)
  model.save_pretrained(tmp_path)
  coder = make_tokenizer(family)
  coder.save(str(tmp_path / "tokenizer.json"))
  # XLM-R cannot use its first two positions.
  coder.enable_truncation(24 if roberta else 26)
  wanted = []
  for pair in PAIRS:
    read = coder.encode(*pair)
    with torch.no_grad():
      wanted.append(
        model(
          torch.tensor([read.ids]), token_type_ids=torch.tensor([read.type_ids])
        ).logits.item()
      )
  np.testing.assert_allclose(
    cross_encoder.load_reranker(str(tmp_path)).score_pairs(PAIRS),
    wanted,
    atol=1e-4,
  )
  # Equal scores would agree with anything.
  assert np.ptp(wanted) > 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Write a cross-encoder with random weights."""
  at = tmp_path_factory.mktemp("rerank")
  (at / "config.json").write_text(
    json.dumps(
      SIZES | dict(model_type="bert", type_vocab_size=2, layer_norm_eps=1e-12)
    )
  )
  config = bert.read_config(str(at), pooling="score", normalize=False)
  arrays = random_tensors(bert.weight_map(config), bert.axis_sizes(config))
  write_tensors(at, arrays)
  make_tokenizer("bert").save(str(at / "tokenizer.json"))
  return str(at)


def test_score_does_not_depend_on_other_pairs(folder):
  reranker = cross_encoder.load_reranker(folder)
  # More pairs than the smallest batch holds.
  together = reranker.score_pairs(PAIRS * 4)
  for pair, score in zip(PAIRS * 4, together, strict=True):
    np.testing.assert_allclose(
      reranker.score_pairs([pair])[0], score, atol=1e-5
    )
  assert reranker.score_pairs([]).shape == (0,)
  assert len(set(together.round(4))) > 3
  assert reranker.score_pairs([("chad", "red")]) != reranker.score_pairs(
    [("red", "chad")]
  )


def test_table_markers_are_read_as_punctuation(folder):
  np.testing.assert_allclose(
    *cross_encoder.load_reranker(folder).score_pairs(
      [("chad", "[Title]chad[Header]a[sep]red"), ("chad", ". chad. a, red")]
    )
  )


TEXTS = [
  "the capital of chad is rome",
  "a flag is red",
  "chad has many people",
  "who has a flag",
]


def test_rerank_sorts_by_score(folder):
  reranker = cross_encoder.load_reranker(folder)
  passages = [Passage(str(i), "text", text) for i, text in enumerate(TEXTS)]
  queries = [Query("capital of chad"), Query("who", "flag.png"), Query("red")]
  found = (
    np.array([[3, 2, 1], [3, 2, 1], [3, 2, -np.inf]], np.float32),
    np.array([[0, 1, 2], [0, 1, 2], [3, 1, -1]]),
  )
  scores, rows = reranker.rerank(queries, found, passages.__getitem__, 2)
  # Queries without an image: the best by score.
  for i in (0, 2):
    shown = [row for row in found[1][i] if row >= 0]
    read = [
      reranker.score_pairs([(queries[i].text, TEXTS[row])])[0] for row in shown
    ]
    by_score = sorted(zip(read, shown, strict=True), reverse=True)[:2]
    assert rows[i].tolist() == [row for _, row in by_score]
    np.testing.assert_allclose(scores[i], [s for s, _ in by_score], atol=1e-5)
  # A query with an image keeps its order and scores.
  assert rows[1].tolist() == [0, 1] and scores[1].tolist() == [3, 2]
  np.testing.assert_array_equal(found[1][2], [3, 1, -1])
  # Missing passages stay last.
  _, all_rows = reranker.rerank(queries, found, passages.__getitem__, 3)
  assert all_rows[2, 2] == -1


@pytest.mark.parametrize("words", [False, True])
def test_knowledge_base_reranks(folder, words):
  passages = [Passage(str(i), "text", text) for i, text in enumerate(TEXTS)]
  if words:
    pytest.importorskip("bm25s")
  base = local_kb.LocalKB(
    local_kb.SearchStack(
      passages,
      WordEmbedder(),
      exact.ExactIndex(WordEmbedder()(passages)),
      bm25.Bm25Index.from_texts(TEXTS) if words else None,
      cross_encoder.load_reranker(folder),
    )
  )
  query = Query("capital of chad")
  scores = cross_encoder.load_reranker(folder).score_pairs(
    [(query.text, t) for t in TEXTS]
  )
  (answer,) = base.search([query], 2)
  best = np.argsort(-scores)[:2]
  assert [int(p.id) for p in answer] == best.tolist()
  np.testing.assert_allclose([p.score for p in answer], scores[best], atol=1e-5)
  assert set(base.devices) >= set(base.stack.reranker.devices) != set()


def test_only_the_first_passages_are_scored(folder, monkeypatch):
  monkeypatch.setattr(cross_encoder, "RERANK_DEPTH", 2)
  reranker, read = cross_encoder.load_reranker(folder), []
  plain = reranker.score_pairs
  monkeypatch.setattr(
    reranker,
    "score_pairs",
    lambda pairs: read.append(len(pairs)) or plain(pairs),
  )
  passages = [Passage(str(i), "text", text) for i, text in enumerate(TEXTS)]
  base = local_kb.LocalKB(
    local_kb.SearchStack(
      passages,
      WordEmbedder(),
      exact.ExactIndex(WordEmbedder()(passages)),
      reranker=reranker,
    )
  )
  assert len(base.search([Query("chad")], 1)[0]) == 1
  assert len(base.search([Query("chad")], 3)[0]) == 3
  assert read == [2, 3]


def test_missing_or_unfit_file_is_refused(folder, tmp_path):
  with pytest.raises(safetensors_io.BadWeights, match="no config of a BERT"):
    cross_encoder.load_reranker(str(tmp_path))
  (tmp_path / "config.json").write_text(
    json.dumps(
      SIZES | dict(model_type="bert", type_vocab_size=2, layer_norm_eps=1e-12)
    )
  )
  with pytest.raises(ValueError, match="tokenizer.json does not exist"):
    cross_encoder.load_reranker(str(tmp_path))
  make_tokenizer("bert").save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(
    safetensors_io.BadWeights, match="neither model.safetensors"
  ):
    cross_encoder.load_reranker(str(tmp_path))
  # A classifier of two classes is not a cross-encoder.
  config = dataclasses.replace(
    bert.read_config(folder, pooling="score"), normalize=False
  )
  params = bert.load_params(folder, config)
  params["score"] = {
    "kernel": np.ones((12, 2), np.float32),
    "bias": np.ones(2, np.float32),
  }
  safetensors_io.save_params(
    str(tmp_path),
    params,
    bert.weight_map(config),
    bert.axis_sizes(config) | dict(O=2),
  )
  with pytest.raises(
    safetensors_io.BadWeights, match="classifier.weight has shape"
  ):
    cross_encoder.load_reranker(str(tmp_path))
