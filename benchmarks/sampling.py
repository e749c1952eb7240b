r"""Compares our sampler with those of transformers and google-tunix in one run.

  bash launch/benchmark.sh --shapes=0.5b --groups=8 --prompts=512 --new=32

Every engine gets the same architecture (Qwen2, random weights, float32, tied
embeddings) and one prompt, and samples G responses of a given length to it,
greedily and without an end token.  Each runs in a process of its own; the
engine `unshared` is our sampler with a prompt for each member.  Times are the
best of three, since other work of the machine only adds to them.  There is one
JSON line for each engine and case:

  prefill_s   seconds of the first token of each response, so of the prompts
  decode_s    seconds of all other tokens
  tokens_s    response tokens per second, the prefill included
  faster      the time of this engine as a multiple of the first engine's
  prefill_of_matmul, decode_of_bandwidth
              the least work (one prompt, one head; each weight once per token)
              as a share of what this machine can do, as measured at the start
  compiles    programs that XLA compiled
  peak_mib    most memory of the process
"""

import argparse
import itertools

import common

# The script of each engine, and what is added to its case.
ENGINES = {
  "ours": ("engine_ours", dict(shared=True)),
  "unshared": ("engine_ours", dict(shared=False)),
  "transformers": ("engine_transformers", {}),
  "tunix": ("engine_tunix", {}),
}


def count_work(case: dict) -> tuple[float, float]:
  """Return the prefill's GFLOP, and the GB that one decoded token reads."""
  # Each product takes two operations: it is added to a sum.
  d, kv = case["hidden"], case["kv_heads"] * case["head_size"]
  layer, head = common.count_layer_weights(case), case["vocab"] * d
  p, g = case["prompt"], case["group"]
  # Scores and values, each over half of the keys.
  attention = 2 * p * p * d
  flops = case["layers"] * (2 * layer * p + attention) + 2 * head
  # Keys and values of the prompt, and on average of half of each response.
  cache = 2 * kv * (p + g * case["new"] / 2) * case["layers"]
  # Float32 has four bytes.
  return flops / 1e9, 4 * (case["layers"] * layer + head + cache) / 1e9


def compare_engines(
  engines: list[str], shape: str, sizes: dict, machine: dict[str, float]
) -> None:
  """Run the engines on one case, and print a line for each."""
  case = common.SHAPES[shape] | dict(prompts=1) | sizes
  gflop, gb_per_step = count_work(case)
  first_total = None
  for engine in engines:
    script, extra = ENGINES[engine]
    found = common.run_engine(script, case | extra)
    first_total = first_total or found["total_s"]
    prefill_gflops = gflop / found["prefill_s"]
    # The first token belongs to the prefill.
    decode_gb_s = gb_per_step / (found["decode_s"] / (case["new"] - 1))
    common.print_row(
      engine=engine,
      shape=shape,
      **sizes,
      tokens_s=round(case["group"] * case["new"] / found["total_s"], 1),
      faster=round(found["total_s"] / first_total, 2),
      prefill_of_matmul=round(prefill_gflops / machine["gflops"], 3),
      decode_of_bandwidth=round(decode_gb_s / machine["gb_s"], 3),
      **{name: round(value, 3) for name, value in found.items()},
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  names, numbers = common.split_names, common.split_numbers
  parser.add_argument("--engines", type=names, default=[*ENGINES])
  parser.add_argument("--shapes", type=names, default=[*common.SHAPES])
  parser.add_argument("--groups", type=numbers, default=[1, 4, 8])
  parser.add_argument("--prompts", type=numbers, default=[128, 512])
  parser.add_argument("--new", type=numbers, default=[32, 128])
  args = parser.parse_args()

  # The limits are measured in the same run, as other work of the machine
  # changes them.
  machine = common.measure_limits()
  common.print_row(**machine)
  for shape, group, prompt, new in itertools.product(
    args.shapes, args.groups, args.prompts, args.new
  ):
    sizes = dict(group=group, prompt=prompt, new=new)
    compare_engines(args.engines, shape, sizes, machine)


if __name__ == "__main__":
  main()
