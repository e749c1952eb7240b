"""The options of a training run, as frozen records.

A config file (configs/*.py) says beside each option what it does, and gives a
dict of them; `config_reader.read_run_config` makes one `RunConfig` of it.
"""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from r1router_jax.common.schema import (
  Count,
  NotNegative,
  Positive,
  PositiveInt,
  PositiveShare,
  Probability,
  one_of,
)
from r1router_jax.common.shared_flags import ROUTING_LOOPS

# Values that an option may take.  Tables of functions with the same keys stand
# in modules whose import needs JAX.
ALGORITHMS = ("sft", "step_grpo")
ROLLOUT_MODES = ("offline", "online")
CREDITS = ("step", "trajectory", "gigpo")
STEP_REWARDS = ("reference", "default")
TRAJECTORY_REWARDS = ("em", "f1", "recall", "judge")
ADVANTAGE_NORMS = ("sample_std", "population_std", "none", "leave_one_out")
OBJECTIVES = ("grpo", "dr_grpo", "gspo", "cispo", "sapo", "dppo")
AGGREGATES = ("token_mean", "sequence_mean", "fixed_length")
KL_ESTIMATORS = ("k2", "k3")
MATMUL_PRECISIONS = ("", "bfloat16", "tensorfloat32", "float32")
TRUNCATED_RULES = ("keep", "drop", "penalise")

# Scalars that may choose the best state, of questions and of gold steps.
WALK_SCORES = ("f1", "exact", "recall")
STEP_SCORES = ("total",)

# Questions that are invented, as `data.questions`: those of the grammar of
# domains, and GeoRouter's about countries that are not.
DOMAINS, COUNTRIES = INVENTED = ("domains", "countries")

# The TFDS dataset of R1-Router's rows, before the name that the user gives.
ROWS = "r1_router_rows/"

Seed = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
# Logits that are divided by it stay finite.
Temperature = Annotated[float, msgspec.Meta(ge=1e-3, le=1e3)]
AxisSize = Annotated[int, msgspec.Meta(ge=-1)]


