r"""Will it fit?  Compiles a run for devices that are not there.

  python -m r1router_jax.train_compile --config=configs/step_grpo.py:7b \
      --topology=v5e:4x4

Both programs of Step-GRPO are compiled for the named topology, the rollout
(vision tower, prefill, group decoding) and the update (forward, backward,
optimiser), with the batch, the lengths and the mesh of the config.  TPUs need
libtpu, `pip install 'r1router_jax[tpu]'`, and no TPU; `--topology=cpu:8` is a
dry run that any machine can do.

Memory is what XLA's compiler reports for one chip at the worst moment; for TPUs
it refuses what does not fit, and says what it wanted.  Some 100 MiB more are a
runtime's own.

Axes:  M passes of an update   B prompts   G responses per prompt
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from r1router_jax.common import cli
from r1router_jax.generation import group_decode, token_sampling
from r1router_jax.models import lora, qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import policy
from r1router_jax.policy.config import Settings
from r1router_jax.training import batch, grpo_loss, optimizer, train_step

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The run, e.g. configs/step_grpo.py:7b.", allow_override=True
)

_TOPOLOGY = flags.DEFINE_list(
  "topology",
  ["cpu:8"],
  "TPUs and their shapes, as v5e:4x4, v5p:2x2x1 or v6e:2x4; or cpu:N.",
)


GIB = 2**30

# GiB of a device, as libtpu has it; of v3 and v4 a chip is two devices.
LIMITS = {
  "TPU v3": 15.48,
  "TPU v4": 15.25,
  "TPU v5 lite": 15.75,
  "TPU v5": 95.74,
  "TPU v6 lite": 31.25,
}


ADVICE = dict(  # What to change where a program does not fit.
  rollout="fewer config.data.batch_rows or response_tokens, or a wider "
  "config.rollout_mesh.tensor",
  update="fewer config.step_grpo.learn_rows, a shorter last "
  'config.policy.settings.prompt_tokens, compute.remat "full", a frozen '
  "vision tower (config.trainable), adapters (config.policy.lora), or more "
  "chips",
)


@dataclasses.dataclass(frozen=True)
class Fit:
  """What one program needs of one chip, in GiB.

  Attributes:
    program: its name.
    peak: at the worst moment; what it wanted, where the compiler gave up.
    arguments: of it, weights, optimiser and batch; NaN where it gave up.
    limit: of the chip; infinite where unknown.
  """

  program: str
  peak: float
  arguments: float
  limit: float

  @property
  def fits(self) -> bool:
    return self.peak <= self.limit


def devices(topology: str) -> np.ndarray:
  """The devices of a topology, none of which need be there.

  Raises:
    ValueError: where it is no topology, or libtpu is missing.
  """
  kind, _, count = topology.partition(":")
  if kind == "cpu":
    if not count.isdigit() or int(count) > jax.device_count("cpu"):
      raise ValueError(
        f"--topology={topology}: this process has {jax.device_count('cpu')} "
        "CPU devices.  Ask for as many or fewer."
      )
    return np.array(jax.devices("cpu")[: int(count)])
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"--topology={topology} needs libtpu, which compiles for TPUs without "
      "one: pip install 'r1router_jax[tpu]'.  Or take --topology=cpu:8."
    )
  try:
    return np.array(
      topologies.get_topology_desc(
        platform="tpu", topology_name=topology
      ).devices
    )
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition("\n")[0]
    raise ValueError(
      f"--topology={topology}: {reason}.  Name one as v4:2x2x1, v5e:2x4, "
      "v5e:4x4, v5p:2x2x1, v6e:4x4."
    ) from error


def batch_of(config: mlc.ConfigDict) -> str:
  """What a part of the mesh does at one time, in words."""
  known = config_lib.of_run(
    config.policy.start_from, config.policy.settings.to_dict()
  )
  g, seen = config.step_grpo, known.model.vision is not None
  return (
    f"Prompts of {known.prompt_tokens[-1]:,} tokens"
    f"{f', each with a picture of {known.max_pixels:,} pixels' * seen}; "
    f"{g.group_size} responses of {known.response_tokens[-1]:,} tokens to "
    f"each; {config.data.batch_rows} prompts per part of the rollout's mesh, "
    f"{g.learn_rows} per part of the update's; {known.compute.dtype}."
  )


def settings_for(config: mlc.ConfigDict, chips: np.ndarray) -> Settings:
  """The policy's settings, as those devices would run it."""
  known = config_lib.of_run(
    config.policy.start_from, config.policy.settings.to_dict()
  )
  if known.compute.attention == "auto":  # It would ask this machine.
    kernel = "splash" if chips[0].platform == "tpu" else "xla"
    known = dataclasses.replace(
      known, compute=dataclasses.replace(known.compute, attention=kernel)
    )
  return known


