"""Convert published encoders that come as PyTorch files to safetensors.

The written folder holds model.safetensors, under the published names, which is
what `registry` opens.  Every tensor is checked against the encoder's rules.
The authors' files hold more than weights, and none of it is run; see
`models.torch_checkpoint`.

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
class EncoderPart:
  """One model of a published file.

  Attributes:
    weight_map: the model's weight rules.
    axes: size of each letter in the rules' patterns.
    prefixes: (prefix, new prefix) pairs; see `safetensors_io.load_params`.
    written_prefix: prefix of the names that are written.
  """

  weight_map: safetensors_io.WeightMap
  axes: Mapping[str, int]
  prefixes: tuple[tuple[str, str | None], ...]
  written_prefix: str = ""


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
  """A published file.

  Attributes:
    parts: the models that the file holds.
    tokenizer: id on the hub of the model whose tokenizer.json is needed.
    key: name of the entry that holds the weights; "" if the file is the weights
      alone.
  """

  parts: tuple[EncoderPart, ...]
  tokenizer: str
  key: str = ""


def _bert_part(
  config: bert.BertConfig,
  prefixes: tuple[tuple[str, str | None], ...],
  written_prefix: str = "",
) -> EncoderPart:
  return EncoderPart(
    bert.weight_map(config), bert.axis_sizes(config), prefixes, written_prefix
  )


# UniIR keeps its CLIP under a prefix, beside the state of its training.
_CLIP_PART = EncoderPart(
  clip.WEIGHT_MAP, clip.axis_sizes(clip.VIT_L_14), (("clip_model.", ""),)
)

# One file holds both encoders; each part skips the other's tensors.
_WIKITABLE_PARTS = (
  _bert_part(
    bert.WIKITABLE_QUESTION,
    (("table_enc.", None), ("question_enc.", "")),
    "question_enc.",
  ),
  _bert_part(
    bert.WIKITABLE_TABLE,
    (("question_enc.", None), ("table_enc.", "")),
    "table_enc.",
  ),
)

# By the names of `registry.EMBEDDERS`.
ENCODERS = {
  "clip_sf": EncoderSpec(
    (_CLIP_PART,), "openai/clip-vit-large-patch14", key="model"
  ),
  "bge_m3": EncoderSpec(
    (_bert_part(bert.BGE_M3, (("roberta.", ""),)),), "BAAI/bge-m3"
  ),
  "open_wikitable": EncoderSpec(
    _WIKITABLE_PARTS, "google-bert/bert-large-uncased"
  ),
}


def convert_encoder(
  source: str, target: str, spec: EncoderSpec, dtype: Any
) -> None:
  """Write the encoder of a PyTorch file to a folder.

  Args:
    source: a .bin or .pth file.
    target: the folder to write.
    spec: the models that the file holds.
    dtype: precision of the written weights.

  Raises:
    FileExistsError: the folder holds weights already.
    UserError: PyTorch is missing.
    BadWeights: a tensor is missing, unknown, damaged, of another shape or not
      finite.
  """
  if os.path.exists(os.path.join(target, safetensors_io.WEIGHTS_FILE)):
    raise FileExistsError(
      f"{target} holds {safetensors_io.WEIGHTS_FILE}.  Name a new folder."
    )
  # Nothing but names and shapes is read on opening.
  with torch_checkpoint.open_tensors(source, spec.key) as stored:
    converted = {}
    # Check each model, and cast its tensors as they are written.
    for part in spec.parts:
      renamed = safetensors_io.rename_tensors(stored.values(), part.prefixes)
      selected = safetensors_io.select_tensors(
        source, renamed, part.weight_map, part.axes
      )
      converted |= {
        part.written_prefix + name: tensor.cast_to(dtype)
        for name, tensor in selected.items()
      }
    # `registry` opens a single file, so the weights must not be split.
    size = sum(tensor.num_bytes for tensor in converted.values())
    safetensors_io.write_checkpoint(target, converted, shard_bytes=size)