class _Options(
  msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
  """A section of a config, whose values have the types of its fields."""


class LoraConfig(_Options):
  """The adapters that a run adds, see `models/lora.py`."""

  rank: Count
  alpha: Positive
  match: str


class StartPolicyConfig(_Options):
  """The policy that a run starts from."""

  start_from: str
  induction: bool
  lora: LoraConfig
  overrides: Mapping[str, Any]
  # Options that saved configs of older versions may lack.
  word_vectors: str = ""


class DataConfig(_Options):
  """The questions and steps that a run learns from."""

  split: str
  train_files: str
  images: str
  kb_dir: str
  passages: Mapping[str, PositiveInt]
  # Options that saved configs of older versions may lack.
  name: str = "georouter"
  tfds_dir: str = ""
  questions: str = ""
  families: tuple[str, ...] = ()
  share: PositiveShare = 1.0
  generated: Count = 0
  prompts_per_shard: Count = 0  # Of step_grpo.
  batch_size_per_device: Count = 0  # Of sft.

  @property
  def dataset(self) -> str:
    """The dataset that is read: files without a name are called by theirs."""
    if self.name != "georouter" or not self.train_files:
      return self.name
    stem = os.path.splitext(os.path.basename(self.train_files))[0]
    return ROWS + (re.sub(r"\W+", "_", stem).strip("_") or "rows")

  @property
  def has_rows(self) -> bool:
    """Whether R1-Router's rows are read, which bring their own passages."""
    return self.dataset.startswith(ROWS)

  @property
  def is_invented(self) -> bool:
    """Whether questions are made up, and bring their passages."""
    return self.questions in INVENTED

  @property
  def has_georouter(self) -> bool:
    """Whether questions are GeoRouter's, whose evidence is known."""
    return not self.has_rows and self.questions in ("", "georouter")


class SftConfig(_Options):
  """The options of supervised training, see configs/sft.py."""

  recall_warmup_steps: Count
  recall_prob: Probability
  overask_prob: Probability
  packed_length: Count


class LossConfig(_Options):
  """The options of Step-GRPO's loss, see `grpo_loss.py`.

  None takes the value that the objective was published with.
  """

  kl: str
  kl_coef: NotNegative
  entropy_coef: NotNegative
  clip_low: NotNegative | None = None
  clip_high: NotNegative | None = None
  aggregate: one_of(*AGGREGATES) | None = None
  # Options that saved configs of older versions may lack.
  objective: one_of(*OBJECTIVES) = "grpo"
  dual_clip: NotNegative | None = 0.0
  importance_cap: NotNegative = 0.0
  truncated: one_of(*TRUNCATED_RULES) = "keep"


class StepGrpoConfig(_Options):
  """The options of Step-GRPO, see configs/step_grpo.py."""

  rollout_mode: one_of(*ROLLOUT_MODES)
  routing_loop: one_of(*ROUTING_LOOPS)
  group_size: Annotated[int, msgspec.Meta(ge=2)]  # Advantages compare these.
  update_batch_size: PositiveInt
  minibatches: PositiveInt
  max_resample_rounds: Count
  temperature: Temperature
  # None takes that of the objective.
  advantage_norm: one_of(*ADVANTAGE_NORMS) | None
  loss: LossConfig
  reward: str
  search_cost: NotNegative
  # Options that saved configs of older versions may lack.
  credit: one_of(*CREDITS) = "step"
  state_weight: NotNegative = 1.0  # Of gigpo.
  discount: Probability = 1.0
  advantage_by_part: bool = False
  # Of rewards of trajectories.
  format_weight: Probability = 0.1
  token_cost: NotNegative = 0.0
  judge: str = ""


class OptimizerConfig(_Options):
  """The options of the optimizer and its learning-rate schedule."""

  name: one_of("adamw", "muon")
  lr: NotNegative
  muon_lr: NotNegative
  warmup: Count
  final: NotNegative
  b2: Annotated[float, msgspec.Meta(ge=0, lt=1)]
  weight_decay: NotNegative
  clip_norm: Positive


class ValidationConfig(_Options):
  """The held-out questions or steps on which a run is scored as it learns."""

  every: Count
  split: str
  train_files: str
  steps: PositiveInt
  # Options that saved configs of older versions may lack.
  questions: str = ""
  best_by: str = ""


class RunConfig(_Options):
  """All options of a training run; configs/base.py explains each.

  Only the section of the algorithm is there: the other one is None.
  """

  algorithm: one_of(*ALGORITHMS)
  total_steps: Count
  seed: Seed
  parallel: str
  mesh: Mapping[str, AxisSize]
  rollout_mesh: Mapping[str, AxisSize]
  policy: StartPolicyConfig
  trainable_regex: str
  data: DataConfig
  optim: OptimizerConfig
  micro_batch_size: Count
  max_skipped: PositiveInt
  validation: ValidationConfig
  log_every: PositiveInt
  checkpoint_every: PositiveInt
  samples_every: Count
  wandb: str
  matmul_precision: one_of(*MATMUL_PRECISIONS) = ""
  sft: SftConfig | None = None
  step_grpo: StepGrpoConfig | None = None

  @property
  def is_online(self) -> bool:
    """Whether the policy answers whole questions to learn from."""
    grpo = self.step_grpo
    return grpo is not None and grpo.rollout_mode == "online"

  @property
  def walks_trajectories(self) -> bool:
    """Whether rewards are given to whole trajectories."""
    return self.step_grpo is not None and self.step_grpo.credit != "step"

  @property
  def rows_per_backward(self) -> int:
    """The rows of one backward pass on each data shard; 0: all of an update."""
    if self.walks_trajectories:
      return self.micro_batch_size or self.rows_per_update
    return self.micro_batch_size

  @property
  def validates_by_walking(self) -> bool:
    """Whether validation answers whole questions, with live retrieval."""
    # R1-Router's rows bring their own passages.
    return bool(self.data.kb_dir) and not self.data.has_rows

  @property
  def best_by(self) -> str:
    """The scalar of validation that tells which state is the best."""
    default = (WALK_SCORES if self.validates_by_walking else STEP_SCORES)[0]
    return f"validation/{self.validation.best_by or default}"

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
