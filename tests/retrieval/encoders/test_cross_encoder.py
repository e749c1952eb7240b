"""Tests of cross-encoders: scores against transformers, and the new order."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tokenizers

from r1router_jax.common import files
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import bert, safetensors_io
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import cross_encoder
from r1router_jax.retrieval.index import bm25
from tests.retrieval import kb_servers
from tests.tiny_encoders import random_tensors, write_tensors

# Special tokens, punctuation, and the words of the texts below.
WORDS = (
  "[PAD] [CLS] [SEP] [UNK] . , "
  "the capital of chad is rome a flag red has many people who"
).split()

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
  numbers = {word: i for i, word in enumerate(words)}
  coder = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, "[UNK]"))
  coder.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  second = "$B:1 [SEP]:1" if family == "bert" else "[SEP] $B [SEP]"
  coder.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair=f"[CLS] $A [SEP] {second}",
    special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", 2)],
  )
  return coder


@pytest.mark.oracle
@pytest.mark.parametrize("family", ["bert", "xlm_roberta"])
def test_scores_agree_with_transformers(tmp_path, family):
  torch = pytest.importorskip("torch")
  import transformers

  roberta = family == "xlm_roberta"
  name = "XLMRoberta" if roberta else "Bert"
  kind = getattr(transformers, f"{name}ForSequenceClassification")
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
    ids, types = torch.tensor([read.ids]), torch.tensor([read.type_ids])
    with torch.no_grad():
      wanted.append(model(ids, token_type_ids=types).logits.item())
  scores = cross_encoder.load_reranker(str(tmp_path)).score_pairs(PAIRS)
  np.testing.assert_allclose(scores, wanted, atol=1e-4)
  # Equal scores would agree with anything.
  assert np.ptp(wanted) > 0.05


BERT_FIELDS = dict(model_type="bert", type_vocab_size=2, layer_norm_eps=1e-12)
CONFIG = json.dumps(SIZES | BERT_FIELDS)


@pytest.fixture
def reranker(folder):
  return cross_encoder.load_reranker(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Write a cross-encoder with random weights."""
  at = tmp_path_factory.mktemp("rerank")
  (at / "config.json").write_text(CONFIG)
  config = bert.read_config(str(at), pooling="score")
  arrays = random_tensors(bert.weight_map(config), bert.axis_sizes(config))
  write_tensors(at, arrays)
  make_tokenizer("bert").save(str(at / "tokenizer.json"))
  return str(at)


def test_score_does_not_depend_on_other_pairs(reranker):
  # More pairs than the smallest batch holds.
  together = reranker.score_pairs(PAIRS * 4)
  for pair, score in zip(PAIRS * 4, together, strict=True):
    alone = reranker.score_pairs([pair])[0]
    np.testing.assert_allclose(alone, score, atol=1e-5)
  assert reranker.score_pairs([]).shape == (0,)
  assert len(set(together.round(4))) > 3
  one, other = reranker.score_pairs([("chad", "red"), ("red", "chad")])
  assert one != other


def test_table_markers_are_read_as_punctuation(reranker):
  texts = "[Title]chad[Header]a[sep]red", ". chad. a, red"
  scores = reranker.score_pairs([("chad", text) for text in texts])
  np.testing.assert_allclose(*scores)


TEXTS = [
  "the capital of chad is rome",
  "a flag is red",
  "chad has many people",
  "who has a flag",
]


PASSAGES = [Passage(str(i), "text", text) for i, text in enumerate(TEXTS)]


