"""Defines the flags that several commands share, so that they agree.

The same thing has the same flag in every command.  Nothing here imports JAX, so
that wrong flags and `--help` are answered at once; see cli.py.
"""

from typing import Any

from absl import flags

from r1router_jax.common import records
from r1router_jax.common.checkpoint_folder import locate_checkpoint

# The method in which the policy routes for itself.
ROUTER = "r1_router"

# Keys of routing/baselines/registry.py, whose import needs JAX.
METHODS = (
  *(ROUTER, "few_shot", "direct", "cot"),
  *("rag_text", "rag_image", "rag_table", "rag_all"),
  *("iter_retgen", "ircot", "search_o1", "search_r1", "omnisearch"),
  *("always_text", "always_image", "always_table", "always_all"),
  *("never", "random_route", "oracle_route"),
)

# Keys of the table of loops of routing/device_loop.py, whose import needs JAX.
ROUTING_LOOPS = ("host", "halves", "fused")

# The type, default, help and bounds of each flag, by name.
_FLAGS = dict(
  policy=(
    flags.DEFINE_string,
    "warm_start",
    "The policy: a folder, a model's id on the Hugging Face hub, warm_start (a "
    "tiny policy that comes with the package), or a served model as "
    "openai:http://host:port/v1#model.",
  ),
  kb_dir=(
    flags.DEFINE_string,
    "runs/quickstart/kb",
    "Folder of the three knowledge bases, as build_kb wrote it, or the place "
    "of each: text=http://host:port,image=DIR/image,table=DIR/table.",
  ),
  workdir=(flags.DEFINE_string, None, "Folder that results are written to."),
  # The settings of a run, which its results depend on.
  method=(
    flags.DEFINE_enum,
    ROUTER,
    "The method that answers; few_shot is for a policy that was never trained "
    "to route.",
    dict(enum_values=METHODS),
  ),
  k=(
    flags.DEFINE_integer,
    1,
    "Passages that a search returns from each knowledge base; 5 in R1-Router.",
    dict(lower_bound=1),
  ),
  max_steps=(
    flags.DEFINE_integer,
    records.MAX_HOPS,
    "Searches before the final answer, at most.",
    dict(lower_bound=1),
  ),
  temperature=(
    flags.DEFINE_float,
    0.0,
    "Temperature at which tokens are sampled; 0 takes the likeliest.",
    dict(lower_bound=0.0),
  ),
  top_k=(
    flags.DEFINE_integer,
    0,
    "Number of likeliest tokens to sample from; 0 is all of them.",
    dict(lower_bound=0),
  ),
  top_p=(
    flags.DEFINE_float,
    1.0,
    "Probability that the likeliest tokens, which are sampled from, reach "
    "together.",
    # 0 would leave no token to sample from.
    dict(lower_bound=1e-6, upper_bound=1.0),
  ),
  seed=(flags.DEFINE_integer, 0, "Seed of every random draw."),
  # The questions of a benchmark.
  data=(
    flags.DEFINE_string,
    "",
    "Folder of the benchmark's question files; for jsonl, your own file.",
  ),
  images=(
    flags.DEFINE_string,
    "",
    "Folder or .zip file of the questions' images.",
  ),
  split=(
    flags.DEFINE_enum,
    "test",
    "Split of GeoRouter.",
    dict(enum_values=("train", "val", "test")),
  ),
  questions=(
    flags.DEFINE_integer,
    0,
    "Number of questions of each benchmark; 0 is all of them.",
    dict(lower_bound=0),
  ),
)

# `--help` lists these flags as the command's own.
flags.disclaim_key_flags()


def define_flag(name: str, **changes: Any) -> flags.FlagHolder:
  """Define a shared flag.

  A notebook or a test may import several commands into one process, so a flag
  may be defined again; the last definition gives its default.

  Args:
    name: the flag's name, a key of the table above.
    **changes: the command's own `default`, `help` or bounds.
  """
  # Most flags have no bounds.
  define, default, text, *bounds = _FLAGS[name]
  options = dict(default=default, help=text, allow_override=True)
  return define(name, **(options | dict(*bounds) | changes))


def define_settings(**changes: dict[str, Any]) -> dict[str, flags.FlagHolder]:
  """Define the flags of `RunSettings`, other than --method, by field.

  Args:
    **changes: by field, what `define_flag` changes.
  """
  fields = ("seed", "max_steps", "k", "temperature", "top_k", "top_p")
  return {name: define_flag(name, **changes.get(name, {})) for name in fields}


def settings_values(settings: dict[str, flags.FlagHolder]) -> dict[str, Any]:
  """Return the values of the flags that `define_settings` returned."""
  return {name: flag.value for name, flag in settings.items()}


def check_policy(place: str) -> None:
  """Check that a policy exists, before anything that runs it is imported.

  A model of the hub is downloaded by this; an address is not asked.

  Raises:
    FileNotFoundError: if there is neither a folder nor such a model.
  """
  if place != "warm_start" and not place.startswith("openai:"):
    locate_checkpoint(place)
