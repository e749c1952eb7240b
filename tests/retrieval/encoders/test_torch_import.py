"""Tests of the conversion of published PyTorch files to safetensors."""

import contextlib
import dataclasses
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1router_jax.models import bert, clip, safetensors_io
from r1router_jax.retrieval.encoders import torch_import
from tests.tiny_encoders import BERT, CLIP, random_tensors, tensor_shapes

# Another encoder, so that an exchange of the two would show.
LARGER_BERT = dataclasses.replace(BERT, vocab=53, pooling="pooler")


def as_stored(arrays):
  """Return arrays as the tensors of a file by name, not read yet."""
  keys = {"float32": "F32", "float16": "F16", "int64": "I64"}
  tensors = {}
  for name, x in arrays.items():
    stored = name, x.shape, keys[x.dtype.name], lambda x=x: x
    tensors[name] = safetensors_io.StoredTensor("w.bin", *stored)
  return tensors


def read_written(folder):
  return load_file(f"{folder}/{safetensors_io.WEIGHTS_FILE}")


@pytest.fixture
def convert_arrays(tmp_path, monkeypatch):
  """Return a function that converts arrays as if a PyTorch file held them."""

  def convert(arrays, spec, dtype=np.float32):
    opened = contextlib.nullcontext(as_stored(arrays))
    module = torch_import.torch_checkpoint
    monkeypatch.setattr(module, "open_tensors", lambda path, key: opened)
    torch_import.convert_encoder("w.bin", str(tmp_path / "to"), spec, dtype)
    return str(tmp_path / "to")

  return convert


def test_bert_with_unused_tensors_is_converted(convert_arrays):
  rules, axes = bert.weight_map(BERT), bert.axis_sizes(BERT)
  arrays = random_tensors(rules, axes)
  # Tensors that published files hold and that are skipped.
  more = {
    "pooler.dense.weight": np.ones((12, 12), np.float32),
    "embeddings.position_ids": np.arange(24)[None],
  }
  part = torch_import.EncoderPart(rules, axes, (("roberta.", ""),))
  inside = {f"roberta.{name}": x for name, x in (arrays | more).items()}
  folder = convert_arrays(inside, torch_import.EncoderSpec((part,), "x/y"))
  written = read_written(folder)
  assert written.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(written[name], array)
  embedding = bert.load_params(folder, BERT)["words"]["embedding"]
  wanted = arrays["embeddings.word_embeddings.weight"]
  np.testing.assert_array_equal(embedding, wanted)


@pytest.mark.oracle
def test_clip_inside_a_training_checkpoint_is_converted(tmp_path):
  torch = pytest.importorskip("torch")
  axes = clip.axis_sizes(CLIP)
  arrays = random_tensors(clip.WEIGHT_MAP, axes)
  halves = {name: x.astype(np.float16) for name, x in arrays.items()}
  # A scalar that is skipped, in another precision.
  inside = halves | {"logit_scale": np.array(4.6, np.float32)}
  part = torch_import.EncoderPart(clip.WEIGHT_MAP, axes, (("clip_model.", ""),))
  tensors = {f"clip_model.{n}": torch.from_numpy(x) for n, x in inside.items()}
  source, folder = str(tmp_path / "w.pth"), str(tmp_path / "to")
  torch.save({"model": tensors, "epoch": 3}, source)
  spec = torch_import.EncoderSpec((part,), "x/y", key="model")
  torch_import.convert_encoder(source, folder, spec, ml_dtypes.bfloat16)
  written = read_written(folder)
  assert written.keys() == arrays.keys()
  for name, half in halves.items():
    wanted = half.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(written[name], wanted)
  assert clip.load_params(folder, CLIP)["image_positions"].shape == (10, 24)


@pytest.fixture
def two_encoders():
  """Return the spec of a file with two encoders, as Open-WikiTable's."""
  parts = []
  for config, own, other in (
    (BERT, "question_enc.", "table_enc."),
    (LARGER_BERT, "table_enc.", "question_enc."),
  ):
    rules, axes = bert.weight_map(config), bert.axis_sizes(config)
    prefixes = ((other, None), (own, ""))
    # Each part skips the tensors of the other.
    parts.append(torch_import.EncoderPart(rules, axes, prefixes, own))
  return torch_import.EncoderSpec(tuple(parts), "x/y")


def arrays_of(spec):
  """Return random tensors of all parts of a file, by their names in it."""
  arrays = {}
  for i, part in enumerate(spec.parts):
    named = part.weight_map, part.axes, part.written_prefix
    arrays |= random_tensors(*named, i)
  return arrays


