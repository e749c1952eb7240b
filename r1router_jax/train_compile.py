r"""Compiles a run for devices that are not there, to tell whether it fits.

  python -m r1router_jax.train_compile --config=configs/step_grpo.py:7b \
      --topology=v5e:4x4

Both programs of Step-GRPO are compiled for the topology, the rollout (vision
tower, prefill, group decoding) and the update (forward, backward, optimizer),
with the batch, the lengths and the mesh of the config.  TPUs need libtpu,
`pip install 'r1router_jax[tpu]'`, but no TPU; `--topology=cpu:8` is a dry run
that any machine can do.

The memory is what XLA's compiler reports for one chip at the worst moment; for
TPUs the compiler refuses what does not fit, and says what it wanted.  The
runtime of the devices needs about 100 MiB more.

Axes:  D data shards   M microbatches of an update   m prompts of a microbatch
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags
from etils import epy
from ml_collections import config_flags

from r1router_jax.common import cli
from r1router_jax.common.errors import UserError
from r1router_jax.training.config import RunConfig
from r1router_jax.training.config_reader import read_run_config

# These take seconds to import: wrong flags are answered before.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.experimental import topologies

  from r1router_jax.generation import group_decode, token_sampling
  from r1router_jax.inputs import processor
  from r1router_jax.models import qwen2_5_vl
  from r1router_jax.parallel import mesh as mesh_lib
  from r1router_jax.parallel import strategy
  from r1router_jax.policy import config as config_lib
  from r1router_jax.policy import policy as policy_lib
  from r1router_jax.training import batch as batch_lib
  from r1router_jax.training import grpo_loss, run_setup, train_step

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The run, as configs/step_grpo.py:7b.", allow_override=True
)
_TOPOLOGY = flags.DEFINE_list(
  "topology", ["cpu:8"], "TPUs and shapes, as v5e:4x4,v5p:2x2x1; or cpu:N."
)

GIB = 2**30

# GiB of a device, as libtpu has it; a chip of v3 and v4 is two devices.
DEVICE_GIB = {"TPU v3": 15.48, "TPU v4": 15.25, "TPU v5 lite": 15.75}
DEVICE_GIB |= {"TPU v5": 95.74, "TPU v6 lite": 31.25}

# What to change if a program does not fit.
ADVICE = {
  "rollout": "fewer config.data.prompts_per_shard or response_tokens, or a "
  "wider config.rollout_mesh.tensor",
  "update": "fewer config.step_grpo.update_batch_size, a shorter last "
  'config.policy.overrides.prompt_tokens, compute.remat "full", a frozen '
  "vision tower (config.trainable_regex), adapters (config.policy.lora), or "
  "more chips",
}

TABLE_HEAD = """\
| topology | program  | GiB/chip  | limit   | arguments | fits |
|----------|----------|----------:|--------:|----------:|------|"""


class Program(NamedTuple):
  """A program to compile."""

  name: str  # A key of `ADVICE`.
  mesh: jax.sharding.Mesh  # The devices that it runs on.
  function: Callable
  arguments: tuple  # Shapes, with their shardings.
  donated: tuple[int, ...] = ()  # Arguments whose memory it takes over.


class ProgramMemory(NamedTuple):
  """The memory that one program needs on one chip, in GiB."""

  program: str
  peak: float  # At the worst moment; what was wanted if the compiler gave up.
  arguments: float  # Weights, optimizer and batch, a part of it; NaN then.
  limit: float  # Memory of the chip; infinite if unknown.

  @property
  def fits(self) -> bool:
    """Return whether the chip has that much."""
    return self.peak <= self.limit


def find_devices(topology: str) -> np.ndarray:
  """Return a topology's devices, which may be absent, or raise UserError."""
  # CPU devices exist, as many as XLA_FLAGS made; those of TPUs are described.
  kind, _, count = topology.partition(":")
  if kind == "cpu":
    available = jax.device_count("cpu")
    if not count.isdigit() or int(count) > available:
      fault = f"this process has {available} CPU devices"
      raise UserError(f"--topology={topology}: {fault}.  Ask for no more.")
    return np.array(jax.devices("cpu")[: int(count)])
  if importlib.util.find_spec("libtpu") is None:
    cure = "pip install 'r1router_jax[tpu]', or take --topology=cpu:8."
    raise UserError(f"--topology={topology} needs libtpu, but no TPU: {cure}")
  try:
    described = topologies.get_topology_desc(topology, "tpu")
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition("\n")[0]
    cure = "Name one as v4:2x2x1, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:4x4."
    raise UserError(f"--topology={topology}: {reason}.  {cure}") from error
  return np.array(described.devices)


