"""A policy: model, parameters and tokenizer, as one thing that responds.

A policy lives in a folder that Hugging Face transformers opens, too:
`config.json`, `model.safetensors` (or shards of it) and `tokenizer.json`; what
is ours alone stands in `policy.json`.  A published checkpoint has none, and is
a policy with the settings of `PUBLISHED`.

Parameters are replicated over the local devices (a leading axis D), and prompts
are split among them.

Axes:  D local devices   B prompts of one device   G responses per prompt
"""

import collections
import dataclasses
import functools
import json
import pathlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1router_jax import parallel, sampling
from r1router_jax.inputs.pack import Encoded, Packer
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import lora, published, qwen_vl
from r1router_jax.models.layers import Llama3
from r1router_jax.protocol import Conversation
from r1router_jax.records import Response

# The tiny policy that the package brings, after its supervised warm start.
WARM_START = pathlib.Path(__file__).parent / "data" / "files" / "warm_start"
SETTINGS = "policy.json"
# What else a checkpoint may bring for those who open it with transformers.
BESIDE = ("tokenizer_config.json", "preprocessor_config.json",
          "generation_config.json", "chat_template.json",
          "special_tokens_map.json")


@dataclasses.dataclass(frozen=True)
class Settings:
  """What `config.json` and `policy.json` hold.

  Attributes:
    model: sizes of the network.
    compute: how it is run.
    style: how prompts are spelt, a key of `prompts.STYLES`.
    prompt_tokens: padded prompt lengths, ascending; longer prompts are cut.
    response_tokens: padded lengths of gold responses, ascending; the last is
      the longest response that is sampled.
    min_pixels, max_pixels: range that pictures are resized into.
    batch_rows: responses decoded at one time on one device.
  """

  model: qwen_vl.Config
  style: str
  prompt_tokens: tuple[int, ...]
  response_tokens: tuple[int, ...]
  min_pixels: int
  max_pixels: int
  batch_rows: int
  compute: qwen_vl.Compute = qwen_vl.Compute()

  def response_length(self, tokens: int) -> int:
    """The padded length of a gold response of so many tokens."""
    return next((n for n in self.response_tokens if n >= tokens),
                self.response_tokens[-1])

  @classmethod
  def from_dict(cls, tree: dict) -> "Settings":
    """Reads what `dataclasses.asdict` made, or a config's plain dicts.

    The model may be the name of a published size, a key of `qwen_vl.SIZES`.
    """
    model = tree["model"]
    return _read(cls, dict(tree, model=qwen_vl.SIZES[model] if isinstance(
        model, str) else model))


# Of a checkpoint that says nothing else: the R1-Router paper's prompts.
PUBLISHED = dict(
    style="full", prompt_tokens=(1024, 2048, 4096, 8192),
    response_tokens=(1024,), min_pixels=3136, max_pixels=1_003_520,
    batch_rows=8, compute=dict(dtype="bfloat16"))
_NESTED = dict(
    model=qwen_vl.Config, vision=qwen_vl.VisionConfig, rope_scaling=Llama3,
    compute=qwen_vl.Compute)


def _read(kind: type, tree: Mapping[str, Any]) -> Any:
  """A record from nested dicts, whose lists become tuples."""
  return kind(**{
      name: _read(_NESTED[name], value)
      if name in _NESTED and isinstance(value, Mapping) else
      tuple(value) if isinstance(value, list | tuple) else value
      for name, value in tree.items()})


@dataclasses.dataclass(frozen=True)
class Policy:
  """See the module's docstring; `params` leaves are [D, ...]."""

  settings: Settings
  tokenizer_path: pathlib.Path
  params: dict

  @functools.cached_property
  def model(self) -> qwen_vl.QwenVL:
    return qwen_vl.QwenVL(self.settings.model, self.settings.compute)

  @functools.cached_property
  def packer(self) -> Packer:
    s = self.settings
    return Packer(
        _tokenizer(self.tokenizer_path, s.style), s.model.vision,
        s.prompt_tokens, s.min_pixels, s.max_pixels)

  @functools.cached_property
  def allowed(self) -> np.ndarray:
    """False on token ids that are never written."""
    return self.packer.tokenizer.allowed(self.settings.model.vocab)

  def draw(
      self,
      prompts: Sequence[Encoded],
      packed: qwen_vl.Prompt,
      key: jax.Array,
      members: int,
      temperature: float,
  ) -> sampling.Drawn:
    """G responses to each packed prompt, leaves [D, B, G, T].

    A response depends on `key`, its prompt's tokens and its member index, and
    on nothing else in the batch.
    """
    devices, rows = packed.tokens.shape[:2]
    names = np.zeros(devices * rows, np.int32)
    for i, prompt in enumerate(prompts):
      names[i] = zlib.crc32(np.asarray(prompt.ids, np.int32)) & 0x7FFFFFFF
    keys = jax.random.key_data(sampling.keys(key, jnp.asarray(names), members))
    sampler = _sampler(
        self.model, self.settings.response_tokens[-1],
        self.packer.tokenizer.end)
    return sampler(
        self.params, packed, keys.reshape(devices, rows, members, -1),
        jnp.float32(temperature), self.allowed)

  def respond(
      self,
      conversations: Sequence[Conversation],
      key: jax.Array,
      n: int = 1,
      temperature: float = 0.0,
  ) -> list[list[Response]]:
    """`n` responses to each conversation, greedy where `temperature` is 0.

    Raises:
      inputs.images.BadImage, inputs.tokenizer.PromptTooLong: by name.
    """
    prompts = [self.packer.encode(c) for c in conversations]
    rows = max(1, self.settings.batch_rows // n)
    size = rows * jax.local_device_count()
    shapes = collections.defaultdict(list)
    for i, prompt in enumerate(prompts):
      shape = self.packer.length(prompt.ids), len(prompt.pictures)
      shapes[shape].append(i)
    responses = [[] for _ in prompts]
    for shape in sorted(shapes):
      indices = shapes[shape]
      for first in range(0, len(indices), size):
        chosen = indices[first:first + size]
        batch = [prompts[i] for i in chosen]
        packed = self.packer.pack(batch, jax.local_device_count(), rows)
        drawn = jax.device_get(
            self.draw(batch, packed, key, n, temperature))
        drawn = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), drawn)
        for i, tokens, logp, mask in zip(chosen, *drawn, strict=False):
          responses[i] = self.read(tokens, logp, mask)
    return responses

  def read(self, tokens, logp, mask) -> list[Response]:
    """Sampled arrays `G T` as responses."""
    decode = self.packer.tokenizer.decode
    return [Response(decode(t[m]), t[m], p[m])
            for t, p, m in zip(tokens, logp, mask, strict=True)]

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes the policy's folder; adapters become part of the weights."""
    folder = pathlib.Path(folder)
    _describe(folder, self.settings, self.tokenizer_path)
    published.save(folder, lora.merge(parallel.unreplicate(self.params)),
                   self.settings.model)


