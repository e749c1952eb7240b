"""The options of a training run, as frozen dataclasses.

A config file (configs/*.py) gives an `ml_collections.ConfigDict`;
`read_run_config` makes one `RunConfig` of it and checks the options, each alone
and then those that belong together, before anything is opened or compiled.

Nothing here imports JAX, so that a wrong option is answered at once.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from r1router_jax.common.shared_flags import ROUTING_LOOPS

# Values that an option may take.  Tables of functions with the same keys stand
# in modules whose import needs JAX.
ALGORITHMS = ("sft", "step_grpo")
ROLLOUT_MODES = ("offline", "online")
ADVANTAGE_NORMS = ("sample_std", "population_std", "none")

# Names that options had in older versions, by their place in the config.
# Checkpoints hold the config that wrote them, maybe with these names.
_OLD_KEYS = {
  # Sources of data.
  "data.rows": "data.train_files",
  "data.kb": "data.kb_dir",
  "validation.rows": "validation.train_files",
  # The policy, whose own file has old names, too: policy/config.py.
  "policy.settings": "policy.overrides",
  "policy.settings.batch_rows": "policy.overrides.decode_batch_size",
  "policy.settings.routes": "policy.overrides.max_routes",
  "policy.settings.passage_pictures": "policy.overrides.passage_images",
  # The algorithms.
  "sft.recall_steps": "sft.recall_warmup_steps",
  "sft.recall_share": "sft.recall_prob",
  "sft.rename": "sft.rename_prob",
  "sft.overask": "sft.overask_prob",
  "sft.side_by_side": "sft.packed_length",
  "step_grpo.rollouts": "step_grpo.rollout_mode",
  "step_grpo.loop": "step_grpo.routing_loop",
  "step_grpo.learn_rows": "step_grpo.update_batch_size",
  "step_grpo.refill": "step_grpo.max_resample_rounds",
  "step_grpo.normalise": "step_grpo.advantage_norm",
  "step_grpo.rename": "step_grpo.rename_prob",
  # The run.
  "trainable": "trainable_regex",
  "micro_rows": "micro_batch_size",
  "every.log": "log_every",
  "every.checkpoint": "checkpoint_every",
  "every.trajectories": "samples_every",
}
_OLD_ADVANTAGE_NORMS = {"std1": "sample_std", "std0": "population_std"}


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
  """Raise ValueError if an option is none of the known values."""
  if value not in known:
    raise ValueError(
      f"config.{option} is {value!r}: take one of {', '.join(known)}."
    )


def _check_probability(option: str, value: float) -> None:
  """Raise ValueError if an option is no probability."""
  if not 0 <= value <= 1:
    raise ValueError(
      f"config.{option} is {value}: a probability is between 0 and 1."
    )


def _check_minimum(option: str, value: int, minimum: int) -> None:
  """Raise ValueError if a number is too small."""
  if value < minimum:
    raise ValueError(f"config.{option} is {value}: take {minimum} or more.")


@dataclasses.dataclass(frozen=True)
class StartPolicyConfig:
  """The policy that a run starts from.

  Attributes:
    start_from: a policy's folder, a model's id on the Hugging Face hub,
      "warm_start", or "" for random weights.
    induction: whether random weights get heads that copy
      (models/induction_init.py).
    lora: rank, alpha and match of the adapters (models/lora.py); rank 0 adds
      none.
    overrides: fields of `policy.config.PolicyConfig` that replace those of
      `start_from`; all of them where there is none.
  """

  start_from: str
  induction: bool
  lora: Mapping[str, Any]
  overrides: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The questions and steps that a run learns from.

  Attributes:
    split: GeoRouter's split, where there are no files.
    train_files: R1-Router's JSON Lines files, as paths or globs with commas
      between them; "" takes GeoRouter.
    images: the folder of the images that the files name.
    kb_dir: the knowledge bases, see `retriever.open_kbs`; "" takes the gold
      evidence of each step.
    passages: passages that a search returns, by knowledge base.
    prompts_per_shard: prompts (online: questions) drawn per iteration and data
      shard of the rollout mesh; of step_grpo.
    batch_size_per_device: responses per update and data shard; of sft.
  """

  split: str
  train_files: str
  images: str
  kb_dir: str
  passages: Mapping[str, int]
  prompts_per_shard: int = 0
  batch_size_per_device: int = 0


@dataclasses.dataclass(frozen=True)
class SftConfig:
  """The options of supervised training.

  Attributes:
    recall_warmup_steps: first updates, on random look-up rows alone.
    recall_prob: probability that a later update is on such rows.
    rename_prob: probability that the names of a step are changed, at the first
      and at the last update; linear in between.
    overask_prob: probability that the target asks again where the gold trace
      stops.
    packed_length: tokens of a row that holds several texts; 0 gives each text
      a row of its own.
  """

  recall_warmup_steps: int
  recall_prob: float
  rename_prob: tuple[float, float]
  overask_prob: float
  packed_length: int

  def __post_init__(self):
    _check_minimum("sft.recall_warmup_steps", self.recall_warmup_steps, 0)
    _check_minimum("sft.packed_length", self.packed_length, 0)
    _check_probability("sft.recall_prob", self.recall_prob)
    _check_probability("sft.overask_prob", self.overask_prob)
    # A pair: at the first and at the last update.
    for value in self.rename_prob:
      _check_probability("sft.rename_prob", value)


@dataclasses.dataclass(frozen=True)
class StepGrpoConfig:
  """The options of Step-GRPO.

  Attributes:
    rollout_mode: "offline" samples at the steps of gold trajectories, "online"
      at the steps of trajectories that the policy makes itself.
    routing_loop: how online rollouts are driven, a key of
      `device_loop.ROUTING_LOOPS`.
    group_size: G, responses per step; advantages compare these.
    update_batch_size: groups per update and data shard; groups of unequal
      rewards come first.
    minibatches: updates per iteration.
    max_resample_rounds: extra rollouts if fewer groups than the updates hold
      have unequal rewards (dynamic sampling, arxiv.org/abs/2503.14476).
    temperature: at which responses are sampled.
    advantage_norm: what centred rewards are divided by, one of
      `ADVANTAGE_NORMS`.
    loss: the other fields of `grpo_loss.GrpoLossConfig`.
    reward: a preset of `rewards.step_reward`, or "module:function".
    search_cost: taken from a plan's reward for each search.
    rename_prob: probability that the names of a step are changed, offline.
  """

  rollout_mode: str
  routing_loop: str
  group_size: int
  update_batch_size: int
  minibatches: int
  max_resample_rounds: int
  temperature: float
  advantage_norm: str
  loss: Mapping[str, Any]
  reward: str
  search_cost: float
  rename_prob: float

  def __post_init__(self):
    if self.group_size < 2:
      raise ValueError(
        f"config.step_grpo.group_size is {self.group_size}: an advantage "
        "compares at least two responses."
      )
    # Choices by name, then numbers.
    for name, known in (
      ("rollout_mode", ROLLOUT_MODES),
      ("routing_loop", ROUTING_LOOPS),
      ("advantage_norm", ADVANTAGE_NORMS),
    ):
      _check_choice(f"step_grpo.{name}", getattr(self, name), known)
    for name, minimum in (
      ("update_batch_size", 1),
      ("minibatches", 1),
      ("max_resample_rounds", 0),
    ):
      _check_minimum(f"step_grpo.{name}", getattr(self, name), minimum)
    _check_probability("step_grpo.rename_prob", self.rename_prob)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The options of the optimizer and its learning-rate schedule.

  Attributes:
    name: "adamw", or "muon" for Muon on matrices and AdamW elsewhere.
    lr: peak learning rate of AdamW.
    muon_lr: peak learning rate of Muon; "adamw" does not use it.
    warmup: updates of linear warm-up.
    final: learning rate at the end, as a fraction of the peak.
    b2: AdamW's decay of squared gradients.
    weight_decay: decay of matrices (under "muon" of those that Muon moves, not
      of embeddings); norms and biases have none.
    clip_norm: largest global norm of a gradient.
  """

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
      raise ValueError(
        f"config.optim.name is {self.name!r}: take 'adamw' or 'muon'."
      )


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
  """The held-out steps on which a run is scored while it learns.

  Attributes:
    every: iterations between two validations; 0 is never.
    split: GeoRouter's split, where there are no files.
    train_files: files of held-out rows, like `DataConfig.train_files`.
    steps: gold steps to answer, at most.
  """

  every: int
  split: str
  train_files: str
  steps: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All options of a training run; configs/base.py explains each.

  Attributes:
    algorithm: one of `ALGORITHMS`; the section of that name has its options.
    total_steps: iterations of the run, each of one or more updates.
    seed: seed of every random draw.
    parallel: a key of parallel/strategy.py, "pmap" or "fsdp".
    mesh: sizes of the training mesh's axes; -1 takes the devices left.
    rollout_mesh: sizes of the axes of the mesh that responses are drawn on.
    policy: the policy that the run starts from.
    trainable_regex: searched for in the paths of parameters; those that fit
      are trained.
    data: what is learnt from.
    sft: options of supervised training, None in other runs.
    step_grpo: options of Step-GRPO, None in other runs.
    optim: the optimizer.
    micro_batch_size: rows of one backward pass per data shard; 0 is all.
    max_skipped: updates in a row with a loss that is not finite, at most.
    validation: scores on held-out steps.
    log_every: iterations between two lines of metrics.jsonl.
    checkpoint_every: iterations between two checkpoints.
    samples_every: iterations between two entries of samples.jsonl; 0 is never.
    wandb: project of Weights & Biases, or "".
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

  def __post_init__(self):
    _check_choice("algorithm", self.algorithm, ALGORITHMS)
    # Only the section of the algorithm is required.
    if getattr(self, self.algorithm) is None:
      raise ValueError(
        f"config.algorithm is {self.algorithm!r}, and there is no section "
        f"config.{self.algorithm}: take configs/{self.algorithm}.py."
      )
    for name in ("log_every", "checkpoint_every", "max_skipped"):
      _check_minimum(name, getattr(self, name), 1)

  @property
  def is_online(self) -> bool:
    """Whether the policy answers whole questions to learn from."""
    return (
      self.step_grpo is not None and self.step_grpo.rollout_mode == "online"
    )

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
    ValueError: if an option is unknown, missing, or does not fit the others.
  """
  # Sections are checked first, since errors name their place.
  sections = {
    name: _make_section(f"config.{name}", _SECTIONS[name], tree[name])
    for name in _SECTIONS
    if name in tree
  }
  config = _make_section("config", RunConfig, {**tree, **sections})
  check_run_config(config)
  return config


