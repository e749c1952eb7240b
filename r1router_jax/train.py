"""The learning loop: supervised warm start and Step-GRPO.

  python -m r1router_jax.train --config=configs/sft.py:tiny --workdir=runs/sft
  python -m r1router_jax.train --config=configs/step_grpo.py:tiny \
      --workdir=runs/step_grpo

Both algorithms are this loop with other batches: examples, batches, updates.
How an update lies on the devices is `config.parallel`'s to say (drivers.py).

A run that is interrupted goes on at its newest checkpoint and ends as if it had
not been: batches and random numbers depend on (seed, step) alone.  On SIGTERM
it saves and exits with code 42: start it again.  With config.validation.every
the best state so far is in <workdir>/best.  An update whose loss or
gradient is not finite is skipped; config.max_skipped of them in a row end the
run, and the last batch is in <workdir>/skipped.  The trained policy is written
to <workdir>/policy, scalars to <workdir>/metrics.jsonl and, for TensorBoard, to
<workdir>/tensorboard, some of what was sampled to <workdir>/samples.jsonl.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from r1router_jax.common import cli, http_client, progress, run_log
from r1router_jax.data import georouter
from r1router_jax.models import induction_init, lora
from r1router_jax.parallel import multihost, strategy
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import policy
from r1router_jax.retrieval import retriever
from r1router_jax.rewards import step_reward
from r1router_jax.training import (
  bucket_sampler,
  checkpoints,
  health_checks,
  optimizer,
  sft,
  step_grpo,
  throughput,
  train_data,
  train_step,
  validation,
)
from r1router_jax.training.batch import Batch, in_passes

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "The run, e.g. configs/step_grpo.py:tiny.",
  allow_override=True,
)

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where checkpoints, scalars and the policy are written.",
  allow_override=True,
)


def train(config: mlc.ConfigDict, workdir: epath.PathLike) -> policy.Policy:
  """Runs `config` to its last step and returns the trained policy.

  Raises:
    FloatingPointError: where the loss stays not finite; the newest checkpoint
      is from before.
    commands.Preempted: where SIGTERM came; the state is saved.
  """
  workdir = epath.Path(workdir)
  driver = strategy.make(
    config.parallel, dict(config.mesh), dict(config.rollout_mesh)
  )
  start, params = _start(config, driver)
  kbs = (
    retriever.open_kbs(config.data.kb)
    if (config.data.kb and not config.data.rows)
    else {}
  )
  algorithm = _algorithm(config, start, driver, kbs)
  rows, shapes = train_data.of_run(config, start, kbs, algorithm.online)
  checks = config.validation.every and validation.Validation(
    start,
    validation.some(train_data.held_out(config, start, kbs), config),
    step_reward.make("default", start.settings.routes),
  )
  tx = optimizer.chain(
    steps=config.total_steps * algorithm.updates, **config.optim
  )
  learn = driver.compile(
    train_step.make(
      functools.partial(algorithm.loss, allowed=jnp.asarray(start.allowed)),
      tx,
      config.trainable,
      driver.axis,
    )
  )
  born = functools.partial(train_step.start, tx=tx, trainable=config.trainable)
  order = bucket_sampler.Batches(
    shapes, algorithm.examples * jax.process_count(), config.seed
  )
  due = lambda i: [rows[j] for j in multihost.mine(order[i])]
  about = _about(config, rows, algorithm.examples * jax.process_count())
  with (
    checkpoints.Checkpoints(workdir) as saved,
    multihost.Preemption() as preempted,
  ):
    state, before = saved.restore(driver.shapes(born, params))
    state = driver.born(born, params) if state is None else driver.own(state)
    reference = (
      driver.born(
        lambda params: train_step.split(params, config.trainable)[0], params
      )
      if algorithm.penalised
      else None
    )
    del params  # Each has its copy.
    window, best = _resumed(before, about, workdir), before.get("best", -1.0)
    first = int(state.step) // algorithm.updates
    log = run_log.Telemetry(workdir, after=first, wandb=config.wandb)
    meter = throughput.Meter()
    logging.info(
      "%d rows of training questions, %d a batch; iterations %d to %d.",
      len(rows),
      algorithm.examples,
      first,
      config.total_steps,
    )

    def keep(done, state):
      saved.save(
        done, driver.shared(state), about | dict(window=window, best=best)
      )

    for i in progress.progress(
      range(first, config.total_steps), f"train ({config.algorithm})"
    ):
      try:
        with log.timed("data"):
          made, report = algorithm.make_batches(state.params, due, i)
      except http_client.RetrievalError as error:
        if jax.process_count() == 1:  # Other hosts would have to take part.
          keep(i, state)
        raise http_client.RetrievalError(
          f"{error}  The same command goes on from the newest checkpoint."
        ) from error
      log.spent(report.seconds, within="data")
      meter.add(report.work)
      for batch in made:
        with log.timed("update"):
          state, metrics = learn(
            state, reference, in_passes(batch, config.micro_rows)
          )
          metrics = jax.device_get(metrics)
        window.append(_taken(metrics) | report.scalars)
        if metrics["skipped"] >= config.max_skipped:
          _give_up(workdir, i, batch, due(i), metrics)
      last = i + 1 == config.total_steps
      stop = preempted(i)
      if checks and (last or (i + 1) % config.validation.every == 0):
        window.append(checks(state.params))
        if window[-1][validation.REWARD] > best:
          best = window[-1][validation.REWARD]
          dataclasses.replace(start, params=state.params).save(workdir / "best")
      if last or (i + 1) % config.every.log == 0:
        searched = retriever.report(kbs) if algorithm.online else {}
        log.write(i + 1, _mean(window) | meter.rates() | searched)
        for warning in health_checks.warnings(log.lines):
          logging.warning("Iteration %d: %s", i + 1, warning)
        window = []
      if (
        report.groups
        and config.every.trajectories
        and (i + 1) % config.every.trajectories == 0
      ):
        log.sample(i + 1, report.groups)
      if last or stop or (i + 1) % config.every.checkpoint == 0:
        keep(i + 1, state)
      if stop and not last:
        raise cli.Preempted(
          f"Told to stop; saved after iteration {i + 1}.  The same command "
          "goes on from there."
        )
  trained = dataclasses.replace(start, params=state.params)
  trained.save(workdir / "policy")
  return trained


def _about(
  config: mlc.ConfigDict, rows: Sequence[train_data.Row], size: int
) -> dict:
  """What a checkpoint says of the run that wrote it."""
  names = "\n".join(row.id for row in rows).encode()
  return dict(
    config=json.loads(json.dumps(config.to_dict())),
    data=dict(
      rows=len(rows),
      digest=hashlib.sha256(names).hexdigest(),
      batch=size,
      seed=config.seed,
    ),
    versions={
      name: importlib.metadata.version(name)
      for name in (
        "r1router_jax",
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
      )
    },
  )


def _resumed(before: dict, about: dict, workdir: epath.Path) -> list[dict]:
  """The scalars since the last line that a checkpoint's run wrote.

  Raises:
    ValueError: where it saw other batches.
  """
  if not before:
    return []
  for name, value in about["data"].items():
    if before["data"][name] != value:
      raise ValueError(
        f"{workdir} holds a run whose {name} was {before['data'][name]}, and "
        f"now it is {value}: its batches would be others.  Choose another "
        "--workdir, or the former config.data, seed and devices."
      )
  for part in ("config", "versions"):
    if before[part] != about[part]:
      old, new = (
        {k: v for k, v in one[part].items() if v != other[part].get(k)}
        for one, other in ((before, about), (about, before))
      )
      logging.warning(
        "Going on with another %s: %s, and now %s.", part, old, new
      )
  return before["window"]


def _taken(metrics: dict) -> dict[str, float]:
  """An update's scalars; of one that was skipped, only that it was.

  Means over nothing, as where no group teaches, are left out.
  """
  skipped = float(metrics["skipped"] > 0)
  return {
    name: float(x)
    for name, x in metrics.items()
    if not skipped and np.isfinite(x)
  } | dict(skipped=skipped)


def _give_up(
  workdir: epath.Path,
  i: int,
  batch: Batch,
  rows: Sequence[train_data.Row],
  metrics: dict,
) -> NoReturn:
  """Leaves a batch of iteration `i` for inspection, and ends the run."""
  name = (
    f"{i}.npz"
    if jax.process_count() == 1
    else (f"{i}.{jax.process_index()}.npz")
  )
  path = workdir / "skipped" / name
  path.parent.mkdir(parents=True, exist_ok=True)
  leaves, _ = jax.tree_util.tree_flatten_with_path(batch)
  with path.open("wb") as file:
    np.savez(
      file,
      examples=[row.id for row in rows],
      **{
        jax.tree_util.keystr(at, simple=True, separator="."): x
        for at, x in leaves
      },
    )
  raise FloatingPointError(
    f"{metrics['skipped']} updates in a row were skipped, the last with loss "
    f"{metrics['loss']} and gradient norm {metrics['grad_norm']}.  Its batch "
    f"is in {path}.  Lower config.optim.lr and start again: {workdir} goes "
    "on from its newest checkpoint."
  )


def _start(
  config: mlc.ConfigDict, driver: strategy.Driver
) -> tuple[policy.Policy, dict]:
  """The policy that a run begins with, and its parameters, which it lacks."""
  given = config.policy
  known = config_lib.of_run(given.start_from, given.settings.to_dict())
  if given.start_from:
    start = policy.load(given.start_from, dtype=np.float32, mesh=driver.mesh)
  else:
    start = policy.create(
      known, georouter.tokenizer_path(), config.seed, driver.mesh
    )
  params = start.params
  if given.induction:
    params = induction_init.plant(params, known.model, config.seed)
  if given.lora.rank:
    params = lora.add(params, key=jax.random.key(config.seed), **given.lora)
  return dataclasses.replace(
    start, settings=known, params={}, mesh=driver.rollout
  ), params


def _algorithm(
  config: mlc.ConfigDict,
  start: policy.Policy,
  driver: strategy.Driver,
  kbs: Mapping[str, retriever.KnowledgeBase],
) -> sft.Sft | step_grpo.StepGrpo:
  of_run = dict(
    rows=config.data.batch_rows,
    total_steps=config.total_steps,
    seed=config.seed,
    **config[config.algorithm].to_dict(),
  )
  if config.algorithm == "sft":
    return sft.Sft(start, driver, **of_run)
  return step_grpo.StepGrpo(
    start, driver, kbs=kbs, passages=config.data.passages.to_dict(), **of_run
  )


def _mean(window: list[dict]) -> dict[str, float]:
  """The mean of each scalar over the updates that report it."""
  names = dict.fromkeys(name for scalars in window for name in scalars)
  return {
    name: float(np.mean([s[name] for s in window if name in s]))
    for name in names
  }


def main(argv: list[str]) -> None:
  del argv
  multihost.join_pod()
  workdir = epath.Path(_WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "config.json").write_text(
    json.dumps(_CONFIG.value.to_dict(), indent=1)
  )
  train(_CONFIG.value, workdir)
  print(f"The policy is in {workdir / 'policy'}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  cli.run(main)
