r"""Our sampler beside those of transformers and google-tunix, in one run.

  bash launch/benchmark.sh --shapes=0.5b --groups=8 --prompts=512 --new=32

Every engine gets the same architecture (Qwen2, random weights, float32, tied
embeddings), one prompt, G responses to it of a given length, greedy, without
an end token, and runs in a process of its own; `apart` is our sampler with a
prompt for each member.  Times are the best of three, since what else a machine
does only adds.  One JSON line an engine and case:

  prefill_s   wall time of one token a response, that is of the prompts
  decode_s    that of the other tokens, seconds for all
  tokens_s    response tokens a second, prefill and all
  faster      how many times as fast ours is, side by side in this run
  prefill_of_matmul, decode_of_bandwidth
              what is needed (one prompt, one head; each weight once a token)
              over what this machine can do, as measured at the start
  compiles, peak_mib
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
SHAPES = {
    "tiny": dict(vocab=4096, hidden=256, mlp=688, layers=4, heads=4,
                 kv_heads=2, head_size=64),
    "0.5b": dict(vocab=151936, hidden=896, mlp=4864, layers=24, heads=14,
                 kv_heads=2, head_size=64),
}
ENGINES = {  # The script, and what it is asked beside the case.
    "ours": ("ours", dict(shared=True)),
    "apart": ("ours", dict(shared=False)),
    "transformers": ("transformers", {}),
    "tunix": ("tunix", {}),
}


def limits() -> dict[str, float]:
  """What two cores can do: GFLOP/s of a large product, GB/s of a sum."""
  script = """
import time, jax, jax.numpy as jnp, json
def best(f, *x):
  f(*x).block_until_ready()
  return min(-(s := time.perf_counter()) + (f(*x).block_until_ready(),
             time.perf_counter())[1] for _ in range(5))
a, w = jnp.ones((4096, 4096)), jnp.ones((2**28,))
print(json.dumps(dict(gflops=2 * 4096**3 / best(jax.jit(jnp.dot), a, a) / 1e9,
                      gb_s=2**30 / best(jax.jit(jnp.sum), w) / 1e9)))
"""
  return json.loads(subprocess.run(
      [sys.executable, "-c", script], capture_output=True, text=True,
      check=True).stdout)


def measured(engine: str, python: str, case: dict) -> dict:
  """What the engine's process prints last."""
  script, extra = ENGINES[engine]
  done = subprocess.run(
      [python, HERE / f"engine_{script}.py", json.dumps(case | extra)],
      capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f"{engine} failed on {case}:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def needed(case: dict) -> tuple[float, float]:
  """GFLOP of the prompt's prefill, and GB that one decoded token reads."""
  d, kv = case["hidden"], case["kv_heads"] * case["head_size"]
  layer = d * (2 * d + 2 * kv) + 3 * d * case["mlp"]
  head = case["vocab"] * d
  p, g = case["prompt"], case["group"]
  attention = 2 * p * p * d  # Half of the keys, scores and values.
  flops = case["layers"] * (2 * layer * p + attention) + 2 * head
  keys = 2 * kv * (p + g * case["new"] / 2) * case["layers"]
  return flops / 1e9, 4 * (case["layers"] * layer + head + keys) / 1e9


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  words = lambda text: text.split(",")
  numbers = lambda text: [int(n) for n in text.split(",")]
  parser.add_argument("--engines", type=words, default=[*ENGINES])
  parser.add_argument("--shapes", type=words, default=[*SHAPES])
  parser.add_argument("--groups", type=numbers, default=[1, 4, 8])
  parser.add_argument("--prompts", type=numbers, default=[128, 512])
  parser.add_argument("--new", type=numbers, default=[32, 128])
  asked = parser.parse_args()
  pythons = {
      name: os.environ.get(f"{name.upper()}_PYTHON", sys.executable)
      for name in ("ours", "transformers", "tunix")}
  machine = limits()
  print(json.dumps(machine), flush=True)
  for shape, group, prompt, new in itertools.product(
      asked.shapes, asked.groups, asked.prompts, asked.new):
    case = SHAPES[shape] | dict(prompts=1, group=group, prompt=prompt, new=new)
    flops, read = needed(case)
    ours = None
    for engine in asked.engines:
      found = measured(engine, pythons[ENGINES[engine][0]], case)
      ours = ours or found["total_s"]
      step = found["decode_s"] / (new - 1)
      print(json.dumps(dict(
          engine=engine, shape=shape, group=group, prompt=prompt, new=new,
          tokens_s=round(group * new / found["total_s"], 1),
          faster=round(found["total_s"] / ours, 2),
          prefill_of_matmul=round(
              flops / found["prefill_s"] / machine["gflops"], 3),
          decode_of_bandwidth=round(read / step / machine["gb_s"], 3),
          **{name: round(value, 3) for name, value in found.items()})),
          flush=True)


if __name__ == "__main__":
  main()
