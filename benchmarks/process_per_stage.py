r"""Compares an evaluation in one process with one of a process for each stage.

  python benchmarks/process_per_stage.py --kb_dir=runs/quickstart/kb \
      [--questions=780]

R1-Router's scripts load the model, or the index, anew for every stage (plan,
retrieve, answer, three times, and the final answer), have transformers'
`generate` answer one question after another, and hand files from stage to
stage.  This benchmark does the same with the policy that comes with the
package, which transformers opens, too, and with our knowledge bases; and once
more with our sampler, in batches, in place of `generate`.  A response that does
not parse is sampled again at random, which no two samplers do alike, so our
sampler does that both times.  There is one JSON line for each way:

  seconds   wall time, the start of all processes included
  slower    multiple of the time of one process
  same      share of the trajectories that equal those of one process
"""

import argparse
import functools
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import common
import jax
import numpy as np

from r1router_jax.common import cli, jsonl, trajectory_io
from r1router_jax.common.checkpoint_folder import WARM_START
from r1router_jax.common.records import MAX_HOPS, Passage, Response
from r1router_jax.data import georouter
from r1router_jax.generation.token_sampling import GREEDY
from r1router_jax.policy import config, policy
from r1router_jax.protocol.messages import Conversation
from r1router_jax.retrieval import retriever
from r1router_jax.routing import router
from r1router_jax.routing.policy_requests import (
  ANSWER_TRIES,
  PLAN_TRIES,
  REQUESTS_PER_ROUND,
  GenerationRequest,
)

POLICY = "warm_start"

STAGES = 3 * MAX_HOPS + 1

TRAJECTORIES = "predictions.jsonl"


class StageEnd(Exception):
  """The next event belongs to a later stage."""


class EventLog:
  """Searches and responses of earlier stages, and those that this stage adds.

  The routing loop always starts from the beginning, and is given what earlier
  stages did until it comes to what is new.

  Attributes:
    new: the events of this stage.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._earlier = iter(jsonl.read_rows(path))
    self.new: list[dict[str, Any]] = []

  def next_earlier(self) -> dict[str, Any] | None:
    """Return the next event of earlier stages, or None after the last."""
    return next(self._earlier, None)

  def save(self) -> None:
    """Append the events of this stage to the file."""
    jsonl.append_rows(self._path, self.new)


def request_numbers(stage: int) -> range:
  """Return the numbers of the requests that a stage answers, if any."""
  # The last stage asks for final answers.
  if stage == STAGES - 1:
    final = REQUESTS_PER_ROUND * MAX_HOPS
    return range(final, final + ANSWER_TRIES)
  round_, part = divmod(stage, 3)
  plan = REQUESTS_PER_ROUND * round_
  answer = plan + PLAN_TRIES
  # Plan, search (which asks the policy nothing) and answer.
  return (
    range(plan, answer),
    range(0),
    range(answer, plan + REQUESTS_PER_ROUND),
  )[part]


def run_stage(args: argparse.Namespace) -> None:
  """Run the routing loop on what earlier stages wrote, up to this stage's end.

  The last stage writes the trajectories.
  """
  cli.enable_program_cache()
  policy_config = config.read_config(WARM_START)
  # Without weights: it builds prompts and parses, and may not have to generate.
  unloaded = policy.Policy(
    policy_config, WARM_START / config.TOKENIZER_FILE, {}
  )
  log = EventLog(args.workdir / "events.jsonl")
  respond = make_responder(args, log, unloaded)
  loop = router.RoutingLoop(
    unloaded,
    georouter.load_questions("test")[: args.questions],
    make_retrieve(args, log),
    router.RolloutOptions(max_steps=MAX_HOPS, sampling=GREEDY),
  ).run()
  # Run until the loop needs an event of a later stage, or ends.
  try:
    request = next(loop)
    while True:
      request = loop.send(respond(request))
  except StopIteration as end:
    rows = map(trajectory_io.to_row, end.value)
    jsonl.append_rows(args.workdir / TRAJECTORIES, rows)
  except StageEnd:
    pass
  log.save()


def make_retrieve(
  args: argparse.Namespace, log: EventLog
) -> retriever.RetrieveFn:
  """Return the search of a stage, which only some stages may run."""
  searches = args.stage % 3 == 1 and args.stage < STAGES - 1
  if searches:
    search = retriever.make_retriever(retriever.open_kbs(args.kb_dir))

  def retrieve_passages(requests):
    if event := log.next_earlier():
      return [
        tuple(Passage(**fields) for fields in passages)
        for passages in event["passages"]
      ]
    # A stage searches once, so a second search belongs to a later one.
    if not searches or log.new:
      raise StageEnd
    found = search(requests)
    rows = [[vars(passage) for passage in passages] for passages in found]
    log.new.append(dict(passages=rows))
    return found

  return retrieve_passages


def make_responder(
  args: argparse.Namespace, log: EventLog, unloaded: policy.Policy
) -> Callable[[GenerationRequest], list[list[Response]]]:
  """Return the function that answers the requests of a stage."""
  # The keys of eval with seed 0.
  keys = router.request_keys(jax.random.key(0), MAX_HOPS)
  # Loaded when it is first needed.
  load_policy = functools.cache(lambda: policy.load(POLICY))
  generate_one = None
  if args.sampler == "transformers":
    generate_one = load_transformers(unloaded)

  def respond(request):
    if event := log.next_earlier():
      return [
        [Response(text, np.array(tokens), np.zeros(len(tokens)))]
        for text, tokens in event["responses"]
      ]
    if request.number not in request_numbers(args.stage):
      raise StageEnd
    # Tries after the first are not greedy, and always our sampler's.
    if generate_one and request.sampling == GREEDY:
      groups = [[generate_one(prompt)] for prompt in request.prompts]
    else:
      groups = load_policy().generate(
        request.prompts, keys[request.number], 1, request.sampling
      )
    rows = [(one.text, one.tokens.tolist()) for (one,) in groups]
    log.new.append(dict(responses=rows))
    return groups

  return respond


def load_transformers(
  unloaded: policy.Policy,
) -> Callable[[Conversation], Response]:
  """Return a function from a prompt to transformers' greedy response."""
  import torch
  import transformers

  model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    WARM_START
  ).eval()
  # The tokens that our sampler never draws.
  never_sampled = np.flatnonzero(~unloaded.allowed_tokens).tolist()
  tokenizer = unloaded.processor.tokenizer

  def generate_one(prompt):
    encoded = unloaded.processor.encode(prompt)
    ids = torch.tensor([encoded.ids])
    inputs = dict(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      mm_token_type_ids=(ids == tokenizer.image_id).int(),
    )
    if encoded.images:
      patches = np.concatenate([image.patches for image in encoded.images])
      # Frames, rows and columns of each image.
      grids = [[1, *image.grid] for image in encoded.images]
      inputs["pixel_values"] = torch.tensor(patches)
      inputs["image_grid_thw"] = torch.tensor(grids)
    with torch.no_grad():
      out = model.generate(
        **inputs,
        do_sample=False,
        suppress_tokens=never_sampled,
        max_new_tokens=unloaded.config.response_tokens[-1],
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
      )
    # Without the prompt.
    tokens = out[0, ids.shape[1] :].numpy()
    return Response(tokenizer.decode(tokens), tokens, np.zeros(len(tokens)))

  return generate_one


