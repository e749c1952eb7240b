"""Adapters in the form of PEFT: by hand, both ways against it, hostile ones."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from r1router_jax.common.errors import UserError
from r1router_jax.models import (
  adapter_files,
  hf_checkpoint,
  lora,
)
from r1router_jax.models.safetensors_io import BadWeights
from tests import tiny_gguf, tiny_policy

TEXT = dict(vision=None, mrope_section=(4, 0, 0), tied=True)
LLAMA = dataclasses.replace(tiny_policy.MODEL_CONFIG, qkv_bias=False, **TEXT)

# A model, and the layers that get adapters.
CASES = {
  "llama": (LLAMA, "layers/([qkvo]|mlp/.*)$"),
  "qwen2": (dataclasses.replace(LLAMA, qkv_bias=True), "layers/[qv]$"),
  "qwen2_5_vl": (tiny_policy.MODEL_CONFIG, "layers/(k|mlp/down)|blocks|merge1"),
}


def save_base(folder, config):
  """Write a whole model, as transformers opens it; return its parameters."""
  params = tiny_policy.params(config)
  hf_checkpoint.save_params(folder, params, config)
  ids = dict(bos_token_id=0, eos_token_id=2, pad_token_id=0, image_token_id=5)
  ids |= dict(vision_start_token_id=3, vision_end_token_id=4)
  tree = hf_checkpoint.make_hf_config(config, ids)
  (folder / "config.json").write_text(json.dumps(tree))
  return params


def add_random_adapters(params, match, rank=3, alpha=6.0):
  """Add adapters, both matrices of which are random."""
  key = jax.random.key(7)
  params = lora.add_adapters(params, match, rank=rank, alpha=alpha, key=key)
  flat = traverse_util.flatten_dict(params, sep="/")
  rng = np.random.default_rng(0)
  for path, leaf in flat.items():
    if path.endswith("lora_b"):
      flat[path] = rng.normal(size=leaf.shape).astype(np.float32)
  return traverse_util.unflatten_dict(flat, sep="/")


def write_adapter(folder, base, tensors, **changes):
  """Write an adapter as PEFT does, of numbers that are given."""
  folder.mkdir(exist_ok=True)
  tree = dict(peft_type="LORA", task_type="CAUSAL_LM", bias="none")
  tree |= dict(base_model_name_or_path=str(base), r=2, lora_alpha=8)
  tree |= dict(alpha_pattern={}, use_dora=False, target_modules=["q_proj"])
  (folder / "adapter_config.json").write_text(json.dumps(tree | changes))
  save_file(tensors, folder / "adapter_model.safetensors")


Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


def make_pair(rank=2):
  rng = np.random.default_rng(1)
  a = rng.normal(size=(rank, 32)).astype(np.float32)
  b = rng.normal(size=(32, rank)).astype(np.float32)
  return {Q_PROJ.format("A"): a, Q_PROJ.format("B"): b}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  folder = tmp_path_factory.mktemp("llama")
  return folder, save_base(folder, LLAMA)


def test_the_sum_by_hand(llama, tmp_path):
  base, params = llama
  pair = make_pair()
  drawn = dict(init_lora_weights="gaussian")  # Of no account afterwards.
  write_adapter(tmp_path / "a", base, pair, **drawn)
  config = hf_checkpoint.read_config(tmp_path / "a")
  assert config == LLAMA
  found = hf_checkpoint.load_params(tmp_path / "a", config)
  a, b = pair.values()
  wanted = np.array(params["layers"]["q"]["w"])
  for row in range(32):
    for column in range(32):
      # lora_alpha / r is 4; kernels here have the input axis first.
      change = 4 * sum(b[row, k] * a[k, column] for k in range(2))
      wanted[1, column, row] += change
  np.testing.assert_allclose(found["layers"]["q"]["w"], wanted, atol=1e-5)
  # All else is the base's.
  found["layers"]["q"]["w"] = params["layers"]["q"]["w"]
  jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize("name", CASES)
def test_written_adapters_are_read_again(name, tmp_path):
  config, match = CASES[name]
  (tmp_path / "base").mkdir()
  params = save_base(tmp_path / "base", config)
  params = add_random_adapters(params, match)
  chosen = lora.select_adapters(params)
  base = str(tmp_path / "base")
  adapter_files.save_adapters(tmp_path / "a", chosen, config, base)
  found = hf_checkpoint.load_params(tmp_path / "a", config)
  wanted = lora.merge_adapters(params)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, wanted
  )


def test_an_adapter_of_an_adapter(llama, tmp_path):
  base, params = llama
  write_adapter(tmp_path / "a", base, make_pair())
  write_adapter(tmp_path / "b", tmp_path / "a", make_pair(), lora_alpha=2)
  a, b = make_pair().values()
  found = hf_checkpoint.load_params(tmp_path / "b", LLAMA)["layers"]["q"]["w"]
  change = found[1] - np.asarray(params["layers"]["q"]["w"][1])
  np.testing.assert_allclose(change, (4 + 1) * (b @ a).T, atol=1e-4)
  assert hf_checkpoint.list_weight_files(tmp_path / "b") == [
    str(base / "model.safetensors"),
    str(tmp_path / "a" / "adapter_model.safetensors"),
    str(tmp_path / "a" / "adapter_config.json"),
    str(tmp_path / "b" / "adapter_model.safetensors"),
    str(tmp_path / "b" / "adapter_config.json"),
  ]


def test_adapters_of_a_gguf_file_in_16_bits(tmp_path):
  stored = tiny_gguf.write_gguf(tmp_path / "a.gguf", "qwen2", "Q8_0")
  name = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
  rng = np.random.default_rng(2)
  a = rng.normal(size=(2, 96)).astype(np.float16)
  b = rng.normal(size=(64, 2)).astype(np.float16)
  pair = {name.format("A"): a, name.format("B"): b}
  write_adapter(tmp_path / "a", tmp_path / "a.gguf", pair)
  config = hf_checkpoint.read_config(tmp_path / "a")
  found = hf_checkpoint.load_params(tmp_path / "a", config)
  wanted = stored["blk.0.ffn_down.weight"]
  wanted = wanted + 4 * b.astype(np.float32) @ a.astype(np.float32)
  down = found["layers"]["mlp"]["down"]["w"]
  np.testing.assert_allclose(down[0], wanted.T, atol=1e-5)
  assert down.dtype == np.float32


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(peft_type="IA3"), "peft_type is 'IA3'"),
    (dict(bias="all"), "bias is 'all'"),
    (dict(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    (dict(use_rslora=True), "use_rslora is True, and it must be empty"),
    (dict(fan_in_fan_out=True), "fan_in_fan_out is True"),
    (dict(alpha_pattern={"q": 1}), "alpha_pattern is .*must be empty"),
    (dict(use_method_of_2030="x"), "use_method_of_2030 is 'x'"),
    (dict(base_model_name_or_path=None), "name_or_path is None: expected"),
    (dict(base_model_name_or_path=3), "name_or_path is 3: expected `str`"),
    (dict(base_model_name_or_path=""), "name_or_path is ''"),
    (dict(r=0), "r is 0: expected `int` >= 1"),
    (dict(lora_alpha=10**400), "lora_alpha is 1000.*: number out of range"),
    (dict(r="2"), "r is '2'"),
    (dict(r=10**12), "r is 1000000000000"),
    (dict(lora_alpha=None), "lora_alpha is None"),
    (dict(lora_alpha=float("nan")), "NaN is not JSON"),
  ],
)
def test_another_kind_of_adapter_is_refused(changes, words, llama, tmp_path):
  write_adapter(tmp_path / "a", llama[0], make_pair(), **changes)
  with pytest.raises(UserError, match=f"adapter_config.json: .*{words}"):
    hf_checkpoint.read_config(tmp_path / "a")


@pytest.mark.parametrize(
  "text, words",
  [
    (b"{", "Give a plain LoRA"),
    (b"[]", "expected `object`, got `array`"),
    (b"[" * 200_000, "nested too deeply"),
    (b"\xff\xfe{", "Give a plain LoRA"),
    (b" " * ((1 << 20) + 1), "more than 1,048,576 bytes"),
  ],
)
def test_a_broken_config_is_refused(text, words, tmp_path):
  (tmp_path / "adapter_config.json").write_bytes(text)
  with pytest.raises(UserError, match=f"adapter_config.json: .*{words}"):
    hf_checkpoint.read_config(tmp_path)


def test_a_base_that_is_not_there_is_named(llama, tmp_path):
  write_adapter(tmp_path / "a", tmp_path / "b", make_pair())
  with pytest.raises(
    FileNotFoundError, match="adapter_config.json: There is no folder .*/b.*Put"
  ):
    hf_checkpoint.read_config(tmp_path / "a")
  # Its own base.
  write_adapter(tmp_path / "b", tmp_path / "a", make_pair())
  with pytest.raises(UserError, match="more than 8 adapters are on top"):
    hf_checkpoint.read_config(tmp_path / "a")


def change_names(pair, old, new):
  return {name.replace(old, new): x for name, x in pair.items()}


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda p: change_names(p, "layers.1", "layers.7"), "adapts no layer"),
    (lambda p: change_names(p, "lora_A", "lora_magnitude"), "adapts no layer"),
    (
      lambda p: (
        p | {"base_model.model.model.norm.weight": p[Q_PROJ.format("A")]}
      ),
      "norm.weight adapts no layer",
    ),
    (lambda p: dict([next(iter(p.items()))]), "no pair of lora_A and lora_B"),
    (lambda p: make_pair(3), r"shapes \[\(3, 32\), \(32, 3\)\], wanted \[\(2,"),
    (lambda p: change_names(p, "q_proj", "k_proj"), r"wanted .*\(16, 2\)"),
    (
      lambda p: change_names(p, "self_attn.q_proj", "input_layernorm"),
      "wanted",
    ),
  ],
)
def test_an_adapter_that_does_not_fit_is_refused(
  change, words, llama, tmp_path
):
  write_adapter(tmp_path / "a", llama[0], change(make_pair()))
  with pytest.raises(
    BadWeights, match=f"adapter_model.safetensors: .*({words}).*is its base"
  ):
    hf_checkpoint.load_params(tmp_path / "a", LLAMA)


def test_numbers_that_are_not_finite_are_refused(llama, tmp_path):
  pair = make_pair()
  pair[Q_PROJ.format("B")][3, 1] = np.nan
  write_adapter(tmp_path / "a", llama[0], pair)
  with pytest.raises(BadWeights, match="lora_B.weight holds NaN"):
    hf_checkpoint.load_params(tmp_path / "a", LLAMA)
  write_adapter(tmp_path / "a", llama[0], make_pair(), lora_alpha=1e38)
  with pytest.raises(BadWeights, match="adapter_model.safetensors: .*infinity"):
    hf_checkpoint.load_params(tmp_path / "a", LLAMA)


def test_a_layer_without_an_adapter_in_peft_is_named(tmp_path):
  config = tiny_policy.MODEL_CONFIG
  params = add_random_adapters(tiny_policy.params(config), "vision/patch")
  chosen = lora.select_adapters(params)
  with pytest.raises(UserError, match="PEFT has no adapter of vision/patch"):
    adapter_files.save_adapters(tmp_path, chosen, config, "base")


def open_with_transformers(folder, config):
  import transformers

  kind = transformers.AutoModelForCausalLM
  if config.vision:
    kind = transformers.Qwen2_5_VLForConditionalGeneration
  return kind.from_pretrained(folder)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_peft_merges_ours_to_the_same_weights(name, tmp_path):
  peft = pytest.importorskip("peft")
  config, match = CASES[name]
  (tmp_path / "base").mkdir()
  params = add_random_adapters(save_base(tmp_path / "base", config), match)
  chosen = lora.select_adapters(params)
  base = str(tmp_path / "base")
  adapter_files.save_adapters(tmp_path / "a", chosen, config, base)
  model = open_with_transformers(base, config)
  # PEFT warns of layers that its file lacks.
  with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "a")
  merged = adapted.merge_and_unload()
  # Under the names of a checkpoint, ours are the same numbers.
  merged.save_pretrained(tmp_path / "merged")
  wanted = lora.merge_adapters(params)
  found = hf_checkpoint.load_params(tmp_path / "merged", config)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, wanted
  )


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_ours_merges_those_of_peft_to_the_same_weights(name, tmp_path):
  peft = pytest.importorskip("peft")
  import torch

  config, _ = CASES[name]
  (tmp_path / "base").mkdir()
  save_base(tmp_path / "base", config)
  modules = ["q_proj", "down_proj"] + ["qkv"] * (config.vision is not None)
  options = peft.LoraConfig(
    r=4, lora_alpha=10, target_modules=modules, task_type="CAUSAL_LM"
  )
  model = open_with_transformers(tmp_path / "base", config)
  adapted = peft.get_peft_model(model, options)
  torch.manual_seed(0)
  for parameter_name, parameter in adapted.named_parameters():
    if "lora_" in parameter_name:
      torch.nn.init.normal_(parameter)
  adapted.save_pretrained(tmp_path / "a")
  found = hf_checkpoint.load_params(tmp_path / "a", config)
  adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
  wanted = hf_checkpoint.load_params(tmp_path / "merged", config)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), found, wanted
  )
