"""Reads the options of a training run, and checks them.

Each option is checked alone, and then those that belong together, before
anything is opened or compiled.  Nothing here imports JAX, so that a wrong
option is answered at once.
"""

import re
from collections.abc import Mapping
from typing import Any

from r1router_jax.common import schema
from r1router_jax.common.errors import UserError
from r1router_jax.data import benchmarks, question_files
from r1router_jax.training.config import (
  DOMAINS,
  INVENTED,
  KL_ESTIMATORS,
  ROWS,
  STEP_REWARDS,
  STEP_SCORES,
  TRAJECTORY_REWARDS,
  WALK_SCORES,
  LossConfig,
  RunConfig,
  StepGrpoConfig,
)

# Objectives whose loss has no bound of its own where ratio and advantage are
# large and negative.
_DUAL_CLIPPED = ("grpo", "dr_grpo", "gspo")

_ROWS_NAME = re.compile(ROWS + r"[\w-]+")


def read_run_config(tree: Mapping[str, Any]) -> RunConfig:
  """Make the checked options of a run from the nested dicts of its config.

  An option that is unknown, missing, of another type, out of its range, or does
  not fit the others raises UserError.
  """
  try:
    config = schema.convert(tree, RunConfig, "config")
  except UserError as error:
    raise UserError(f"{error}.  See configs/base.py.") from error
  _check_together(config)
  return config


def _check_together(config: RunConfig) -> None:
  """Raise UserError, with the cure, if options contradict each other."""
  patterns = dict(trainable_regex=config.trainable_regex)
  patterns["policy.lora.match"] = config.policy.lora.match
  for name, pattern in patterns.items():
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(
        f"config.{name} is {pattern!r}, which is no regular expression "
        f"({error}).  Write a special character as [.] to mean itself."
      ) from None
  # Only the section of the algorithm is required.
  if getattr(config, config.algorithm) is None:
    raise UserError(
      f"config.algorithm is {config.algorithm!r}, and there is no section "
      f"config.{config.algorithm}: take configs/{config.algorithm}.py."
    )
  _check_batch_sizes(config)
  _check_dataset(config)
  _check_questions(config)
  if config.step_grpo:
    _check_reward(config.step_grpo)
    _check_loss(config.step_grpo.loss)
  _check_validation(config)
  data = config.data
  if config.walks_trajectories and not config.is_online:
    raise UserError(
      f"config.step_grpo.credit is {config.step_grpo.credit!r}: whole "
      "trajectories are the policy's own.  Set config.step_grpo.rollout_mode "
      "to 'online', or take configs/step_grpo.py:answers."
    )
  if config.is_online:
    # Recorded trajectories are read for offline rollouts alone.
    if data.has_rows:
      raise UserError(
        f"config.data names {data.dataset}: these are recorded trajectories, "
        "and online rollouts are the policy's own.  Set "
        "config.step_grpo.rollout_mode to 'offline', or config.data.name to "
        "'georouter' and train_files to ''."
      )
    if not data.kb_dir:
      raise UserError(
        "Online rollouts search: name the folder of built knowledge bases, "
        "config.data.kb_dir."
      )
    return
  # Packing fixes the rows of a run at its start.
  sft = config.sft
  if sft and sft.packed_length:
    changes = sft.recall_warmup_steps, sft.recall_prob, sft.overask_prob
    if any(changes):
      raise UserError(
        "config.sft.packed_length wants gold steps as they are, of known "
        "lengths: set recall_warmup_steps, recall_prob and overask_prob to 0."
      )


def _check_reward(options: StepGrpoConfig) -> None:
  """Check that the reward fits the credit, and its options the reward."""
  reward, credit = options.reward, options.credit
  known = STEP_REWARDS if credit == "step" else TRAJECTORY_REWARDS
  is_own = ":" in reward
  if not is_own and reward not in known:
    raise UserError(
      f"config.step_grpo.reward is {reward!r}: with config.step_grpo.credit="
      f"{credit} take one of {', '.join(known)}, or your own function, "
      "module:function."
    )
  # Such a function never sees the options.
  if is_own and (options.search_cost or options.token_cost):
    raise UserError(
      f"The reward {reward} is your own, and so are its costs: set "
      "config.step_grpo.search_cost and token_cost to 0."
    )
  if options.advantage_by_part and is_own and credit == "step":
    raise UserError(
      f"config.step_grpo.advantage_by_part is True, and the reward {reward} of "
      "steps is your own, so that its parts are not known: set it to False."
    )
  if credit == "step" and options.token_cost:
    raise UserError(
      f"config.step_grpo.token_cost is {options.token_cost}, a cost of whole "
      "trajectories: set it to 0, or config.step_grpo.credit to 'trajectory'."
    )
  if (reward == "judge") != bool(options.judge):
    raise UserError(
      f"config.step_grpo.reward is {reward!r}, and judge is {options.judge!r}: "
      "the reward 'judge' wants an address, openai:http://host:port/v1#model, "
      "and any other one ''."
    )