def time_commands(commands: Sequence[list[str]]) -> float:
  """Run Python commands one after another, and return the seconds of all.

  Raises:
    RuntimeError: if one fails; holds the end of its standard error.
  """
  start = time.perf_counter()
  for command in commands:
    done = subprocess.run(
      [sys.executable, *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
      raise RuntimeError(done.stderr[-2000:])
  return time.perf_counter() - start


def read_trajectories(workdir: pathlib.Path) -> list[dict]:
  """Return the fields of each trajectory that both ways of running it write."""
  fields = {"id", "rounds", "final", "faults", "tokens", "cut"}
  return [
    {name: row[name] for name in fields}
    for row in jsonl.read_rows(workdir / TRAJECTORIES)
  ]


def run_in_one_process(
  args: argparse.Namespace, workdir: pathlib.Path
) -> float:
  """Run eval, and return its seconds."""
  command = [
    "-m",
    "r1router_jax.eval",
    f"--kb_dir={args.kb_dir}",
    f"--workdir={workdir}",
    f"--questions={args.questions}",
    "--method=r1_router",
    "--step_rewards=false",
  ]
  return time_commands([command])


def run_in_stages(
  args: argparse.Namespace, sampler: str, workdir: pathlib.Path
) -> float:
  """Run this script once for each stage, and return the seconds of all."""
  workdir.mkdir()
  common_flags = [
    f"--sampler={sampler}",
    f"--kb_dir={args.kb_dir}",
    f"--workdir={workdir}",
    f"--questions={args.questions}",
  ]
  return time_commands(
    [[__file__, f"--stage={stage}", *common_flags] for stage in range(STAGES)]
  )


def compare_ways(args: argparse.Namespace, folder: pathlib.Path) -> None:
  """Run each way, and print a line for it."""
  # One process is what the others are compared with.
  one_process = run_in_one_process(args, folder / "one_process")
  expected = read_trajectories(folder / "one_process")

  def print_way(way, seconds, workdir):
    found = read_trajectories(workdir)
    same = [a == b for a, b in zip(found, expected, strict=True)]
    common.print_row(
      way=way,
      questions=args.questions,
      seconds=round(seconds, 1),
      slower=round(seconds / one_process, 2),
      same=round(np.mean(same), 4),
    )

  print_way("one process", one_process, folder / "one_process")
  for sampler in args.samplers:
    seconds = run_in_stages(args, sampler, folder / sampler)
    way = f"a process for each stage, {sampler}"
    print_way(way, seconds, folder / sampler)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--kb_dir", default="runs/quickstart/kb")
  parser.add_argument("--questions", type=int, default=780)
  parser.add_argument(
    "--samplers", type=common.split_names, default=["transformers", "ours"]
  )
  # Flags of the processes that this script starts.
  parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
  parser.add_argument("--sampler", default="ours", help=argparse.SUPPRESS)
  parser.add_argument("--workdir", type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.stage is not None:
    run_stage(args)
    return
  with tempfile.TemporaryDirectory() as folder:
    compare_ways(args, pathlib.Path(folder))


if __name__ == "__main__":
  main()
