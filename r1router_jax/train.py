"""Trains a policy: supervised warm start, or Step-GRPO.

  python -m r1router_jax.train --config=configs/sft.py:tiny --workdir=runs/sft
  python -m r1router_jax.train --config=configs/step_grpo.py:tiny \
      --workdir=runs/step_grpo

An algorithm (training/sft.py, training/step_grpo.py) makes the batches of each
iteration and has the loss; `config.parallel` says how an update is split over
the devices (parallel/strategy.py).

A run that was interrupted continues at its newest checkpoint, and ends with the
same numbers as if it had not been: batches and random numbers depend on
(seed, iteration) alone.  On SIGTERM it saves and exits with code 42: start it
again.  An update that is not finite, or whose loss or gradient is not, is
skipped; config.max_skipped of them in a row end the run.

Files in the workdir:
  policy/          the trained policy; if nothing but adapters was trained,
  adapter/         these alone, in PEFT's form
  best/            the policy with the best validation score so far, and
  best_adapter/    its adapters
  config.json      the options of the run
  checkpoints/     the newest states of the run
  metrics.jsonl    scalars; tensorboard/ holds them for TensorBoard
  samples.jsonl    some of the sampled groups
  skipped/         the last batch of a run that skipped too many updates
  damaged/         states that could not be restored
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags, logging
from etils import epath, epy
from ml_collections import config_dict, config_flags

from r1router_jax.common import cli, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.data import question_files
from r1router_jax.training.config_reader import read_run_config

# These take seconds to import: wrong flags are answered before.
with epy.lazy_imports():
  import jax
  import numpy as np

  from r1router_jax.common import http_client, progress, run_log
  from r1router_jax.parallel import multihost
  from r1router_jax.policy import policy as policy_lib
  from r1router_jax.retrieval import retriever
  from r1router_jax.training import batch as batch_lib
  from r1router_jax.training import (
    checkpoints,
    health_checks,
    run_setup,
    throughput,
    train_step,
    validation,
  )

# Folders of policies, and those of their adapters.
ADAPTERS = dict(policy="adapter", best="best_adapter")

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "The options of the run, e.g. configs/step_grpo.py:tiny.",
  allow_override=True,
)

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder for checkpoints, scalars and the trained policy.",
  allow_override=True,
)

_KB_ADDRESSES = shared_flags.define_flag("kb_addresses")


def train(
  config: config_dict.ConfigDict, workdir: epath.PathLike
) -> policy_lib.Policy:
  """Run `config` to its last iteration and return the trained policy.

  Raises:
    UserError: if options contradict each other, or for another run's workdir.
    FloatingPointError: if too many updates in a row are skipped.
    cli.Preempted: after SIGTERM; the state is saved.
    Exception: what a reward, a judge or a server raises; the state is saved.
  """
  run, params = run_setup.set_up(config, epath.Path(workdir))
  with (
    checkpoints.Checkpoints(run.workdir) as saved_states,
    multihost.Preemption() as is_preempted,
    contextlib.ExitStack() as ends,
  ):
    state, reference, saved = restore_or_init(run, params, saved_states)
    del params  # The state and the reference have copies of their own.
    first, total = saved.get("iteration", 0), run.config.total_steps
    # Lines of the log after `first` are dropped: they are written again.
    log = run_log.RunLog(run.workdir, after=first, wandb=run.config.wandb)
    ends.push(log.finish)
    log.write_options(run.metadata["config"])
    hooks = Hooks(run, log, saved_states, saved)
    batch_size = run.algorithm.examples_per_iteration
    logging.info(
      f"{len(run.examples)} rows of training questions, {batch_size} a batch; "
      f"iterations {first} to {total}."
    )

    def examples_for(index):
      # Between draws, too, of which several hosts may need different numbers.
      if jax.process_count() == 1 and is_preempted(index):
        raise cli.Preempted("Told to stop.")
      return run.examples_for(index)

    title = f"train ({run.config.algorithm})"
    for i in progress.show_progress(range(first, total), title):
      # 1. Batches: for Step-GRPO this samples, searches and scores.
      with log.time_phase("data"), hooks.save_before_error(i, state):
        batches, report = run.algorithm.make_batches(
          state.params, examples_for, i
        )
      hooks.add_report(report)

      # 2. Updates: one or more, each on a batch of its own.
      rows = run.config.rows_per_backward
      for batch in batches:
        with log.time_phase("update"):
          microbatches = batch_lib.split_microbatches(batch, rows)
          state, metrics = run.train_step(state, reference, microbatches)
          metrics = jax.device_get(metrics)
        hooks.add_update(metrics)
        if metrics["skipped"] >= run.config.max_skipped:
          _stop_after_skips(run, i, batch, metrics)

      # 3. Hooks: validation, log, samples, checkpoint; none changes the state.
      is_stopping = is_preempted(i)
      with hooks.save_before_error(i + 1):
        hooks.run_due(i + 1, state, is_stopping)
        if is_stopping and i + 1 < total:
          raise cli.Preempted("Told to stop.")
    if best := hooks.best.describe():
      logging.info("Best: %s, in %s.", best, run.workdir / "best")
  return _save_policy(run, state, "policy")


def restore_or_init(
  run: run_setup.Run, params: dict, saved_states: checkpoints.Checkpoints
) -> tuple[train_step.TrainState, dict | None, dict]:
  """Restore the newest state of the workdir, or make the first one.

  The state comes with the trainable parameters of the reference policy, None if
  the loss needs none, and the metadata of the checkpoint, empty for a new run.
  A checkpoint of a run with other batches raises UserError.
  """
  # Shapes come with shardings, so that a process reads only its own shards.
  shapes = run.strategy.abstract_state(run.init_state, params)
  state, saved = saved_states.restore(shapes)
  if state is None:
    state = run.strategy.init_sharded(run.init_state, params)
  else:
    # A copy, since the first update takes its memory over.
    state = run.strategy.to_local(state)
    _check_same_run(saved, run.metadata, run.workdir)
  reference = None
  if run.algorithm.needs_reference:
    # The policy that the run started from, also after a restart.
    regex = run.config.trainable_regex
    trainable = functools.partial(train_step.trainable_params, trainable=regex)
    reference = run.strategy.init_sharded(trainable, params)
  return state, reference, saved


class Hooks:
  """Watches a run: validates, logs, shows samples and saves checkpoints.

  `saved` is the metadata of the checkpoint that the run continues from, or {}.

  Attributes:
    best: the best score so far, whose state is in <workdir>/best.
  """

  def __init__(
    self,
    run: run_setup.Run,
    log: run_log.RunLog,
    saved_states: checkpoints.Checkpoints,
    saved: Mapping[str, Any],
  ):
    self._run, self._log, self._saved_states = run, log, saved_states
    self._meter = throughput.ThroughputMeter()
    self._monitor = health_checks.HealthMonitor(log.kept_lines)
    self._report = None  # Of the iteration that runs.
    # Scalars of each update since the last line of the log.
    self._pending = saved.get("window", [])
    self._newest_saved = saved.get("iteration", 0)
    best_by = run.config.best_by
    self.best = validation.BestScore.from_metadata(best_by, saved)

  def add_report(self, report: throughput.IterationReport) -> None:
    """Count the work and the time of a new iteration's rollouts."""
    self._report = report
    self._log.attribute_seconds(report.seconds, within="data")
    self._meter.add_work(report.work)

  def add_update(self, metrics: Mapping[str, Any]) -> None:
    """Keep the scalars of an update for the next line of the log."""
    skipped = metrics["skipped"] > 0
    # A mean over nothing, as where no group has a signal, is no number.
    names = [] if skipped else [x for x in metrics if np.isfinite(metrics[x])]
    scalars = {name: float(metrics[name]) for name in names}
    scalars["skipped"] = float(skipped)
    self._pending.append(scalars | self._report.scalars)

  def run_due(
    self, done: int, state: train_step.TrainState, is_stopping: bool
  ) -> None:
    """Run the hooks that are due after `done` iterations.

    A machine that is wanted back, `is_stopping`, makes a checkpoint due.
    """
    config = self._run.config

    def is_due(every):
      return every and (done == config.total_steps or done % every == 0)

    # Validation comes first: its scores belong to this line of the log.
    if is_due(config.validation.every):
      self._validate(done, state)
    if is_due(config.log_every):
      self._write_log(done)
    # Samples are not repeated at the end of a run.
    if config.samples_every and done % config.samples_every == 0:
      if self._report.groups:
        self._log.write_samples(done, self._report.groups)
    # Last, so that a checkpoint holds what the other hooks have changed.
    if is_stopping or is_due(config.checkpoint_every):
      self._save_checkpoint(done, state)

  def _validate(self, done: int, state: train_step.TrainState) -> None:
    """Score the state on held-out data, and save the policy if it is best."""
    with self._log.time_phase("validation"):
      scores = self._run.validator.score_params(state.params)
    self._pending.append(scores)
    if self.best.improve(scores, done):
      _save_policy(self._run, state, "best")

  def _write_log(self, done: int) -> None:
    """Write a line of scalars, and warn if they look like a collapse."""
    scalars = _mean_scalars(self._pending) | self._meter.read_rates()
    # Offline steps were searched for once, before the first iteration.
    if self._run.config.is_online:
      scalars |= retriever.pop_search_metrics(self._run.kbs)
    line = self._log.write_scalars(done, scalars)
    for warning in self._monitor.find_warnings(line):
      logging.warning("Iteration %d: %s", done, warning)
    self._pending = []

  def _save_checkpoint(self, done: int, state: train_step.TrainState) -> None:
    """Save the state, with what a run needs to continue from it."""
    # It may be why updates are skipped, and would replace a good one.
    if skipped := int(state.skipped):
      logging.warning("%d updates were skipped: not saved.", skipped)
      return
    metadata = dict(self._run.metadata, window=self._pending, iteration=done)
    metadata |= self.best.to_metadata()
    state = self._run.strategy.to_global(state)
    self._saved_states.save(done, state, metadata)
    self._newest_saved = done

  @contextlib.contextmanager
  def save_before_error(
    self, done: int, state: train_step.TrainState | None = None
  ) -> Iterator[None]:
    """Save the state, if given, before an error leaves; say what is saved.

    After an update there is none to save until its hooks have run.
    """
    try:
      yield
    except Exception:
      # Other hosts would have to take part.
      is_new = state is not None and done > self._newest_saved
      if is_new and jax.process_count() == 1:
        self._save_checkpoint(done, state)
      text = "The same command goes on after iteration %d."
      logging.warning(text, self._newest_saved)
      raise


