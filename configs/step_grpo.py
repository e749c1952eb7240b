r"""Step-GRPO on steps of GeoRouter's training questions, from a trained start.

  python -m r1router_jax.train --config=configs/step_grpo.py:tiny \
      --config.policy.start_from=runs/overask/policy \
      --config.data.kb_dir=runs/kb --workdir=runs/step_grpo

A start that asks too much (configs/sft.py:overask) learns to stop.  `:answers`
needs no gold steps: it learns from whole trajectories and their final answers.
So does `:compose`, the shipped warm start on kinds of questions that it never
saw answered, and `:own`, SmolLM2 on my_questions.csv with the knowledge bases
in my_kb.

`:qwen2_5_0_5b` trains a published policy of texts on R1-Router's rows, on one
GPU.  `:3b`, `:7b` and `:reference`, the 7b with R1-Router's own values, need
more devices: python -m r1router_jax.train_compile says how many.
"""

import pathlib
import runpy

import ml_collections as mlc

# Config files are loaded by path, and so is the one that they share.
_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("base.py")))


def get_config(variant: str = "tiny") -> mlc.ConfigDict:
  """Return the run of a variant: "tiny" and others, or "smoke" for tests."""
  c = _BASE["base_config"]()
  c.algorithm = "step_grpo"
  c.total_steps = 80  # Iterations, each of `minibatches` updates.
  c.log_every = 5  # Iterations between two lines of metrics.jsonl.
  c.checkpoint_every = 50  # Iterations between two checkpoints.
  c.samples_every = 5  # Iterations between entries of samples.jsonl.
  # Changes to the policy's own PolicyConfig: few shapes to compile.
  c.policy.overrides = dict(prompt_tokens=(48, 96, 160), response_tokens=(72,))
  c.data.kb_dir = "runs/kb"
  # Prompts (online: questions) drawn per iteration and data shard of the
  # rollout mesh.  An update takes update_batch_size of their groups.
  c.data.prompts_per_shard = 64
  c.step_grpo = dict(
    # "offline" samples at the steps of gold trajectories, "online" at those of
    # trajectories that the policy makes itself.
    rollout_mode="offline",
    # What drives online rollouts: "host"; "halves", which searches for one half
    # of the questions while the other is sampled; or "fused", on the device.
    routing_loop="host",
    # Responses per step, or trajectories per question, which are compared.
    group_size=8,
    # Groups per update and data shard; those of unequal rewards come first.  Of
    # trajectories an update has all, in blocks of so many prompts.
    update_batch_size=16,
    minibatches=1,  # Updates per iteration.
    # Extra rollouts, at most, if too few groups have unequal rewards.
    max_resample_rounds=0,
    temperature=1.0,  # At which responses are sampled.
    # Divides centred rewards, "sample_std" or "population_std", or does not,
    # "none"; "leave_one_out" compares each with the others alone (RLOO).  None
    # is the objective's own.
    advantage_norm=mlc.config_dict.placeholder(str),
    loss=dict(
      # "grpo", "dr_grpo", "gspo", "cispo", "sapo", "dppo": docs/objectives.md.
      objective="grpo",
      # Bounds and averages that are None are the objective's own; those of grpo
      # are 0.2, 0.28, "token_mean" and 3.  The trust region of the ratio is
      # [1 - clip_low, 1 + clip_high]; dppo bounds a difference by them.
      clip_low=mlc.config_dict.placeholder(float),
      clip_high=mlc.config_dict.placeholder(float),
      # "token_mean", "sequence_mean" or "fixed_length".
      aggregate=mlc.config_dict.placeholder(str),
      # Bound of the loss, in advantages, of responses worse than their group; 0
      # is none.
      dual_clip=mlc.config_dict.placeholder(float),
      # Largest weight of a token for the difference between the precisions of
      # trainer and sampler; 2 is usual, 0 has no weights.
      importance_cap=0.0,
      # Responses without an end token: "keep" them, "drop" them from the loss,
      # or "penalise" their rewards by 1.
      truncated="keep",
      kl="k3",  # Estimator of the divergence from the start: k2 or k3.
      kl_coef=0.0,  # Weight of that divergence; 0 keeps no reference policy.
      entropy_coef=0.0,  # Weight of the entropy bonus.
    ),
    # What a reward is given to, and so what it teaches: "step", one response to
    # a gold step; "trajectory", a whole trajectory, by its final answer;
    # "gigpo", as that, and steps of a question at equal prompts are compared.
    credit="step",
    # Of gigpo: the weight of the second comparison, and the discount, per step,
    # of what follows a response.
    state_weight=1.0,
    discount=1.0,
    # Whether each part of the reward is normalised on its own (GDPO).
    advantage_by_part=False,
    # Of steps "default" or "reference", of trajectories "em", "f1", "recall" or
    # "judge"; or your own, "module:function".
    reward="default",
    search_cost=0.0,  # Taken from the reward for each search.
    # Of trajectories: weight of a good format, what each token of a response
    # takes from the reward, and the judge, openai:http://host:port/v1#model.
    format_weight=0.1,
    token_cost=0.0,
    judge="",
  )
  c.optim = _BASE["base_optimizer"]()
  c.optim.update(lr=1.5e-4, warmup=5, final=0.1, b2=0.98, weight_decay=0.0)

  if variant == "answers":
    _set_answers(c)
  elif variant == "compose":
    _set_answers(c)
    _set_compose(c)
  elif variant == "own":
    _set_answers(c)
    _set_own(c)
  elif variant == "smoke":
    c.total_steps = 2
    c.policy.overrides.update(prompt_tokens=(160,))
    c.data.prompts_per_shard = 4
    c.step_grpo.update(group_size=2, update_batch_size=4)
    c.update(log_every=1, checkpoint_every=1, samples_every=1)
  elif variant in ("3b", "7b"):
    _set_published(c, variant)
  elif variant == "reference":
    _set_published(c, "7b")
    _set_reference(c)
  elif variant == "qwen2_5_0_5b":
    _set_one_gpu(c)
  elif variant != "tiny":
    raise ValueError(
      f"No variant {variant!r} of step_grpo: take 'tiny', 'answers', "
      "'compose', 'own', 'qwen2_5_0_5b', '3b', '7b', 'reference' or 'smoke'."
    )
  return c


