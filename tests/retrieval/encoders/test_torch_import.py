"""Published PyTorch files become what embedders open."""

import dataclasses
import subprocess
import sys
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1router_jax.models import bert, clip, safetensors_io
from r1router_jax.retrieval.encoders import torch_import
from tests import handwritten_torch_file
from tests.models import test_bert, test_clip

BERT, CLIP = test_bert.TINY, test_clip.TINY

WIDER = dataclasses.replace(BERT, vocab=53, pool="pooler")


def tensors(table, axes, prefix="", seed=0):
  """Random tensors of a table by their published names."""
  rng = np.random.default_rng(seed)
  return {
    prefix + name: rng.normal(size=size).astype(np.float32)
    for name, size in sizes(table, axes).items()
  }


def sizes(table, axes):
  found = {}
  for name, leaf, pattern in table:
    if leaf:
      size = safetensors_io.shape(pattern, axes)
      found |= (
        {name.format(i): size[1:] for i in range(size[0])}
        if ("{}" in name)
        else {name: size}
      )
  return found


def convert(tmp_path, arrays, published, key="", dtype=np.float32):
  source = handwritten_torch_file.save(tmp_path / "w.bin", arrays, key)
  torch_import.convert(source, str(tmp_path / "to"), published, dtype)
  return str(tmp_path / "to")


def leaves_equal(found, wanted):
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_bert_with_what_is_not_used(tmp_path):
  table, axes = bert.hf_table(BERT), bert.hf_axes(BERT)
  arrays = tensors(table, axes)
  more = {
    "pooler.dense.weight": np.ones((12, 12), np.float32),
    "embeddings.position_ids": np.arange(24)[None],
  }
  folder = convert(
    tmp_path,
    {"roberta." + name: x for name, x in (arrays | more).items()},
    torch_import.Published(
      (torch_import.Part(table, axes, (("roberta.", ""),)),), "x/y"
    ),
  )
  written = load_file(f"{folder}/{safetensors_io.FILE}")
  assert written.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(written[name], array)
  embedding = bert.load(folder, BERT)["words"]["embedding"]
  np.testing.assert_array_equal(
    embedding, arrays["embeddings.word_embeddings.weight"]
  )


def test_a_clip_inside_a_checkpoint_of_training(tmp_path):
  axes = clip.axes(CLIP)
  arrays = tensors(clip.TABLE, axes)
  inside = {
    "clip_model." + name: x.astype(np.float16) for name, x in arrays.items()
  }
  inside["clip_model.logit_scale"] = np.array(4.6, np.float32)
  folder = convert(
    tmp_path,
    inside,
    torch_import.Published(
      (torch_import.Part(clip.TABLE, axes, (("clip_model.", ""),)),),
      "x/y",
      key="model",
    ),
    "model",
    ml_dtypes.bfloat16,
  )
  written = load_file(f"{folder}/{safetensors_io.FILE}")
  assert written.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(
      written[name], array.astype(np.float16).astype(ml_dtypes.bfloat16)
    )
  assert clip.load(folder, CLIP)["places"].shape == (10, 24)


@pytest.fixture
def pair():
  """Two encoders, as open_wikitable has."""
  return torch_import.Published(
    tuple(
      torch_import.Part(
        bert.hf_table(config),
        bert.hf_axes(config),
        ((other, None), (own, "")),
        own,
      )
      for config, own, other in (
        (BERT, "question_enc.", "table_enc."),
        (WIDER, "table_enc.", "question_enc."),
      )
    ),
    "x/y",
  )


def both(pair):
  return {
    name: x
    for i, part in enumerate(pair.parts)
    for name, x in tensors(part.table, part.axes, part.prefix, i).items()
  }


