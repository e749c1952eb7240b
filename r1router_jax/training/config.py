"""The options of a training run, as frozen dataclasses.

A config file (configs/*.py) gives an `ml_collections.ConfigDict`;
`read_run_config` makes one `RunConfig` of it and checks the options, each alone
and then those that belong together, before anything is opened or compiled.  The
config files say beside each option what it does.

Nothing here imports JAX, so that a wrong option is answered at once.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from r1router_jax.common.errors import UserError
from r1router_jax.common.shared_flags import ROUTING_LOOPS

# Values that an option may take.  Tables of functions with the same keys stand
# in modules whose import needs JAX.
ALGORITHMS = ("sft", "step_grpo")
ROLLOUT_MODES = ("offline", "online")
ADVANTAGE_NORMS = ("sample_std", "population_std", "none")

# Bounds of single options, by their place in the config.
_CHOICES = {
  "algorithm": ALGORITHMS,
  "step_grpo.rollout_mode": ROLLOUT_MODES,
  "step_grpo.routing_loop": ROUTING_LOOPS,
  "step_grpo.advantage_norm": ADVANTAGE_NORMS,
}
_MINIMA = {
  "log_every": 1,
  "checkpoint_every": 1,
  "max_skipped": 1,
  "sft.recall_warmup_steps": 0,
  "sft.packed_length": 0,
  "step_grpo.update_batch_size": 1,
  "step_grpo.minibatches": 1,
  "step_grpo.max_resample_rounds": 0,
}


@dataclasses.dataclass(frozen=True)
class StartPolicyConfig:
  """The policy that a run starts from."""

  start_from: str
  induction: bool
  lora: Mapping[str, Any]
  overrides: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The questions and steps that a run learns from."""

  split: str
  train_files: str
  images: str
  kb_dir: str
  passages: Mapping[str, int]
  prompts_per_shard: int = 0  # Of step_grpo.
  batch_size_per_device: int = 0  # Of sft.


@dataclasses.dataclass(frozen=True)
class SftConfig:
  """The options of supervised training, see configs/sft.py."""

  recall_warmup_steps: int
  recall_prob: float
  rename_prob: tuple[float, float]  # At the first and at the last update.
  overask_prob: float
  packed_length: int


@dataclasses.dataclass(frozen=True)
class StepGrpoConfig:
  """The options of Step-GRPO, see configs/step_grpo.py."""

  rollout_mode: str
  routing_loop: str
  group_size: int
  update_batch_size: int
  minibatches: int
  max_resample_rounds: int
  temperature: float
  advantage_norm: str
  loss: Mapping[str, Any]  # The other fields of `grpo_loss.GrpoLossConfig`.
  reward: str
  search_cost: float
  rename_prob: float


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The options of the optimizer and its learning-rate schedule."""

  name: str
  lr: float
  muon_lr: float
  warmup: int
  final: float
  b2: float
  weight_decay: float
  clip_norm: float

  def __post_init__(self):
    if self.name not in ("adamw", "muon"):
      raise UserError(
        f"config.optim.name is {self.name!r}: take 'adamw' or 'muon'."
      )


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
  """The held-out steps on which a run is scored while it learns."""

  every: int
  split: str
  train_files: str
  steps: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All options of a training run; configs/base.py explains each.

  Only the section of the algorithm is there: the other one is None.
  """

  algorithm: str
  total_steps: int
  seed: int
  parallel: str
  mesh: Mapping[str, int]
  rollout_mesh: Mapping[str, int]
  policy: StartPolicyConfig
  trainable_regex: str
  data: DataConfig
  optim: OptimizerConfig
  micro_batch_size: int
  max_skipped: int
  validation: ValidationConfig
  log_every: int
  checkpoint_every: int
  samples_every: int
  wandb: str
  sft: SftConfig | None = None
  step_grpo: StepGrpoConfig | None = None

  @property
  def is_online(self) -> bool:
    """Whether the policy answers whole questions to learn from."""
    grpo = self.step_grpo
    return grpo is not None and grpo.rollout_mode == "online"

  @property
  def updates_per_iteration(self) -> int:
    """The number of updates that one iteration makes."""
    return self.step_grpo.minibatches if self.step_grpo else 1

  @property
  def rows_per_update(self) -> int:
    """The rows of one update's batch on each data shard."""
    if self.step_grpo:
      return self.step_grpo.update_batch_size
    return self.data.batch_size_per_device


_SECTIONS = {
  "policy": StartPolicyConfig,
  "data": DataConfig,
  "optim": OptimizerConfig,
  "validation": ValidationConfig,
  "sft": SftConfig,
  "step_grpo": StepGrpoConfig,
}


