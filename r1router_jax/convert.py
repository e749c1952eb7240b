r"""A checkpoint from one place or form to another, streamed tensor by tensor.

  python -m r1router_jax.convert --source=Qwen/Qwen2.5-VL-3B-Instruct \
      --to=policies/3b --dtype=bfloat16

The source is a folder in Hugging Face's form, a model's id on the hub, or a
policy of ours, which is in that form, too; so is what is written.  Along the
way names are brought to those on the hub, precision is changed, shards are cut
anew, and every tensor is checked: one that is missing, unknown, of another
shape or not finite stops the command with its name.
"""

import pathlib

import jax.numpy as jnp
from absl import flags

from r1router_jax import commands, policy

_SOURCE = flags.DEFINE_string(
    "source", None, "A folder, or an id on the hub: owner/model.")
_TO = flags.DEFINE_string("to", None, "The folder to write.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "bfloat16", "float16"],
    "Precision of the weights that are written.")


def main(_) -> None:
  target = pathlib.Path(_TO.value)
  if (target / "config.json").exists():
    raise FileExistsError(f"--to={target} holds a model.  Name a new folder.")
  policy.convert(_SOURCE.value, target, jnp.dtype(_DTYPE.value))
  print(f"The model is in {target}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["source", "to"])
  commands.run(main)
