"""Tiny encoders, and random weights under their published names."""

import numpy as np

from r1router_jax.models import bert, clip, safetensors_io

BERT = bert.BertConfig(
  vocab=50,
  layers=2,
  hidden=12,
  heads=3,
  mlp=20,
  max_positions=24,
  num_segments=2,
)

CLIP = clip.ClipConfig(
  image=clip.TowerConfig(24, 3, 3),
  text=clip.TowerConfig(16, 2, 4),
  image_size=12,
  patch_size=4,
  vocab=40,
  max_tokens=7,
  width=10,
)


def random_tensors(weight_map, axes, prefix="", seed=0):
  """Return random tensors for weight rules by their published names."""
  rng = np.random.default_rng(seed)
  return {
    prefix + name: rng.normal(size=shape).astype(np.float32)
    for name, shape in tensor_shapes(weight_map, axes).items()
  }


def tensor_shapes(weight_map, axes):
  """Return the shapes of all tensors by their published names."""
  shapes = {}
  for name, leaf, pattern in weight_map:
    if leaf:
      shape = safetensors_io.tensor_shape(pattern, axes)
      if "{}" in name:  # The first axis is that of the layers.
        shapes |= {name.format(i): shape[1:] for i in range(shape[0])}
      else:
        shapes[name] = shape
  return shapes


def write_tensors(folder, arrays):
  """Write float32 arrays by name as a checkpoint."""
  tensors = {
    name: safetensors_io.StoredTensor("", name, x.shape, "F32", lambda x=x: x)
    for name, x in arrays.items()
  }
  safetensors_io.write_checkpoint(str(folder), tensors)