def load(name: str | pathlib.Path) -> Policy:
  """Opens a policy's folder, or a published checkpoint; parameters in float32.

  Args:
    name: a folder, a model's id on the hub, or "warm_start", which comes with
      the package.

  Raises:
    FileNotFoundError, published.BadConfig, hf.BadWeights: by name.
  """
  folder = WARM_START if str(name) == "warm_start" else published.locate(name)
  settings = read_settings(folder)
  if not (folder / "tokenizer.json").is_file():
    raise FileNotFoundError(f"{folder} has no tokenizer.json.  Copy that of "
                            "its model into it.")
  params = published.load(folder, settings.model, dtype=np.float32)
  return Policy(
      settings, folder / "tokenizer.json", parallel.replicate(params))


def convert(name: str, folder: pathlib.Path, dtype: Any) -> None:
  """Writes the policy or checkpoint `name` anew, in another precision.

  Raises:
    FileNotFoundError, published.BadConfig, hf.BadWeights: by name.
  """
  source = published.locate(name)
  settings = read_settings(source)
  published.copy(source, folder, settings.model, dtype=dtype)
  _describe(folder, settings, source / "tokenizer.json")


def _describe(
    folder: pathlib.Path, settings: Settings, tokenizer_path: pathlib.Path
) -> None:
  """Writes all of a policy's folder but the weights."""
  folder.mkdir(parents=True, exist_ok=True)
  ours = dataclasses.asdict(settings)
  del ours["model"]
  tokens = _tokenizer(tokenizer_path, settings.style).named()
  config = published.to_published(settings.model, tokens)
  for name, tree in ((published.CONFIG, config), (SETTINGS, ours)):
    (folder / name).write_text(json.dumps(tree, indent=1) + "\n")
  for name in ("tokenizer.json", *BESIDE):
    source = tokenizer_path.with_name(name)
    if source.exists() and source.resolve() != (folder / name).resolve():
      shutil.copyfile(source, folder / name)


def read_settings(folder: pathlib.Path) -> Settings:
  """What the two JSON files of a folder say."""
  model, path = published.read_config(folder), folder / SETTINGS
  try:
    ours = json.loads(path.read_text()) if path.exists() else PUBLISHED
    return Settings.from_dict(dict(ours, model=model))
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(f"{path}: {error}.  Copy the policy again, or delete this "
                     "file to take the settings of a published one.") from error


def create(
    settings: Settings, tokenizer_path: str | pathlib.Path, seed: int
) -> Policy:
  """A policy with random parameters."""
  init = functools.partial(initial, settings)
  return Policy(settings, pathlib.Path(tokenizer_path),
                parallel.replicate(jax.jit(init)(jax.random.key(seed))))


def initial(settings: Settings, key: jax.Array) -> dict:
  """Random parameters; its `jax.eval_shape` costs nothing."""
  model = qwen_vl.QwenVL(settings.model)
  seen = int(settings.model.vision is not None)
  prompt = jax.tree.map(jnp.asarray, qwen_vl.empty_prompt(
      1, 2, seen, 1, settings.model.vision))
  return model.init(key, prompt, jnp.zeros((1, 1, 2), jnp.int32))["params"]


@functools.lru_cache(maxsize=4)
def _tokenizer(path: pathlib.Path, style: str) -> Tokenizer:
  return Tokenizer(path, style)


@functools.lru_cache(maxsize=8)
def _sampler(model: qwen_vl.QwenVL, tokens: int, end: int):
  """`sampling.sample` on every local device at once."""

  def sample(params, prompt, key, temperature, allowed):
    return sampling.sample(
        model, params, prompt, jax.random.wrap_key_data(key), temperature,
        allowed, tokens=tokens, end=end)

  return jax.pmap(sample, in_axes=(0, 0, 0, None, None))