def describe_batch(config: RunConfig, policy: config_lib.PolicyConfig) -> str:
  """Return what a data shard does at one time, in words."""
  images, grpo = "", config.step_grpo
  if policy.model.vision is not None:
    images = f", each with an image of {policy.max_pixels:,} pixels"
  return (
    f"Prompts of {policy.prompt_tokens[-1]:,} tokens{images}; "
    f"{grpo.group_size} responses of {policy.response_tokens[-1]:,} tokens to "
    f"each; {config.data.prompts_per_shard} prompts per data shard of the "
    f"rollout mesh, {grpo.update_batch_size} per data shard of the training "
    f"mesh; {policy.compute.dtype}."
  )


def read_policy_config(
  config: RunConfig, platform: str | None = None
) -> config_lib.PolicyConfig:
  """Return a run's policy config, with a platform's own attention kernel."""
  start = config.policy
  policy = config_lib.config_for_run(start.start_from, start.overrides)
  if platform is None or policy.compute.attention != "auto":
    return policy
  # "auto" would ask the devices of this machine.
  kernel = "splash" if platform == "tpu" else "xla"
  compute = dataclasses.replace(policy.compute, attention=kernel)
  return dataclasses.replace(policy, compute=compute)


def make_programs(config: RunConfig, devices: np.ndarray) -> list[Program]:
  """Return the rollout and the update of a run on the given devices."""
  policy = read_policy_config(config, devices.flat[0].platform)
  make_mesh = functools.partial(mesh_lib.mesh_from_devices, list(devices))
  training_mesh = make_mesh(config.mesh, "config.mesh")
  rollout_mesh = make_mesh(config.rollout_mesh, "config.rollout_mesh")

  def make_params(key):
    return run_setup.add_adapters(config, policy_lib.init_params(policy, key))

  # Shapes alone: no weights are read or made.
  params = jax.eval_shape(make_params, jax.random.key(0))
  run = config, policy, params
  return [_make_rollout(*run, rollout_mesh), _make_update(*run, training_mesh)]


def _make_rollout(
  config: RunConfig,
  policy: config_lib.PolicyConfig,
  params: Any,
  mesh: jax.sharding.Mesh,
) -> Program:
  """Return the program that samples the groups of one iteration."""
  model = qwen2_5_vl.QwenVL(policy.model, policy.compute)
  # `__wrapped__` is the function without its own jit.
  sample, longest = group_decode.sample.__wrapped__, policy.response_tokens[-1]
  decode = functools.partial(sample, model, max_tokens=longest)
  shape = config.data.prompts_per_shard, config.step_grpo.group_size
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape))
  rows, shards = mesh_lib.batch_sharding(mesh), mesh.shape[mesh_lib.DATA]
  # Prompts and keys have a leading axis of data shards.
  by_shard = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((shards, *x.shape), x.dtype, sharding=rows),
    (abstract_prompts(policy, shape[0]), keys),
  )
  # Sampling splits weights along `tensor` alone, and holds them in the dtype
  # of products.
  shardings = mesh_lib.tree_shardings(params, mesh, without=(mesh_lib.FSDP,))
  weights = mesh_lib.with_shardings(params, shardings, policy.compute.dtype)
  # The vocabulary mask and the ids of end tokens.
  shaped = jax.ShapeDtypeStruct
  end_ids = shaped((1 + len(policy.end_ids),), jnp.int32)
  allowed = shaped((policy.model.vocab,), bool)
  constraints = group_decode.DecodeConstraints(allowed, end_ids)
  sampling = jax.eval_shape(token_sampling.GREEDY.validate)
  # Arguments 0, 3 and 4 are the same for all data shards.
  function = mesh_lib.shard_map_over_data(decode, mesh, shared=(0, 3, 4))
  arguments = weights, *by_shard, sampling, constraints
  return Program("rollout", mesh, function, arguments)


def _make_update(
  config: RunConfig,
  policy: config_lib.PolicyConfig,
  params: Any,
  mesh: jax.sharding.Mesh,
) -> Program:
  """Return the program that makes one update, as `train` would run it."""
  model = qwen2_5_vl.QwenVL(policy.model, policy.compute)
  loss_config = grpo_loss.make_loss_config(config.step_grpo, policy)
  # The mask of allowed tokens is a constant of the program, as in a run.
  allowed = jnp.ones(policy.model.vocab, bool)
  loss = functools.partial(grpo_loss.loss, model, loss_config, allowed=allowed)
  init_state, step = run_setup.make_update(
    config, loss, policy.prompt_tokens, axis_name=None
  )
  shards = math.prod(mesh.shape.get(axis, 1) for axis in mesh_lib.BATCH_AXES)
  # The strategy gives states the shardings that checkpoints have.  Under pmap a
  # chip holds as much as on a mesh that splits no weights.
  layout = strategy.ParallelStrategy("fsdp", mesh, mesh, mesh, shards)
  reference = None
  if loss_config.kl_coef != 0:  # Else no divergence needs it.
    regex = config.trainable_regex
    trainable = functools.partial(train_step.trainable_params, trainable=regex)
    reference = layout.abstract_state(trainable, params)
  state = layout.abstract_state(init_state, params)
  batch = abstract_microbatches(config, policy, shards)
  # Microbatches follow each other; the rows of each are split.
  rows = jax.sharding.PartitionSpec(None, *mesh_lib.batch_sharding(mesh).spec)
  rows = jax.sharding.NamedSharding(mesh, rows)
  batch = mesh_lib.with_shardings(batch, jax.tree.map(lambda _: rows, batch))
  return Program("update", mesh, step, (state, reference, batch), (0,))