def test_two_encoders_in_one_file(tmp_path, pair):
  folder = convert(tmp_path, both(pair), pair)
  assert (
    load_file(f"{folder}/{safetensors_io.FILE}").keys() == both(pair).keys()
  )
  params = bert.load(
    folder, WIDER, [("question_enc.", None), ("table_enc.", "")]
  )
  np.testing.assert_array_equal(
    params["words"]["embedding"],
    both(pair)["table_enc.embeddings.word_embeddings.weight"],
  )


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda x: x.pop("table_enc.pooler.dense.bias"),
      "1 tensors missing.*pooler.dense.bias",
    ),
    (lambda x: x.update(head=np.ones(2, np.float32)), "1 unknown.*head"),
    (
      lambda x: x.update(
        {"table_enc.pooler.dense.bias": np.ones(5, np.float32)}
      ),
      r"has shape \(5,\), wanted \(12,\)",
    ),
    (
      lambda x: x.update({"table_enc.pooler.dense.bias": np.arange(12)}),
      "holds I64",
    ),
    (
      lambda x: x.update(
        {"table_enc.pooler.dense.bias": np.full(12, np.inf, np.float32)}
      ),
      "holds NaN or infinity",
    ),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, pair, change, words):
  arrays = both(pair)
  change(arrays)
  with pytest.raises(safetensors_io.BadWeights, match=words):
    convert(tmp_path, arrays, pair)
  assert not list((tmp_path / "to").glob("*"))


def test_nothing_is_written_over(tmp_path, pair):
  convert(tmp_path, both(pair), pair)
  with pytest.raises(FileExistsError, match="Name a new folder"):
    convert(tmp_path, both(pair), pair)


def test_a_large_file_needs_little_memory(tmp_path):
  axes = dict(L=40, D=512, F=512)
  table = (("layers.{}.w", "layers/w", "L F D -> L D F"),)
  source = handwritten_torch_file.save(tmp_path / "w.bin", tensors(table, axes))
  tracemalloc.start()
  torch_import.convert(
    source,
    str(tmp_path / "to"),
    torch_import.Published((torch_import.Part(table, axes, ()),), "x/y"),
    np.float32,
  )
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  one = 512 * 512 * 4
  assert (tmp_path / "to" / safetensors_io.FILE).stat().st_size > 40 * one
  assert peak < 4 * one


# Table, axes and prefixes with which `embedders` loads each.
LOADED = {
  "clip_sf": [(clip.TABLE, clip.axes(clip.VIT_L_14), [("clip_model.", "")])],
  "bge_m3": [(bert.hf_table(bert.BGE_M3), bert.hf_axes(bert.BGE_M3), [])],
  "open_wikitable": [
    (
      bert.hf_table(bert.QUESTION),
      bert.hf_axes(bert.QUESTION),
      [("table_enc.", None), ("question_enc.", "")],
    ),
    (
      bert.hf_table(bert.TABLE),
      bert.hf_axes(bert.TABLE),
      [("question_enc.", None), ("table_enc.", "")],
    ),
  ],
}


@pytest.mark.parametrize("name", torch_import.ENCODERS)
def test_what_is_published_fits_the_embedders(name, monkeypatch):
  """Names and sizes alone: the numbers are gigabytes."""
  old, key = ("clip_model.", "model") if name == "clip_sf" else ("", "")
  stored, written, asked = {}, {}, []
  for part in torch_import.ENCODERS[name].parts:
    for inner, size in sizes(part.table, part.axes).items():
      full = old + part.prefix + inner
      stored[full] = safetensors_io.Tensor(
        "w.bin", full, size, "F32", lambda: None
      )
  monkeypatch.setattr(
    torch_import.torch_files,
    "tensors",
    lambda path, key: asked.append(key) or stored,
  )
  monkeypatch.setattr(
    torch_import.hf, "write", lambda folder, found, **_: written.update(found)
  )
  torch_import.convert(
    "w.bin", "nowhere", torch_import.ENCODERS[name], np.float32
  )
  assert asked == [key]
  there = [dataclasses.replace(x, name=n) for n, x in written.items()]
  assert len(written) == sum(
    len(
      safetensors_io.chosen(
        "w", safetensors_io.named(there, rename), table, axes
      )
    )
    for table, axes, rename in LOADED[name]
  )


def test_the_command(tmp_path):
  source = handwritten_torch_file.save(
    tmp_path / "w.bin", {"w": np.ones(2, np.float32)}, "model"
  )
  for flags, words in (
    (["--encoder=clip_sf"], "tensors missing"),
    (["--encoder=bge_m3"], "tensors missing"),
    (["--encoder=minilm"], "should be one of"),
  ):
    done = subprocess.run(
      [
        sys.executable,
        "-m",
        "r1router_jax.convert",
        f"--source={source}",
        f"--to={tmp_path / 'to'}",
        *flags,
      ],
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr
