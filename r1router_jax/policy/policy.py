"""A policy: model, parameters and tokenizer, as one thing that responds.

A policy lives in a folder that Hugging Face transformers opens, too:
`config.json`, `model.safetensors` (or shards of it) and `tokenizer.json`; what
is ours alone stands in `policy.json` (see `settings.py`).

Parameters lie on a mesh, by default whole on each device of this host, and
prompts are split among the parts of this host that share weights.

Axes:  B prompts   G responses per prompt
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from r1router_jax.common.records import Response
from r1router_jax.generation import (
  continuous_batching,
  group_decode,
  token_sampling,
)
from r1router_jax.inputs.processor import Encoded, Packer
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import (
  hf_checkpoint,
  inference_params,
  lora,
  qwen2_5_vl,
)
from r1router_jax.parallel import mesh as mesh_lib
from r1router_jax.policy import config
from r1router_jax.policy.config import Settings
from r1router_jax.protocol.messages import Conversation


@dataclasses.dataclass(frozen=True)
class Policy:
  """See the module's docstring.

  Attributes:
    settings: what it is and how it is run.
    tokenizer_path: of its tokenizer.json.
    params: its parameters, on any devices.
    mesh: where responses are drawn, see `parallel.mesh_of`.
  """

  settings: Settings
  tokenizer_path: pathlib.Path
  params: dict
  mesh: Mesh = dataclasses.field(default_factory=mesh_lib.local_mesh)

  @functools.cached_property
  def model(self) -> qwen2_5_vl.QwenVL:
    return qwen2_5_vl.QwenVL(self.settings.model, self.settings.compute)

  @functools.cached_property
  def packer(self) -> Packer:
    s = self.settings
    return Packer(
      _tokenizer(self.tokenizer_path, s.style),
      s.model.vision,
      s.prompt_tokens,
      s.min_pixels,
      s.max_pixels,
      s.passage_tokens,
    )

  @functools.cached_property
  def allowed(self) -> np.ndarray:
    """False on token ids that are never written."""
    return self.packer.tokenizer.allowed(self.settings.model.vocab)

  @functools.cached_property
  def sampler(self) -> tuple[qwen2_5_vl.QwenVL, dict]:
    """Model and parameters as responses are drawn with them."""
    split = self.mesh.shape.get(mesh_lib.TENSOR, 1) > 1
    unrolled = jax.default_backend() == "cpu" and not split
    served = _server(self.settings.compute, unrolled)(self.params)
    layout = (
      NamedSharding(self.mesh, PartitionSpec())
      if not split
      else (mesh_lib.shardings(served, self.mesh, without=(mesh_lib.FSDP,)))
    )
    return (
      dataclasses.replace(self.model, unrolled=unrolled),
      mesh_lib.seen_here(jax.device_put(served, layout), self.mesh),
    )

  def words(self, stop: tuple[str, ...] = ()) -> group_decode.Words:
    """What responses are made of, and what ends them."""
    coder = self.packer.tokenizer
    return group_decode.Words(
      self.allowed,
      np.int32(coder.end),
      coder.stops(stop, len(self.allowed)) if stop else None,
    )

  def draw(
    self,
    prompts: Sequence[Encoded],
    key: jax.Array,
    members: int,
    method: token_sampling.SamplingParams = token_sampling.GREEDY,
    stop: tuple[str, ...] = (),
  ) -> group_decode.Drawn:
    """G responses to each prompt, leaves [B, G, T].

    A response depends on `key`, its prompt's tokens and its member index, and
    on nothing else in the batch.

    Args:
      prompts: to respond to.
      key: of all samples.
      members: G.
      method: how tokens are drawn; numbers, or arrays that broadcast to [B, G].
      stop: texts that end a response, beside the end token.

    Raises:
      ValueError: where a number of `method` is out of its range.
    """
    keys = _keys(key, names(prompts), members)
    model_params, words = self.sampler, self.words(stop)
    ways = token_sampling.SamplingParams(
      *(np.broadcast_to(x, (len(prompts), members)) for x in method)
    )
    shapes = collections.defaultdict(list)
    for i, prompt in enumerate(prompts):
      shape = self.packer.length(prompt.ids), len(prompt.pictures)
      shapes[shape].append(i)
    tokens = self.settings.response_tokens[-1]
    empty = np.zeros((len(prompts), members, tokens))
    drawn = group_decode.Drawn(
      empty.astype(np.int32),
      empty.astype(np.float32),
      empty.astype(bool),
      np.zeros((len(prompts), members), bool),
    )
    for shape in sorted(shapes):
      at = np.array(shapes[shape])

      def pack(index, at=at):
        return self.packer.pack(
          [prompts[i] for i in at[index.reshape(-1)]], *index.shape
        )

      part = continuous_batching.draw(
        *model_params,
        pack,
        keys[at],
        token_sampling.SamplingParams(*(x[at] for x in ways)),
        words,
        tokens=tokens,
        rows=self.settings.batch_rows,
        mesh=mesh_lib.here(self.mesh),
      )
      for whole, some in zip(drawn, part, strict=True):
        whole[at] = some
    if drawn.failed.any():
      logging.warning(
        "%d of %d responses end where logits are not numbers.",
        drawn.failed.sum(),
        drawn.failed.size,
      )
    return drawn

  def generate(
    self,
    conversations: Sequence[Conversation],
    key: jax.Array,
    n: int = 1,
    method: token_sampling.SamplingParams = token_sampling.GREEDY,
    stop: tuple[str, ...] = (),
  ) -> list[list[Response]]:
    """`n` responses to each conversation; see `draw`.

    Raises:
      inputs.images.BadImage, inputs.tokenizer.PromptTooLong: by name.
    """
    prompts = [self.packer.encode(c) for c in conversations]
    return self.read(self.draw(prompts, key, n, method, stop))

  def read(self, drawn: group_decode.Drawn) -> list[list[Response]]:
    """Sampled arrays as responses."""
    decode = self.packer.tokenizer.decode
    return [
      [
        Response(decode(t[m]), t[m], p[m])
        for t, p, m in zip(*group, strict=True)
      ]
      for group in zip(*drawn[:3], strict=True)
    ]

  def save(self, folder: epath.PathLike) -> None:
    """Writes the policy's folder; adapters become part of the weights.

    All processes of a job take part, and the first writes.
    """
    params = mesh_lib.whole(lora.merge(self.params))
    if jax.process_index():
      return
    with _on_disk(epath.Path(folder)) as at:
      config.write(
        at, self.settings, self.tokenizer_path, self.packer.tokenizer.named()
      )
      hf_checkpoint.save(at, params, self.settings.model)


def names(prompts: Sequence[Encoded]) -> Int[np.ndarray, " B"]:
  """What the samples of a prompt are named by: a digest of its tokens."""
  return np.array(
    [
      zlib.crc32(np.asarray(prompt.ids, np.int32)) & 0x7FFFFFFF
      for prompt in prompts
    ],
    np.int32,
  )


def _keys(
  key: jax.Array, named: Int[np.ndarray, " B"], members: int
) -> np.ndarray:
  """The data of a key for each response, [B, G, ..].

  Computed for a power of two of prompts, so that few programs are made.
  """
  room = 1 << max(len(named) - 1, 0).bit_length()
  return np.asarray(
    _key_data(key, np.pad(named, (0, room - len(named))), members)
  )[: len(named)]


@functools.partial(jax.jit, static_argnums=2)
def _key_data(key, named, members):
  return jax.random.key_data(group_decode.keys(key, named, members))


@contextlib.contextmanager
def _on_disk(folder: epath.Path) -> Iterator[pathlib.Path]:
  """A folder to write to; what belongs into a bucket is then copied there."""
  if "://" not in str(folder):
    yield pathlib.Path(folder)
    return
  with tempfile.TemporaryDirectory() as here:
    yield pathlib.Path(here)
    folder.mkdir(parents=True, exist_ok=True)
    for file in epath.Path(here).iterdir():
      file.copy(folder / file.name, overwrite=True)


def load(
  name: str | pathlib.Path, *, dtype: Any = None, mesh: Mesh | None = None
) -> Policy:
  """Opens a policy's folder, or a published checkpoint.

  Args:
    name: a folder, a model's id on the hub, or "warm_start", which comes with
      the package.
    dtype: of the parameters; by default that of products, for answering.
    mesh: where they lie, by `parallel.RULES`; by default whole on each device
      of this host.

  Raises:
    FileNotFoundError, published.BadConfig, hf.BadWeights: by name.
  """
  folder = config.folder(name)
  known = config.read(folder)
  layout = mesh_lib.by_path(
    _shapes(known), mesh_lib.local_mesh() if mesh is None else mesh
  )
  params = hf_checkpoint.load(
    folder,
    known.model,
    dtype=dtype or jnp.dtype(known.compute.dtype),
    layout=layout.__getitem__,
  )
  return Policy(known, _tokenizer_in(folder), params)


def convert(name: str, to: pathlib.Path, dtype: Any) -> None:
  """Writes the policy or checkpoint `name` anew, in another precision.

  Raises:
    FileNotFoundError, published.BadConfig, hf.BadWeights: by name.
  """
  folder = config.folder(name)
  known, path = config.read(folder), _tokenizer_in(folder)
  hf_checkpoint.copy(folder, to, known.model, dtype=dtype)
  config.write(to, known, path, _tokenizer(path, known.style).named())


def _tokenizer_in(folder: pathlib.Path) -> pathlib.Path:
  path = folder / config.TOKENIZER
  if not path.is_file():
    raise FileNotFoundError(
      f"{folder} has no {path.name}.  Copy that of its model into it."
    )
  return path


def create(
  known: Settings,
  tokenizer_path: str | pathlib.Path,
  seed: int,
  mesh: Mesh | None = None,
) -> Policy:
  """A policy with random parameters; see `load` for its mesh."""
  return Policy(
    known,
    pathlib.Path(tokenizer_path),
    mesh_lib.born(
      functools.partial(initial, known),
      mesh_lib.local_mesh() if mesh is None else mesh,
      jax.random.key(seed),
    ),
  )


def _shapes(known: Settings) -> dict:
  return jax.eval_shape(functools.partial(initial, known), jax.random.key(0))


def initial(known: Settings, key: jax.Array) -> dict:
  """Random parameters; its `jax.eval_shape` costs nothing."""
  model, vision = qwen2_5_vl.QwenVL(known.model), known.model.vision
  prompt = jax.tree.map(
    jnp.asarray,
    qwen2_5_vl.empty_prompt(1, 2, int(vision is not None), 1, vision),
  )
  return model.init(key, prompt, jnp.zeros((1, 1, 2), jnp.int32))["params"]


@functools.lru_cache(maxsize=4)
def _server(
  compute: qwen2_5_vl.Compute, unrolled: bool
) -> Callable[[dict], dict]:
  """From parameters of a policy to those that its sampler reads."""
  return jax.jit(
    lambda params: inference_params.served(
      lora.merge(params), compute, unrolled=unrolled
    )
  )


@functools.lru_cache(maxsize=4)
def _tokenizer(path: pathlib.Path, style: str) -> Tokenizer:
  return Tokenizer(path, style)
