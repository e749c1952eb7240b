r"""An evaluation in one process, beside one of a process for each stage.

  python benchmarks/stages.py --kb=runs/quickstart/kb [--questions=780]

R1-Router's scripts load the model, or the index, for every stage (plan,
retrieve, answer, three times, and the final answer), have transformers'
`generate` answer one question after another, and hand files from stage to
stage.  Here that is done with our policy, which transformers opens, too, and
our knowledge bases; and with our own sampler in its place, in batches.  What
fails is drawn again at random, which no two samplers do alike: both times by
ours.  One JSON line a way:

  seconds   of wall time, with the start of all processes
  slower    times the seconds of one process
  same      share of the trajectories that are those of one process
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from r1router_jax.common import cli, jsonl, trajectory_io
from r1router_jax.common.records import MAX_HOPS, Passage, Response
from r1router_jax.data import georouter
from r1router_jax.generation.token_sampling import GREEDY
from r1router_jax.policy import config, policy
from r1router_jax.retrieval import retriever
from r1router_jax.routing import policy_requests, router

POLICY = "warm_start"

STAGES = 3 * MAX_HOPS + 1


class Done(Exception):
  """What comes next is for another stage."""


def phases(stage: int) -> range:
  """The numbers of the phases that a stage draws; none where it searches."""
  if stage == STAGES - 1:
    return range(
      policy_requests.PHASES * MAX_HOPS, policy_requests.PHASES * MAX_HOPS + 2
    )
  start = policy_requests.PHASES * (stage // 3)
  return (
    range(start, start + policy_requests.TRIES[0]),
    range(0),
    range(start + policy_requests.TRIES[0], start + policy_requests.PHASES),
  )[stage % 3]


def run_stage(asked: argparse.Namespace) -> None:
  """Takes up what the stages before have written, and adds its own part."""
  cli.keep_programs()
  searches = asked.stage % 3 == 1 and asked.stage < STAGES - 1
  known = config.read(config.folder(POLICY))
  of = policy.Policy(known, config.WARM_START / config.TOKENIZER, {})
  if searches:
    search = retriever.retriever(retriever.open_kbs(asked.kb))
  ours = functools.cache(lambda: policy.load(POLICY))
  greedy = _by_transformers(of) if asked.way == "transformers" else None
  file = asked.workdir / "events.jsonl"
  before, new = iter(jsonl.read(file)), []

  def retrieve(queries):
    if event := next(before, None):
      return [
        tuple(Passage(**each) for each in found) for found in event["found"]
      ]
    if not searches or new:
      raise Done
    found = search(queries)
    new.append(dict(found=[[vars(each) for each in of] for of in found]))
    return found

  def respond(phase):
    if event := next(before, None):
      return [
        [Response(text, np.array(tokens), np.zeros(len(tokens)))]
        for text, tokens in event["said"]
      ]
    if phase.number not in phases(asked.stage):
      raise Done
    if greedy and phase.method == GREEDY:
      groups = [[greedy(prompt)] for prompt in phase.prompts]
    else:
      groups = ours().generate(
        phase.prompts, keys[phase.number], 1, phase.method
      )
    new.append(
      dict(said=[(one.text, one.tokens.tolist()) for (one,) in groups])
    )
    return groups

  keys = router.phase_keys(jax.random.key(0), MAX_HOPS)
  walker = router.loop(
    of,
    georouter.questions("test")[: asked.questions],
    retrieve,
    max_steps=MAX_HOPS,
    method=GREEDY,
    keep=lambda *of: None,
  )
  try:
    phase = next(walker)
    while True:
      phase = walker.send(respond(phase))
  except StopIteration as end:
    jsonl.append(
      asked.workdir / "predictions.jsonl", map(trajectory_io.to_row, end.value)
    )
  except Done:
    pass
  jsonl.append(file, new)


def _by_transformers(of: policy.Policy):
  """A prompt to transformers' response to it."""
  import torch
  import transformers

  model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    config.WARM_START
  ).eval()
  never = np.flatnonzero(~of.allowed).tolist()
  coder = of.packer.tokenizer

  def respond(prompt):
    encoded = of.packer.encode(prompt)
    ids = torch.tensor([encoded.ids])
    inputs = dict(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      mm_token_type_ids=(ids == coder.picture).int(),
    )
    if encoded.pictures:
      inputs |= dict(
        pixel_values=torch.tensor(
          np.concatenate([picture.patches for picture in encoded.pictures])
        ),
        image_grid_thw=torch.tensor(
          [[1, *picture.grid] for picture in encoded.pictures]
        ),
      )
    with torch.no_grad():
      out = model.generate(
        **inputs,
        do_sample=False,
        suppress_tokens=never,
        max_new_tokens=of.settings.response_tokens[-1],
        eos_token_id=coder.end,
        pad_token_id=coder.pad,
      )
    tokens = out[0, ids.shape[1] :].numpy()
    return Response(coder.decode(tokens), tokens, np.zeros(len(tokens)))

  return respond


def timed(*commands: list[str]) -> float:
  start = time.perf_counter()
  for command in commands:
    done = subprocess.run(
      [sys.executable, *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
      raise RuntimeError(done.stderr[-2000:])
  return time.perf_counter() - start


def rows(workdir: pathlib.Path) -> list[dict]:
  """What was done for each question, whoever did it."""
  fields = {"id", "rounds", "final", "faults", "tokens", "cut"}
  return [
    {name: row[name] for name in fields}
    for row in jsonl.read(workdir / "predictions.jsonl")
  ]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--kb", default="runs/quickstart/kb")
  parser.add_argument("--questions", type=int, default=780)
  parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
  parser.add_argument("--ways", default="transformers,ours")
  parser.add_argument("--way", default="ours", help=argparse.SUPPRESS)
  parser.add_argument("--workdir", type=pathlib.Path, help=argparse.SUPPRESS)
  asked = parser.parse_args()
  if asked.stage is not None:
    run_stage(asked)
    return
  with tempfile.TemporaryDirectory() as folder:
    whole = pathlib.Path(folder) / "whole"
    one = timed(
      [
        "-m",
        "r1router_jax.eval",
        f"--kb={asked.kb}",
        f"--workdir={whole}",
        f"--questions={asked.questions}",
        "--config.methods=r1_router",
        "--step_rewards=false",
      ]
    )
    show = lambda way, seconds, of: print(
      json.dumps(
        dict(
          way=way,
          questions=asked.questions,
          seconds=round(seconds, 1),
          slower=round(seconds / one, 2),
          same=round(
            np.mean(
              [a == b for a, b in zip(rows(of), rows(whole), strict=True)]
            ),
            4,
          ),
        )
      ),
      flush=True,
    )
    show("one process", one, whole)
    for way in asked.ways.split(","):
      workdir = pathlib.Path(folder) / way
      workdir.mkdir()
      show(
        f"a process for each stage, {way}",
        timed(
          *(
            [
              __file__,
              f"--stage={stage}",
              f"--way={way}",
              f"--kb={asked.kb}",
              f"--workdir={workdir}",
              f"--questions={asked.questions}",
            ]
            for stage in range(STAGES)
          )
        ),
        workdir,
      )


if __name__ == "__main__":
  main()
