"""Published encoders that come as PyTorch files, brought to safetensors.

What is written is what `embedders` opens: model.safetensors, under the
published names.  Every tensor is checked against the encoder's table.  The
authors' files hold more than weights, and nothing of it is run; see
`models/torch_files.py`.

Sources: huggingface.co/TIGER-Lab/UniIR (checkpoint/CLIP_SF/clip_sf_large.pth),
huggingface.co/BAAI/bge-m3 (pytorch_model.bin),
huggingface.co/hmhm1229/table-retriever (model/pytorch_model.bin).
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from r1router_jax.models import bert, clip, safetensors_io, torch_checkpoint


@dataclasses.dataclass(frozen=True)
class Part:
  """A model in a file.

  Attributes:
    table: its table.
    axes: the size of each letter in the table.
    rename: (prefix, new prefix) pairs, see `hf.load`.
    prefix: of the names that are written.
  """

  table: safetensors_io.Table
  axes: Mapping[str, int]
  rename: tuple[tuple[str, str | None], ...]
  prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Published:
  """An encoder as its authors publish it.

  Attributes:
    parts: its models.
    tokenizer: whose tokenizer.json it needs.
    key: of the entry that holds the weights, "" where they are the file.
  """

  parts: tuple[Part, ...]
  tokenizer: str
  key: str = ""


def _bert(
  config: bert.BertConfig,
  rename: tuple[tuple[str, str | None], ...],
  prefix: str = "",
) -> Part:
  return Part(bert.hf_table(config), bert.hf_axes(config), rename, prefix)


ENCODERS = {
  "clip_sf": Published(
    (Part(clip.TABLE, clip.axes(clip.VIT_L_14), (("clip_model.", ""),)),),
    "openai/clip-vit-large-patch14",
    key="model",
  ),
  "bge_m3": Published(
    (_bert(bert.BGE_M3, (("roberta.", ""),)),), "BAAI/bge-m3"
  ),
  "open_wikitable": Published(
    (
      _bert(
        bert.QUESTION,
        (("table_enc.", None), ("question_enc.", "")),
        "question_enc.",
      ),
      _bert(
        bert.TABLE, (("question_enc.", None), ("table_enc.", "")), "table_enc."
      ),
    ),
    "google-bert/bert-large-uncased",
  ),
}


def convert(source: str, target: str, published: Published, dtype: Any) -> None:
  """Writes the encoder of the PyTorch file `source` to the folder `target`.

  Args:
    source: a .bin or .pth file.
    target: a folder.
    published: what the file holds.
    dtype: precision of what is written.

  Raises:
    FileExistsError: where the folder holds weights.
    hf.BadWeights: where a tensor is missing, unknown, damaged, of another shape
      or not finite.
  """
  if os.path.exists(os.path.join(target, safetensors_io.FILE)):
    raise FileExistsError(
      f"{target} holds {safetensors_io.FILE}.  Name a new folder."
    )
  stored = torch_checkpoint.tensors(source, published.key).values()
  found = {}
  for part in published.parts:
    own = safetensors_io.chosen(
      source, safetensors_io.named(stored, part.rename), part.table, part.axes
    )
    found |= {
      part.prefix + name: tensor.cast(dtype) for name, tensor in own.items()
    }
  # Embedders open one file, however large.
  safetensors_io.write(
    target, found, shard_bytes=sum(x.bytes for x in found.values())
  )