def _make_section(where: str, kind: type, options: Mapping[str, Any]) -> Any:
  """Return a `kind` with `options`, which must be the names of its fields."""
  fields = {field.name: field for field in dataclasses.fields(kind)}
  if unknown := sorted(options.keys() - fields.keys()):
    # An own config file of an older version may use an old name.
    hints = [
      f"{name} is now config.{_OLD_KEYS[key]}"
      for name in unknown
      if (key := f"{where}.{name}".removeprefix("config.")) in _OLD_KEYS
    ]
    raise ValueError(
      f"{where} has no option {', '.join(unknown)}"
      f"{' (' + ', '.join(hints) + ')' if hints else ''}: take some of "
      f"{', '.join(fields)}."
    )
  # Options without a default have to be there.
  missing = [
    name
    for name, field in fields.items()
    if name not in options and field.default is dataclasses.MISSING
  ]
  if missing:
    raise ValueError(
      f"{where} lacks {', '.join(missing)}: see configs/base.py."
    )
  return kind(**options)


def check_run_config(config: RunConfig) -> None:
  """Check options that belong together.

  Raises:
    ValueError: if two options contradict each other; it names the cure.
  """
  _check_batch_sizes(config)
  data, files = config.data, config.data.train_files
  if config.is_online:
    # Recorded trajectories are read for offline rollouts alone.
    if files:
      raise ValueError(
        f"config.data.train_files is {files!r}: these are recorded "
        "trajectories, and online rollouts are the policy's own.  Set "
        "config.step_grpo.rollout_mode to 'offline', or train_files to ''."
      )
    if not data.kb_dir:
      raise ValueError(
        "Online rollouts search: name the folder of built knowledge bases, "
        "config.data.kb_dir."
      )
    return
  # GeoRouter's names alone are known, so no other names can be changed.
  renames = (config.sft or config.step_grpo).rename_prob
  is_renaming = any(renames) if isinstance(renames, tuple) else bool(renames)
  if files and is_renaming:
    raise ValueError(
      f"config.{config.algorithm}.rename_prob is {renames}, but only "
      "GeoRouter's names are known: with config.data.train_files set it to 0 "
      "(of sft to (0.0, 0.0))."
    )
  # Packing fixes the rows of a run at its start.
  if config.sft and config.sft.packed_length:
    sft = config.sft
    if is_renaming or any(
      (sft.recall_warmup_steps, sft.recall_prob, sft.overask_prob)
    ):
      raise ValueError(
        "config.sft.packed_length wants gold steps as they are, of known "
        "lengths: set rename_prob, recall_warmup_steps, recall_prob and "
        "overask_prob to 0."
      )


