"""The options of a run and their checks."""

import re

import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.rewards import presets, trajectory_reward
from r1router_jax.training import advantages, config, config_reader, grpo_loss
from tests.train_runs import load_config, make_run_config

VARIANTS = [
  ("sft", "tiny"),
  ("sft", "overask"),
  ("sft", "smoke"),
  ("sft", "smollm2"),
  ("sft", "qwen2_5_0_5b"),
  ("step_grpo", "tiny"),
  ("step_grpo", "smoke"),
  ("step_grpo", "answers"),
  ("step_grpo", "own"),
  ("step_grpo", "3b"),
  ("step_grpo", "7b"),
  ("step_grpo", "reference"),
  ("step_grpo", "qwen2_5_0_5b"),
  ("georouter", "tiny"),
]


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_every_variant_passes_the_checks(name, variant):
  # One algorithm, and rows to learn from.
  run = make_run_config(name, variant)
  assert (run.sft is None) != (run.step_grpo is None)
  assert run.rows_per_update > 0


def test_names_of_options_are_those_of_the_loss_and_the_advantages():
  assert set(config.ADVANTAGE_NORMS) == set(advantages.ADVANTAGE_NORMS)
  assert set(config.TRUNCATED_RULES) == set(advantages.TRUNCATED_RULES)
  assert set(config.OBJECTIVES) == set(grpo_loss.OBJECTIVES)
  assert set(config.AGGREGATES) == set(grpo_loss.AGGREGATES)
  assert set(config.KL_ESTIMATORS) == set(grpo_loss.KL_ESTIMATORS)


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      {"objective": "ppo"},
      "objective is 'ppo': take one of grpo, dr_grpo, gsp",
    ),
    ({"aggregate": "mean"}, "aggregate is 'mean': take one of token_mean, seq"),
    ({"truncated": "cut"}, "truncated is 'cut': take one of keep, drop, penal"),
    (
      {"kl": "k1"},
      "kl is 'k1': take one of k2, k3.  In a loss the gradient of",
    ),
    ({"clip_low": -0.2}, "clip_low is -0.2: expected `float` >= 0"),
    (
      {"objective": "sapo", "clip_high": 0.2},
      "and 'sapo' bounds no ratio: lea",
    ),
    ({"dual_clip": 1.0}, "dual_clip is 1.0 for 'grpo': it is above 1, as 3"),
    ({"objective": "cispo", "dual_clip": 3.0}, "dual_clip is 3.0 for 'cispo'"),
    (
      {"objective": "dppo", "importance_cap": 2.0},
      "importance_cap is 2.0, and",
    ),
  ],
)
def test_option_that_the_loss_lacks_is_rejected(changes, message):
  changes = {f"step_grpo.loss.{name}": x for name, x in changes.items()}
  with pytest.raises(ValueError, match=re.escape(message)):
    make_run_config("step_grpo", **changes)


@pytest.mark.parametrize("name", ["trainable_regex", "policy.lora.match"])
def test_pattern_that_is_none_is_rejected(name):
  message = f"config.{name} is 'lora_(', which is no regular expression"
  with pytest.raises(UserError, match=re.escape(message)):
    make_run_config("sft", **{name: "lora_("})


def test_loss_of_an_older_config_is_grpo():
  tree = load_config("step_grpo").to_dict()
  known = "clip_low", "clip_high", "aggregate", "kl", "kl_coef", "entropy_coef"
  older = {name: tree["step_grpo"]["loss"][name] for name in known}
  tree = change(tree, "step_grpo", loss=older, advantage_norm="none")
  run = config_reader.read_run_config(tree).step_grpo
  assert (run.loss.objective, run.advantage_norm) == ("grpo", "none")


def test_names_of_rewards_are_those_that_can_be_made():
  assert set(config.STEP_REWARDS) == set(presets.REWARD_PRESETS)
  answers = set(trajectory_reward.ANSWER_COLUMNS)
  assert set(config.TRAJECTORY_REWARDS) == answers | {"judge"}


CREDIT, REWARD = "step_grpo.credit", "step_grpo.reward"


