"""The learning loop: supervised warm start and Step-GRPO.

  python -m r1router_jax.train --config=configs/sft.py:tiny --workdir=runs/sft
  python -m r1router_jax.train --config=configs/step_grpo.py:tiny \
      --workdir=runs/step_grpo

Both algorithms are this loop with other batches: examples -> batch -> update.
The update is one `pmap` over the local devices (see `learning/update.py`).

A run that is interrupted goes on at its newest checkpoint and ends as if it had
not been: batches and random numbers depend on (seed, step) alone.  On SIGTERM
it saves and exits with code 42: start it again.  An update whose loss or
gradient is not finite is skipped; config.max_skipped of them in a row end the
run, and the last batch is in <workdir>/skipped.  The trained policy is written
to <workdir>/policy, scalars to <workdir>/metrics.jsonl.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from typing import NoReturn

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from r1router_jax import (
    checkpoints,
    commands,
    parallel,
    policy,
    settings,
    telemetry,
)
from r1router_jax.data import batches, georouter, trajectories
from r1router_jax.learning import optim, sft, step_grpo, update
from r1router_jax.learning.batch import Batch
from r1router_jax.models import induction, lora
from r1router_jax.protocol import step_conversation
from r1router_jax.records import KBS, Question, Step
from r1router_jax.retrieval import knowledge_base

ALGORITHMS = {"sft": sft.Sft, "step_grpo": step_grpo.StepGrpo}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run, e.g. configs/step_grpo.py:tiny.",
    allow_override=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, scalars and the policy are written.",
    allow_override=True)


def train(config: mlc.ConfigDict, workdir: str | pathlib.Path) -> policy.Policy:
  """Runs `config` to its last step and returns the trained policy.

  Raises:
    FloatingPointError: where the loss stays not finite; the newest checkpoint
      is from before.
    commands.Preempted: where SIGTERM came; the state is saved.
  """
  parallel.mesh_sizes(jax.device_count(), config.mesh.to_dict())
  if (config.mesh.fsdp, config.mesh.tensor) != (1, 1):
    raise ValueError(
        f"config.mesh {config.mesh.to_dict()} splits the weights over devices, "
        "and training keeps them whole on each: set fsdp and tensor to 1.  See "
        "with r1router_jax.plan what such a run needs.")
  workdir = pathlib.Path(workdir)
  start = _start(config)
  steps, shapes = _examples(config, start)
  algorithm = ALGORITHMS[config.algorithm](
      start, total_steps=config.total_steps, seed=config.seed,
      **config[config.algorithm])
  tx = optim.chain(steps=config.total_steps, **config.optim)
  step = jax.pmap(
      update.make(functools.partial(
          algorithm.loss, allowed=jnp.asarray(start.allowed)),
          tx, config.trainable, parallel.DATA),
      axis_name=parallel.DATA, donate_argnums=(0,))
  rows = config.data.batch_rows
  order = batches.Batches(
      shapes, rows * jax.local_device_count(), config.seed)
  about = _about(config, steps, rows * jax.device_count())
  with checkpoints.Checkpoints(workdir) as saved, (
      parallel.Preemption()) as preempted:
    state, before = saved.restore(update.start(
        parallel.unreplicate(start.params), tx, config.trainable))
    window = _resumed(before, about, workdir)
    first = int(state.step)
    state = parallel.replicate(state)
    log = telemetry.Telemetry(workdir, after=first)
    logging.info(
        "%d steps of training questions, %d a batch; updates %d to %d.",
        len(steps), rows * jax.local_device_count(), first, config.total_steps)
    for i in telemetry.progress(
        range(first, config.total_steps), f"train ({config.algorithm})"):
      examples = [steps[j] for j in order[i]]
      with log.timed("batch"):
        batch, report = algorithm.make_batch(state.params, examples, i, rows)
      with log.timed("update"):
        state, metrics = step(state, batch)
        metrics = jax.device_get(parallel.unreplicate(metrics))
      window.append(_taken(metrics) | report)
      if metrics["skipped"] >= config.max_skipped:
        _give_up(workdir, i, batch, examples, metrics)
      last = i + 1 == config.total_steps
      stop = preempted(i)
      if last or (i + 1) % config.every.log == 0:
        log.write(i + 1, _mean(window))
        window = []
      if last or stop or (i + 1) % config.every.checkpoint == 0:
        saved.save(i + 1, parallel.unreplicate(state),
                   about | dict(window=window))
      if stop and not last:
        raise commands.Preempted(
            f"Told to stop; saved after update {i + 1}.  The same command goes "
            "on from there.")
  trained = dataclasses.replace(start, params=state.params)
  trained.save(workdir / "policy")
  return trained


def _about(config: mlc.ConfigDict, steps: list[Step], size: int) -> dict:
  """What a checkpoint says of the run that wrote it."""
  names = "\n".join(step.id for step in steps).encode()
  return dict(
      config=json.loads(json.dumps(config.to_dict())),
      data=dict(rows=len(steps), digest=hashlib.sha256(names).hexdigest(),
                batch=size, seed=config.seed),
      versions={name: importlib.metadata.version(name) for name in (
          "r1router_jax", "jax", "flax", "optax", "orbax-checkpoint",
          "numpy")})


def _resumed(before: dict, about: dict, workdir: pathlib.Path) -> list[dict]:
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
          "--workdir, or the former config.data, seed and devices.")
  for part in ("config", "versions"):
    if before[part] != about[part]:
      old, new = (
          {k: v for k, v in one[part].items() if v != other[part].get(k)}
          for one, other in ((before, about), (about, before)))
      logging.warning("Going on with another %s: %s, and now %s.",
                      part, old, new)
  return before["window"]


def _taken(metrics: dict) -> dict[str, float]:
  """An update's scalars; of one that was skipped, only that it was."""
  skipped = float(metrics["skipped"] > 0)
  return {name: float(x) for name, x in metrics.items()
          if not skipped} | dict(skipped=skipped)


