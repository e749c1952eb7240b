"""Read and write what stands beside the weights in a policy's folder.

`config.json` is the published form of the model's sizes, see
`models/hf_checkpoint.py`.  `policy.json`, which a published checkpoint does not
have, holds the rest: how prompts are worded, to which lengths they are padded,
how the model is run.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from r1router_jax.common import images, schema
from r1router_jax.common.checkpoint_folder import is_gguf, locate_checkpoint
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Step
from r1router_jax.inputs import gguf_tokenizer
from r1router_jax.models import hf_checkpoint, peft_adapter, qwen2_5_vl
from r1router_jax.protocol import messages, prompts, templates

# Options that only this package knows.
POLICY_FILE = "policy.json"

# In the format of the tokenizers library.
TOKENIZER_FILE = "tokenizer.json"

# Further files of a checkpoint, for those who open it with transformers.
HF_SIDE_FILES = tuple(
  """tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json
  merges.txt chat_template.json chat_template.jinja generation_config.json
  processor_config.json preprocessor_config.json video_preprocessor_config.json
  """.split()
)

# Options that R1-Router lacks; with their defaults all is as in the original.
EXTENSIONS = ("max_routes", "passage_images", "passage_tokens")
EXTENSIONS += ("image_marker", "labels_cells", "searches_elsewhere")

# Keys that a policy.json of older versions has, with their names today.
OLD_KEYS = {
  "batch_rows": "decode_batch_size",
  "routes": "max_routes",
  "passage_pictures": "passage_images",
}

# What no option of any policy exceeds: a larger one would take all memory.
_MAX_PASSAGES, _MAX_TOKENS, _MAX_PIXELS = 1000, 1 << 17, 1 << 26

_Lengths = Annotated[
  tuple[schema.int_range(1, _MAX_TOKENS), ...],
  msgspec.Meta(min_length=1, max_length=64),
]
_Pixels = schema.int_range(1, _MAX_PIXELS)
_Means = tuple[(schema.NotNegative,) * 3]
_Deviations = tuple[(schema.Positive,) * 3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptOptions:
  """Options of prompts, of a policy in this process or at an address."""

  style: schema.one_of(*templates.STYLES) = "full"  # Wording of the prompts.
  # That one plan may name; R1-Router's name one.
  max_routes: schema.int_range(1, len(KBS)) = 1
  # Passages whose image an answer prompt shows.
  passage_images: schema.int_range(0, _MAX_PASSAGES) = 0
  # For a policy that reads texts alone, what its prompts have in the place of
  # an image; "" for one that sees, or that is asked no question with an image.
  image_marker: str = ""
  labels_cells: bool = False  # Whether tables name the column before a cell.
  # Whether a plan that repeats a search goes to another knowledge base instead.
  searches_elsewhere: bool = False
  # Of each knowledge base that it reads, if a run says none.
  passages: schema.int_range(1, _MAX_PASSAGES) = 1

  def build_prompt(self, step: Step) -> messages.Conversation:
    """Return the prompt of a step, as this policy is asked."""
    return self.mark_images(
      prompts.step_conversation(
        step,
        style=self.style,
        max_routes=self.max_routes,
        passage_images=self.passage_images,
        labels_cells=self.labels_cells,
      )
    )

  def mark_images(self, prompt: messages.Conversation) -> messages.Conversation:
    """Return a prompt with the marker, if there is one, for its images."""
    marker = self.image_marker
    return prompt.replace_images(marker) if marker else prompt

  def enabled_extensions(self) -> dict[str, Any]:
    """Return the options of `EXTENSIONS` that differ from their defaults."""
    # A `PromptOptions` has only some of the extensions.
    options = [f for f in dataclasses.fields(self) if f.name in EXTENSIONS]
    values = {f: getattr(self, f.name) for f in options}
    return {f.name: x for f, x in values.items() if x != f.default}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(PromptOptions):
  """The contents of `config.json` and `policy.json`.

  Options that contradict each other raise UserError; `from_dict` checks ranges,
  too.
  """

  model: qwen2_5_vl.Config
  prompt_tokens: _Lengths  # Padded lengths, ascending.
  # Padded lengths of gold responses, ascending; no longer one is sampled.
  response_tokens: _Lengths
  min_pixels: _Pixels  # Smaller images are enlarged to this area,
  max_pixels: _Pixels  # and larger ones shrunk to this one.
  # Responses decoded at one time on one device.
  decode_batch_size: schema.int_range(1, 1 << 14)
  image_mean: _Means = images.CLIP_MEAN  # Of RGB, in [0, 1].
  image_std: _Deviations = images.CLIP_STD
  end_ids: tuple[int, ...] = ()  # That end a response, beside <|im_end|>.
  compute: qwen2_5_vl.RuntimeConfig = qwen2_5_vl.RuntimeConfig()
  passage_tokens: messages.PassageTokens = messages.PassageTokens()
  # Whether responses that it learns have a space after each opening tag.
  spaces_tags: bool = False

  def __post_init__(self):
    for name in ("prompt_tokens", "response_tokens"):
      lengths = getattr(self, name)
      if any(a >= b for a, b in itertools.pairwise(lengths)):
        raise UserError(f"{name} is {lengths}: wanted ascending lengths.")
    if self.min_pixels > self.max_pixels:
      raise UserError(
        f"min_pixels is {self.min_pixels}, above max_pixels, {self.max_pixels}."
      )
    if self.passage_images and self.model.vision is None:
      raise UserError(
        f"passage_images is {self.passage_images}, but this policy reads texts "
        "alone: set it to 0, or take one with a vision tower."
      )
    if self.image_marker and self.model.vision is not None:
      raise UserError(
        f"image_marker is {self.image_marker!r}, but this policy sees images: "
        "set it to '', or take a policy that reads texts alone."
      )

  def response_length(self, tokens: int) -> int:
    """Return the padded length of a gold response of `tokens` tokens."""
    # Longer responses are cut to the last length.
    longest = self.response_tokens[-1]
    return next((n for n in self.response_tokens if n >= tokens), longest)

  @classmethod
  def from_dict(cls, tree: Mapping[str, Any]) -> "PolicyConfig":
    """Build a config from plain dicts, as `dataclasses.asdict` makes them.

    The model may be the name of a published size, a key of `qwen2_5_vl.SIZES`.
    Another name, an unknown option, one of another type or out of its range
    raises UserError.
    """
    # The copy may be changed.
    tree = _rename_old_keys(tree)
    if isinstance(name := tree["model"], str):
      if name not in qwen2_5_vl.SIZES:
        known = ", ".join(qwen2_5_vl.SIZES)
        raise UserError(
          f"config.policy.overrides.model is {name!r}: take one of {known}."
        )
      tree["model"] = qwen2_5_vl.SIZES[name]
    config = schema.convert(tree, cls)
    _check_names(tree, config)
    return config


# For a Hugging Face checkpoint without policy.json: the R1-Router paper's.
HF_DEFAULTS = dict(
  style="full",
  prompt_tokens=(1024, 2048, 4096, 8192),
  response_tokens=(1024,),
  min_pixels=3136,
  max_pixels=1_003_520,
  decode_batch_size=8,
  compute=dict(dtype="bfloat16"),
)

# For a GGUF file: a small model of texts, for a CPU.
GGUF_DEFAULTS = HF_DEFAULTS | dict(
  style="compact",
  # Each length costs seconds of tracing in every process.
  prompt_tokens=(96, 192, 384, 768),
  response_tokens=(32, 64, 96),
  decode_batch_size=64,
  compute=dict(dtype="float32"),
  image_marker="[picture]",
  labels_cells=True,
  searches_elsewhere=True,
  spaces_tags=True,
)


def _rename_old_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
  return {OLD_KEYS.get(key, key): value for key, value in tree.items()}


def _check_names(tree: Mapping[str, Any], record: Any, place: str = "") -> None:
  """Raise UserError if nested dicts hold a name that a record lacks."""
  known = [field.name for field in dataclasses.fields(record)]
  for name, value in tree.items():
    if name not in known:
      names = ", ".join(known)
      raise UserError(f"{place}{name} is unknown: take one of {names}.")
    if isinstance(value, Mapping):
      _check_names(value, getattr(record, name), f"{place}{name}.")


def read_config(folder: pathlib.Path) -> PolicyConfig:
  """Read the config of the policy in a folder, or of a GGUF file.

  That of an adapter has its base's model, and its base's options unless it has
  some of its own.  A broken file raises UserError, or BadConfig, which name it.
  """
  # A broken config.json has an error of its own, see `hf_checkpoint`.
  model = hf_checkpoint.read_config(folder)
  known = _read_hf_options(folder, model.vision)
  path = _find_file(folder, POLICY_FILE)
  if not path.is_file():
    defaults = GGUF_DEFAULTS if is_gguf(path.parent) else HF_DEFAULTS
    return PolicyConfig.from_dict(dict(defaults | known, model=model))
  return schema.read_json(
    path,
    lambda tree: PolicyConfig.from_dict(known | tree | dict(model=model)),
    "Copy the policy again, or delete this file to take the settings of a "
    "published one.",
  )


_EndIds = int | tuple[int, ...] | None


class _HfModel(msgspec.Struct):
  """The field of a config.json that this module reads."""

  eos_token_id: _EndIds = None
  text_config: "_HfModel | None" = None  # Of a model that reads images, too.


class _HfFile(msgspec.Struct):
  """The fields of files for transformers, of which each has some."""

  eos_token_id: _EndIds = None
  min_pixels: _Pixels | None = None
  max_pixels: _Pixels | None = None
  size: dict[str, _Pixels | None] | None = None  # How later versions name them.
  do_rescale: bool = True
  rescale_factor: schema.Positive = 1 / 255
  do_normalize: bool = True
  image_mean: _Means = images.CLIP_MEAN
  image_std: _Deviations = images.CLIP_STD
  patch_size: int | None = None
  temporal_patch_size: int | None = None
  merge_size: int | None = None
  image_processor: "_HfFile | None" = None


def _read_hf_options(
  folder: pathlib.Path, vision: qwen2_5_vl.VisionConfig | None
) -> dict[str, Any]:
  """Return what files for transformers say about end tokens and images."""

  def read(name, kind):
    path = _find_file(folder, name)
    if not path.is_file():
      return kind()
    parse = functools.partial(schema.convert, kind=kind)
    return schema.read_json(path, parse, "Copy that of its model.")

  names = ("generation", "processor", "preprocessor")
  found = [read(f"{name}_config.json", _HfFile) for name in names]
  # Since transformers 5 the processor's file holds that of its images.
  generation, image = found[0], found[1].image_processor or found[2]

  model = read("config.json", _HfModel)
  text = model.text_config or model
  known = generation.eos_token_id, model.eos_token_id, text.eos_token_id
  ends = next((end for end in known if end is not None), ())
  if not isinstance(ends, tuple):
    ends = (ends,)

  if vision:
    sides = dict(patch_size=vision.patch, merge_size=vision.merge)
    sides["temporal_patch_size"] = vision.temporal
    for name, side in sides.items():
      if getattr(image, name) not in (None, side):
        raise UserError(
          f"{folder}: the images' {name} is {getattr(image, name)}, and that "
          f"of the vision tower in config.json {side}.  Copy "
          "preprocessor_config.json of the same model."
        )

  # More pixels than R1-Router's would fill the prompt.
  size, most = image.size or {}, HF_DEFAULTS["max_pixels"]
  high = min(image.max_pixels or size.get("longest_edge") or most, most)
  low = image.min_pixels or size.get("shortest_edge")
  low = min(low or HF_DEFAULTS["min_pixels"], high)
  # Ours are of pixels in [0, 1], theirs of pixels that were scaled otherwise.
  scale = 255 * (image.rescale_factor if image.do_rescale else 1)
  mean, std = image.image_mean, image.image_std
  if not image.do_normalize:
    mean, std = (0, 0, 0), (1, 1, 1)
  mean, std = (tuple(x / scale for x in each) for each in (mean, std))
  limits = dict(min_pixels=low, max_pixels=high)
  return dict(limits, end_ids=ends, image_mean=mean, image_std=std)


def find_tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """Return the tokenizer.json of a policy, or the GGUF file that holds it.

  A policy without one raises FileNotFoundError.
  """
  path = _find_file(folder, TOKENIZER_FILE)
  if is_gguf(path.parent):
    return path.parent
  if not path.is_file():
    raise FileNotFoundError(
      f"{path.parent} has no {path.name}.  Copy that of its model into it."
    )
  return path


def _find_file(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Return the path of an adapter's file, or else of its base's.

  If none of them has it, that is where the base, a folder or a GGUF file, would
  have it.
  """
  adapters, base = peft_adapter.read_chain(folder)
  paths = [adapter.folder / name for adapter in reversed(adapters)]
  return next((path for path in paths if path.is_file()), base / name)