@pytest.mark.parametrize(
  "changes, message",
  [
    ({CREDIT: "token"}, "credit is 'token': take one of step, trajectory, gig"),
    (
      {REWARD: "a:b", "step_grpo.advantage_by_part": True},
      "advantage_by_part is True, and the reward a:b of steps is your own",
    ),
    ({REWARD: "f1"}, "reward is 'f1': with config.step_grpo.credit=step take"),
    (
      {CREDIT: "gigpo"},
      "reward is 'default': with config.step_grpo.credit=gigpo take one of em, "
      "f1, recall, judge, or your own function, module:function.",
    ),
    (
      {REWARD: "a:b", "step_grpo.search_cost": 0.1},
      "The reward a:b is your own, and so are its costs",
    ),
    (
      {CREDIT: "trajectory", REWARD: "a:b", "step_grpo.token_cost": 0.1},
      "The reward a:b is your own, and so are its costs",
    ),
    ({"step_grpo.token_cost": 0.1}, "token_cost is 0.1, a cost of whole traj"),
    (
      {CREDIT: "trajectory", REWARD: "em"},
      "credit is 'trajectory': whole trajectories are the policy's own.  Set "
      "config.step_grpo.rollout_mode to 'online', or take configs/step_grpo.py",
    ),
    ({CREDIT: "trajectory", REWARD: "judge"}, "the reward 'judge' wants an ad"),
    ({"step_grpo.judge": "http://a/v1#m"}, "judge is 'http://a/v1#m': the rew"),
    ({"step_grpo.format_weight": 1.5}, "format_weight is 1.5: expected `float"),
  ],
)
def test_rewards_that_do_not_fit_the_credit_are_rejected(changes, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    make_run_config("step_grpo", **changes)


@pytest.mark.parametrize(
  "name, changes, message",
  [
    (
      "step_grpo",
      {"step_grpo.group_size": 1},
      "group_size is 1: expected `int` >= 2",
    ),
    (
      "step_grpo",
      {"step_grpo.rollout_mode": "both"},
      "rollout_mode is 'both': take one of offline, online",
    ),
    (
      "step_grpo",
      {"step_grpo.routing_loop": "gpu"},
      "routing_loop is 'gpu': take one of host, halves, fused",
    ),
    (
      "step_grpo",
      {"step_grpo.advantage_norm": "std2"},
      "advantage_norm is 'std2': take one of sample_std, population_std, none",
    ),
    (
      "step_grpo",
      {"step_grpo.minibatches": 0},
      "minibatches is 0: expected `int` >= 1",
    ),
    (
      "step_grpo",
      {"step_grpo.discount": 2.0},
      "discount is 2.0: expected `float` <= 1.0",
    ),
    ("step_grpo", {"optim.name": "sgd"}, "config.optim.name is 'sgd'"),
    (
      "sft",
      {"matmul_precision": "half"},
      "matmul_precision is 'half': take one of '', bfloat16",
    ),
    (
      "step_grpo",
      {"log_every": 0},
      "config.log_every is 0: expected `int` >= 1",
    ),
    (
      "step_grpo",
      {"micro_batch_size": 3},
      "micro_batch_size is 3, and an update has 4 rows a shard: choose a div",
    ),
    (
      "step_grpo",
      {"step_grpo.rollout_mode": "online", "data.kb_dir": ""},
      "name the folder of built knowledge bases, config.data.kb_dir",
    ),
    (
      "step_grpo",
      {"step_grpo.rollout_mode": "online", "data.train_files": "my.jsonl"},
      "config.data names r1_router_rows/my: these are recorded trajectories, "
      "and online rollouts are the policy's own.  Set "
      "config.step_grpo.rollout_mode to 'offline', or config.data.name",
    ),
    ("sft", {"sft.packed_length": 96}, "packed_length wants gold steps as"),
    (
      "sft",
      {"data.name": "r1_router_rows/a/.."},
      "take georouter, or r1_route",
    ),
    (
      "step_grpo",
      {"validation.every": -1},
      "config.validation.every is -1: expected `int` >= 0",
    ),
    (
      "step_grpo",
      {"validation.steps": 0},
      "config.validation.steps is 0: expected `int` >= 1",
    ),
    (
      "step_grpo",
      {"validation.best_by": "total"},
      "config.validation.best_by is 'total', and this run is validated on "
      "whole questions: take one of f1, exact, recall.",
    ),
    (
      "sft",
      {"validation.best_by": "f1"},
      "config.validation.best_by is 'f1', and this run is validated on gold "
      "steps: take one of total.",
    ),
    (
      "sft",
      {"validation.questions": "held_out.csv"},
      "config.validation.questions is 'held_out.csv', and this run is "
      "validated on gold steps: name knowledge bases",
    ),
    (
      "sft",
      {"validation.train_files": "a"},
      "Set config.data.train_files, too",
    ),
    (
      "step_grpo",
      {"data.questions": "shop.xlsx"},
      "config.data.questions is 'shop.xlsx': take a file that ends in .jsonl, "
      ".csv or .parquet, or a benchmark of georouter, infoseek",
    ),
    (
      "step_grpo",
      {"validation.questions": "jsonl"},
      "config.validation.questions is 'jsonl': take a file",
    ),
    (
      "step_grpo",
      {"data.questions": "a.csv", "data.train_files": "b.jsonl"},
      "config.data.questions is 'a.csv', beside the dataset r1_router_rows/b",
    ),
    (
      "step_grpo",
      {"data.train_files": "b.jsonl", "data.share": 0.5},
      "config.data.families and share are for questions",
    ),
    ("sft", {"data.questions": "a.csv"}, "only GeoRouter's gold passages are"),
    (
      "sft",
      {"data.questions": "domains"},
      "config.data.generated 0: give 'domains' and 'countries' a number",
    ),
    (
      "sft",
      {"data.questions": "countries"},
      "config.data.generated 0: give 'domains' and 'countries' a number",
    ),
    (
      "sft",
      {
        "data.questions": "domains",
        "data.generated": 9,
        "sft.overask_prob": 0.5,
      },
      "those of the grammar may search in vain: set it to 0",
    ),
    (
      "sft",
      {"data.generated": 9},
      "config.data.questions is '', and config.data.generated 9",
    ),
    (
      "step_grpo",
      {
        "data.questions": "domains",
        "data.generated": 9,
        "step_grpo.rollout_mode": "online",
      },
      "The questions of 'domains' are gold steps with their passages",
    ),
    (
      "sft",
      {
        "data.questions": "countries",
        "data.generated": 9,
        "data.kb_dir": "kb",
        "validation.every": 1,
      },
      "The questions of 'countries' are in no knowledge base",
    ),
    (
      "step_grpo",
      {"data.share": 0.0},
      "config.data.share is 0.0: expected `float` > 0.0",
    ),
  ],
)
def test_contradicting_options_are_rejected(name, changes, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    make_run_config(name, **changes)


NAN, INF = float("nan"), float("inf")

NUMBERS = (NAN, INF, -1.0, 1e30)

# Values that are no numbers, out of range, or that nothing could start from.
EDGES = {
  "sft": {
    "sft.recall_prob": (1.5, NAN),
    "sft.recall_warmup_steps": (-1,),
    "sft.packed_length": (-1,),
    "data.batch_size_per_device": (0, -1),
  },
  "step_grpo": {
    "step_grpo.temperature": (0.0, 1e-38, *NUMBERS),
    "step_grpo.minibatches": (0, True),
    "step_grpo.update_batch_size": (0,),
    "step_grpo.max_resample_rounds": (-1,),
    "step_grpo.group_size": (2.0, -1),
    "step_grpo.search_cost": NUMBERS,
    "step_grpo.token_cost": NUMBERS,
    "step_grpo.state_weight": NUMBERS,
    "step_grpo.discount": (1.5, NAN),
    "step_grpo.loss.clip_low": NUMBERS,
    "step_grpo.loss.clip_high": NUMBERS,
    "step_grpo.loss.dual_clip": NUMBERS,
    "step_grpo.loss.importance_cap": NUMBERS,
    "step_grpo.loss.kl_coef": NUMBERS,
    "step_grpo.loss.entropy_coef": NUMBERS,
    "data.prompts_per_shard": (0, -1),
    "data.passages.text": (0, -1),
    "data.share": (0.0, 1.5, NAN),
    "seed": (-1, 2**32, None, 1.0),
    "total_steps": (-3, 10**12, "3"),
    "log_every": (0,),
    "checkpoint_every": (0,),
    "samples_every": (-1,),
    "max_skipped": (0,),
    "micro_batch_size": (-1,),
    "validation.steps": (0,),
    "validation.every": (-1,),
    "optim.lr": (*NUMBERS, None),
    "optim.muon_lr": NUMBERS,
    "optim.warmup": (-5, 0.5),
    "optim.final": NUMBERS,
    "optim.b2": (-0.1, 1.0, NAN),
    "optim.weight_decay": NUMBERS,
    "optim.clip_norm": (0.0, *NUMBERS),
    "mesh.data": (-2,),
    "rollout_mesh.tensor": (-2,),
    "policy.lora.rank": (-1, 1.5),
    "policy.lora.alpha": (0.0, *NUMBERS),
  },
}


@pytest.mark.parametrize(
  "name, option, value",
  [
    (name, option, value)
    for name, options in EDGES.items()
    for option, values in options.items()
    for value in values
  ],
)
def test_values_out_of_range_are_named(name, option, value):
  tree = load_config(name).to_dict()
  *sections, last = option.split(".")
  section = tree
  for key in sections:
    section = section[key]
  section[last] = value
  # Of what maps names to numbers, the map is named.
  place = re.sub(r"(mesh|passages)\.\w+", r"\1", option)
  with pytest.raises(UserError, match=rf"^config\.{re.escape(place)}") as error:
    config_reader.read_run_config(tree)
  assert "\n" not in str(error.value)


def change(tree, section, **options):
  """Return a config with other options in a section."""
  return {**tree, section: {**tree[section], **options}}


@pytest.mark.parametrize(
  "section, options, message",
  [
    (
      "step_grpo",
      dict(learn_rows=1),
      "config.step_grpo.learn_rows is unknown",
    ),
    (
      "data",
      dict(colour=1),
      "config.data.colour is unknown",
    ),
    (
      "data",
      dict(batch_size_per_device=4),
      "config.data.batch_size_per_device has no meaning for step_grpo: set "
      "config.data.prompts_per_shard",
    ),
  ],
)
def test_unknown_option_of_an_own_config_is_named(section, options, message):
  # An own config file can hold any key.
  tree = change(load_config("step_grpo").to_dict(), section, **options)
  with pytest.raises(ValueError, match=re.escape(message)):
    config_reader.read_run_config(tree)


def test_missing_option_is_named():
  tree = load_config("sft").to_dict()
  del tree["sft"]["recall_prob"]
  with pytest.raises(ValueError, match="config.sft.recall_prob is missing"):
    config_reader.read_run_config(tree)
  del tree["sft"]
  with pytest.raises(ValueError, match="there is no section config.sft"):
    config_reader.read_run_config(tree)
