"""Tests of Hugging Face configs and weights, against transformers."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding
from safetensors.numpy import load_file

from r1router_jax.common.errors import UserError
from r1router_jax.models import (
  hf_checkpoint,
  layers,
  qwen2_5_vl,
  safetensors_io,
)
from r1router_jax.models.layers import Llama3RopeScaling
from r1router_jax.parallel import mesh as mesh_lib
from tests import tiny_policy
from tests.tiny_policy import MODEL_CONFIG

TEXT = dict(vision=None, mrope_section=(4, 0, 0))

# A tiny config of each architecture and variant.
CONFIGS = {
  "qwen2_5_vl": MODEL_CONFIG,
  "qwen2_5_vl tied": dataclasses.replace(MODEL_CONFIG, tied=True, kv_heads=4),
  "qwen2": dataclasses.replace(MODEL_CONFIG, tied=True, **TEXT),
  "llama": dataclasses.replace(MODEL_CONFIG, qkv_bias=False, **TEXT),
  "llama 3": dataclasses.replace(
    MODEL_CONFIG,
    qkv_bias=False,
    **TEXT,
    rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 16),
  ),
}

TOKEN_IDS = dict(
  **dict(bos_token_id=0, eos_token_id=2, pad_token_id=0, image_token_id=5),
  **dict(video_token_id=1, vision_start_token_id=3, vision_end_token_id=4),
)

# The config.json of Qwen/Qwen2.5-VL-7B-Instruct, in the flat form.
QWEN_7B = json.loads("""{
  "model_type": "qwen2_5_vl", "hidden_act": "silu", "hidden_size": 3584,
  "intermediate_size": 18944, "num_attention_heads": 28,
  "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0, "sliding_window": 32768,
  "tie_word_embeddings": false, "use_sliding_window": false,
  "vocab_size": 152064, "image_token_id": 151655,
  "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
  "vision_config": {
    "depth": 32, "hidden_act": "silu", "hidden_size": 1280,
    "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
    "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2,
    "spatial_patch_size": 14, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    "temporal_patch_size": 2
  }
}""")


def test_published_configs_are_read():
  assert hf_checkpoint.parse_config(QWEN_7B) == qwen2_5_vl.SIZES["7b"]
  # The 3B model differs in these fields.
  vision = QWEN_7B["vision_config"] | dict(out_hidden_size=2048)
  small = QWEN_7B | dict(hidden_size=2048, vision_config=vision)
  small |= dict(intermediate_size=11008, num_attention_heads=16)
  small |= dict(num_hidden_layers=36, num_key_value_heads=2)
  small |= dict(vocab_size=151936, tie_word_embeddings=True)
  assert hf_checkpoint.parse_config(small) == qwen2_5_vl.SIZES["3b"]


@pytest.mark.parametrize("name", CONFIGS)
def test_config_round_trip(name):
  tree = hf_checkpoint.make_hf_config(CONFIGS[name], TOKEN_IDS)
  tree = json.loads(json.dumps(tree))
  assert hf_checkpoint.parse_config(tree) == CONFIGS[name]


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONFIGS)
def test_config_round_trip_through_transformers(name, tmp_path):
  """Transformers reads the flat form and writes the nested one."""
  import transformers

  tree = hf_checkpoint.make_hf_config(CONFIGS[name], TOKEN_IDS)
  (tmp_path / "config.json").write_text(json.dumps(tree))
  transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
  assert hf_checkpoint.read_config(tmp_path) == CONFIGS[name]


LLAMA_YARN = dict(model_type="llama", rope_scaling=dict(rope_type="yarn"))


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
    (
      dict(vision_config=dict(hidden_act="gelu")),
      "vision_config.hidden_act is",
    ),
    (
      dict(rope_scaling=dict(rope_type="llama3", factor=8.0)),
      "rope.low_freq_factor is missing",
    ),
    (dict(model_type="llama", attention_bias=True), "attention_bias is True"),
    (LLAMA_YARN, "rope_type is 'yarn', known: default, mrope, llama3"),
  ],
)
def test_unsupported_config_is_refused(change, words, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(QWEN_7B | change))
  with pytest.raises(hf_checkpoint.BadConfig, match=words):
    hf_checkpoint.read_config(tmp_path)


@pytest.mark.parametrize(
  "text, words",
  [
    ("{", "config.json: "),
    ("[]", "config.json: "),
    ("{}", "model_type is No"),
    ('{"model_type": "qwen2"}', "vocab_size is missing.  Give the folder"),
    ('{"model_type": []}', r"model_type is \[\], known"),
  ],
)
def test_damaged_config_is_refused(text, words, tmp_path):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(hf_checkpoint.BadConfig, match=words):
    hf_checkpoint.read_config(tmp_path)


SCALING = dict(rope_type="llama3", factor=8.0)
SCALING |= dict(low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=500.0)


@pytest.mark.oracle
@pytest.mark.parametrize(
  "change",
  [
    dict(num_key_value_heads=None),
    dict(rope_scaling=SCALING, max_position_embeddings=16),
    dict(rope_parameters=SCALING, max_position_embeddings=16),
    dict(rope_parameters=SCALING | dict(original_max_position_embeddings=32)),
  ],
)
def test_fields_that_are_left_out_are_those_of_transformers(change, tmp_path):
  import transformers
  from transformers.models.llama import modeling_llama

  tree = hf_checkpoint.make_hf_config(CONFIGS["llama"], TOKEN_IDS) | change
  (tmp_path / "config.json").write_text(json.dumps(tree))
  ours = hf_checkpoint.read_config(tmp_path)
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert ours.kv_heads == theirs.num_key_value_heads
  rope = modeling_llama.LlamaRotaryEmbedding(theirs)
  position = jnp.ones((3, 1, 1), jnp.int32)
  options = ours.mrope_section, ours.theta, ours.rope_scaling
  angles = layers.mrope_angles(position, *options)
  np.testing.assert_allclose(
    np.asarray(angles).reshape(-1), rope.inv_freq.numpy(), rtol=1e-6
  )


@pytest.mark.parametrize("name", ["qwen2", "qwen2_5_vl tied"])
def test_a_head_of_its_own_is_not_dropped(name, tmp_path):
  """As a fine-tune saves one whose config still says that it is tied."""
  config = CONFIGS[name]
  params = dict(tiny_policy.params(config))
  params["head"] = params["embed"]
  untied = dataclasses.replace(config, tied=False)
  hf_checkpoint.save_params(tmp_path / "same", params, untied)
  found = hf_checkpoint.load_params(tmp_path / "same", config)
  np.testing.assert_array_equal(found["embed"], params["embed"])
  params["head"] = params["embed"] + 1
  hf_checkpoint.save_params(tmp_path / "other", params, untied)
  copy = functools.partial(
    hf_checkpoint.copy_checkpoint, target=tmp_path / "copy", dtype="float32"
  )
  for act in (hf_checkpoint.load_params, copy):
    with pytest.raises(
      safetensors_io.BadWeights, match="lm_head.weight differs"
    ):
      act(tmp_path / "other", config=config)


def with_vision(**changes):
  return dict(vision_config=QWEN_7B["vision_config"] | changes)


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0)
LLAMA3 |= dict(high_freq_factor=4.0, original_max_position_embeddings=16)
LLAMA = QWEN_7B | dict(model_type="llama", rope_scaling=None)


def with_llama3(**changes):
  return LLAMA | dict(rope_scaling=LLAMA3 | changes)


@pytest.mark.parametrize(
  "change, words",
  [
    (
      dict(hidden_size="many"),
      "hidden_size is 'many': expected `int`, got `str",
    ),
    (dict(vocab_size=1e3), "vocab_size is 1000.0: expected `int`"),
    (dict(vocab_size=True), "vocab_size is True"),
    (dict(vocab_size=10**400), "vocab_size is 1000.*: expected `int` <= "),
    (dict(num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
    (dict(num_hidden_layers=0), "num_hidden_layers is 0"),
    (dict(num_attention_heads=-1), "num_attention_heads is -1"),
    (dict(num_key_value_heads=3), "num_key_value_heads does not divide"),
    (dict(rms_norm_eps=0), "rms_norm_eps is 0"),
    (dict(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    (dict(rms_norm_eps=None), "rms_norm_eps is None"),
    (dict(rope_theta=0), "rope_theta is 0"),
    (dict(rope_theta=-1), "rope_theta is -1"),
    (dict(rope_theta=float("nan")), "rope_theta is nan"),
    (dict(rope_scaling="linear"), "rope_scaling is 'linear': expected `object"),
    (dict(rope_scaling={}), "mrope_section is missing"),
    (
      dict(rope_scaling=dict(mrope_section=[16, 48])),
      "mrope_section: expected",
    ),
    (
      dict(rope_scaling=dict(mrope_section=[-16, 40, 40])),
      r"section\[0\] is -16",
    ),
    (dict(head_dim=0), "head_dim is 0"),
    (dict(tie_word_embeddings="true"), "tie_word_embeddings is 'true'"),
    (dict(text_config=[1]), "text_config: expected `object`, got `array`"),
    (dict(vision_config=5), "vision_config is 5: expected `object`"),
    (with_vision(depth=0), "vision_config.depth is 0"),
    (with_vision(depth=10**6), "vision_config.depth is 1000000"),
    (with_vision(patch_size=0), "vision_config.patch_size is 0"),
    (with_vision(num_heads=7), "vision_config: 4 num_heads do not divide"),
    (with_vision(window_size=14), "window_size is smaller than merged"),
    (with_vision(hidden_act="gelu"), "vision_config.hidden_act is 'gelu'"),
    (with_vision(in_channels=1), "vision_config.in_channels is 1, and only 3"),
    (with_vision(fullatt_block_indexes="x"), "fullatt_block_indexes is 'x'"),
    (with_llama3(factor="8"), "rope.factor is '8': expected `float`"),
    (with_llama3(high_freq_factor=1.0), "high_freq_factor is not above"),
    (with_llama3(original_max_position_embeddings=0), "embeddings is 0"),
  ],
)
def test_absurd_config_is_refused(change, words):
  with pytest.raises(UserError, match=words):
    hf_checkpoint.parse_config(QWEN_7B | change)


# What the weights cannot tell has no defaults, which would be other ones than
# those of transformers.
@pytest.mark.parametrize(
  "name", ["rms_norm_eps", "rope_theta", "num_key_value_heads", "rope_scaling"]
)
def test_missing_field_is_refused(name):
  tree = {field: value for field, value in QWEN_7B.items() if field != name}
  name = "mrope_section" if name == "rope_scaling" else name
  with pytest.raises(UserError, match=f"{name} is missing"):
    hf_checkpoint.parse_config(tree)


@pytest.mark.parametrize("name", hf_checkpoint._VISION_FIELDS.values())
def test_missing_field_of_the_tower_is_refused(name):
  vision = QWEN_7B["vision_config"]
  vision = {field: value for field, value in vision.items() if field != name}
  with pytest.raises(UserError, match=f"vision_config.{name} is missing"):
    hf_checkpoint.parse_config(QWEN_7B | dict(vision_config=vision))


@pytest.mark.parametrize(
  "tree, wanted",
  [
    (LLAMA | dict(num_key_value_heads=None), dict(kv_heads=28)),
    (
      {k: x for k, x in LLAMA.items() if k != "num_key_value_heads"},
      dict(kv_heads=28),
    ),
    ({k: x for k, x in LLAMA.items() if k != "rope_theta"}, dict(theta=1e4)),
    (LLAMA | dict(attention_bias=None, tie_word_embeddings=None), dict()),
    (
      LLAMA
      | dict(max_position_embeddings=99)
      | dict(rope_scaling={k: x for k, x in LLAMA3.items() if k[0] != "o"}),
      dict(rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 99)),
    ),
  ],
)
def test_older_configs_are_read_as_by_transformers(tree, wanted):
  found = dataclasses.asdict(hf_checkpoint.parse_config(tree))
  assert found.items() >= wanted.items()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_round_trip(name, dtype, tmp_path):
  """Saved, loaded, saved in shards and copied, the file has the same bytes."""
  config = CONFIGS[name]
  # Save, load, save in many files, and copy into one.
  params = jax.tree.map(lambda x: x.astype(dtype), tiny_policy.params(config))
  hf_checkpoint.save_params(tmp_path / "a", params, config)
  again = hf_checkpoint.load_params(tmp_path / "a", config)
  assert jax.tree.structure(again) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  hf_checkpoint.save_params(tmp_path / "b", again, config, shard_bytes=4000)
  copy = functools.partial(hf_checkpoint.copy_checkpoint, dtype=dtype)
  copy(tmp_path / "b", tmp_path / "c", config)
  assert len(safetensors_io.checkpoint_files(str(tmp_path / "b"))) > 3
  # The first and the last file are equal byte by byte.
  first, last = (
    (tmp_path / x / safetensors_io.WEIGHTS_FILE).read_bytes() for x in "ac"
  )
  assert first == last
  # A tied head is not written.
  names = load_file(tmp_path / "a" / safetensors_io.WEIGHTS_FILE)
  assert ("lm_head.weight" in names) == (not config.tied)


@pytest.mark.parametrize("name", [*CONFIGS, *qwen2_5_vl.SIZES])
def test_weight_map_and_shardings_cover_the_parameters(name):
  config = (CONFIGS | qwen2_5_vl.SIZES)[name]
  shapes = tiny_policy.param_shapes(config)
  flat = traverse_util.flatten_dict(shapes, sep="/")
  sizes = hf_checkpoint.axis_sizes(config)
  mapped = {
    leaf: safetensors_io.tensor_shape(pattern.split("->")[1], sizes)
    for _, leaf, pattern in hf_checkpoint.weight_map(config)
    if leaf
  }
  assert {name: x.shape for name, x in flat.items()} == mapped
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
  layout = mesh_lib.tree_shardings(shapes, mesh)
  # Large parameters are split over four devices.
  if name in qwen2_5_vl.SIZES:
    leaves = jax.tree.leaves(shapes)
    for x, where in zip(leaves, jax.tree.leaves(layout), strict=True):
      share = np.prod(where.shard_shape(x.shape)) / x.size
      assert share <= 0.5 or x.size < 1e6
    total = sum(x.size for x in flat.values())
    # arxiv.org/abs/2502.13923's "7B" and "3B", with the vision tower.
    assert total == {"3b": 3_754_622_976, "7b": 8_292_166_656}[name]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2"])
def test_sharded_load_equals_whole_load(name, tmp_path):
  config = CONFIGS[name]
  whole = tiny_policy.params(config)
  hf_checkpoint.save_params(tmp_path, whole, config, shard_bytes=9000)
  mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"))
  # Eight devices, of which the data axis is 1.
  layout = mesh_lib.tree_shardings(tiny_policy.param_shapes(config), mesh)
  params = hf_checkpoint.load_params(tmp_path, config, shardings=layout)
  jax.tree.map(np.testing.assert_array_equal, params, whole)
  assert isinstance(params["embed"].sharding, NamedSharding)
  weights = params["layers"]["o"]["w"]
  assert weights.addressable_shards[0].data.size * 8 == weights.size


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["qwen2", "llama", "llama 3"])
def test_text_logits_agree_with_transformers(name, tmp_path):
  import torch
  import transformers

  config = CONFIGS[name]
  params = tiny_policy.params(config)
  hf_checkpoint.save_params(tmp_path, params, config)
  tree = hf_checkpoint.make_hf_config(config, TOKEN_IDS)
  (tmp_path / "config.json").write_text(json.dumps(tree))
  # No tensor may be missing, unknown or of another shape.
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, output_loading_info=True, attn_implementation="eager"
  )
  assert not any(report.values()), report
  # Prompts of three lengths with two responses each.
  rng = np.random.default_rng(0)
  batch = [tiny_policy.random_prompt(rng, config, n) for n in (30, 4, 17)]
  response = tiny_policy.random_responses(rng, config, 3, 2, 6)
  model = qwen2_5_vl.QwenVL(config)
  prompts = tiny_policy.collate(config, batch)
  states = jax.jit(model.apply)({"params": params}, prompts, response)
  rows = model.apply({"params": params}, method="output_embedding")
  logits = np.asarray(states @ rows.T)
  for row, encoded in enumerate(batch):
    for member in range(2):
      # transformers reads prompt and response as one text, without padding.
      ids = torch.tensor([[*encoded.ids, *response[row, member]]])
      with torch.no_grad():
        wanted = theirs.eval()(ids).logits[0, len(encoded.ids) - 1 : -1]
      np.testing.assert_allclose(logits[row, member], wanted.numpy(), atol=1e-4)