def _set_answers(c: mlc.ConfigDict) -> None:
  """Change the run to whole trajectories, rewarded by their final answers."""
  c.data.prompts_per_shard = 16
  c.step_grpo.update(credit="trajectory", rollout_mode="online", reward="f1")


def _set_compose(c: mlc.ConfigDict) -> None:
  """Change the run to kinds of questions that no demonstration showed.

  As many of the others are asked, too, so that they are not forgotten.
  """
  c.total_steps = 40
  c.data.split = "compose+train[:18%]"


def _set_own(c: mlc.ConfigDict) -> None:
  """Change the run to SmolLM2 on questions and documents of one's own."""
  c.total_steps = 10
  c.update(log_every=1, checkpoint_every=2, samples_every=1)
  _BASE["set_smollm2"](c, start_from="smollm2")
  c.data.update(kb_dir="my_kb", questions="my_questions.csv")
  c.data.prompts_per_shard = 8
  c.step_grpo.update(group_size=6, update_batch_size=4, minibatches=2)
  c.optim.update(lr=6e-4, warmup=0, final=1.0)


def _set_published(c: mlc.ConfigDict, size: str) -> None:
  """Change the run to Qwen2.5-VL, its weights split over a mesh."""
  c.total_steps = 300
  c.parallel = "fsdp"
  c.mesh.update(data=1, fsdp=-1)
  c.rollout_mesh.tensor = {"3b": 2, "7b": 4}[size]
  c.policy.start_from = f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct"
  c.policy.overrides = _BASE["qwen_overrides"](
    model=size, response_tokens=(1024,), decode_batch_size=8
  )
  c.policy.overrides.update(min_pixels=3136, max_pixels=1_003_520)
  c.data.prompts_per_shard = 4
  c.step_grpo.update(update_batch_size=1)
  c.optim.update(lr=1e-6, warmup=15, weight_decay=0.01)


def _set_reference(c: mlc.ConfigDict) -> None:
  """Change the run to R1-Router's values, as far as its files tell them.

  Its 14 epochs of 3,030 steps are about 330 iterations here.
  """
  c.total_steps = 330
  c.data.train_files = "reference/grpo_dataset_train*.jsonl"
  c.data.update(images="reference/images", prompts_per_shard=16)
  c.step_grpo.update(group_size=5, update_batch_size=16, reward="reference")
  loss = dict(clip_low=0.2, clip_high=0.2, aggregate="sequence_mean")
  c.step_grpo.loss.update(loss, entropy_coef=1e-3)
  c.micro_batch_size = 1
  c.optim.update(warmup=0, final=1.0, b2=0.999)


def _set_one_gpu(c: mlc.ConfigDict) -> None:
  """Change the run to Qwen2.5-0.5B-Instruct, for a GPU of 24 GB or more.

  By count, weights, gradients and moments take 9 GB.  The policy reads texts
  alone, so rows with images are left out.
  """
  c.total_steps = 300
  c.policy.start_from = "Qwen/Qwen2.5-0.5B-Instruct"
  c.policy.overrides = _BASE["qwen_overrides"](
    response_tokens=(256,), decode_batch_size=64
  )
  c.data.train_files = "reference/grpo_dataset_train*.jsonl"
  c.data.prompts_per_shard = 16
  c.step_grpo.update(update_batch_size=4)
  c.optim.update(lr=1e-6, warmup=15, b2=0.999, weight_decay=0.01)
