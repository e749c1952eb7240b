"""A policy: model, parameters and tokenizer, as one thing that responds.

A policy lives in a folder: `config.json` (its sizes and limits),
`policy.safetensors`, `tokenizer.json`.  Parameters are replicated over the
local devices (a leading axis D), and prompts are split among them.

Axes:  D local devices   B prompts of one device   G responses per prompt
"""

import collections
import dataclasses
import functools
import json
import pathlib
import shutil
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r1router_jax import checkpoints, parallel, sampling
from r1router_jax.inputs.pack import Encoded, Packer
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import qwen_vl
from r1router_jax.protocol import Conversation
from r1router_jax.records import Response

# The tiny policy that the package brings, after its supervised warm start.
WARM_START = pathlib.Path(__file__).parent / "data" / "files" / "warm_start"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What `config.json` holds.

  Attributes:
    model: sizes of the network.
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

  def response_length(self, tokens: int) -> int:
    """The padded length of a gold response of so many tokens."""
    return next((n for n in self.response_tokens if n >= tokens),
                self.response_tokens[-1])

  @classmethod
  def from_dict(cls, tree: dict) -> "Settings":
    """Reads what `dataclasses.asdict` wrote, or a config's plain dicts."""
    freeze = lambda x: tuple(x) if isinstance(x, list | tuple) else x
    model = {k: freeze(v) for k, v in tree["model"].items()}
    vision = {k: freeze(v) for k, v in model.pop("vision").items()}
    rest = {k: freeze(v) for k, v in tree.items() if k != "model"}
    return cls(
        model=qwen_vl.Config(vision=qwen_vl.VisionConfig(**vision), **model),
        **rest)


@dataclasses.dataclass(frozen=True)
class Policy:
  """See the module's docstring; `params` leaves are [D, ...]."""

  settings: Settings
  tokenizer_path: pathlib.Path
  params: dict

  @functools.cached_property
  def model(self) -> qwen_vl.QwenVL:
    return qwen_vl.QwenVL(self.settings.model)

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
      shape = self.packer.length(prompt.ids), prompt.patches is not None
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
    """Writes the policy's folder."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(dataclasses.asdict(self.settings), indent=1))
    target = folder / "tokenizer.json"
    if target.resolve() != self.tokenizer_path.resolve():
      shutil.copyfile(self.tokenizer_path, target)
    checkpoints.save_params(
        folder / "policy.safetensors", parallel.unreplicate(self.params))


def load(folder: str | pathlib.Path) -> Policy:
  """Opens a policy's folder; "warm_start" is the one that the package brings.

  Raises:
    FileNotFoundError: where a file is missing, by name.
  """
  folder = WARM_START if str(folder) == "warm_start" else pathlib.Path(folder)
  for name in ("config.json", "policy.safetensors", "tokenizer.json"):
    if not (folder / name).is_file():
      raise FileNotFoundError(
          f"{folder} is no policy: {name} is missing.  `python -m "
          "r1router_jax.train` writes a policy into <workdir>/policy.")
  settings = Settings.from_dict(
      json.loads((folder / "config.json").read_text()))
  params = checkpoints.load_params(folder / "policy.safetensors")
  return Policy(
      settings, folder / "tokenizer.json", parallel.replicate(params))


def create(
    settings: Settings, tokenizer_path: str | pathlib.Path, seed: int
) -> Policy:
  """A policy with random parameters."""
  v = settings.model.vision
  side = v.window // v.patch
  tokens = side * side // v.merge**2
  plan = qwen_vl.plan_image(side, side, v, windows=1, tokens=tokens)
  prompt = qwen_vl.Prompt(
      np.zeros((1, 2), np.int32), np.ones((1, 2), bool),
      np.zeros((3, 1, 2), np.int32), np.zeros(1, np.int32),
      np.full((1, 2), -1, np.int32),
      np.zeros((1, side * side, 3 * v.temporal * v.patch**2), np.float32),
      *(a[None] for a in plan))
  params = jax.jit(qwen_vl.QwenVL(settings.model).init)(
      jax.random.key(seed), prompt, np.zeros((1, 1, 2), np.int32))["params"]
  return Policy(
      settings, pathlib.Path(tokenizer_path), parallel.replicate(params))


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
