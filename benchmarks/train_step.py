r"""An iteration of Step-GRPO beside PyTorch's and google-tunix's, in one run.

  bash launch/benchmark.sh train_step --shapes=0.5b

An iteration: G responses of T tokens to each prompt, drawn at temperature 1
without an end token, a reward of each (its share of odd ids, on the host), and
one update.  Every engine gets the same architecture (Qwen2, random weights,
float32, tied embeddings), AdamW, gradients clipped at norm 1, no reference
policy, and runs in a process of its own.

  ours          as `r1router_jax.train`; it counts the copy of the weights for
                sampling
  transformers  PyTorch, shaped like EasyR1's actor (`train_transformers.py`)
  tunix         google-tunix's GRPO learner with its own sampler

Times are of the best of three iterations after one that compiles.  One JSON
line an engine and shape:

  total_s     wall time, and that of parts
  samples_s   responses drawn and learnt from, a second
  faster      how many times as fast ours is, side by side in this run
  update_of_matmul
              useful FLOPs of the update (each prompt once, the head at response
              tokens, three times the forward pass, nothing for what is computed
              again) over what this machine can do, as measured at the start
  compiles, peak_mib

The peers take up to 21 GB at the second shape; leave the machine alone.

Then memory, of our update and of one whose logits exist all at once, at the
vocabulary of the second shape (`train_memory.py` says what is measured):

  wide        the layers of the first shape, run
  0.5b        planned alone: it needs more than small machines have
"""

import argparse
import json

import common

ENGINES = dict(
  ours="train_ours", transformers="train_transformers", tunix="train_tunix"
)

SIZES = {
  "tiny": dict(prompts=4, group=8, prompt=128, new=64),
  "0.5b": dict(prompts=1, group=8, prompt=128, new=32),
}

MEMORY = {
  "wide": common.SHAPES["tiny"]
  | dict(vocab=151936, prompts=2, group=8, prompt=128, new=256, run=True),
  "0.5b": common.SHAPES["0.5b"]
  | dict(prompts=4, group=8, prompt=128, new=256, run=False),
}


def useful(case: dict) -> float:
  """GFLOP of an update (see top); a last token is never an input."""
  p, g, t = case["prompt"], case["group"], case["new"]
  matrices = (
    case["layers"] * common.layer_weights(case) * (p + g * (t - 1))
    + case["vocab"] * case["hidden"] * g * t
  )
  # Keys that queries see, of a prompt and of its responses.
  pairs = p * p / 2 + g * ((t - 1) * p + (t - 1) ** 2 / 2)
  attention = 2 * case["layers"] * case["heads"] * case["head_size"] * pairs
  return 3 * 2 * case["prompts"] * (matrices + attention) / 1e9


def line(**values: object) -> None:
  print(
    json.dumps(
      {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in values.items()
      }
    ),
    flush=True,
  )


def iterations(asked: argparse.Namespace, machine: dict[str, float]) -> None:
  for shape in asked.shapes:
    sizes = SIZES[shape] | {
      name: getattr(asked, name)
      for name in SIZES[shape]
      if getattr(asked, name) is not None
    }
    case = common.SHAPES[shape] | sizes
    ours = None
    for engine in asked.engines:
      found = common.measured(ENGINES[engine], case)
      ours = ours or found["total_s"]
      line(
        engine=engine,
        shape=shape,
        **sizes,
        samples_s=case["prompts"] * case["group"] / found["total_s"],
        faster=found["total_s"] / ours,
        update_of_matmul=(useful(case) / found["update_s"] / machine["gflops"]),
        **found,
      )


def memory(asked: argparse.Namespace) -> None:
  for name in asked.memory:
    chunks, full = (
      common.measured("train_memory", MEMORY[name] | dict(full=full))
      for full in (False, True)
    )
    for logits, found in (("chunks", chunks), ("full", full)):
      line(memory=name, logits=logits, **found)
    line(
      memory=name,
      **{
        f"{part}_of_full": chunks[part] / full[part]
        for part in ("temp_mib", "planned_mib")
        + MEMORY[name]["run"] * ("peak_mib",)
      },
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--engines", type=common.words, default=[*ENGINES])
  parser.add_argument("--shapes", type=common.words, default=[*SIZES])
  parser.add_argument("--memory", type=common.words, default=[*MEMORY])
  for name in ("prompts", "group", "prompt", "new"):
    parser.add_argument(f"--{name}", type=int)
  asked = parser.parse_args()
  machine = common.limits()
  line(**machine)
  iterations(asked, machine)
  memory(asked)


if __name__ == "__main__":
  main()
