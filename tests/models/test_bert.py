"""Tests of BERT and XLM-R against transformers, and of their config files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from r1router_jax.models import bert, safetensors_io
from tests.tiny_encoders import BERT

# The config.json of `BERT`.
HF_CONFIG = dict(model_type="bert", vocab_size=50, num_hidden_layers=2)
HF_CONFIG |= dict(hidden_size=12, num_attention_heads=3, intermediate_size=20)
HF_CONFIG |= dict(type_vocab_size=2, max_position_embeddings=24)
HF_CONFIG |= dict(layer_norm_eps=1e-12, pad_token_id=0)


def make_inputs():
  """Return tokens and mask of texts with 9, 4 and 1 tokens."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(5, 50, (3, 9)).astype(np.int32)
  mask = np.arange(9) < np.array([[9], [4], [1]])
  return np.where(mask, tokens, 0), mask


def init_params(config):
  inputs = map(jnp.asarray, make_inputs())
  return jax.jit(bert.Bert(config).init)(jax.random.key(0), *inputs)["params"]


def encode(params, config, tokens, mask):
  inputs = (jnp.asarray(tokens), jnp.asarray(mask))
  apply = jax.jit(bert.Bert(config).apply)
  return np.asarray(apply({"params": params}, *inputs))


@pytest.mark.oracle
@pytest.mark.parametrize("pooling", ["cls", "mean", "last", "pooler"])
@pytest.mark.parametrize("family", ["bert", "xlm_roberta"])
def test_vectors_agree_with_transformers(tmp_path, family, pooling):
  torch = pytest.importorskip("torch")
  import transformers

  # Both models have the same random weights, through a checkpoint.
  roberta = family == "xlm_roberta"
  config = dataclasses.replace(BERT, pooling=pooling)
  if roberta:
    changes = dict(num_segments=1, first_position=2, eps=1e-5)
    config = dataclasses.replace(config, **changes)
  kind = transformers.XLMRobertaModel if roberta else transformers.BertModel
  torch.manual_seed(0)
  options = HF_CONFIG | dict(hidden_dropout_prob=0, initializer_range=0.5)
  options |= dict(pad_token_id=int(roberta), layer_norm_eps=config.eps)
  options["type_vocab_size"] = config.num_segments
  del options["model_type"]
  model = kind(kind.config_class(**options)).eval()
  model.save_pretrained(tmp_path)
  params = bert.load_params(str(tmp_path), config)

  tokens, mask = make_inputs()
  with torch.no_grad():
    # Padding tokens must have the id that the model takes for padding.
    padded = np.where(mask, tokens, options["pad_token_id"])
    out = model(torch.tensor(padded).long(), torch.tensor(mask).long())
  states = out.last_hidden_state.numpy()
  # Pool the states of transformers by hand.
  wanted = {
    "cls": states[:, 0],
    "mean": np.stack([s[m].mean(0) for s, m in zip(states, mask, strict=True)]),
    "last": np.stack([s[m][-1] for s, m in zip(states, mask, strict=True)]),
    "pooler": out.pooler_output.numpy(),
  }[pooling]
  assert_allclose(encode(params, config, tokens, mask), wanted, atol=3e-6)


@pytest.mark.parametrize(
  "config",
  [
    BERT,
    dataclasses.replace(BERT, pooling="pooler"),
    dataclasses.replace(BERT, pooling="score"),
    dataclasses.replace(BERT, first_position=2, num_segments=1, pooling="cls"),
  ],
)
def test_weight_map_covers_the_parameters(config):
  params = init_params(config)
  for name, leaf, pattern in bert.weight_map(config):
    if leaf:
      # Every rule names a parameter of the right size.
      node = params
      for key in leaf.split("/"):
        node = node[key]
      shape = safetensors_io.tensor_shape(pattern, bert.axis_sizes(config))
      assert node.size == np.prod(shape), name


def test_padding_does_not_change_vectors():
  params = init_params(BERT)
  tokens, mask = make_inputs()
  # Two rows without tokens, and columns beyond all positions.
  wide = np.pad(tokens, ((0, 2), (0, 23)), constant_values=33)
  wide_mask = np.pad(mask, ((0, 2), (0, 23)))
  got = encode(params, BERT, wide, wide_mask)
  assert_allclose(got[:3], encode(params, BERT, tokens, mask), atol=1e-6)
  # Rows without tokens are 0 and not NaN.
  np.testing.assert_array_equal(got[3:], 0)


def test_segments_change_the_score():
  config = dataclasses.replace(BERT, pooling="score")
  params, (tokens, mask) = init_params(config), make_inputs()

  def score(*segments):
    arrays = (jnp.asarray(tokens), jnp.asarray(mask), *segments)
    return np.asarray(bert.Bert(config).apply({"params": params}, *arrays))

  # Segments are 0 by default, and any other segment counts.
  zeros = jnp.zeros_like(tokens)
  np.testing.assert_array_equal(score(), score(zeros))
  assert score().shape == (3, 1)
  assert (np.abs(score() - score(zeros.at[:, 0].set(1))) > 1e-4).all()


def test_config_is_read(tmp_path):
  # A BERT is truncated to its positions.
  path = tmp_path / "config.json"
  path.write_text(json.dumps(HF_CONFIG))
  assert bert.read_config(str(tmp_path)) == BERT
  assert BERT.max_tokens == 24
  # XLM-R counts positions from 2, and its longest texts have 512 tokens.
  roberta = HF_CONFIG | dict(model_type="xlm-roberta", pad_token_id=1)
  roberta |= dict(max_position_embeddings=600)
  path.write_text(json.dumps(roberta))
  config = bert.read_config(str(tmp_path), pooling="score")
  assert (config.first_position, config.max_tokens) == (2, 512)
  assert config.pooling == "score"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    # Variants that are not implemented.
    (dict(model_type="deberta"), "model_type is 'deberta'"),
    (dict(hidden_act="relu"), "hidden_act is 'relu': take one of gelu"),
    (dict(position_embedding_type="relative_key"), "relative_key"),
    # Damaged values.
    (dict(vocab_size="many"), "vocab_size is 'many': expected `int`"),
    (dict(hidden_size=None), "hidden_size is None"),
    (dict(num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
    (dict(num_attention_heads=0), "num_attention_heads is 0"),
    (dict(num_attention_heads=7), "do not fit"),
    (dict(layer_norm_eps=0), "layer_norm_eps is 0"),
    (dict(model_type="roberta", pad_token_id=None), "pad_token_id is missing"),
  ],
)
def test_unknown_or_damaged_config_is_refused(tmp_path, change, words):
  (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG | change))
  with pytest.raises(safetensors_io.BadWeights, match=words):
    bert.read_config(str(tmp_path))
  # Damaged files.
  for text in ("", "[]", "{}"):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(safetensors_io.BadWeights, match="folder of a BERT"):
      bert.read_config(str(tmp_path))


def test_unknown_pooling_is_refused():
  with pytest.raises(ValueError, match="config.pooling is 'max'"):
    init_params(dataclasses.replace(BERT, pooling="max"))
