r"""Compares an iteration of Step-GRPO with PyTorch's and google-tunix's.

  bash launch/benchmark.sh train_step --shapes=0.5b

An iteration samples G responses of T tokens to each prompt, at temperature 1
and without an end token, computes a reward of each on the host (the share of
odd ids), and makes one update.  Every engine gets the same architecture (Qwen2,
random weights, float32, tied embeddings), AdamW, gradients clipped at norm 1
and no reference policy, and runs in a process of its own.

  ours          the parts of `r1router_jax.train`
  transformers  PyTorch, arranged like EasyR1's actor (`train_transformers.py`)
  tunix         google-tunix's GRPO learner with its own sampler

Times are those of the best of three iterations, after one that compiles.  There
is one JSON line for each engine and shape:

  total_s     seconds of an iteration
  served_s, rollout_s, reward_s, old_logp_s, update_s
              seconds of its parts; served_s copies our weights to the layout of
              the sampler
  samples_s   responses sampled and learned from per second
  faster      the time of this engine as a multiple of the first engine's
  update_of_matmul
              useful FLOPs of the update (each prompt once, the head at response
              tokens, three times the forward pass, nothing for what is computed
              again) as a share of what this machine can do, as measured at the
              start
  compiles    programs that XLA compiled
  peak_mib    most memory of the process

The other engines take up to 21 GB at the shape 0.5b.  Leave the machine alone.

Then the memory of our update is compared with that of one whose logits exist
all at once (`train_memory.py` says what is measured), at the vocabulary of the
shape 0.5b:

  wide        the layers of the shape tiny, compiled and run
  0.5b        compiled only, since it needs more than small machines have
"""

import argparse

import common

ENGINES = dict(
  ours="train_ours", transformers="train_transformers", tunix="train_tunix"
)

SIZES = {
  "tiny": dict(prompts=4, group=8, prompt=128, new=64),
  "0.5b": dict(prompts=1, group=8, prompt=128, new=32),
}

MEMORY_CASES = {
  "wide": common.SHAPES["tiny"]
  | dict(vocab=151936, prompts=2, group=8, prompt=128, new=256, run=True),
  "0.5b": common.SHAPES["0.5b"]
  | dict(prompts=4, group=8, prompt=128, new=256, run=False),
}


def count_useful_gflop(case: dict) -> float:
  """Return the GFLOP of an update; the module's docstring says of what."""
  p, g = case["prompt"], case["group"]
  # The last token of a response is never an input.
  inputs = case["new"] - 1
  layers = case["layers"] * common.count_layer_weights(case) * (p + g * inputs)
  head = case["vocab"] * case["hidden"] * g * case["new"]
  # Pairs of a query and a key that it sees, of a prompt and its responses.
  pairs = p * p / 2 + g * (inputs * p + inputs**2 / 2)
  attention = 2 * case["layers"] * case["heads"] * case["head_size"] * pairs
  # Two operations per product and sum; a backward pass costs two forward ones.
  return 3 * 2 * case["prompts"] * (layers + head + attention) / 1e9


def print_rounded(**values: object) -> None:
  """Print one JSON line, with four digits of each float."""
  rounded = {
    name: float(f"{value:.4g}") if isinstance(value, float) else value
    for name, value in values.items()
  }
  common.print_row(**rounded)


def compare_iterations(
  args: argparse.Namespace, machine: dict[str, float]
) -> None:
  """Run the engines at each shape, and print a line for each."""
  for shape in args.shapes:
    # Flags replace sizes of all shapes.
    sizes = dict(SIZES[shape])
    for name in sizes:
      if getattr(args, name) is not None:
        sizes[name] = getattr(args, name)
    case = common.SHAPES[shape] | sizes
    # The first engine is what the others are compared with.
    gflop, first_total = count_useful_gflop(case), None
    for engine in args.engines:
      found = common.run_engine(ENGINES[engine], case)
      first_total = first_total or found["total_s"]
      print_rounded(
        engine=engine,
        shape=shape,
        **sizes,
        samples_s=case["prompts"] * case["group"] / found["total_s"],
        faster=found["total_s"] / first_total,
        update_of_matmul=gflop / found["update_s"] / machine["gflops"],
        **found,
      )


def compare_memory(names: list[str]) -> None:
  """Print the memory of an update with logits in chunks, and with all."""
  for name in names:
    case = MEMORY_CASES[name]
    found = {
      logits: common.run_engine("train_memory", case | dict(full=full))
      for logits, full in (("chunks", False), ("full", True))
    }
    for logits, values in found.items():
      print_rounded(memory=name, logits=logits, **values)
    parts = ["temp_mib", "planned_mib"]
    # Of a case that is only compiled, the peak is the compiler's.
    if case["run"]:
      parts.append("peak_mib")
    # What chunks save.
    shares = {
      f"{part}_of_full": found["chunks"][part] / found["full"][part]
      for part in parts
    }
    print_rounded(memory=name, **shares)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  names = common.split_names
  parser.add_argument("--engines", type=names, default=[*ENGINES])
  parser.add_argument("--shapes", type=names, default=[*SIZES])
  parser.add_argument("--memory", type=names, default=[*MEMORY_CASES])
  for size in ("prompts", "group", "prompt", "new"):
    parser.add_argument(f"--{size}", type=int)
  args = parser.parse_args()
  machine = common.measure_limits()
  print_rounded(**machine)
  compare_iterations(args, machine)
  compare_memory(args.memory)


if __name__ == "__main__":
  main()
