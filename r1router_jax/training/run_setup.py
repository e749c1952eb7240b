"""Sets a run up: its devices, policy, data, algorithm and update.

`train` runs what `set_up` returns; `train_compile` takes single functions, so
that both make the same programs.
"""

import dataclasses
import functools
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from etils import epath
from flax import traverse_util
from jaxtyping import Float32
from ml_collections import config_dict

from r1router_jax.common.checkpoint_folder import absolute_name
from r1router_jax.common.records import Query
from r1router_jax.data import georouter
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.models import adapter_files, lora
from r1router_jax.models.induction_init import plant_induction_heads
from r1router_jax.parallel import multihost
from r1router_jax.parallel.strategy import ParallelStrategy, make_strategy
from r1router_jax.policy import image_questions
from r1router_jax.policy import policy as policy_lib
from r1router_jax.policy.config import config_for_run
from r1router_jax.protocol import format
from r1router_jax.retrieval.encoders import registry
from r1router_jax.retrieval.retriever import KnowledgeBase, open_kbs
from r1router_jax.rewards.step_reward import make_reward
from r1router_jax.routing import device_loop
from r1router_jax.routing.router import RolloutOptions
from r1router_jax.training import optimizer, train_data, train_step, validation
from r1router_jax.training.bucket_sampler import BucketSampler
from r1router_jax.training.checkpoints import leaf_checksums
from r1router_jax.training.config import RunConfig
from r1router_jax.training.config_reader import read_run_config
from r1router_jax.training.sft import Sft
from r1router_jax.training.step_grpo import StepGrpo

# Packages whose versions a checkpoint records.
_PACKAGES = "r1router_jax jax flax optax orbax-checkpoint numpy".split()


@dataclasses.dataclass(frozen=True)
class Run:
  """The fixed parts of a run, as `set_up` makes them."""

  config: RunConfig
  workdir: epath.Path
  strategy: ParallelStrategy
  policy: policy_lib.Policy  # Without parameters.
  adapter_base: str  # What adapters are added to; "" if more is trained.
  kbs: Mapping[str, KnowledgeBase]  # By kind; empty if passages are gold.
  algorithm: Sft | StepGrpo
  examples: Sequence[train_data.TrainExample]
  sampler: BucketSampler  # Of the examples of all hosts.
  validator: validation.StepValidator | validation.WalkValidator | None
  init_state: Callable  # Parameters -> state.
  train_step: Callable  # (state, reference, batch) -> (state, metrics)
  metadata: Mapping[str, Any]  # What checkpoints record about the run.

  def examples_for(self, iteration: int) -> list[train_data.TrainExample]:
    """Return the examples of an iteration that belong to this host."""
    rows = multihost.local_slice(self.sampler[iteration])
    return [self.examples[row] for row in rows]


def set_up(
  config: config_dict.ConfigDict, workdir: epath.Path
) -> tuple[Run, dict]:
  """Open everything that a run needs; return it and the first parameters.

  The parameters are separate, so that their memory can be freed.  An option
  that is wrong, or does not fit the devices or the data, raises UserError.
  """
  options = config.to_dict()
  config = read_run_config(options)

  # 1. The devices and the policy.
  devices = make_strategy(config.parallel, config.mesh, config.rollout_mesh)
  policy, params = load_start_policy(config, devices)

  if adapter_base := find_adapter_base(config, params):
    # A layer that PEFT has no adapter for is told now, not at the end.
    chosen = lora.select_adapters(params)
    adapter_files.adapter_map(policy.config.model, chosen)

  # 2. The data.  R1-Router's rows bring passages of their own.
  kbs = {}
  if config.data.kb_dir and not config.data.has_rows:
    kbs = open_kbs(config.data.kb_dir)
  if config.algorithm == "sft":
    algorithm = Sft(policy, devices, config)
  else:
    algorithm = StepGrpo(policy, devices, config, kbs, workdir)
  examples, shapes = train_data.load_train_data(config, policy, kbs)
  hosts = jax.process_count()
  examples_of_all_hosts = algorithm.examples_per_iteration * hosts
  # One order for all hosts; each takes its slice of a batch.
  sampler = BucketSampler(shapes, examples_of_all_hosts, config.seed, hosts)

  # 3. The update.
  allowed = jnp.asarray(policy.allowed_tokens)
  loss = functools.partial(algorithm.loss, allowed=allowed)
  init_state, step = make_update(
    config, loss, policy.config.prompt_tokens, devices.axis_name
  )
  run = Run(
    config=config,
    workdir=workdir,
    strategy=devices,
    policy=policy,
    adapter_base=adapter_base,
    kbs=kbs,
    algorithm=algorithm,
    examples=examples,
    sampler=sampler,
    validator=_make_validator(config, policy, kbs, examples),
    init_state=init_state,
    train_step=devices.jit_train_step(step),
    metadata=dict(
      config=json.loads(json.dumps(options)),  # Tuples become lists.
      data=_data_metadata(config, params, kbs, examples, examples_of_all_hosts),
      versions={name: importlib.metadata.version(name) for name in _PACKAGES},
    ),
  )
  return run, params


def load_start_policy(
  config: RunConfig, devices: ParallelStrategy
) -> tuple[policy_lib.Policy, dict]:
  """Return the policy that a run starts from, and its parameters apart."""
  start = config.policy
  known = config_for_run(start.start_from, start.overrides)
  if start.start_from:
    # Training updates weights in float32; products have a dtype of their own.
    policy = policy_lib.load(
      start.start_from, dtype=np.float32, mesh=devices.mesh
    )
  else:
    tokenizer = georouter.tokenizer_path()
    policy = policy_lib.init_policy(known, tokenizer, config.seed, devices.mesh)
  params = policy.params
  if start.induction:
    vectors = None
    if start.word_vectors:
      vectors = embed_tokens(policy.processor.tokenizer, start.word_vectors)
    params = plant_induction_heads(params, known.model, config.seed, vectors)
  params = add_adapters(config, params)
  # Parameters are passed on their own: the state will hold them.
  policy = dataclasses.replace(
    policy, config=known, params={}, mesh=devices.rollout_mesh
  )
  return policy, params


