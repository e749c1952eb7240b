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

import common

ENGINES = {  # The script, and what it is asked beside the case.
  "ours": ("engine_ours", dict(shared=True)),
  "apart": ("engine_ours", dict(shared=False)),
  "transformers": ("engine_transformers", {}),
  "tunix": ("engine_tunix", {}),
}


def needed(case: dict) -> tuple[float, float]:
  """GFLOP of the prompt's prefill, and GB that one decoded token reads."""
  d, kv = case["hidden"], case["kv_heads"] * case["head_size"]
  layer, head = common.layer_weights(case), case["vocab"] * d
  p, g = case["prompt"], case["group"]
  attention = 2 * p * p * d  # Half of the keys, scores and values.
  flops = case["layers"] * (2 * layer * p + attention) + 2 * head
  keys = 2 * kv * (p + g * case["new"] / 2) * case["layers"]
  return flops / 1e9, 4 * (case["layers"] * layer + head + keys) / 1e9


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--engines", type=common.words, default=[*ENGINES])
  parser.add_argument("--shapes", type=common.words, default=[*common.SHAPES])
  parser.add_argument("--groups", type=common.numbers, default=[1, 4, 8])
  parser.add_argument("--prompts", type=common.numbers, default=[128, 512])
  parser.add_argument("--new", type=common.numbers, default=[32, 128])
  asked = parser.parse_args()
  machine = common.limits()
  print(json.dumps(machine), flush=True)
  for shape, group, prompt, new in itertools.product(
    asked.shapes, asked.groups, asked.prompts, asked.new
  ):
    case = common.SHAPES[shape] | dict(
      prompts=1, group=group, prompt=prompt, new=new
    )
    flops, read = needed(case)
    ours = None
    for engine in asked.engines:
      script, extra = ENGINES[engine]
      found = common.measured(script, case | extra)
      ours = ours or found["total_s"]
      step = found["decode_s"] / (new - 1)
      print(
        json.dumps(
          dict(
            engine=engine,
            shape=shape,
            group=group,
            prompt=prompt,
            new=new,
            tokens_s=round(group * new / found["total_s"], 1),
            faster=round(found["total_s"] / ours, 2),
            prefill_of_matmul=round(
              flops / found["prefill_s"] / machine["gflops"], 3
            ),
            decode_of_bandwidth=round(read / step / machine["gb_s"], 3),
            **{name: round(value, 3) for name, value in found.items()},
          )
        ),
        flush=True,
      )


if __name__ == "__main__":
  main()