def _save_policy(
  run: run_setup.Run, state: train_step.TrainState, folder: str
) -> policy_lib.Policy:
  """Write the policy of a state, adapters merged into weights; return it.

  The adapters are also written alone, into the folder that is named after it.
  """
  policy = dataclasses.replace(run.policy, params=state.params)
  policy.save(run.workdir / folder)
  if run.adapter_base:
    policy.save_adapters(run.workdir / ADAPTERS[folder], run.adapter_base)
  return policy


def _mean_scalars(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Return the mean of each scalar over the updates that report it."""
  names = dict.fromkeys(name for scalars in updates for name in scalars)
  return {
    name: float(np.mean([s[name] for s in updates if name in s]))
    for name in names
  }


def _check_same_run(
  saved: Mapping[str, Any], current: Mapping[str, Any], workdir: epath.Path
) -> None:
  """Compare a checkpoint's metadata with that of the run that continues it.

  Another config or other versions are warned of; other batches are refused.
  """
  # Batches depend on these alone, and only the same ones may continue a run.
  for name, value in current["data"].items():
    if saved["data"][name] != value:
      raise UserError(
        f"{workdir} holds a run whose {name} was {saved['data'][name]}, and "
        f"now it is {value}: its batches would be others.  Choose another "
        "--workdir, or the former data, start, seed, minibatches and devices."
      )
  for part in ("config", "versions"):
    old, new = saved[part], current[part]
    if old != new:
      gone = {name: x for name, x in old.items() if x != new.get(name)}
      come = {name: x for name, x in new.items() if x != old.get(name)}
      logging.warning(f"Going on with another {part}: {gone}, and now {come}.")


def _stop_after_skips(
  run: run_setup.Run,
  iteration: int,
  batch: batch_lib.Batch,
  metrics: Mapping[str, Any],
) -> NoReturn:
  """Write the batch that could not be learnt from; raise FloatingPointError."""
  # Each process writes the rows of its own host.
  part = f".{jax.process_index()}" if jax.process_count() > 1 else ""
  path = run.workdir / "skipped" / f"{iteration}{part}.npz"
  path.parent.mkdir(parents=True, exist_ok=True)
  leaves, _ = jax.tree_util.tree_flatten_with_path(batch)
  name_of = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
  arrays = {name_of(key): x for key, x in leaves}
  ids = [example.id for example in run.examples_for(iteration)]
  with path.open("wb") as file:
    np.savez(file, examples=ids, **arrays)
  raise FloatingPointError(
    f"{metrics['skipped']} updates in a row were skipped, the last with loss "
    f"{metrics['loss']} and gradient norm {metrics['grad_norm']}.  Its batch "
    f"is in {path}.  Lower config.optim.lr and start again: {run.workdir} "
    "goes on from its newest checkpoint, made before the first of them; if "
    "that ends alike, take another --workdir."
  )


def main(argv: list[str]) -> None:
  """Run the command."""
  del argv
  options = _CONFIG.value.to_dict()
  # `train` checks the options again; here they are checked before JAX is
  # imported and devices are taken.
  config = read_run_config(options)
  if config.policy.start_from:
    shared_flags.check_policy(config.policy.start_from)
  for place in (config.data.questions, config.validation.questions):
    if question_files.is_file_name(place):
      question_files.check_file(place)
  http_client.allow_addresses(_KB_ADDRESSES.value)
  # Before anything touches a device.
  multihost.initialize_distributed()
  workdir = epath.Path(_WORKDIR.value)
  train(_CONFIG.value, workdir)
  print(f"The policy is in {workdir / 'policy'}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  cli.run(main)
