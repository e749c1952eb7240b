"""Defines the flags that several commands share, one function for each flag.

The same thing has the same flag in every command.  A notebook or a test may
import several commands into one process, so each flag may be defined again; the
last definition then gives its default.

Nothing here imports JAX: see cli.py.
"""

from collections.abc import Sequence

from absl import flags

from r1router_jax.common.checkpoint_folder import locate_checkpoint

# The method in which the policy routes for itself.
ROUTER = "r1_router"

# Keys of routing/baselines/registry.py, whose import needs JAX.
METHODS = (
  ROUTER,
  "few_shot",
  "direct",
  "cot",
  "rag_text",
  "rag_image",
  "rag_table",
  "rag_all",
  "iter_retgen",
  "ircot",
  "search_o1",
  "search_r1",
  "omnisearch",
  "always_text",
  "always_image",
  "always_table",
  "always_all",
  "never",
  "random_route",
  "oracle_route",
)

# Keys of routing/device_loop.py's table of loops, whose import needs JAX.
ROUTING_LOOPS = ("host", "halves", "fused")

_POLICY_PLACE = (
  "a folder, a model's id on the Hugging Face hub, warm_start (a tiny policy "
  "that comes with the package), or a served model as "
  "openai:http://host:port/v1#model"
)

# `--help` lists these flags as the command's own.
flags.disclaim_key_flags()


def define_policy() -> flags.FlagHolder[str]:
  """Define --policy of a command that opens one policy."""
  return flags.DEFINE_string(
    "policy",
    "warm_start",
    f"The policy: {_POLICY_PLACE}.",
    allow_override=True,
  )


def define_policies() -> flags.FlagHolder[list[str]]:
  """Define --policy of a command that compares policies."""
  return flags.DEFINE_list(
    "policy",
    ["warm_start"],
    f"Policies as NAME=PLACE, oldest first.  A place is {_POLICY_PLACE}.",
    allow_override=True,
  )


def define_kb_dir() -> flags.FlagHolder[str]:
  """Define --kb_dir, where the knowledge bases are."""
  return flags.DEFINE_string(
    "kb_dir",
    "runs/quickstart/kb",
    "Folder of the three knowledge bases, as build_kb wrote it, or the place "
    "of each: text=http://host:port,image=DIR/image,table=DIR/table.",
    allow_override=True,
  )


def define_workdir(written: str) -> flags.FlagHolder[str | None]:
  """Define --workdir, the folder that `written` names the contents of."""
  return flags.DEFINE_string(
    "workdir",
    None,
    f"Folder to write {written} to.",
    allow_override=True,
  )


def define_method(methods: Sequence[str] = METHODS) -> flags.FlagHolder[str]:
  """Define --method of a command that answers by one method."""
  return flags.DEFINE_enum(
    "method",
    ROUTER,
    methods,
    "The method that answers; few_shot is for a policy that was never trained "
    "to route.",
    allow_override=True,
  )


def define_methods(default: Sequence[str]) -> flags.FlagHolder[list[str]]:
  """Define --method of a command that compares methods."""
  return flags.DEFINE_list(
    "method",
    list(default),
    f"Methods to compare, with commas between them, of {', '.join(METHODS)}.",
    allow_override=True,
  )


def define_k() -> flags.FlagHolder[int]:
  """Define --k, the number of passages of each search."""
  return flags.DEFINE_integer(
    "k",
    1,
    "Passages that a search returns from each knowledge base; 5 in R1-Router.",
    lower_bound=1,
    allow_override=True,
  )


def define_max_steps(
  default: int, upper_bound: int | None = None
) -> flags.FlagHolder[int]:
  """Define --max_steps, the number of searches before the final answer."""
  return flags.DEFINE_integer(
    "max_steps",
    default,
    "Searches before the final answer, at most.",
    lower_bound=1,
    upper_bound=upper_bound,
    allow_override=True,
  )


def define_temperature(default: float) -> flags.FlagHolder[float]:
  """Define --temperature, at which tokens are sampled."""
  return flags.DEFINE_float(
    "temperature",
    default,
    "Temperature at which tokens are sampled; 0 takes the likeliest.",
    lower_bound=0.0,
    allow_override=True,
  )


def define_top_k(default: int) -> flags.FlagHolder[int]:
  """Define --top_k, which limits sampling to the likeliest tokens."""
  return flags.DEFINE_integer(
    "top_k",
    default,
    "Number of likeliest tokens to sample from; 0 is all of them.",
    lower_bound=0,
    allow_override=True,
  )


def define_top_p() -> flags.FlagHolder[float]:
  """Define --top_p, which limits sampling by cumulative probability."""
  return flags.DEFINE_float(
    "top_p",
    1.0,
    "Probability that the likeliest tokens, which are sampled from, reach "
    "together.",
    lower_bound=1e-6,
    upper_bound=1.0,
    allow_override=True,
  )


def define_seed() -> flags.FlagHolder[int]:
  """Define --seed of every random draw."""
  return flags.DEFINE_integer(
    "seed", 0, "Seed of every random draw.", allow_override=True
  )


def define_data() -> flags.FlagHolder[str]:
  """Define --data, where the questions of a benchmark are."""
  return flags.DEFINE_string(
    "data",
    "",
    "Folder of the benchmark's question files; for jsonl, your own file.",
    allow_override=True,
  )


def define_images() -> flags.FlagHolder[str]:
  """Define --images, where the images of the questions are."""
  return flags.DEFINE_string(
    "images",
    "",
    "Folder or .zip file of the questions' images.",
    allow_override=True,
  )


def define_split(default: str, splits: Sequence[str]) -> flags.FlagHolder[str]:
  """Define --split of GeoRouter."""
  return flags.DEFINE_enum(
    "split", default, splits, "Split of GeoRouter.", allow_override=True
  )


def define_questions() -> flags.FlagHolder[int]:
  """Define --questions, the number of questions to ask."""
  return flags.DEFINE_integer(
    "questions",
    0,
    "Number of questions of each benchmark; 0 is all of them.",
    lower_bound=0,
    allow_override=True,
  )


def check_policy(place: str) -> None:
  """Check that a policy exists, before anything that runs it is imported.

  A model of the hub is downloaded by this; an address is not asked.

  Raises:
    FileNotFoundError: if there is neither a folder nor such a model.
  """
  if place != "warm_start" and not place.startswith("openai:"):
    locate_checkpoint(place)
