"""Encoders in any folder, by the files of sentence-transformers."""

import json
import shutil

import numpy as np
import pytest
from numpy.testing import assert_allclose

from r1router_jax import build_kb
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import safetensors_io
from r1router_jax.retrieval import local_kb
from r1router_jax.retrieval.encoders import registry, text_encoders
from tests.tiny_encoders import write_bert_folder, write_tensors

TEXTS = ["Chad", "the capital of chad", "which lands lie by seas " * 20]
WORDS = [*TEXTS, "query: passage: 1 2 3"]

# Files of all-MiniLM-L6-v2, and of versions since 5.4.
MODULES = [
  dict(path="", type="sentence_transformers.models.Transformer"),
  dict(path="1_Pooling", type="sentence_transformers.models.Pooling"),
  dict(path="2_Normalize", type="sentence_transformers.models.Normalize"),
]
NEW_POOLING = "sentence_transformers.sentence_transformer.modules.pooling"
OLD = dict(word_embedding_dimension=12, pooling_mode_max_tokens=False)


def write(path, value):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(value))


@pytest.fixture
def folder(tmp_path):
  """Write a BERT, with nothing that says how it is used."""
  write_bert_folder(tmp_path / "model", WORDS)
  return tmp_path / "model"


def open_hf(folder):
  return registry.get_embedder("hf", str(folder))


def embed_all(embed):
  items = [Query(text) for text in TEXTS]
  items += [Passage("", "text", text) for text in TEXTS]
  return embed(items)


def check_same(folder, **data):
  """Compare a folder's vectors with those by the data that it means."""
  encoder = text_encoders.TextEncoder(**data)
  wanted = text_encoders.load_text_encoder(encoder, str(folder))
  found = open_hf(folder)
  assert found.fingerprint == wanted.fingerprint
  np.testing.assert_array_equal(embed_all(found), embed_all(wanted))


def test_model_alone_has_the_mean_of_its_states(folder):
  check_same(folder)


def test_files_are_read(folder):
  write(folder / "modules.json", MODULES)
  write(
    folder / "1_Pooling/config.json", OLD | dict(pooling_mode_cls_token=True)
  )
  settings = dict(max_seq_length=9, do_lower_case=True)
  write(folder / "sentence_bert_config.json", settings)
  prompts = dict(query="query: ", passage="passage: ")
  options = dict(__version__={}, prompts=prompts, similarity_fn_name="cosine")
  options |= dict(default_prompt_name=None, truncate_dim=5)
  write(folder / "config_sentence_transformers.json", options)
  check_same(
    folder,
    pooling="cls",
    max_tokens=9,
    lowercase="all",
    query_prefix="query: ",
    passage_prefix="passage: ",
    width=5,
  )


@pytest.mark.parametrize(
  ("card", "pooling"),
  [
    (dict(embedding_dimension=12, pooling_mode="mean"), "mean"),
    (dict(embedding_dimension=12, pooling_mode="lasttoken"), "last"),
    (dict(pooling_mode=["cls"], include_prompt=True), "cls"),
    (OLD | dict(pooling_mode_lasttoken=True), "last"),
    (OLD, "mean"),
  ],
)
def test_pooling_is_read(folder, card, pooling):
  write(folder / "modules.json", MODULES)
  write(folder / "1_Pooling/config.json", card)
  check_same(folder, pooling=pooling)


def test_length_of_the_tokenizer_counts_without_another(folder):
  write(folder / "tokenizer_config.json", dict(model_max_length=10**30))
  check_same(folder)
  write(folder / "tokenizer_config.json", dict(model_max_length=11))
  check_same(folder, max_tokens=11)
  write(folder / "sentence_bert_config.json", dict(max_seq_length=None))
  check_same(folder, max_tokens=11)
  write(folder / "sentence_bert_config.json", dict(max_seq_length=10_000))
  check_same(folder)


@pytest.mark.parametrize(
  ("options", "data"),
  [
    (dict(similarity_fn_name="dot"), dict(normalize=False)),
    (dict(similarity_fn_name="cosine"), {}),
    (dict(similarity_fn_name=None, prompts={}), {}),
    (
      dict(prompts=dict(a="1 ", document="2 "), default_prompt_name="a"),
      dict(query_prefix="1 ", passage_prefix="2 "),
    ),
    (dict(prompts=dict(query="3 ", document="")), dict(query_prefix="3 ")),
  ],
)
def test_options_are_read(folder, options, data):
  write(folder / "config_sentence_transformers.json", options)
  check_same(folder, **data)


def write_dense(folder, name, activation, bias=True):
  """Write a layer behind the pooling, and return its kernel and bias."""
  rng = np.random.default_rng(len(name))
  kernel, added = rng.normal(size=(7, 12)), rng.normal(size=7) * bias
  card = dict(in_features=12, out_features=7, bias=bias)
  card |= dict(activation_function=activation)
  write(folder / name / "config.json", card)
  tensors = {"linear.weight": kernel.astype(np.float32)}
  if bias:
    tensors["linear.bias"] = added.astype(np.float32)
  write_tensors(folder / name, tensors)
  modules = [*MODULES[:2], dict(path=name, type="x.Dense"), MODULES[2]]
  write(folder / "modules.json", modules)
  write(folder / "1_Pooling/config.json", OLD)
  return kernel.T, added


