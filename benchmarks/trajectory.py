r"""Times an iteration that learns from whole trajectories, phase by phase.

  python benchmarks/trajectory.py --kb_dir=runs/quickstart/kb [--delay=0.05]

The run is configs/step_grpo.py:answers, with its knowledge bases in this
process; each of their searches takes --delay seconds longer in half of the
iterations.  The routing loop `host` has all questions in one batch; `halves`
generates for one half of them while the other half searches.  There is one JSON
line for each loop and delay, with the fastest of --runs iterations of the same
questions, after a first one that compiles:

  sample_s      prefill and decode, with the batches for them
  search_s      searches, as far as nothing is sampled meanwhile
  reward_s      rewards
  update_s      the update
  rest_s        prompts, texts, the loop itself, and batches for the update
  of_model      share of prefill, decode and update in all of these
  per_s         trajectories per second
  of_no_delay   share of the same loop's trajectories per second without a delay
"""

import argparse
import pathlib
import runpy
import tempfile
import time

import common
import jax
import jax.numpy as jnp
from etils import epath
from routing import SlowKB

from r1router_jax.policy.policy import Policy
from r1router_jax.training import batch as batch_lib
from r1router_jax.training import run_setup
from r1router_jax.training.train_step import TrainState

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "step_grpo.py"


def set_up_run(
  args: argparse.Namespace, loop: str, workdir: str
) -> tuple[run_setup.Run, TrainState, dict]:
  """Return a run with its first state, and parameters to sample with."""
  config = runpy.run_path(str(CONFIG))["get_config"]("answers")
  config.data.kb_dir = args.kb_dir
  config.policy.start_from = args.start_from
  config.step_grpo.routing_loop = loop
  if args.questions:
    config.data.prompts_per_shard = args.questions
  run, params = run_setup.set_up(config, epath.Path(workdir))
  state = run.strategy.init_sharded(run.init_state, params)
  # An update takes over the memory of a state, not that of these.
  return run, state, jax.tree.map(jnp.copy, state.params)


def time_iteration(
  run: run_setup.Run, state: TrainState, params: dict, delay: float
) -> tuple[TrainState, dict[str, float], int]:
  """Run an iteration; return the state, seconds by phase, and trajectories."""
  clock = common.PhaseClock("sample", "search")
  # Opened anew for each iteration, so that no result is cached.
  for kind, kb in run.kbs.items():
    slow = SlowKB(kb.stack, kb.meta)
    slow.delay, slow.search = delay, clock.wrap("search", slow.search)
    run.kbs[kind] = slow
  sample = Policy.sample
  Policy.sample = clock.wrap("sample", sample)
  start = time.perf_counter()
  # Always the same questions and parameters, and so the same trajectories.
  batches, report = run.algorithm.make_batches(params, run.examples_for, 0)
  Policy.sample, end = sample, time.perf_counter()
  for batch in batches:
    rows = batch_lib.split_microbatches(batch, run.config.rows_per_backward)
    state, metrics = run.train_step(state, None, rows)
    jax.block_until_ready(metrics)
  seconds = clock.seconds | dict(reward=report.seconds["reward"])
  seconds["rest"] = end - start - sum(seconds.values())
  seconds["update"] = time.perf_counter() - end
  group_size = run.config.step_grpo.group_size
  return state, seconds, run.algorithm.examples_per_iteration * group_size


def measure_loop(args: argparse.Namespace, loop: str, workdir: str) -> None:
  """Print a line for each delay."""
  run, state, params = set_up_run(args, loop, workdir)
  fastest = {}
  # Both delays in turn, so that whatever else the machine does slows both.
  for number in range(args.runs + 1):
    for delay in (0.0, args.delay):
      state, seconds, count = time_iteration(run, state, params, delay)
      if number:
        best = fastest.setdefault(delay, seconds)
        fastest[delay] = min(best, seconds, key=lambda by: sum(by.values()))
  for delay, seconds in fastest.items():
    total = sum(seconds.values())
    common.print_row(
      loop=loop,
      delay=delay,
      trajectories=count,
      **{f"{name}_s": round(x, 3) for name, x in seconds.items()},
      of_model=round((seconds["sample"] + seconds["update"]) / total, 3),
      per_s=round(count / total, 2),
      of_no_delay=round(sum(fastest[0.0].values()) / total, 3),
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--kb_dir", default="runs/quickstart/kb")
  parser.add_argument("--start_from", default="warm_start")
  parser.add_argument(
    "--questions", type=int, default=0, help="0: the config's"
  )
  parser.add_argument("--delay", type=float, default=0.05)
  parser.add_argument("--runs", type=int, default=4)
  args = parser.parse_args()
  for loop in ("host", "halves"):
    with tempfile.TemporaryDirectory() as workdir:
      measure_loop(args, loop, workdir)


if __name__ == "__main__":
  main()
