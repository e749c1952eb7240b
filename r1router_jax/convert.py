r"""A checkpoint from one place or form to another, streamed tensor by tensor.

  python -m r1router_jax.convert --source=Qwen/Qwen2.5-VL-3B-Instruct \
      --to=policies/3b --dtype=bfloat16
  python -m r1router_jax.convert --source=clip_sf_large.pth \
      --encoder=clip_sf --to=encoders/clip_sf

A policy's source is a folder in Hugging Face's form, a model's id on the hub,
or a policy of ours, which is in that form, too; so is what is written.  With
--encoder, the source is the PyTorch file of a published encoder, and what is
written is for build_kb, as --weights; nothing in such a file is run.  Along the
way names are brought to those on the hub, precision is changed, shards are cut
anew, and every tensor is checked: one that is missing, unknown, of another
shape or not finite stops the command with its name.
"""

import pathlib

import jax.numpy as jnp
from absl import flags

from r1router_jax.common import cli
from r1router_jax.policy import policy
from r1router_jax.retrieval.encoders import torch_import

_SOURCE = flags.DEFINE_string(
  "source",
  None,
  "A folder, an id on the hub: owner/model, or, with "
  "--encoder, a .bin or .pth file.",
)

_TO = flags.DEFINE_string("to", None, "The folder to write.")

_ENCODER = flags.DEFINE_enum(
  "encoder",
  None,
  list(torch_import.ENCODERS),
  "The encoder of a knowledge base that --source holds; by default it holds "
  "a policy.",
)

_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16"],
  "Precision of the weights that are written; by default bfloat16 for a "
  "policy, float32 for an encoder.",
)


def main(_) -> None:
  target = pathlib.Path(_TO.value)
  if _ENCODER.value:
    encoder = torch_import.ENCODERS[_ENCODER.value]
    torch_import.convert(
      _SOURCE.value, _TO.value, encoder, jnp.dtype(_DTYPE.value or "float32")
    )
    print(
      f"The encoder is in {target}.  Put the tokenizer.json of "
      f"{encoder.tokenizer} beside it."
    )
    return
  if (target / "config.json").exists():
    raise FileExistsError(f"--to={target} holds a model.  Name a new folder.")
  policy.convert(_SOURCE.value, target, jnp.dtype(_DTYPE.value or "bfloat16"))
  print(f"The model is in {target}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["source", "to"])
  cli.run(main)
