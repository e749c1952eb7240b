"""The optax chain: clipping by global norm, then Adam or Muon, on a schedule.

Muon (orthogonalised momentum) moves the weight matrices inside the stacked
layers; embeddings, norms and biases go with AdamW.  It is the faster start for
a policy trained from scratch.

Source: github.com/KellerJordan/Muon, through optax.contrib.muon.
"""

import jax
import optax
from optax import contrib


def schedule(
  lr: float, steps: int, warmup: int, final: float
) -> optax.Schedule:
  """Linear warm-up to `lr`, then a cosine down to `final` * `lr` at `steps`."""
  return optax.warmup_cosine_decay_schedule(
    lr / max(warmup, 1), lr, warmup, max(steps, warmup + 1), final * lr
  )


def _matrices(params: dict) -> dict:
  """Muon's view of each leaf: [layers, in, out] stacks of matrices, or None."""
  stacked = contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
  return jax.tree.map_with_path(
    lambda path, x: stacked if x.ndim == 3 else None, params
  )


def chain(
  *,
  name: str,
  lr: float,
  muon_lr: float,
  steps: int,
  warmup: int,
  final: float,
  b2: float,
  weight_decay: float,
  clip_norm: float,
) -> optax.GradientTransformation:
  """The optimiser of a run.

  Args:
    name: "adamw", or "muon" for Muon on matrices and AdamW elsewhere.
    lr: peak learning rate of AdamW.
    muon_lr: peak learning rate of Muon; unused by "adamw".
    steps: updates until the schedule's end.
    warmup: updates of linear warm-up.
    final: learning rate at the end, as a share of the peak.
    b2: AdamW's decay of squared gradients.
    weight_decay: of matrices (under "muon" of those that Muon moves, not of
      embeddings); norms and biases have none.
    clip_norm: largest global norm of a gradient.
  """
  decayed = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  rate = schedule(lr, steps, warmup, final)
  if name == "muon":
    rule = contrib.muon(
      schedule(muon_lr, steps, warmup, final),
      adam_learning_rate=rate,
      adam_b2=b2,
      weight_decay=weight_decay,
      muon_weight_dimension_numbers=_matrices,
    )
  elif name == "adamw":
    rule = optax.adamw(rate, b2=b2, weight_decay=weight_decay, mask=decayed)
  else:
    raise ValueError(f"config.optim.name is {name!r}: take 'adamw' or 'muon'.")
  return optax.chain(optax.clip_by_global_norm(clip_norm), rule)