def _give_up(
    workdir: pathlib.Path, i: int, batch: Batch, examples: list[Step],
    metrics: dict
) -> NoReturn:
  """Leaves the batch of update `i` for inspection, and ends the run."""
  path = workdir / "skipped" / f"{i}.npz"
  path.parent.mkdir(exist_ok=True)
  leaves, _ = jax.tree_util.tree_flatten_with_path(batch)
  np.savez(path, examples=[step.id for step in examples], **{
      jax.tree_util.keystr(at, simple=True, separator="."): x
      for at, x in leaves})
  raise FloatingPointError(
      f"{metrics['skipped']} updates in a row were skipped, the last with loss "
      f"{metrics['loss']} and gradient norm {metrics['grad_norm']}.  Its batch "
      f"is in {path}.  Lower config.optim.lr and start again: {workdir} goes "
      "on from its newest checkpoint.")


def _start(config: mlc.ConfigDict) -> policy.Policy:
  """The policy that a run begins with."""
  given = config.policy
  known = settings.of_run(given.start_from, given.settings.to_dict())
  if given.start_from:
    start = policy.load(given.start_from, dtype=np.float32)
    start = dataclasses.replace(start, settings=known)
  else:
    start = policy.create(known, georouter.tokenizer_path(), config.seed)
  params = parallel.unreplicate(start.params)
  if given.induction:
    params = induction.plant(params, start.settings.model, config.seed)
  if given.lora.rank:
    params = lora.add(params, key=jax.random.key(config.seed), **given.lora)
  return dataclasses.replace(start, params=parallel.replicate(params))


def _examples(
    config: mlc.ConfigDict, start: policy.Policy
) -> tuple[list[Step], list[tuple]]:
  """Training steps with the shape that each is padded to."""
  questions = georouter.questions(config.data.split)
  if config.data.kb:
    kbs = knowledge_base.open_kbs(config.data.kb)
    retrieve = knowledge_base.retriever(kbs, config.data.passages)
  else:
    retrieve = _gold_evidence(questions)
  steps = [step for trajectory in trajectories.gold_steps(questions, retrieve)
           for step in trajectory]
  packer, shapes = start.packer, []
  for step in steps:
    prompt = packer.encode(step_conversation(step, style=start.settings.style))
    response = packer.tokenizer.encode_response(sft.demonstration(step))
    shapes.append((packer.length(prompt.ids), len(prompt.pictures),
                   start.settings.response_length(len(response))))
  return steps, shapes


def _gold_evidence(questions: list[Question]) -> trajectories.Retrieve:
  """A retriever that always finds the passage that holds the answer."""
  known = {passage.id: passage for kb in KBS
           for passage in georouter.passages(kb)}
  found = [(known[hop.evidence[0]],) for question in questions
           for hop in question.hops]
  return lambda asked: found


def _mean(window: list[dict]) -> dict[str, float]:
  """The mean of each scalar over the updates that report it."""
  names = dict.fromkeys(name for scalars in window for name in scalars)
  return {name: float(np.mean([s[name] for s in window if name in s]))
          for name in names}


def main(argv: list[str]) -> None:
  del argv
  parallel.join_pod()
  workdir = pathlib.Path(_WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "config.json").write_text(
      json.dumps(_CONFIG.value.to_dict(), indent=1))
  train(_CONFIG.value, workdir)
  print(f"The policy is in {workdir / 'policy'}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  commands.run(main)
