"""A policy: model, parameters and tokenizer, which together generate responses.

A policy lives in a folder that Hugging Face transformers opens, too:
`config.json`, `model.safetensors` (or shards of it) and `tokenizer.json`; what
transformers does not know stands in `policy.json` (see `config.py`).

Parameters lie on a mesh, by default whole on each device of this host, and
prompts are split among the devices of this host that share weights.

Axes:  B prompts   G responses per prompt   T response tokens   D data shards
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int

from r1router_jax.common.checkpoint_folder import locate_checkpoint
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Response
from r1router_jax.generation import continuous_batching, group_decode
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.inputs import processor as processor_lib
from r1router_jax.inputs.processor import EncodedPrompt, Processor
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import (
  adapter_files,
  hf_checkpoint,
  lora,
  peft_adapter,
  qwen2_5_vl,
  safetensors_io,
)
from r1router_jax.models.inference_params import to_inference_params
from r1router_jax.parallel import mesh as mesh_lib
from r1router_jax.parallel.mesh import local_mesh
from r1router_jax.policy import config as config_lib
from r1router_jax.policy.config import PolicyConfig
from r1router_jax.protocol import format
from r1router_jax.protocol.messages import Conversation


@dataclasses.dataclass(frozen=True)
class Policy:
  """A model with its parameters, tokenizer and config; generates responses."""

  config: PolicyConfig
  tokenizer_path: pathlib.Path  # A tokenizer.json, or a GGUF file.
  params: dict  # On any devices.
  # The devices that sample responses.
  mesh: Mesh = dataclasses.field(default_factory=local_mesh)
  source: pathlib.Path | None = None  # That `load` read; None for a new one.

  @functools.cached_property
  def model(self) -> qwen2_5_vl.QwenVL:
    """The model as it is trained."""
    return qwen2_5_vl.QwenVL(self.config.model, self.config.compute)

  @functools.cached_property
  def processor(self) -> Processor:
    """The processor that turns conversations into batches."""
    # Made when first used: reading a tokenizer takes a while.
    c = self.config
    return Processor(
      _load_tokenizer(self.tokenizer_path, c.style, c.model.vocab, c.end_ids),
      c.model.vision,
      c.prompt_tokens,
      c.min_pixels,
      c.max_pixels,
      c.passage_tokens,
      c.image_mean,
      c.image_std,
    )

  @functools.cached_property
  def allowed_tokens(self) -> np.ndarray:
    """A mask of the vocabulary, False on ids that are never written."""
    return self.processor.tokenizer.allowed_mask(self.config.model.vocab)

  @functools.cached_property
  def inference_model(self) -> qwen2_5_vl.QwenVL:
    """The model that samples responses."""
    # On CPUs a scan over layers would copy each layer's weights in each step.
    is_split = self.mesh.shape.get(mesh_lib.TENSOR, 1) > 1
    unrolled = jax.default_backend() == "cpu" and not is_split
    return dataclasses.replace(self.model, unrolled=unrolled)

  @functools.cached_property
  def inference_params(self) -> dict:
    """The parameters in the layout that `inference_model` reads."""
    # Cast and reordered once, since decoding reads them for every token.
    params = _make_inference_params(
      self.params, self.config.compute, self.inference_model.unrolled
    )
    layout = NamedSharding(self.mesh, PartitionSpec())
    if self.mesh.shape.get(mesh_lib.TENSOR, 1) > 1:
      without = (mesh_lib.FSDP,)
      layout = mesh_lib.tree_shardings(params, self.mesh, without=without)
    # Each host samples alone, on its own devices of the mesh.
    return mesh_lib.to_local_arrays(jax.device_put(params, layout), self.mesh)

  def decode_constraints(
    self, stop: Sequence[str] = ()
  ) -> group_decode.DecodeConstraints:
    """Return the tokens that may be sampled, and what ends a response.

    These are the end tokens, and any of the texts `stop`.
    """
    if isinstance(stop, str):
      raise UserError(f"stop is {stop!r}: give a tuple of texts.")
    tokenizer, allowed = self.processor.tokenizer, self.allowed_tokens
    # The table of stop texts is large, and most calls have none.
    table = tokenizer.stop_table(tuple(stop), len(allowed)) if stop else None
    eos_ids = np.int32(tokenizer.eos_ids)
    return group_decode.DecodeConstraints(allowed, eos_ids, table)

  def sample(
    self,
    prompts: Sequence[EncodedPrompt],
    key: jax.Array,
    group_size: int,
    sampling: SamplingParams = GREEDY,
    stop: Sequence[str] = (),
    wanted: Bool[np.ndarray, "B G"] | None = None,
  ) -> group_decode.SampledResponses:
    """Sample G responses to each prompt, leaves [B, G, T].

    A response depends on `key`, its prompt's tokens and its member index, and
    on nothing else in the batch.  The fields of `sampling` are numbers or
    arrays that broadcast to [B, G]; one out of its range raises UserError.  The
    texts `stop` end a response, too.  Only `wanted` members are sampled, by
    default all; the others stay empty.
    """
    if group_size < 1:
      raise UserError(f"group_size is {group_size}: sample 1 response or more.")
    keys = _response_key_data(key, prompt_hashes(prompts), group_size)
    constraints = self.decode_constraints(stop)
    max_tokens, shape = self.config.response_tokens[-1], keys.shape[:2]
    # One number for each response, so that rows of a batch may differ.
    sampling = jax.tree.map(lambda x: np.broadcast_to(x, shape), sampling)
    responses = group_decode.empty_responses(*shape, max_tokens)
    # Prompts of one shape share compiled programs, so each shape is sampled on
    # its own.
    for indices in self._group_by_shape(prompts):
      chosen = [prompts[i] for i in indices]
      some = continuous_batching.sample_responses(
        self.inference_model,
        self.inference_params,
        functools.partial(self._collate, chosen),
        keys[indices],
        SamplingParams(*(x[indices] for x in sampling)),
        constraints,
        max_tokens=max_tokens,
        max_rows=self.config.decode_batch_size,
        mesh=mesh_lib.local_submesh(self.mesh),
        wanted=None if wanted is None else wanted[indices],
      )
      for target, values in zip(responses, some, strict=True):
        target[indices] = values
    # Such responses end early, and then count as malformed.
    if failed := responses.failed.sum():
      warning = "%d of %d responses end where logits are not numbers."
      logging.warning(warning, failed, responses.failed.size)
    return responses

  def _group_by_shape(
    self, prompts: Sequence[EncodedPrompt]
  ) -> list[Int[np.ndarray, " N"]]:
    """Return the indices of prompts that are padded to one shape, by shape."""
    indices = collections.defaultdict(list)
    for i, prompt in enumerate(prompts):
      length = self.processor.padded_length(prompt.ids)
      indices[length, len(prompt.images)].append(i)
    return [np.array(indices[shape]) for shape in sorted(indices)]

  def _collate(
    self, prompts: Sequence[EncodedPrompt], batch: Int[np.ndarray, "D B"]
  ) -> qwen2_5_vl.PromptBatch:
    """Return a batch of some of the prompts, which are of one shape."""
    chosen = [prompts[i] for i in batch.flat]
    return self.processor.collate(chosen, *batch.shape)

  def generate(
    self,
    conversations: Sequence[Conversation],
    key: jax.Array,
    group_size: int = 1,
    sampling: SamplingParams = GREEDY,
    stop: Sequence[str] = (),
    members: Sequence[int] | None = None,
  ) -> list[list[Response]]:
    """Generate a group of responses to each conversation; see `sample`.

    With `members` equal conversations are prefilled once.  A prompt that cannot
    be read raises BadImage or PromptTooLong.
    """
    if members is None:
      prompts = [self.processor.encode(c) for c in conversations]
      return self.decode(self.sample(prompts, key, group_size, sampling, stop))
    # The members of one prompt become its group, the others of which are not
    # wanted.
    numbers = {c: n for n, c in enumerate(dict.fromkeys(conversations))}
    rows, members = [numbers[c] for c in conversations], list(members)
    wanted = np.zeros((len(numbers), group_size), bool)
    wanted[rows, members] = True
    prompts = [self.processor.encode(c) for c in numbers]
    groups = self.decode(
      self.sample(prompts, key, group_size, sampling, stop, wanted)
    )
    return [[groups[r][m]] for r, m in zip(rows, members, strict=True)]

  def decode(
    self, responses: group_decode.SampledResponses
  ) -> list[list[Response]]:
    """Return sampled arrays [B, G, T] as texts with their tokens."""
    decode = self.processor.tokenizer.decode
    # Padding behind the end token is dropped.
    arrays = responses.tokens, responses.logp, responses.mask
    return [
      [
        Response(decode(tokens[mask]), tokens[mask], logp[mask])
        for tokens, logp, mask in zip(*group, strict=True)
      ]
      for group in zip(*arrays, strict=True)
    ]

  def encode_target(self, text: str) -> list[int]:
    """Return the tokens of a response that this policy is to learn."""
    if self.config.spaces_tags:
      text = format.space_tags(text)
    return self.processor.tokenizer.encode_response(text)

  def save(self, folder: epath.PathLike) -> None:
    """Write the policy's folder; adapters become part of the weights.

    All processes of a job must call this, and the first writes.  A folder that
    holds an adapter raises FileExistsError.
    """
    # All processes gather, also those that do not write.
    params = mesh_lib.gather_to_host(lora.merge_adapters(self.params))
    # Only the first process writes.
    if jax.process_index():
      return
    peft_adapter.check_no_adapter(folder)
    token_ids = self.processor.tokenizer.special_token_ids()
    files = self.config, self.tokenizer_path, token_ids
    dtype = params["embed"].dtype
    with _local_folder(epath.Path(folder)) as path:
      # Weights come first: those that are not finite change nothing.
      hf_checkpoint.save_params(path, params, self.config.model)
      config_lib.write_policy_files(path, *files, dtype, self.source)

  def save_adapters(self, folder: epath.PathLike, base: str) -> None:
    """Write the adapters alone, in PEFT's form; see `peft_adapter`.

    `base` names the policy that they were added to, for `locate_checkpoint`.
    All processes of a job must call this, and the first writes.
    """
    # All processes gather, also those that do not write.
    adapters = mesh_lib.gather_to_host(lora.select_adapters(self.params))
    if jax.process_index():
      return
    with _local_folder(epath.Path(folder)) as path:
      config_lib.write_options(path, self.config)
      adapter_files.save_adapters(path, adapters, self.config.model, base)


def prompt_hashes(prompts: Sequence[EncodedPrompt]) -> Int[np.ndarray, " B"]:
  """Return a CRC-32 of each prompt, 31 bits, which seeds its samples."""
  # Prompts of the same words may show different images.
  parts = ([*p.ids, *(image.digest for image in p.images)] for p in prompts)
  digests = [zlib.crc32(np.asarray(each, np.uint32)) for each in parts]
  return np.array([digest & 0x7FFFFFFF for digest in digests], np.int32)


def _response_key_data(
  key: jax.Array, hashes: Int[np.ndarray, " B"], group_size: int
) -> np.ndarray:
  """Return the data of a key for each response, [B, G, ...]."""
  # Padded to a power of two of prompts, so that few programs are compiled.
  count = len(hashes)
  hashes = np.pad(hashes, (0, processor_lib.next_power_of_two(count) - count))
  keys = _response_keys(key, hashes, group_size)
  return np.asarray(jax.random.key_data(keys))[:count]


_response_keys = jax.jit(group_decode.response_keys, static_argnums=2)


@contextlib.contextmanager
def _local_folder(folder: epath.Path) -> Iterator[pathlib.Path]:
  """Yield a folder to write to; for a bucket, its files are copied there."""
  if "://" not in str(folder):
    yield pathlib.Path(folder)
    return
  with tempfile.TemporaryDirectory() as local:
    yield pathlib.Path(local)
    folder.mkdir(parents=True, exist_ok=True)
    names = [file.name for file in epath.Path(local).iterdir()]
    for name in names:
      (epath.Path(local) / name).copy(folder / name, overwrite=True)
    safetensors_io.remove_other_weights(folder, names)


def load(
  name: str | pathlib.Path, *, dtype: Any = None, mesh: Mesh | None = None
) -> Policy:
  """Open a policy's folder, or a published checkpoint.

  The name is one of `locate_checkpoint`; an adapter becomes part of its base's
  weights.  By default parameters have the precision of matrix products, which
  is enough to answer but not to train, and each device of this host holds all
  of them; a mesh splits them by `mesh.SHARDING_RULES`.  A file that is missing
  or broken raises FileNotFoundError, BadConfig, BadWeights or UserError, which
  name it.
  """
  folder = locate_checkpoint(name)
  config = config_lib.read_config(folder)
  opened = Policy(config, config_lib.find_tokenizer(folder), {}, source=folder)
  _ = opened.processor  # A tokenizer that does not fit is found before weights.
  # The config says which parameters there are, and so which layout.
  init = functools.partial(init_params, config)
  shapes = jax.eval_shape(init, jax.random.key(0))
  # Each parameter is read straight onto its devices, never whole on the host.
  layout = mesh_lib.tree_shardings(shapes, mesh or local_mesh())
  dtype = dtype or jnp.dtype(config.compute.dtype)
  options = dict(dtype=dtype, shardings=layout)
  params = hf_checkpoint.load_params(folder, config.model, **options)
  return dataclasses.replace(opened, params=params)


def init_policy(
  config: PolicyConfig,
  tokenizer_path: str | pathlib.Path,
  seed: int,
  mesh: Mesh | None = None,
) -> Policy:
  """Return a policy with random parameters; see `load` for `mesh`."""
  init, mesh = functools.partial(init_params, config), mesh or local_mesh()
  params = mesh_lib.init_sharded(init, mesh, jax.random.key(seed))
  return Policy(config, pathlib.Path(tokenizer_path), params)


def init_params(config: PolicyConfig, key: jax.Array) -> dict:
  """Return random parameters; `jax.eval_shape` of this costs nothing."""
  model, vision = qwen2_5_vl.QwenVL(config.model), config.model.vision
  # The shortest prompt that touches every parameter.
  images = int(vision is not None)
  prompt = qwen2_5_vl.empty_prompt_batch(1, 2, images, 1, vision)
  prompt = jax.tree.map(jnp.asarray, prompt)
  return model.init(key, prompt, jnp.zeros((1, 1, 2), jnp.int32))["params"]


# Cached, so that each new policy of a training run reuses the program.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _make_inference_params(params, compute, unrolled):
  merged = lora.merge_adapters(params)
  return to_inference_params(merged, compute, unrolled=unrolled)


_load_tokenizer = functools.lru_cache(maxsize=4)(Tokenizer)