def programs(
  config: mlc.ConfigDict, chips: np.ndarray
) -> Iterator[tuple[str, Mesh, Callable, tuple, int | None]]:
  """(name, mesh, function, shapes of its arguments, donated) of each."""
  known = settings_for(config, chips)
  model = qwen2_5_vl.QwenVL(known.model, known.compute)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(functools.partial(policy.initial, known), key)
  if config.policy.lora.rank:
    params = jax.eval_shape(
      lambda params, key: lora.add(params, key=key, **config.policy.lora),
      params,
      key,
    )
  g = config.step_grpo
  train, serve = (
    mesh_lib.mesh_of(list(chips), config[name].to_dict(), f"config.{name}")
    for name in ("mesh", "rollout_mesh")
  )

  prompts, parts = config.data.batch_rows, serve.shape[mesh_lib.DATA]
  each = functools.partial(_leading, parts, mesh_lib.rows(serve))
  decode = mesh_lib.each_part(
    functools.partial(
      group_decode.sample.__wrapped__, model, tokens=known.response_tokens[-1]
    ),
    serve,
    shared=(0, 3, 4),
  )
  words = group_decode.Words(
    jax.ShapeDtypeStruct((known.model.vocab,), bool),
    jax.ShapeDtypeStruct((), jnp.int32),
  )
  yield (
    "rollout",
    serve,
    decode,
    (
      _placed(
        params,
        mesh_lib.shardings(params, serve, without=(mesh_lib.FSDP,)),
        known.compute.dtype,
      ),
      each(_longest(known, prompts)),
      each(
        jax.eval_shape(
          lambda: jax.random.split(jax.random.key(0), (prompts, g.group_size))
        )
      ),
      jax.eval_shape(token_sampling.GREEDY.validate),
      words,
    ),
    None,
  )

  tx = optimizer.chain(steps=config.total_steps, **config.optim)
  what = grpo_loss.Objective(g.temperature, known.response_tokens[-1], **g.loss)
  loss = functools.partial(
    grpo_loss.loss, model, what, allowed=jnp.ones(known.model.vocab, bool)
  )
  state = jax.eval_shape(
    lambda p: train_step.start(p, tx, config.trainable), params
  )
  reference = (
    None
    if what.kl_coef == 0
    else (train_step.split(params, config.trainable)[0])
  )
  yield (
    "update",
    train,
    train_step.make(loss, tx, config.trainable),
    (
      *(
        _placed(tree, mesh_lib.shardings(tree, train))
        for tree in (state, reference)
      ),
      _batch(known, config, train),
    ),
    0,
  )


def fit(
  name: str,
  mesh: Mesh,
  function: Callable,
  shapes: tuple,
  donated: int | None,
) -> Fit:
  """Compiles a program and reads what it needs.

  The TPU compiler gives up where memory is short, and says how much it wanted.
  """
  limit = LIMITS.get(mesh.devices.flat[0].device_kind, float("inf"))
  with jax.set_mesh(mesh):
    lowered = jax.jit(
      function, donate_argnums=() if donated is None else donated
    ).lower(*shapes)
    try:
      used = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      return Fit(name, _needed(str(error)), math.nan, limit)
  return Fit(
    name,
    used.peak_memory_in_bytes / GIB,
    used.argument_size_in_bytes / GIB,
    limit,
  )


