import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.models import bert

TINY = bert.BertConfig(
  vocab=50, layers=2, width=12, heads=3, inner=20, positions=24, segments=2
)


def example(seed=0, first=5):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(first, 50, (3, 9)).astype(np.int32)
  mask = np.arange(9) < np.array([[9], [4], [1]])
  return np.where(mask, tokens, 0), mask


def init(config, seed=0):
  return bert.Bert(config).init(
    jax.random.key(seed), *map(jnp.asarray, example())
  )["params"]


def encode(params, config, tokens, mask):
  return np.asarray(
    bert.Bert(config).apply(
      {"params": params}, jnp.asarray(tokens), jnp.asarray(mask)
    )
  )


@pytest.mark.oracle
@pytest.mark.parametrize("pool", ["cls", "mean", "pooler"])
@pytest.mark.parametrize("family", ["bert", "xlm_roberta"])
def test_agrees_with_transformers(tmp_path, family, pool):
  torch = pytest.importorskip("torch")
  import transformers

  roberta = family == "xlm_roberta"
  config = dataclasses.replace(
    TINY,
    pool=pool,
    normalise=False,
    segments=1 if roberta else 2,
    first_position=2 if roberta else 0,
    eps=1e-5 if roberta else 1e-12,
  )
  kind = transformers.XLMRobertaModel if roberta else transformers.BertModel
  torch.manual_seed(0)
  model = kind(
    kind.config_class(
      vocab_size=50,
      hidden_size=12,
      num_hidden_layers=2,
      num_attention_heads=3,
      intermediate_size=20,
      max_position_embeddings=24,
      hidden_dropout_prob=0,
      type_vocab_size=config.segments,
      layer_norm_eps=config.eps,
      pad_token_id=1 if roberta else 0,
      initializer_range=0.5,
    )
  ).eval()
  model.save_pretrained(tmp_path)
  params = bert.load(str(tmp_path), config)

  tokens, mask = example()
  with torch.no_grad():
    out = model(
      torch.tensor(np.where(mask, tokens, 1 if roberta else 0)).long(),
      torch.tensor(mask).long(),
    )
  states = out.last_hidden_state.numpy()
  wanted = {
    "cls": states[:, 0],
    "mean": np.stack([s[m].mean(0) for s, m in zip(states, mask, strict=True)]),
    "pooler": out.pooler_output.numpy(),
  }[pool]
  np.testing.assert_allclose(
    encode(params, config, tokens, mask), wanted, atol=3e-6
  )


@pytest.mark.parametrize(
  "config",
  [
    TINY,
    dataclasses.replace(TINY, pool="pooler"),
    dataclasses.replace(TINY, pool="score", normalise=False),
    dataclasses.replace(TINY, first_position=2, segments=1, pool="cls"),
  ],
)
def test_table_covers_the_model(config):
  params = init(config)
  for name, leaf, pattern in bert.hf_table(config):
    if leaf:
      node = params
      for key in leaf.split("/"):
        node = node[key]
      assert node.size == np.prod(
        bert.hf.shape(pattern, bert.hf_axes(config))
      ), name


def test_padding_changes_nothing():
  params = init(TINY)
  tokens, mask = example()
  wide = np.pad(tokens, ((0, 2), (0, 23)), constant_values=33)
  wide_mask = np.pad(mask, ((0, 2), (0, 23)))  # Beyond all positions.
  got = encode(params, TINY, wide, wide_mask)
  np.testing.assert_allclose(
    got[:3], encode(params, TINY, tokens, mask), atol=1e-6
  )
  np.testing.assert_array_equal(got[3:], 0)  # Rows without tokens: not NaN.


def test_vectors_have_length_one():
  vectors = encode(init(TINY), TINY, *example())
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_segments_are_those_given():
  config = dataclasses.replace(TINY, pool="score", normalise=False)
  params, (tokens, mask) = init(config), example()
  score = lambda *more: np.asarray(
    bert.Bert(config).apply(
      {"params": params}, jnp.asarray(tokens), jnp.asarray(mask), *more
    )
  )
  zeros = jnp.zeros_like(tokens)
  np.testing.assert_array_equal(score(), score(zeros))
  assert score().shape == (3, 1)
  assert (np.abs(score() - score(zeros.at[:, 0].set(1))) > 1e-4).all()


CONFIG = dict(
  model_type="bert",
  vocab_size=50,
  num_hidden_layers=2,
  hidden_size=12,
  num_attention_heads=3,
  intermediate_size=20,
  type_vocab_size=2,
  max_position_embeddings=24,
  layer_norm_eps=1e-12,
  pad_token_id=0,
)


def test_a_config_is_read(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(json.dumps(CONFIG))
  assert bert.read_config(str(tmp_path)) == dataclasses.replace(
    TINY, max_tokens=24
  )
  path.write_text(
    json.dumps(
      CONFIG
      | dict(
        model_type="xlm-roberta", pad_token_id=1, max_position_embeddings=600
      )
    )
  )
  config = bert.read_config(str(tmp_path), pool="score")
  assert (config.first_position, config.max_tokens, config.pool) == (
    2,
    512,
    "score",
  )


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(model_type="deberta"), "model_type is 'deberta'"),
    (dict(hidden_act="relu"), "hidden_act is 'relu', known is 'gelu'"),
    (dict(position_embedding_type="relative_key"), "relative_key"),
    (dict(vocab_size="many"), "invalid literal"),
    (dict(hidden_size=None), "TypeError"),
  ],
)
def test_a_config_that_is_not_known_is_named(tmp_path, change, words):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
  with pytest.raises(bert.hf.BadWeights, match=words):
    bert.read_config(str(tmp_path))
  for text in ("", "[]", "{}"):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(bert.hf.BadWeights, match="no config of a BERT"):
      bert.read_config(str(tmp_path))


def test_unknown_pool_is_named():
  with pytest.raises(ValueError, match="config.pool is 'max'"):
    init(dataclasses.replace(TINY, pool="max"))
