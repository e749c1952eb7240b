"""Published configs and tensors, against transformers' classes and files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors.numpy import load_file

from r1router_jax.models import hf_checkpoint, qwen2_5_vl, safetensors_io
from r1router_jax.models.layers import Llama3
from r1router_jax.parallel import mesh as mesh_lib
from tests import tiny_policy

TEXT = dict(vision=None, mrope_section=(4, 0, 0))

CONFIGS = {
  "qwen2_5_vl": tiny_policy.CONFIG,
  "qwen2_5_vl tied": dataclasses.replace(
    tiny_policy.CONFIG, tied=True, kv_heads=4
  ),
  "qwen2": dataclasses.replace(tiny_policy.CONFIG, tied=True, **TEXT),
  "llama": dataclasses.replace(tiny_policy.CONFIG, qkv_bias=False, **TEXT),
  "llama 3": dataclasses.replace(
    tiny_policy.CONFIG,
    qkv_bias=False,
    **TEXT,
    rope_scaling=Llama3(8.0, 1.0, 4.0, 16),
  ),
}

TOKENS = dict(
  bos_token_id=0,
  eos_token_id=2,
  pad_token_id=0,
  image_token_id=5,
  video_token_id=1,
  vision_start_token_id=3,
  vision_end_token_id=4,
)

# What stands in the config.json of Qwen/Qwen2.5-VL-7B-Instruct.
FLAT = dict(
  model_type="qwen2_5_vl",
  hidden_act="silu",
  hidden_size=3584,
  intermediate_size=18944,
  num_attention_heads=28,
  num_hidden_layers=28,
  num_key_value_heads=4,
  rms_norm_eps=1e-6,
  rope_theta=1e6,
  sliding_window=32768,
  tie_word_embeddings=False,
  use_sliding_window=False,
  vocab_size=152064,
  image_token_id=151655,
  rope_scaling=dict(type="mrope", mrope_section=[16, 24, 24]),
  vision_config=dict(
    depth=32,
    hidden_act="silu",
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    in_chans=3,
    out_hidden_size=3584,
    patch_size=14,
    spatial_merge_size=2,
    spatial_patch_size=14,
    window_size=112,
    fullatt_block_indexes=[7, 15, 23, 31],
    tokens_per_second=2,
    temporal_patch_size=2,
  ),
)


# ---- config.json.


def test_the_published_configs_are_read():
  assert hf_checkpoint.from_published(FLAT) == qwen2_5_vl.SIZES["7b"]
  small = FLAT | dict(
    hidden_size=2048,
    intermediate_size=11008,
    num_attention_heads=16,
    num_hidden_layers=36,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
    vision_config=FLAT["vision_config"] | dict(out_hidden_size=2048),
  )
  assert hf_checkpoint.from_published(small) == qwen2_5_vl.SIZES["3b"]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back(name):
  tree = json.loads(
    json.dumps(hf_checkpoint.to_published(CONFIGS[name], TOKENS))
  )
  assert hf_checkpoint.from_published(tree) == CONFIGS[name]


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back_from_transformers(name, tmp_path):
  """Which reads ours, and writes the nested form of its newest version."""
  import transformers

  tree = hf_checkpoint.to_published(CONFIGS[name], TOKENS)
  (tmp_path / "config.json").write_text(json.dumps(tree))
  transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
  assert hf_checkpoint.read_config(tmp_path) == CONFIGS[name]


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(model_type="gemma"), "model_type is 'gemma', known: qwen2_5_vl"),
    (dict(hidden_act="gelu"), "hidden_act is 'gelu', and only 'silu'"),
    (dict(use_sliding_window=True), "use_sliding_window is True"),
    (dict(rope_scaling=dict(type="yarn")), "rope_type is 'yarn'"),
    (
      dict(rope_scaling=dict(type="mrope", mrope_section=[1, 2, 3])),
      r"mrope_section \(1, 2, 3\) does not add up to half .* 128",
    ),
    (dict(vision_config=dict(out_hidden_size=7)), "out_hidden_size is 7"),
    (dict(model_type="llama", attention_bias=True), "attention_bias is True"),
    (
      dict(model_type="llama", rope_scaling=dict(rope_type="yarn")),
      "rope_type is 'yarn', known: default, mrope, llama3",
    ),
  ],
)
def test_what_we_cannot_run_is_named(change, words, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(FLAT | change))
  with pytest.raises(hf_checkpoint.BadConfig, match=words):
    hf_checkpoint.read_config(tmp_path)


@pytest.mark.parametrize(
  "text, words",
  [
    ("{", "config.json: "),
    ("[]", "config.json: "),
    ("{}", "model_type is No"),
    ('{"model_type": "qwen2"}', r"lacks \['vocab_size', 'hidden_size'"),
  ],
)
def test_a_broken_config_is_named(text, words, tmp_path):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(hf_checkpoint.BadConfig, match=words):
    hf_checkpoint.read_config(tmp_path)


# ---- Tensors.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_go_out_and_back(name, dtype, tmp_path):
  """To HF, to ours, to HF again: the same bytes."""
  config = CONFIGS[name]
  params = jax.tree.map(lambda x: x.astype(dtype), tiny_policy.params(config))
  hf_checkpoint.save(tmp_path / "a", params, config)
  again = hf_checkpoint.load(tmp_path / "a", config)
  assert jax.tree.structure(again) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  hf_checkpoint.save(tmp_path / "b", again, config, shard_bytes=4000)
  hf_checkpoint.copy(tmp_path / "b", tmp_path / "c", config, dtype=dtype)
  assert len(safetensors_io.files(str(tmp_path / "b"))) > 3
  first, last = (
    (tmp_path / x / safetensors_io.FILE).read_bytes() for x in "ac"
  )
  assert first == last
  names = load_file(tmp_path / "a" / safetensors_io.FILE)
  assert ("lm_head.weight" in names) == (not config.tied)


@pytest.mark.parametrize("name", [*CONFIGS, *qwen2_5_vl.SIZES])
def test_every_leaf_has_a_line_and_a_rule(name):
  config = (CONFIGS | qwen2_5_vl.SIZES)[name]
  shapes = tiny_policy.shapes_of(config)
  flat = {
    "/".join(k.key for k in path): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(shapes)
  }
  lines = {
    leaf: safetensors_io.shape(
      pattern.split("->")[1], hf_checkpoint.axes(config)
    )
    for _, leaf, pattern in hf_checkpoint.table(config)
    if leaf
  }
  assert flat == lines
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
  layout = mesh_lib.shardings(shapes, mesh)
  if name in qwen2_5_vl.SIZES:  # All that is large lies on four devices.
    for x, where in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(layout), strict=True
    ):
      share = np.prod(where.shard_shape(x.shape)) / x.size
      assert share <= 0.5 or x.size < 1e6
    total = sum(np.prod(shape) for shape in flat.values())
    # arxiv.org/abs/2502.13923's "7B" and "3B", with the vision tower.
    assert total == {"3b": 3_754_622_976, "7b": 8_292_166_656}[name]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2"])
def test_a_sharded_load_is_the_whole_one(name, tmp_path):
  config = CONFIGS[name]
  hf_checkpoint.save(
    tmp_path, tiny_policy.params(config), config, shard_bytes=9000
  )
  mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"))
  layout = mesh_lib.by_path(tiny_policy.shapes_of(config), mesh)
  params = hf_checkpoint.load(tmp_path, config, layout=layout.__getitem__)
  jax.tree.map(
    np.testing.assert_array_equal, params, tiny_policy.params(config)
  )
  assert isinstance(params["embed"].sharding, NamedSharding)
  assert params["layers"]["o"]["w"].addressable_shards[0].data.size * 8 == (
    params["layers"]["o"]["w"].size
  )


# ---- Text alone, against transformers.


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["qwen2", "llama", "llama 3"])
def test_logits_of_texts_are_those_of_transformers(name, tmp_path):
  import torch
  import transformers

  config = CONFIGS[name]
  hf_checkpoint.save(tmp_path, tiny_policy.params(config), config)
  (tmp_path / "config.json").write_text(
    json.dumps(hf_checkpoint.to_published(config, TOKENS))
  )
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, output_loading_info=True, attn_implementation="eager"
  )
  assert not any(report.values()), report
  rng = np.random.default_rng(0)
  batch = [tiny_policy.encoded(rng, config, n) for n in (30, 4, 17)]
  response = tiny_policy.responses(rng, config, 3, 2, 6)
  model = qwen2_5_vl.QwenVL(config)
  states = jax.jit(model.apply)(
    {"params": tiny_policy.params(config)},
    tiny_policy.pack(config, batch),
    response,
  )
  rows = model.apply(
    {"params": tiny_policy.params(config)}, method="vocabulary"
  )
  logits = np.asarray(states @ rows.T)
  for row, encoded in enumerate(batch):
    for member in range(2):
      ids = torch.tensor([[*encoded.ids, *response[row, member]]])
      with torch.no_grad():
        wanted = theirs.eval()(ids).logits[0, len(encoded.ids) - 1 : -1]
      np.testing.assert_allclose(logits[row, member], wanted.numpy(), atol=1e-4)
