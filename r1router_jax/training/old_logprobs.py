"""The policy before an iteration's updates, as the trainer computes it.

The ratio of the loss compares the policy with itself before the first update of
an iteration.  In float32 the sampler's log-probabilities tell it: they differ
from the trainer's by about 1e-5.  In 16 bits products are rounded in another
way where there are other shapes, and the two differ by several thousandths:
enough to clip tokens of a policy that has not changed.  There

  one update an iteration   pi_old is pi, and the ratio 1
                            (`GrpoLossConfig.on_policy`)
  several                   the trainer computes the log-probabilities of all
                            batches before the first update, by one more forward
                            pass

and the log has `sampler_drift`, the mean distance to the sampler's.

Axes:  D data shards   M microbatches of an update   m = B / M rows
  G responses per prompt   T response tokens
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from r1router_jax.parallel.strategy import ParallelStrategy
from r1router_jax.policy.policy import Policy
from r1router_jax.training import grpo_loss
from r1router_jax.training.batch import Batch, split_microbatches


def make_recompute(
  policy: Policy,
  strategy: ParallelStrategy,
  temperature: float,
  micro_batch_size: int,
) -> Callable[[dict, Batch], Batch]:
  """Return a function that gives a batch the trainer's log-probabilities.

  The function takes parameters, and a batch [D, B, ...] that has the sampler's.
  It passes over the same microbatches as the update, laid out on devices in the
  same way.
  """
  allowed = jnp.asarray(policy.allowed_tokens)
  logp_of = functools.partial(grpo_loss.policy_logp, policy.model, temperature)

  def logp_of_microbatches(params, batch):
    def rows_logp(rows):
      return logp_of(params, rows, allowed)[0]

    return jax.lax.map(rows_logp, batch)

  compiled = strategy.jit_by_row(logp_of_microbatches)

  def recompute(params, batch):
    microbatches = split_microbatches(batch, micro_batch_size)
    # [D, M, m, G, T] -> [D, B, G, T]
    logp = compiled(params, microbatches).reshape(batch.old_logp.shape)
    # Numbers in padding are of no use: those of the sampler are zeros.
    logp = np.where(batch.mask, logp, 0)
    return batch._replace(old_logp=logp, sampler_logp=batch.old_logp)

  return recompute