def read_run_config(tree: Mapping[str, Any]) -> RunConfig:
  """Make the checked options of a run from the nested dicts of its config.

  Raises:
    UserError: if an option is unknown, missing, or does not fit the others.
  """
  # Sections are checked first, since errors name their place.
  sections = {
    name: _make_section(f"config.{name}", kind, tree[name])
    for name, kind in _SECTIONS.items()
    if name in tree
  }
  config = _make_section("config", RunConfig, {**tree, **sections})
  for option, value in _leaves(tree):
    _check_option(option, value)
  _check_together(config)
  return config


def _make_section(where: str, kind: type, options: Mapping[str, Any]) -> Any:
  """Return a `kind` with `options`, which must be the names of its fields."""
  fields = {field.name: field for field in dataclasses.fields(kind)}
  if unknown := sorted(options.keys() - fields.keys()):
    raise UserError(
      f"{where} has no option {', '.join(unknown)}: take some of "
      f"{', '.join(fields)}."
    )
  # Options without a default have to be there.
  required = [x for x in fields if fields[x].default is dataclasses.MISSING]
  if missing := [name for name in required if name not in options]:
    names = ", ".join(missing)
    raise UserError(f"{where} lacks {names}: see configs/base.py.")
  return kind(**options)


def _check_option(option: str, value: Any) -> None:
  """Raise UserError if an option has a value that it never may have."""
  known, minimum = _CHOICES.get(option), _MINIMA.get(option)
  if known and value not in known:
    raise UserError(
      f"config.{option} is {value!r}: take one of {', '.join(known)}."
    )
  if minimum is not None and value < minimum:
    raise UserError(f"config.{option} is {value}: take {minimum} or more.")
  if option.endswith("_prob"):
    # One is a pair: at the first and at the last update.
    for number in value if isinstance(value, (tuple, list)) else (value,):
      if not 0 <= number <= 1:
        raise UserError(
          f"config.{option} is {number}: a probability is between 0 and 1."
        )
  if option == "step_grpo.group_size" and value < 2:
    raise UserError(
      f"config.{option} is {value}: an advantage compares at least two "
      "responses."
    )


def _check_together(config: RunConfig) -> None:
  """Raise UserError, with the cure, if options contradict each other."""
  # Only the section of the algorithm is required.
  if getattr(config, config.algorithm) is None:
    raise UserError(
      f"config.algorithm is {config.algorithm!r}, and there is no section "
      f"config.{config.algorithm}: take configs/{config.algorithm}.py."
    )
  _check_batch_sizes(config)
  data, files = config.data, config.data.train_files
  if config.is_online:
    # Recorded trajectories are read for offline rollouts alone.
    if files:
      raise UserError(
        f"config.data.train_files is {files!r}: these are recorded "
        "trajectories, and online rollouts are the policy's own.  Set "
        "config.step_grpo.rollout_mode to 'offline', or train_files to ''."
      )
    if not data.kb_dir:
      raise UserError(
        "Online rollouts search: name the folder of built knowledge bases, "
        "config.data.kb_dir."
      )
    return
  # GeoRouter's names alone are known, so no other names can be changed.
  renames = (config.sft or config.step_grpo).rename_prob
  is_renaming = any(renames) if isinstance(renames, tuple) else bool(renames)
  if files and is_renaming:
    raise UserError(
      f"config.{config.algorithm}.rename_prob is {renames}, but only "
      "GeoRouter's names are known: with config.data.train_files set it to 0 "
      "(of sft to (0.0, 0.0))."
    )
  # Packing fixes the rows of a run at its start.
  sft = config.sft
  if sft and sft.packed_length:
    changes = sft.recall_warmup_steps, sft.recall_prob, sft.overask_prob
    if is_renaming or any(changes):
      raise UserError(
        "config.sft.packed_length wants gold steps as they are, of known "
        "lengths: set rename_prob, recall_warmup_steps, recall_prob and "
        "overask_prob to 0."
      )


def _check_batch_sizes(config: RunConfig) -> None:
  """Check that batches are named by their algorithm's option, and divide."""
  option, other = "prompts_per_shard", "batch_size_per_device"
  if config.algorithm == "sft":
    option, other = other, option
  value = getattr(config.data, option)
  if value < 1:
    raise UserError(f"config.data.{option} is {value}: take 1 or more.")
  if getattr(config.data, other):
    raise UserError(
      f"config.data.{other} has no meaning for {config.algorithm}: set "
      f"config.data.{option}."
    )
  # Microbatches are of one size, since a scan runs over them.
  rows, micro = config.rows_per_update, config.micro_batch_size
  if micro < 0 or (micro and rows % micro):
    raise UserError(
      f"config.micro_batch_size is {micro}, and an update has {rows} rows a "
      "shard: choose a divisor, or 0 for all at one time."
    )


def _leaves(
  tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  """Yield (dotted path, value) of nested mappings; an empty one is a value."""
  for name, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value