def abstract_microbatches(
  config: RunConfig, policy: config_lib.PolicyConfig, shards: int
) -> batch_lib.Batch:
  """Return the shapes, [M, D m, ...], of the largest batch of an update."""
  shaped, rows = jax.ShapeDtypeStruct, config.step_grpo.update_batch_size
  group = rows, config.step_grpo.group_size
  tokens = *group, policy.response_tokens[-1]
  # Of one data shard, [B, ...].
  batch = batch_lib.Batch(
    prompt=abstract_prompts(policy, rows),
    response=shaped(tokens, jnp.int32),
    mask=shaped(tokens, bool),
    advantage=shaped(group, jnp.float32),
    old_logp=shaped(tokens, jnp.float32),
    loss_denominator=shaped((rows,), jnp.float32),
  )
  count = rows // (config.micro_batch_size or rows)

  def split(x):
    size = shards * x.shape[0] // count
    return shaped((count, size, *x.shape[1:]), x.dtype)

  return jax.tree.map(split, batch)


def abstract_prompts(policy: config_lib.PolicyConfig, prompts: int) -> Any:
  """Return the shapes of B prompts of the greatest length and most images."""
  vision, images, windows = policy.model.vision, 0, 0
  if vision is not None:
    # The image of the question, and those of passages.
    images = prompts * (1 + policy.passage_images)
    windows = -(-policy.max_pixels // vision.window**2)
    windows = processor.next_power_of_two(windows)
  size = prompts, policy.prompt_tokens[-1], images, windows
  empty = qwen2_5_vl.empty_prompt_batch(*size, vision)
  return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, empty))


def measure_memory(program: Program) -> ProgramMemory:
  """Compile a program and return the memory that it needs."""
  # All devices of a topology are alike.
  device = program.mesh.devices.flat[0]
  limit = DEVICE_GIB.get(device.device_kind, math.inf)
  with jax.set_mesh(program.mesh):
    jitted = jax.jit(program.function, donate_argnums=program.donated)
    lowered = jitted.lower(*program.arguments)
    try:
      used = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
      # The TPU compiler gives up if memory is short.
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      wanted = _wanted_gib(str(error))
      return ProgramMemory(program.name, wanted, math.nan, limit)
  peak, arguments = used.peak_memory_in_bytes, used.argument_size_in_bytes
  return ProgramMemory(program.name, peak / GIB, arguments / GIB, limit)


def _wanted_gib(message: str) -> float:
  """Return the GiB that the compiler wanted, as its error message has it."""
  # Messages of the TPU compiler, of two kinds of allocation failure.
  for pattern in (r"Used ([\d.]+)G of", r"\(([\d.]+)G\) exceeds"):
    if found := re.search(pattern, message):
      return float(found[1])
  return math.inf


def format_row(topology: str, memory: ProgramMemory) -> str:
  """Return an aligned row of the Markdown table under `TABLE_HEAD`."""
  program, peak, *others = memory  # Not every number is known.
  arguments, limit = (f"{x:.2f}" if math.isfinite(x) else "-" for x in others)
  return (
    f"| {topology:8} | {program:8} | {peak:9.2f} | {limit:>7} | "
    f"{arguments:>9} | {'yes' if memory.fits else 'NO':4} |"
  )


def _use_cpu_only(topology_names: list[str]) -> None:
  """Leave this machine's accelerator alone, and make the CPU devices."""
  # libtpu would ask for the machine's own TPU, its neighbours and its lock.
  os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }
  jax.config.update("jax_platforms", "cpu")
  counts = re.findall(r"\bcpu:(\d+)", ",".join(topology_names))
  if counts:
    jax.config.update("jax_num_cpu_devices", max(map(int, counts)))


def main(_) -> None:
  """Run the command."""
  config = read_run_config(_CONFIG.value.to_dict())
  if config.algorithm != "step_grpo":
    raise UserError("--config: a plan is of Step-GRPO: configs/step_grpo.py.")
  _use_cpu_only(_TOPOLOGY.value)
  description = describe_batch(config, read_policy_config(config))
  print(f"{description}\n\n{TABLE_HEAD}", flush=True)
  # Each row is printed when it is known: a large program takes minutes.
  too_large = []
  for topology in _TOPOLOGY.value:
    for program in make_programs(config, find_devices(topology)):
      memory = measure_memory(program)
      print(format_row(topology, memory), flush=True)
      if not memory.fits:
        too_large.append(program.name)
  for name in dict.fromkeys(too_large):
    print(f"\nIf the {name} does not fit, try {ADVICE[name]}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