@pytest.mark.parametrize("bias", [True, False])
def test_layers_are_read(folder, bias):
  plain = text_encoders.TextEncoder(normalize=False)
  whole = embed_all(text_encoders.load_text_encoder(plain, str(folder)))
  name = "torch.nn.modules.activation.Tanh"
  kernel, added = write_dense(folder, "2_Dense", name, bias)
  wanted = np.tanh(whole @ kernel + added)
  wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
  assert_allclose(embed_all(open_hf(folder)), wanted, atol=1e-5)


def test_model_may_stand_in_a_folder_of_its_own(folder, tmp_path):
  inner = tmp_path / "outer/0_Transformer"
  shutil.copytree(folder, inner)
  write(tmp_path / "outer/modules.json", [MODULES[0] | dict(path=inner.name)])
  found = open_hf(tmp_path / "outer")
  np.testing.assert_array_equal(embed_all(found), embed_all(open_hf(folder)))


@pytest.mark.parametrize(
  ("name", "card", "words"),
  [
    ("modules.json", {}, "expected `array`"),
    ("modules.json", [], "length >= 1"),
    ("modules.json", MODULES[1:], "it lists Pooling, Normalize, wanted"),
    ("modules.json", [*MODULES, dict(path="", type="a.LSTM")], "LSTM"),
    ("modules.json", [dict(path="../x", type="a.Transformer")], "leads out"),
    ("modules.json", [dict(path="/x", type="a.Transformer")], "leads out"),
    (
      "1_Pooling/config.json",
      dict(pooling_mode="max"),
      "pooling is max, known",
    ),
    ("1_Pooling/config.json", dict(pooling_mode=["cls", "mean"]), "cls.mean"),
    ("1_Pooling/config.json", dict(include_prompt=False), "include_prompt"),
    (
      "sentence_bert_config.json",
      dict(max_seq_length=1),
      "max_seq_length is 1",
    ),
    (
      "config_sentence_transformers.json",
      dict(similarity_fn_name="euclidean"),
      "take one of cosine, dot",
    ),
    ("config_sentence_transformers.json", dict(prompts=7), "prompts is 7"),
    (
      "config_sentence_transformers.json",
      dict(truncate_dim=13),
      "be cut to 13",
    ),
    ("config.json", dict(model_type="mpnet"), "qwen3, siglip"),
  ],
)
def test_what_is_not_there_is_refused_in_a_line(folder, name, card, words):
  write(folder / "modules.json", MODULES)
  write(folder / "1_Pooling/config.json", OLD)
  write(folder / name, card)
  with pytest.raises(UserError, match=words) as raised:
    open_hf(folder)
  assert "\n" not in str(raised.value)


def test_other_layers_are_refused(folder):
  write_dense(folder, "2_Dense", "torch.nn.modules.activation.ReLU")
  with pytest.raises(UserError, match="activation is 'ReLU', known: Identity"):
    open_hf(folder)
  write_dense(folder, "2_Dense", "torch.nn.Tanh", bias=False)
  card = json.loads((folder / "2_Dense/config.json").read_text())
  write(folder / "2_Dense/config.json", card | dict(bias=True))
  with pytest.raises(safetensors_io.BadWeights, match="missing.*linear.bias"):
    open_hf(folder)
  write(folder / "2_Dense/config.json", card | dict(use_residual=True))
  with pytest.raises(UserError, match="use_residual"):
    open_hf(folder)


def test_base_of_another_prompt_is_refused_with_the_cure(folder, tmp_path):
  path = folder / "config_sentence_transformers.json"
  write(path, dict(prompts=dict(query="query: ", document="passage: ")))
  source, kb = tmp_path / "rows.jsonl", str(tmp_path / "kb/text")
  rows = [dict(id=str(i), text=text) for i, text in enumerate(TEXTS[:2])]
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  options = dict(embedder="hf", weights=str(folder), hybrid=False)
  spec = build_kb.KbSpec(kb, "text", str(source), **options)
  build_kb.build(spec)
  (found,) = local_kb.open_kb(kb).search([Query("Chad")], 2)
  assert len(found) == 2
  write(path, dict(prompts=dict(query="query: ")))
  with pytest.raises(UserError, match="embedder's files.*Build it again"):
    local_kb.open_kb(kb)
  build_kb.build(spec)
  assert len(local_kb.open_kb(kb)) == 2


def test_folder_is_named_by_the_embedder():
  split = build_kb._split_embedder
  assert split("hf:a/b", "") == ("hf", "a/b")
  assert split("minilm", "w") == ("minilm", "w")
  assert split("hf", "w") == ("hf", "w")
  with pytest.raises(UserError, match="leave out --weights"):
    split("hf:a", "b")
