"""The optimizer: clipping by global norm, then AdamW or Muon, on a schedule.

Muon (orthogonalised momentum) updates the weight matrices inside the stacked
layers; NAdam, Adam with Nesterov's momentum, updates embeddings, norms and
biases.  Muon learns faster where a policy is trained from scratch.

Source: github.com/KellerJordan/Muon, through optax.contrib.muon.
"""

import functools

import jax
import optax
from optax import contrib

from r1router_jax.training.config import OptimizerConfig


def lr_schedule(
  lr: float, steps: int, warmup: int, final: float
) -> optax.Schedule:
  """Return the schedule of a linear warm-up and a cosine decay.

  The peak `lr` is reached after `warmup` updates, of which the first one starts
  at `lr / warmup`, and `final * lr` after `steps` updates.
  """
  # The first update has a rate above 0, and a run shorter than its warm-up
  # still has a decay of one update.
  return optax.warmup_cosine_decay_schedule(
    lr / max(warmup, 1), lr, warmup, max(steps, warmup + 1), final * lr
  )


def _muon_dimensions(params: dict) -> dict:
  """Return Muon's view of each leaf: a stack [layers, in, out], or None."""
  # Layers are stacked along the first axis; each has a matrix of its own.
  stacked = contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
  return jax.tree.map(lambda x: stacked if x.ndim == 3 else None, params)


def _decay_mask(params: dict) -> dict:
  """Return True for the leaves that have weight decay: matrices."""
  # By name: where layers are stacked, norms and biases have two axes, too.
  names = ("embed", "head", "w", "lora_a", "lora_b")
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in names, params
  )


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Return the optimizer of a run, with a schedule of `steps` updates."""
  schedule = functools.partial(
    lr_schedule, steps=steps, warmup=config.warmup, final=config.final
  )
  lr, decay = schedule(config.lr), config.weight_decay
  # Muon for stacked matrices, and NAdam inside it for everything else.
  if config.name == "muon":
    rule = contrib.muon(
      schedule(config.muon_lr),
      adam_learning_rate=lr,
      adam_b2=config.b2,
      weight_decay=decay,
      muon_weight_dimension_numbers=_muon_dimensions,
    )
  else:
    rule = optax.adamw(lr, b2=config.b2, weight_decay=decay, mask=_decay_mask)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