def config_for_run(
  start_from: str, overrides: Mapping[str, Any]
) -> PolicyConfig:
  """Return the config of the policy `start_from`, changed by `overrides`.

  If `overrides` has a model, they have all options, and nothing is read.
  """
  base = {}
  if "model" not in overrides:
    base = dataclasses.asdict(read_config(locate_checkpoint(start_from)))
  return PolicyConfig.from_dict(base | _rename_old_keys(overrides))


def write_policy_files(
  folder: pathlib.Path,
  config: PolicyConfig,
  tokenizer: pathlib.Path,
  token_ids: Mapping[str, int],
  dtype: Any,
  source: pathlib.Path | None = None,
) -> None:
  """Write all files of a policy's folder but the weights.

  `tokenizer` is for `copy_tokenizer`, `token_ids` are those of special tokens
  that a published config.json names, `dtype` is that of the weights, and
  `source` the checkpoint, if any, whose files say the rest.
  """
  write_options(folder, config)
  tree = hf_checkpoint.make_hf_config(config.model, token_ids)
  if source is not None:
    _, base = peft_adapter.read_chain(source)
    path = base / hf_checkpoint.CONFIG_FILE
    if path.is_file() and hf_checkpoint.read_config(base) == config.model:
      tree = json.loads(path.read_text("utf-8"))
    copy_tokenizer(base / TOKENIZER_FILE, folder)
  # The precision is that of these weights, also in nested configs.
  nested = (tree.get(name, {}) for name in ("text_config", "vision_config"))
  for part in (tree, *nested):
    part.pop("dtype", None)
    part["torch_dtype"] = np.dtype(dtype).name
  path = folder / hf_checkpoint.CONFIG_FILE
  path.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
  copy_tokenizer(tokenizer, folder)


def copy_tokenizer(tokenizer: pathlib.Path, folder: pathlib.Path) -> None:
  """Copy a tokenizer.json and what stands beside it, see `HF_SIDE_FILES`.

  Of a GGUF file, which holds its tokenizer, these files are made.
  """
  if is_gguf(tokenizer):
    files = gguf_tokenizer.read_tokenizer_files(tokenizer)
    for name, text in files.items():
      (folder / name).write_text(text, "utf-8")
    return
  for name in (TOKENIZER_FILE, *HF_SIDE_FILES):
    source, target = tokenizer.with_name(name), folder / name
    # A policy may be saved into the folder that it was opened from.
    if source.exists() and source.resolve() != target.resolve():
      shutil.copyfile(source, target)


def write_options(folder: pathlib.Path, config: PolicyConfig) -> None:
  """Write `policy.json` into a folder, which is made if it is not there."""
  folder.mkdir(parents=True, exist_ok=True)
  options = dataclasses.asdict(config)
  del options["model"]  # Stands in config.json.
  text = json.dumps(options, indent=1) + "\n"
  (folder / POLICY_FILE).write_text(text)
