"""Convert published encoders that come as PyTorch files to safetensors.

The written folder holds model.safetensors, under the published names, which is
what `registry` opens.  Every tensor is checked against the encoder's rules.
The authors' files hold more than weights, and none of it is run; see
`models.torch_checkpoint`.

Sources: huggingface.co/TIGER-Lab/UniIR (checkpoint/CLIP_SF/clip_sf_large.pth),
huggingface.co/BAAI/bge-m3 (pytorch_model.bin),
huggingface.co/hmhm1229/table-retriever (model/pytorch_model.bin),
huggingface.co/facebook/contriever (pytorch_model.bin).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from r1router_jax.models import bert, clip, safetensors_io, torch_checkpoint


class EncoderPart(NamedTuple):
  """One model of a published file."""

  weight_map: safetensors_io.WeightMap
  axes: Mapping[str, int]  # Size of each letter in the rules' patterns.
  prefixes: safetensors_io.Prefixes  # See `safetensors_io.load_params`.
  written_prefix: str = ""


class EncoderSpec(NamedTuple):
  """A published file."""

  parts: tuple[EncoderPart, ...]
  tokenizer: str  # On the hub, the model whose `files` are needed.
  key: str = ""  # The entry that holds the weights; "" if the file is these.
  files: str = "tokenizer.json"


def _bert_part(
  config: bert.BertConfig, prefixes: safetensors_io.Prefixes, written: str = ""
) -> EncoderPart:
  rules, axes = bert.weight_map(config), bert.axis_sizes(config)
  return EncoderPart(rules, axes, prefixes, written)


# UniIR keeps its CLIP under a prefix, beside the state of its training.
_CLIP_PART = EncoderPart(
  clip.WEIGHT_MAP, clip.axis_sizes(clip.VIT_L_14), (("clip_model.", ""),)
)

# One file holds both encoders; each part skips the other's tensors.
_QUESTION, _TABLE = "question_enc.", "table_enc."
_WIKITABLE_PARTS = (
  _bert_part(
    bert.WIKITABLE_QUESTION, ((_TABLE, None), (_QUESTION, "")), _QUESTION
  ),
  _bert_part(bert.WIKITABLE_TABLE, ((_QUESTION, None), (_TABLE, "")), _TABLE),
)
_BGE_M3_PART = _bert_part(bert.BGE_M3, (("roberta.", ""),))
_CONTRIEVER_PART = _bert_part(bert.CONTRIEVER, ())

# By the names of `registry.EMBEDDERS`.
ENCODERS = {
  "clip_sf": EncoderSpec(
    (_CLIP_PART,), "openai/clip-vit-large-patch14", key="model"
  ),
  "bge_m3": EncoderSpec((_BGE_M3_PART,), "BAAI/bge-m3"),
  "open_wikitable": EncoderSpec(
    _WIKITABLE_PARTS, "google-bert/bert-large-uncased"
  ),
  "contriever": EncoderSpec(
    (_CONTRIEVER_PART,),
    "facebook/contriever",
    files="config.json and tokenizer.json",
  ),
}


def convert_encoder(
  source: str, target: str, spec: EncoderSpec, dtype: Any
) -> None:
  """Write the encoder of a PyTorch file to a folder, in precision `dtype`.

  Raises:
    UserError: PyTorch is missing.
    BadWeights: a tensor is missing, unknown, damaged, of another shape or not
      finite.
  """
  # Nothing but names and shapes is read on opening.
  with torch_checkpoint.open_tensors(source, spec.key) as stored:
    converted = {}
    # Check each model, and cast its tensors as they are written.
    for rules, axes, prefixes, written in spec.parts:
      renamed = safetensors_io.rename_tensors(stored.values(), prefixes)
      selected = safetensors_io.select_tensors(source, renamed, rules, axes)
      for name, tensor in selected.items():
        converted[written + name] = tensor.cast_to(dtype)
    # `registry` opens a single file, so the weights must not be split.
    size = sum(tensor.num_bytes for tensor in converted.values())
    safetensors_io.write_checkpoint(target, converted, shard_bytes=size)