def row(topology: str, f: Fit) -> str:
  """A line of the table, which is Markdown and aligned."""
  arguments, limit = (
    f"{x:.2f}" if math.isfinite(x) else "-" for x in (f.arguments, f.limit)
  )
  return (
    f"| {topology:8} | {f.program:8} | {f.peak:9.2f} | {limit:>7} | "
    f"{arguments:>9} | {'yes' if f.fits else 'NO':4} |"
  )


HEAD = """\
| topology | program  | GiB/chip  | limit   | arguments | fits |
|----------|----------|----------:|--------:|----------:|------|"""


def _needed(message: str) -> float:
  """GiB that the compiler wanted, as its complaint has it."""
  for pattern in (r"Used ([\d.]+)G of", r"\(([\d.]+)G\) exceeds"):
    if found := re.search(pattern, message):
      return float(found[1])
  return math.inf


def _split(mesh: Mesh) -> int:
  return math.prod(mesh.shape.get(axis, 1) for axis in mesh_lib.ROWS)


def _placed(shapes: Any, layout: Any, dtype: str | None = None) -> Any:
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(
      x.shape, dtype or x.dtype, sharding=where
    ),
    shapes,
    layout,
  )


def _leading(size: int, where: NamedSharding, shapes: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=where),
    shapes,
  )


def _longest(known: Settings, prompts: int) -> qwen2_5_vl.Prompt:
  """The longest prompts, each with as many large pictures as it may have."""
  v = known.model.vision
  windows = v and 1 << ((known.max_pixels - 1) // v.window**2).bit_length()
  return jax.eval_shape(
    lambda: qwen2_5_vl.Prompt(
      *map(
        jnp.asarray,
        (
          qwen2_5_vl.empty_prompt(
            prompts,
            known.prompt_tokens[-1],
            prompts * (1 + known.passage_pictures) if v else 0,
            windows or 0,
            v,
          )
        ),
      )
    )
  )


def _batch(known: Settings, config: mlc.ConfigDict, mesh: Mesh) -> batch.Batch:
  """One update's batch over the whole mesh, in its passes."""
  rows = config.step_grpo.learn_rows
  of_pass = (config.micro_rows or rows) * _split(mesh)
  size = of_pass, config.step_grpo.group_size, known.response_tokens[-1]
  of = jax.ShapeDtypeStruct
  shapes = batch.Batch(
    _longest(known, of_pass),
    of(size, jnp.int32),
    of(size, bool),
    of(size[:2], jnp.float32),
    of(size, jnp.float32),
    of(size[:1], jnp.float32),
  )
  return _leading(
    rows // (config.micro_rows or rows),
    NamedSharding(mesh, PartitionSpec(None, *mesh_lib.rows(mesh).spec)),
    shapes,
  )


def main(_) -> None:
  # Nothing is run: the machine's own accelerator, if any, is left alone.
  os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }
  jax.config.update("jax_platforms", "cpu")
  counts = [
    int(n) for n in re.findall(r"\bcpu:(\d+)", ",".join(_TOPOLOGY.value))
  ]
  if counts:
    jax.config.update("jax_num_cpu_devices", max(counts))
  if _CONFIG.value.algorithm != "step_grpo":
    raise ValueError("--config: a plan is of Step-GRPO: configs/step_grpo.py.")
  print(f"{batch_of(_CONFIG.value)}\n\n{HEAD}", flush=True)
  advice = {}
  for topology in _TOPOLOGY.value:
    for each in programs(_CONFIG.value, devices(topology)):
      found = fit(*each)
      print(row(topology, found), flush=True)
      if not found.fits:
        advice[found.program] = ADVICE[found.program]
  for program, what in advice.items():
    print(f"\nWhere the {program} does not fit, try {what}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
