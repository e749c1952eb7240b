"""Cross-encoders beside transformers', and what they put in order."""

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
from tests.retrieval.encoders.test_torch_import import tensors
from tests.retrieval.fakes import Words

WORDS = [
  "[PAD]",
  "[CLS]",
  "[SEP]",
  "[UNK]",
  ".",
  ",",
  *("the capital of chad is rome a flag red has many people who".split()),
]

SIZES = dict(
  vocab_size=len(WORDS),
  hidden_size=12,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=20,
  max_position_embeddings=26,
)

PAIRS = [
  ("capital of chad", "the capital of chad is rome"),
  ("red", "a flag"),
  ("who", "many people " * 30),
  ("the flag of chad " * 20, "red " * 20),
  ("is rome", ""),
]


def tokenizer(family):
  """With the padding and the start where each family has them."""
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
def test_agrees_with_transformers(tmp_path, family):
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
  for bias in (p for n, p in model.named_parameters() if n.endswith("bias")):
    torch.nn.init.normal_(bias)
  model.save_pretrained(tmp_path)
  coder = tokenizer(family)
  coder.save(str(tmp_path / "tokenizer.json"))
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
    cross_encoder.load(str(tmp_path)).scores(PAIRS), wanted, atol=1e-4
  )
  assert np.ptp(wanted) > 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A cross-encoder with random weights."""
  at = tmp_path_factory.mktemp("rerank")
  (at / "config.json").write_text(
    json.dumps(
      SIZES | dict(model_type="bert", type_vocab_size=2, layer_norm_eps=1e-12)
    )
  )
  config = bert.read_config(str(at), pool="score", normalise=False)
  arrays = tensors(bert.hf_table(config), bert.hf_axes(config))
  safetensors_io.write(
    str(at),
    {
      name: safetensors_io.Tensor("", name, x.shape, "F32", lambda x=x: x)
      for name, x in arrays.items()
    },
  )
  tokenizer("bert").save(str(at / "tokenizer.json"))
  return str(at)


def test_a_score_does_not_depend_on_its_neighbours(folder):
  reranker = cross_encoder.load(folder)
  together = reranker.scores(PAIRS * 4)
  for pair, score in zip(PAIRS * 4, together, strict=True):
    np.testing.assert_allclose(reranker.scores([pair])[0], score, atol=1e-5)
  assert reranker.scores([]).shape == (0,)
  assert len(set(together.round(4))) > 3
  assert reranker.scores([("chad", "red")]) != reranker.scores(
    [("red", "chad")]
  )


def test_marks_of_tables_are_read_as_punctuation(folder):
  np.testing.assert_allclose(
    *cross_encoder.load(folder).scores(
      [("chad", "[Title]chad[Header]a[sep]red"), ("chad", ". chad. a, red")]
    )
  )


TEXTS = [
  "the capital of chad is rome",
  "a flag is red",
  "chad has many people",
  "who has a flag",
]


def test_order_is_that_of_the_scores(folder):
  reranker = cross_encoder.load(folder)
  passages = [Passage(str(i), "text", text) for i, text in enumerate(TEXTS)]
  queries = [Query("capital of chad"), Query("who", "flag.png"), Query("red")]
  found = (
    np.array([[3, 2, 1], [3, 2, 1], [3, 2, -np.inf]], np.float32),
    np.array([[0, 1, 2], [0, 1, 2], [3, 1, -1]]),
  )
  scores, rows = reranker.rerank(queries, found, passages.__getitem__, 2)
  for i in (0, 2):
    shown = [row for row in found[1][i] if row >= 0]
    read = [
      reranker.scores([(queries[i].text, TEXTS[row])])[0] for row in shown
    ]
    by_score = sorted(zip(read, shown, strict=True), reverse=True)[:2]
    assert rows[i].tolist() == [row for _, row in by_score]
    np.testing.assert_allclose(scores[i], [s for s, _ in by_score], atol=1e-5)
  # What is said of a picture changes nothing.
  assert rows[1].tolist() == [0, 1] and scores[1].tolist() == [3, 2]
  np.testing.assert_array_equal(found[1][2], [3, 1, -1])
  _, all_rows = reranker.rerank(queries, found, passages.__getitem__, 3)
  assert all_rows[2, 2] == -1


@pytest.mark.parametrize("words", [False, True])
def test_a_knowledge_base_reads_again(folder, words):
  passages = [Passage(str(i), "text", text) for i, text in enumerate(TEXTS)]
  if words:
    pytest.importorskip("bm25s")
  base = local_kb.LocalKB(
    local_kb.Content(
      passages,
      Words(),
      exact.ExactIndex(Words()(passages)),
      bm25.Words.build(TEXTS) if words else None,
      cross_encoder.load(folder),
    )
  )
  query = Query("capital of chad")
  scores = cross_encoder.load(folder).scores([(query.text, t) for t in TEXTS])
  (answer,) = base.search([query], 2)
  best = np.argsort(-scores)[:2]
  assert [int(p.id) for p in answer] == best.tolist()
  np.testing.assert_allclose([p.score for p in answer], scores[best], atol=1e-5)
  assert set(base.devices) >= set(base.content.reranker.devices) != set()


def test_only_the_best_are_read(folder, monkeypatch):
  monkeypatch.setattr(cross_encoder, "DEPTH", 2)
  reranker, read = cross_encoder.load(folder), []
  plain = reranker.scores
  monkeypatch.setattr(
    reranker, "scores", lambda pairs: read.append(len(pairs)) or plain(pairs)
  )
  passages = [Passage(str(i), "text", text) for i, text in enumerate(TEXTS)]
  base = local_kb.LocalKB(
    local_kb.Content(
      passages, Words(), exact.ExactIndex(Words()(passages)), reranker=reranker
    )
  )
  assert len(base.search([Query("chad")], 1)[0]) == 1
  assert len(base.search([Query("chad")], 3)[0]) == 3
  assert read == [2, 3]


def test_what_is_absent_is_named(folder, tmp_path):
  with pytest.raises(safetensors_io.BadWeights, match="no config of a BERT"):
    cross_encoder.load(str(tmp_path))
  (tmp_path / "config.json").write_text(
    json.dumps(
      SIZES | dict(model_type="bert", type_vocab_size=2, layer_norm_eps=1e-12)
    )
  )
  with pytest.raises(ValueError, match="tokenizer.json does not exist"):
    cross_encoder.load(str(tmp_path))
  tokenizer("bert").save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(
    safetensors_io.BadWeights, match="neither model.safetensors"
  ):
    cross_encoder.load(str(tmp_path))
  # A classifier of two classes is none of these.
  config = dataclasses.replace(
    bert.read_config(folder, pool="score"), normalise=False
  )
  params = bert.load(folder, config)
  params["score"] = {
    "kernel": np.ones((12, 2), np.float32),
    "bias": np.ones(2, np.float32),
  }
  safetensors_io.save(
    str(tmp_path),
    params,
    bert.hf_table(config),
    bert.hf_axes(config) | dict(O=2),
  )
  with pytest.raises(
    safetensors_io.BadWeights, match="classifier.weight has shape"
  ):
    cross_encoder.load(str(tmp_path))