def _check_loss(loss: LossConfig) -> None:
  """Check the estimator, and that the objective has the bounds that are set."""
  place, name = "config.step_grpo.loss", loss.objective
  if loss.kl not in KL_ESTIMATORS:
    raise UserError(
      f"{place}.kl is {loss.kl!r}: take one of {', '.join(KL_ESTIMATORS)}.  In "
      "a loss the gradient of k1 is 0 in expectation; k2 has the right one."
    )
  if name == "sapo" and not loss.clip_low is loss.clip_high is None:
    raise UserError(
      f"{place}.clip_low and clip_high are {loss.clip_low} and "
      f"{loss.clip_high}, and 'sapo' bounds no ratio: leave them None, or take "
      "another objective."
    )
  if loss.dual_clip and (name not in _DUAL_CLIPPED or loss.dual_clip <= 1):
    raise UserError(
      f"{place}.dual_clip is {loss.dual_clip} for {name!r}: it is above 1, as "
      f"3, for {', '.join(_DUAL_CLIPPED)}, whose loss has no other bound; or 0."
    )
  if loss.importance_cap and name == "dppo":
    raise UserError(
      f"{place}.importance_cap is {loss.importance_cap}, and the ratio of "
      "'dppo' is that to the sampler already: set it to 0."
    )


def _check_dataset(config: RunConfig) -> None:
  """Check the name of the dataset, and that its files are named with it."""
  data, held_out = config.data, config.validation.train_files
  if data.name != "georouter" and not _ROWS_NAME.fullmatch(data.name):
    raise UserError(
      f"config.data.name is {data.name!r}: take georouter, or {ROWS}NAME for "
      "R1-Router's rows, with letters, digits, - and _ in the name."
    )
  if held_out and not data.train_files:
    raise UserError(
      f"config.validation.train_files is {held_out!r} without files to train "
      "on: both are splits of one dataset.  Set config.data.train_files, too."
    )


def _check_questions(config: RunConfig) -> None:
  """Check the places of questions, and that other options fit them."""
  data = config.data
  places = dict(data=data.questions, validation=config.validation.questions)
  for section, place in places.items():
    known = [name for name in benchmarks.NAMES if name != "jsonl"]
    if place in INVENTED and section == "data":
      continue
    if place and place not in known and not question_files.is_file_name(place):
      raise UserError(
        f"config.{section}.questions is {place!r}: take a file that ends in "
        f".jsonl, .csv or .parquet, or a benchmark of {', '.join(known)}."
      )
  if data.questions and (data.name != "georouter" or data.train_files):
    raise UserError(
      f"config.data.questions is {data.questions!r}, beside the dataset "
      f"{data.dataset}: set config.data.name to 'georouter' and train_files to "
      "'', or questions to ''."
    )
  if data.has_rows and (data.families or data.share < 1):
    raise UserError(
      "config.data.families and share are for questions, and "
      f"{data.dataset} holds rows: set families to () and share to 1.0."
    )
  if data.is_invented != bool(data.generated):
    raise UserError(
      f"config.data.questions is {data.questions!r}, and config.data.generated "
      f"{data.generated}: give {' and '.join(map(repr, INVENTED))} a number of "
      "questions to make, and 0 to everything else."
    )
  if data.questions == DOMAINS and config.sft and config.sft.overask_prob:
    raise UserError(
      "config.sft.overask_prob is for gold traces that search once for each "
      "hop, and those of the grammar may search in vain: set it to 0."
    )
  is_chosen = data.families or data.share < 1
  if data.is_invented and (config.is_online or is_chosen):
    raise UserError(
      f"The questions of {data.questions!r} are gold steps with their "
      "passages, all of them: take configs/sft.py, set config.data.families to "
      "() and share to 1.0, or write questions with make_domains."
    )
  # Without knowledge bases gold steps read their gold passages.
  has_passages = data.has_rows or data.has_georouter or data.is_invented
  if not data.kb_dir and not has_passages:
    raise UserError(
      f"config.data.questions is {data.questions!r}: only GeoRouter's gold "
      "passages are known.  Name knowledge bases, config.data.kb_dir."
    )


def _check_validation(config: RunConfig) -> None:
  """Check what validation reads, and by what it chooses the best state."""
  options, walks = config.validation, config.validates_by_walking
  subject = "whole questions" if walks else "gold steps"
  known = WALK_SCORES if walks else STEP_SCORES
  if options.best_by and options.best_by not in known:
    raise UserError(
      f"config.validation.best_by is {options.best_by!r}, and this run is "
      f"validated on {subject}: take one of {', '.join(known)}."
    )
  if options.questions and not walks:
    raise UserError(
      f"config.validation.questions is {options.questions!r}, and this run is "
      f"validated on {subject}: name knowledge bases to answer questions with, "
      "config.data.kb_dir, or set it to ''."
    )
  has_others = options.questions or not config.data.is_invented
  if options.every and walks and not has_others:
    raise UserError(
      f"The questions of {config.data.questions!r} are in no knowledge base: "
      "set config.data.kb_dir to '', to validate on gold steps, or name a file "
      "of others in config.validation.questions."
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
  if micro and rows % micro:
    raise UserError(
      f"config.micro_batch_size is {micro}, and an update has {rows} rows a "
      "shard: choose a divisor, or 0 for all at one time."
    )