def embed_tokens(
  tokenizer: Tokenizer, encoder: str
) -> Float32[np.ndarray, "V E"]:
  """Return a text encoder's vector of each token's text; 0 if it has none."""
  texts = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size)]
  control = format.TAG, re.compile(r"<\|.*\|>")
  has_text = np.array(
    [bool(x) and not any(tag.fullmatch(x) for tag in control) for x in texts]
  )
  vectors = registry.get_embedder(encoder)([Query(text) for text in texts])
  return vectors * has_text[:, None].astype(np.float32)


def add_adapters(config: RunConfig, params: dict) -> dict:
  """Return the parameters with the adapters of `config.policy.lora`, if any."""
  options = config.policy.lora
  if not options.rank:
    return params
  # The seed of the run, so that a restart makes the same adapters.
  key = jax.random.key(config.seed)
  return lora.add_adapters(params, key=key, **msgspec.structs.asdict(options))


def find_adapter_base(config: RunConfig, params: dict) -> str:
  """Return the policy that a run's adapters are for, for `locate_checkpoint`.

  It is "" if other weights than those of adapters are trained or planted, so
  that adapters alone would be no policy.
  """
  start, regex = config.policy, config.trainable_regex
  trained = train_step.trainable_params(params, regex)
  paths = traverse_util.flatten_dict(trained, sep="/")
  keeps_base = not start.induction and all(map(lora.is_adapter, paths))
  # A policy that starts from nothing has no base at all.
  return absolute_name(start.start_from) if keeps_base else ""


def make_update(
  config: RunConfig,
  loss: Callable,
  prompt_lengths: Sequence[int],
  axis_name: str | None,
) -> tuple[Callable, Callable]:
  """Return the functions of `train_step`, to make a state and to update it.

  `prompt_lengths` are those that the policy's prompts are padded to.
  """
  regex, updates = config.trainable_regex, config.updates_per_iteration
  rule = optimizer.make_optimizer(config.optim, config.total_steps * updates)
  init_state = functools.partial(
    train_step.init_train_state, optimizer=rule, trainable=regex
  )
  # Only rows of trajectories come in blocks of one length.
  lengths = prompt_lengths if config.walks_trajectories else ()
  task = loss, rule, regex, axis_name, lengths
  update = train_step.make_train_step(*task)
  # Without an option of the run JAX's own setting holds.
  if not config.matmul_precision:
    return init_state, update

  def update_at_precision(*args):
    with jax.default_matmul_precision(config.matmul_precision):
      return update(*args)

  return init_state, update_at_precision


def _make_validator(
  config: RunConfig,
  policy: policy_lib.Policy,
  kbs: Mapping[str, KnowledgeBase],
  examples: Sequence[train_data.TrainExample],
) -> validation.StepValidator | validation.WalkValidator | None:
  """Return the validator of a run, None if it never validates."""
  if not config.validation.every:
    return None
  if config.validates_by_walking:
    questions = train_data.load_held_out(config)
    questions = _draw_held_out(config, examples, questions)
    image_questions.log_lacking_vision("The policy", policy.config, questions)
    # Offline rollouts drive no routing loop of their own.
    online = config.step_grpo.routing_loop if config.is_online else "host"
    drive_loop = device_loop.ROUTING_LOOPS[online]
    options = RolloutOptions(k=config.data.passages)
    task = policy, kbs, questions, options, drive_loop, config.seed
    return validation.WalkValidator(*task)
  steps = train_data.load_validation_steps(config, policy, kbs)
  reward = make_reward("default", policy.config.max_routes)
  steps = _draw_held_out(config, examples, steps)
  return validation.StepValidator(policy, steps, reward)


def _draw_held_out(
  config: RunConfig,
  examples: Sequence[train_data.TrainExample],
  held_out: Sequence[train_data.TrainExample],
) -> list[train_data.TrainExample]:
  """Return the held-out examples that all validations of a run have.

  If slices of one file overlap with `examples`, the error is a UserError.
  """
  if config.data.questions and not config.validation.questions:
    train_data.check_disjoint(examples, held_out)
  # The same at each validation, so that scores can be compared.
  order = np.random.default_rng(config.seed).permutation(len(held_out))
  # Sorted, so that the steps of a question stay together.
  return [held_out[i] for i in sorted(order[: config.validation.steps])]


def _data_metadata(
  config: RunConfig,
  params: dict,
  kbs: Mapping[str, KnowledgeBase],
  examples: Sequence[train_data.TrainExample],
  batch_size: int,
) -> dict[str, Any]:
  """Return all that batches, and what updates compare them with, depend on."""
  start = 0
  if config.policy.start_from:
    flat = traverse_util.flatten_dict(params, sep="/")
    if config.policy.lora.rank:  # New adapters are random: the seed tells.
      flat = {p: x for p, x in flat.items() if not lora.is_adapter(p)}
    start = int(np.asarray(leaf_checksums(flat)).sum())
  return dict(
    rows=len(examples),
    digest=train_data.digest_examples(examples),
    batch=batch_size,
    seed=config.seed,
    minibatches=config.updates_per_iteration,
    kbs={kind: kb.meta.get("passages") for kind, kb in kbs.items()},
    start=start,
  )