def _check_batch_sizes(config: RunConfig) -> None:
  """Check that batches are named by their algorithm's option, and divide."""
  option, other = "prompts_per_shard", "batch_size_per_device"
  if config.algorithm == "sft":
    option, other = other, option
  _check_minimum(f"data.{option}", getattr(config.data, option), 1)
  if getattr(config.data, other):
    raise ValueError(
      f"config.data.{other} has no meaning for {config.algorithm}: set "
      f"config.data.{option}."
    )
  # Microbatches are of one size, since a scan runs over them.
  rows, micro = config.rows_per_update, config.micro_batch_size
  if micro < 0 or (micro and rows % micro):
    raise ValueError(
      f"config.micro_batch_size is {micro}, and an update has {rows} rows a "
      "shard: choose a divisor, or 0 for all at one time."
    )


def rename_old_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Return a config that an older version saved, with the names of today.

  Args:
    tree: nested dicts as JSON holds them; not changed.
  """
  batch_size = "batch_size_per_device"
  if tree.get("algorithm") == "step_grpo":
    batch_size = "prompts_per_shard"
  old_keys = _OLD_KEYS | {"data.batch_rows": f"data.{batch_size}"}
  # A section's options come before the section, whose name they contain.
  longest_first = sorted(old_keys, key=len, reverse=True)
  renamed: dict[str, Any] = {}
  for path, value in _leaves(tree):
    for old in longest_first:
      if path == old or path.startswith(f"{old}."):
        path = old_keys[old] + path.removeprefix(old)
        break
    *sections, name = path.split(".")
    section = renamed
    for parent in sections:
      section = section.setdefault(parent, {})
    section[name] = value
  # One option has new values, too.
  grpo = renamed.get("step_grpo", {})
  norm = grpo.get("advantage_norm")
  if norm in _OLD_ADVANTAGE_NORMS:
    grpo["advantage_norm"] = _OLD_ADVANTAGE_NORMS[norm]
  return renamed


def _leaves(
  tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  """Yield (dotted path, value) of nested mappings; an empty one is a value."""
  for name, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value
