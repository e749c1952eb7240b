"""What a policy's folder says beside its weights: `config.json`, `policy.json`.

The first is the published form of the model's sizes (`models/published.py`),
the second, which a published checkpoint does not have, all that is ours: how
prompts are spelt, to what lengths they are padded, how the model is run.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from r1router_jax.common.records import KBS, Step
from r1router_jax.models import hf_checkpoint, qwen2_5_vl
from r1router_jax.models.layers import Llama3
from r1router_jax.protocol import messages, prompts

# The tiny policy that the package brings, after its supervised warm start.
WARM_START = pathlib.Path(__file__).parents[1] / "data" / "files" / "warm_start"

FILE, TOKENIZER = "policy.json", "tokenizer.json"

# What else a checkpoint may bring for those who open it with transformers.
BESIDE = (
  "tokenizer_config.json",
  "preprocessor_config.json",
  "generation_config.json",
  "chat_template.json",
  "special_tokens_map.json",
)


# What R1-Router lacks; without them all is as its original has it.
OPTIONS = ("routes", "passage_pictures", "passage_tokens")


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the two files hold.

  Attributes:
    model: sizes of the network.
    style: how prompts are spelt, a key of `prompts.STYLES`.
    prompt_tokens: padded prompt lengths, ascending; longer prompts are cut.
    response_tokens: padded lengths of gold responses, ascending; the last is
      the longest response that is sampled.
    min_pixels, max_pixels: range that pictures are resized into.
    batch_rows: responses decoded at one time on one device.
    compute: how the model is run.
    routes: how many routes one plan may name; R1-Router's name one.
    passage_pictures: how many pictures of passages an answer prompt shows.
    passage_tokens: what an answer prompt reads of passages, at most.

  Raises:
    ValueError: where one of the last three is out of its range.
  """

  model: qwen2_5_vl.Config
  style: str
  prompt_tokens: tuple[int, ...]
  response_tokens: tuple[int, ...]
  min_pixels: int
  max_pixels: int
  batch_rows: int
  compute: qwen2_5_vl.Compute = qwen2_5_vl.Compute()
  routes: int = 1
  passage_pictures: int = 0
  passage_tokens: messages.PassageTokens = messages.PassageTokens()

  def __post_init__(self):
    if not 1 <= self.routes <= len(KBS):
      raise ValueError(
        f"settings.routes is {self.routes}: a plan may name 1 "
        f"to {len(KBS)} routes."
      )
    if self.passage_pictures < 0:
      raise ValueError(
        f"settings.passage_pictures is {self.passage_pictures}: "
        "show 0 pictures or more."
      )
    if self.passage_pictures and self.model.vision is None:
      raise ValueError(
        f"settings.passage_pictures is {self.passage_pictures}, but this "
        "policy reads texts alone: set it to 0, or take one with a vision "
        "tower."
      )
    if min(vars(self.passage_tokens).values()) < 0:
      raise ValueError(
        f"settings.passage_tokens is {self.passage_tokens}: "
        "give a number of tokens, or 0 for all."
      )

  def options(self) -> dict[str, Any]:
    """Those of `OPTIONS` that are on."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name in OPTIONS and getattr(self, field.name) != field.default
    }

  def conversation(self, step: Step) -> messages.Conversation:
    """The prompt of a step, as this policy is asked."""
    return prompts.step_conversation(
      step,
      style=self.style,
      routes=self.routes,
      passage_pictures=self.passage_pictures,
    )

  def response_length(self, tokens: int) -> int:
    """The padded length of a gold response of so many tokens."""
    return next(
      (n for n in self.response_tokens if n >= tokens), self.response_tokens[-1]
    )

  @classmethod
  def from_dict(cls, tree: Mapping[str, Any]) -> "Settings":
    """Reads what `dataclasses.asdict` made, or a config's plain dicts.

    The model may be the name of a published size, a key of `qwen_vl.SIZES`.
    """
    model = tree["model"]
    return _read(
      cls,
      dict(
        tree, model=qwen2_5_vl.SIZES[model] if isinstance(model, str) else model
      ),
    )


# Of a checkpoint that says nothing else: the prompts of the R1-Router paper.
PUBLISHED = dict(
  style="full",
  prompt_tokens=(1024, 2048, 4096, 8192),
  response_tokens=(1024,),
  min_pixels=3136,
  max_pixels=1_003_520,
  batch_rows=8,
  compute=dict(dtype="bfloat16"),
)

_NESTED = dict(
  model=qwen2_5_vl.Config,
  vision=qwen2_5_vl.VisionConfig,
  rope_scaling=Llama3,
  compute=qwen2_5_vl.Compute,
  passage_tokens=messages.PassageTokens,
)


def _read(kind: type, tree: Mapping[str, Any]) -> Any:
  """A record from nested dicts, whose lists become tuples."""
  return kind(
    **{
      name: _read(_NESTED[name], value)
      if name in _NESTED and isinstance(value, Mapping)
      else tuple(value)
      if isinstance(value, list)
      else value
      for name, value in tree.items()
    }
  )


def folder(name: str | pathlib.Path) -> pathlib.Path:
  """Where a policy lies: a folder, an id on the hub, or "warm_start"."""
  return WARM_START if str(name) == "warm_start" else hf_checkpoint.locate(name)


def read(at: pathlib.Path) -> Settings:
  """What the files in a folder say.

  Raises:
    published.BadConfig, ValueError: where a file is broken, by name.
  """
  model, path = hf_checkpoint.read_config(at), at / FILE
  try:
    ours = json.loads(path.read_text()) if path.exists() else PUBLISHED
    return Settings.from_dict(dict(ours, model=model))
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path}: {error}.  Copy the policy again, or delete this "
      "file to take the settings of a published one."
    ) from error


def of_run(start_from: str, given: Mapping[str, Any]) -> Settings:
  """The settings of the policy `start_from`, or of none, changed by `given`.

  With a model in `given` nothing is read, so that a plan needs no weights.
  """
  kept = (
    {} if "model" in given else dataclasses.asdict(read(folder(start_from)))
  )
  return Settings.from_dict(kept | dict(given))


def write(
  at: pathlib.Path,
  settings: Settings,
  tokenizer: pathlib.Path,
  tokens: Mapping[str, int],
) -> None:
  """Writes all of a policy's folder but the weights.

  Args:
    at: the folder.
    settings: its settings.
    tokenizer: the file to copy; what is known of `BESIDE` it goes with it.
    tokens: the ids that a published config names.
  """
  at.mkdir(parents=True, exist_ok=True)
  ours = dataclasses.asdict(settings)
  del ours["model"]
  config = hf_checkpoint.to_published(settings.model, tokens)
  for name, tree in ((hf_checkpoint.CONFIG, config), (FILE, ours)):
    (at / name).write_text(json.dumps(tree, indent=1) + "\n")
  for name in (TOKENIZER, *BESIDE):
    source = tokenizer.with_name(name)
    if source.exists() and source.resolve() != (at / name).resolve():
      shutil.copyfile(source, at / name)