def test_rerank_sorts_by_score(reranker):
  queries = [Query("capital of chad"), Query("who", "flag.png"), Query("red")]
  found = (
    np.array([[3, 2, 1], [3, 2, 1], [3, 2, -np.inf]], np.float32),
    np.array([[0, 1, 2], [0, 1, 2], [3, 1, -1]]),
  )
  scores, rows = reranker.rerank(queries, found, PASSAGES.__getitem__, 2)
  # Queries without an image: the best by score.
  for i in (0, 2):
    shown = [row for row in found[1][i] if row >= 0]
    read = reranker.score_pairs([(queries[i].text, TEXTS[r]) for r in shown])
    by_score = sorted(zip(read, shown, strict=True), reverse=True)[:2]
    assert rows[i].tolist() == [row for _, row in by_score]
    np.testing.assert_allclose(scores[i], [s for s, _ in by_score], atol=1e-5)
  # A query with an image keeps its order and scores.
  assert rows[1].tolist() == [0, 1] and scores[1].tolist() == [3, 2]
  np.testing.assert_array_equal(found[1][2], [3, 1, -1])
  # Missing passages stay last.
  _, all_rows = reranker.rerank(queries, found, PASSAGES.__getitem__, 3)
  assert all_rows[2, 2] == -1


@pytest.mark.parametrize("words", [False, True])
def test_knowledge_base_reranks(reranker, words):
  index = bm25.Bm25Index.from_texts(TEXTS) if words else None
  stack = kb_servers.make_stack(PASSAGES, bm25_index=index, reranker=reranker)
  base, query = local_kb.LocalKB(stack), Query("capital of chad")
  scores = reranker.score_pairs([(query.text, text) for text in TEXTS])
  (answer,) = base.search([query], 2)
  best = np.argsort(-scores)[:2]
  assert [int(p.id) for p in answer] == best.tolist()
  np.testing.assert_allclose([p.score for p in answer], scores[best], atol=1e-5)
  assert set(base.devices) >= set(base.stack.reranker.devices) != set()


def test_only_the_first_passages_are_scored(reranker, monkeypatch):
  monkeypatch.setattr(cross_encoder, "RERANK_DEPTH", 2)
  plain, read = reranker.score_pairs, []

  def score_pairs(pairs):
    read.append(len(pairs))
    return plain(pairs)

  monkeypatch.setattr(reranker, "score_pairs", score_pairs)
  stack = kb_servers.make_stack(PASSAGES, reranker=reranker)
  base = local_kb.LocalKB(stack)
  assert len(base.search([Query("chad")], 1)[0]) == 1
  assert len(base.search([Query("chad")], 3)[0]) == 3
  assert read == [2, 3]


def test_replaced_weights_are_loaded_anew(folder, tmp_path):
  copied = str(shutil.copytree(folder, tmp_path / "copy"))
  first = files.load_once(cross_encoder.load_reranker, copied)
  assert files.load_once(cross_encoder.load_reranker, copied) is first
  config = bert.read_config(folder, pooling="score")
  sizes = bert.axis_sizes(config)
  tensors = random_tensors(bert.weight_map(config), sizes, seed=1)
  write_tensors(pathlib.Path(copied), tensors)
  second = files.load_once(cross_encoder.load_reranker, copied)
  assert second.fingerprint != first.fingerprint


def test_missing_or_unfit_file_is_refused(folder, tmp_path):
  def refuse(match):
    with pytest.raises(ValueError, match=match) as raised:
      cross_encoder.load_reranker(str(tmp_path))
    return raised.type

  bad_weights = safetensors_io.BadWeights
  assert refuse("folder of a BERT") is bad_weights
  (tmp_path / "config.json").write_text(CONFIG)
  refuse("tokenizer.json does not exist")
  make_tokenizer("bert").save(str(tmp_path / "tokenizer.json"))
  assert refuse("neither model.safetensors") is bad_weights
  # A classifier of two classes is not a cross-encoder.
  config = bert.read_config(folder, pooling="score")
  params, axes = bert.load_params(folder, config), bert.axis_sizes(config)
  kernel, bias = np.ones((12, 2), np.float32), np.ones(2, np.float32)
  params["score"] = dict(kernel=kernel, bias=bias)
  rules, axes = bert.weight_map(config), axes | dict(O=2)
  safetensors_io.save_params(str(tmp_path), params, rules, axes)
  assert refuse("classifier.weight has shape") is bad_weights