def test_two_encoders_in_one_file_are_converted(convert_arrays, two_encoders):
  arrays = arrays_of(two_encoders)
  folder = convert_arrays(arrays, two_encoders)
  assert read_written(folder).keys() == arrays.keys()
  prefixes = [("question_enc.", None), ("table_enc.", "")]
  words = bert.load_params(folder, LARGER_BERT, prefixes)["words"]
  wanted = arrays["table_enc.embeddings.word_embeddings.weight"]
  np.testing.assert_array_equal(words["embedding"], wanted)


BIAS = "table_enc.pooler.dense.bias"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    # None stands for a missing tensor.
    ({BIAS: None}, "1 tensors missing.*pooler.dense.bias"),
    ({"head": np.ones(2, np.float32)}, "1 unknown.*head"),
    ({BIAS: np.ones(5, np.float32)}, r"has shape \(5,\), wanted \(12,\)"),
    ({BIAS: np.arange(12)}, "holds I64"),
    ({BIAS: np.full(12, np.inf, np.float32)}, "holds NaN or infinity"),
  ],
)
def test_unfit_tensor_is_refused(
  tmp_path, convert_arrays, two_encoders, change, words
):
  arrays = arrays_of(two_encoders) | change
  arrays = {name: x for name, x in arrays.items() if x is not None}
  with pytest.raises(safetensors_io.BadWeights, match=words):
    convert_arrays(arrays, two_encoders)
  # Nothing is left behind.
  assert not list((tmp_path / "to").glob("*"))


@pytest.mark.oracle
def test_large_file_needs_little_memory(tmp_path):
  torch = pytest.importorskip("torch")
  axes = dict(L=40, D=512, F=512)
  rules = (("layers.{}.w", "layers/w", "L F D -> L D F"),)
  arrays = random_tensors(rules, axes)
  source = str(tmp_path / "w.bin")
  torch.save({name: torch.from_numpy(x) for name, x in arrays.items()}, source)
  part, folder = torch_import.EncoderPart(rules, axes, ()), str(tmp_path / "to")
  spec = torch_import.EncoderSpec((part,), "")
  tracemalloc.start()
  torch_import.convert_encoder(source, folder, spec, np.float32)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # Bytes of one tensor; the file holds forty.
  one = 512 * 512 * 4
  written = tmp_path / "to" / safetensors_io.WEIGHTS_FILE
  assert written.stat().st_size > 40 * one
  assert peak < 4 * one


# Weight rules, axes and prefixes with which `registry` loads each encoder.
LOADED = {
  "clip_sf": [
    (clip.WEIGHT_MAP, clip.axis_sizes(clip.VIT_L_14), [("clip_model.", "")])
  ],
  "bge_m3": [(bert.weight_map(bert.BGE_M3), bert.axis_sizes(bert.BGE_M3), [])],
  "contriever": [
    (bert.weight_map(bert.CONTRIEVER), bert.axis_sizes(bert.CONTRIEVER), [])
  ],
  "open_wikitable": [
    (
      *(bert.weight_map(config), bert.axis_sizes(config)),
      [(other, None), (own, "")],
    )
    for config, own, other in (
      (bert.WIKITABLE_QUESTION, "question_enc.", "table_enc."),
      (bert.WIKITABLE_TABLE, "table_enc.", "question_enc."),
    )
  ],
}


@pytest.mark.parametrize("name", torch_import.ENCODERS)
def test_published_encoder_fits_its_embedder(name, monkeypatch):
  """Only names and shapes are compared: the numbers are gigabytes."""
  old, key = ("clip_model.", "model") if name == "clip_sf" else ("", "")
  stored, written, keys = {}, {}, []
  for part in torch_import.ENCODERS[name].parts:
    # The file as the authors publish it, without numbers.
    for inner, size in tensor_shapes(part.weight_map, part.axes).items():
      full = old + part.written_prefix + inner
      tensor = "w.bin", full, size, "F32", lambda: None
      stored[full] = safetensors_io.StoredTensor(*tensor)

  def open_tensors(path, key):
    keys.append(key)
    return contextlib.nullcontext(stored)

  def write_checkpoint(folder, found, **_):
    written.update(found)

  checkpoint = torch_import.torch_checkpoint
  monkeypatch.setattr(checkpoint, "open_tensors", open_tensors)
  monkeypatch.setattr(safetensors_io, "write_checkpoint", write_checkpoint)
  spec = torch_import.ENCODERS[name]
  torch_import.convert_encoder("w.bin", "nowhere", spec, np.float32)
  assert keys == [key]
  # What was written is what `registry` loads, no more and no less.
  there = [dataclasses.replace(x, name=n) for n, x in written.items()]
  loaded = 0
  for rules, axes, prefixes in LOADED[name]:
    renamed = safetensors_io.rename_tensors(there, prefixes)
    loaded += len(safetensors_io.select_tensors("w", renamed, rules, axes))
  assert loaded == len(written)
