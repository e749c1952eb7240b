"""Step-GRPO: group-relative policy optimisation of single routing steps.

The old policy draws a group of G responses to each prompt, with rewards
r_1..r_G.  Every token of response g has the advantage

  A_g = (r_g - mean r) / (std r + EPS)

and the loss is the clipped surrogate, averaged over response tokens:

  - mean min(rho A, clip(rho, 1 - low, 1 + high) A),   rho = pi / pi_old

At rho = 1 it is 0 by construction: watch the reward, not the loss.  A group of
equal rewards has advantage exactly 0, so it is left out of the update: more
prompts are drawn than an update has rows for, and those that teach fill them.

Axes:  B prompts   G responses per prompt   T response tokens
Sources: arxiv.org/abs/2402.03300 (GRPO), arxiv.org/abs/2505.22095 (Step-GRPO),
  arxiv.org/abs/2503.14476 (token mean, clip-higher).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r1router_jax import drawing, sampling
from r1router_jax.inputs.pack import Encoded
from r1router_jax.learning import rewards
from r1router_jax.learning.batch import Batch, Prompts
from r1router_jax.models import qwen_vl
from r1router_jax.policy import Policy
from r1router_jax.records import Step
from r1router_jax.retrieval import embedders

EPS = 1e-6


def advantages(
    rewards: Float[np.ndarray, "B G"],
) -> Float[np.ndarray, "B G"]:
  """Rewards centred and scaled within their group (sample std, as in verl).

  Computed in float64: in float32 the mean of five equal numbers can differ
  from each of them, and EPS is too small to hide it.
  """
  rewards = np.asarray(rewards, np.float64)
  equal = np.ptp(rewards, axis=1, keepdims=True) == 0
  std = np.std(rewards, axis=1, keepdims=True, ddof=min(1, len(rewards[0]) - 1))
  centred = rewards - np.mean(rewards, axis=1, keepdims=True)
  return np.where(equal, 0, centred / (std + EPS)).astype(np.float32)


def surrogate(
    logp: Float[Array, "B G T"],
    old_logp: Float[Array, "B G T"],
    advantage: Float[Array, "B G"],
    mask: Bool[Array, "B G T"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
  """Sum of the clipped gains, negated, and the number of clipped tokens.

  Args:
    logp: log-probability, in nats, of each response token.
    old_logp: the same under the policy that drew it; a constant.
    advantage: one number per response.
    mask: true on response tokens, up to and including the end token.
    clip_low: how far below 1 the ratio counts.
    clip_high: how far above 1 it counts.
  """
  # `where` before exp: padding may hold any number, but must not overflow.
  ratio = jnp.exp(jnp.where(mask, logp - old_logp, 0))
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  advantage = advantage[..., None]
  gain = jnp.minimum(ratio * advantage, clipped * advantage)
  beyond = mask & (clipped * advantage < ratio * advantage)
  return -jnp.sum(jnp.where(mask, gain, 0)), jnp.sum(beyond)


def learn_from(
    policy: Policy,
    prompts: Sequence[Encoded],
    drawn: sampling.Drawn,
    advantage: Float[np.ndarray, "B G"],
    rows: int,
) -> Batch:
  """The batch of the first groups whose rewards differ, `rows` on each device.

  The loss remains a mean over the tokens of all groups: advantages shrink by
  the share of those that teach, which is small in a batch of easy steps.
  """
  devices, mask = jax.local_device_count(), drawn.mask
  teach = np.flatnonzero(advantage.any(axis=1))
  advantage = advantage * np.float32(mask[teach].sum() / mask.sum())
  teach = teach[:devices * rows]
  longest = policy.settings.response_length(
      int(mask[teach].sum(-1).max(initial=0)))

  def shared(array):
    padded = np.zeros((devices * rows, *array.shape[1:]), array.dtype)
    padded[:len(teach)] = array[teach]
    return padded.reshape(devices, rows, *array.shape[1:])

  tokens, mask, logp = (
      shared(a[..., :longest]) for a in (drawn.tokens, mask, drawn.logp))
  packed = policy.packer.pack(
      [prompts[i] for i in teach] or prompts[:1], devices, rows)
  return Batch(packed, tokens, mask, shared(advantage), logp)


class StepGrpo:
  """Batches and loss of Step-GRPO; an `Algorithm` of `train`.

  Args:
    policy: what is trained.
    total_steps: updates of the run; the schedule is the optimiser's business.
    seed: of everything drawn.
    group_size: G, responses per step; advantages compare these.
    learn_rows: steps per update and device, at most, whose responses differ in
      reward and are learnt from.
    temperature: of sampling.
    clip_low, clip_high: see `surrogate`.
    reward: a key of `rewards.REWARDS`.
    rename: probability that a step's entities have other names.
  """

  def __init__(
      self,
      policy: Policy,
      *,
      total_steps: int,
      seed: int,
      group_size: int,
      learn_rows: int,
      temperature: float,
      clip_low: float,
      clip_high: float,
      reward: str,
      rename: float,
  ):
    del total_steps
    if group_size < 2:
      raise ValueError(
          f"config.step_grpo.group_size is {group_size}: an advantage compares "
          "at least two responses.")
    self._policy, self._group, self._rows = policy, group_size, learn_rows
    self._prompts, self._rename, self._seed = Prompts(policy), rename, seed
    self._key = jax.random.key(seed)
    self._temperature = temperature
    self._clip = dict(clip_low=clip_low, clip_high=clip_high)
    embed = embedders.minilm()
    self._reward = rewards.StepReward(
        lambda texts: embed([embedders.Query(text) for text in texts]), reward)

  def make_batch(
      self, params: dict, examples: Sequence[Step], index: int, rows: int
  ) -> tuple[Batch, dict]:
    """The rollouts of update `index`, leaves [D, ...], and what to report."""
    del rows  # The policy knows how many it decodes at one time.
    policy = dataclasses.replace(self._policy, params=params)
    group = self._group
    rng = np.random.default_rng((self._seed, index))
    examples, prompts = zip(*(
        self._prompts(step, self._rename, rng) for step in examples),
        strict=True)
    drawn = policy.draw(
        prompts, jax.random.fold_in(self._key, index), group,
        drawing.Method(self._temperature))
    texts = [each.text for responses in policy.read(drawn)
             for each in responses]
    parts = self._reward.parts(
        [step for step in examples for _ in range(group)], texts)
    reward = parts.total.reshape(len(examples), group)
    batch = learn_from(
        policy, prompts, drawn, advantages(reward), self._rows)
    return batch, _report(examples, reward, parts, drawn.mask)

  def loss(
      self, params: dict, batch: Batch, allowed: Bool[Array, " V"]
  ) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
    """See `loss`."""
    return loss(self._policy.model, params, batch, allowed,
                temperature=self._temperature, **self._clip)


def _report(
    examples: Sequence[Step],
    reward: Float[np.ndarray, "n G"],
    parts: rewards.Parts,
    mask: Bool[np.ndarray, "n G T"],
) -> dict[str, float]:
  """What a rollout batch says about the policy that drew it."""
  kinds = np.array([step.kind for step in examples])
  report = {f"reward/{name}": mean for name, mean in parts.means().items()}
  report |= {f"reward/{kind}": float(reward[kinds == kind].mean())
             for kind in dict.fromkeys(kinds.tolist())}
  return report | {
      "reward/std_in_group": float(reward.std(axis=1).mean()),
      "equal_groups": float(np.mean(np.ptp(reward, axis=1) == 0)),
      "response_tokens": float(mask.sum(-1).mean()),
  }


def loss(
    model: qwen_vl.QwenVL,
    params: dict,
    batch: Batch,
    allowed: Bool[Array, " V"],
    *,
    temperature: float,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, ""], Float[Array, ""], dict]:
  """Numerator and denominator of the loss, and (sum, count) of each metric."""
  states = model.apply({"params": params}, batch.prompt, batch.response)
  vocabulary = model.apply({"params": params}, method="vocabulary")
  logp, entropy = drawing.token_logp(
      states / temperature, batch.response, vocabulary, allowed)
  total, beyond = surrogate(
      logp, batch.old_logp, batch.weight, batch.mask,
      clip_low=clip_low, clip_high=clip_high)
  count = jnp.sum(batch.mask).astype(jnp.float32)
  drift = jnp.where(batch.mask, jnp.abs(logp - batch.old_logp), 0)
  metrics = {
      "entropy": (jnp.sum(entropy * batch.mask), count),
      "clipped": (beyond.astype(jnp.float32), count),
      "logp_drift": (jnp.sum(drift), count),
  }
  return total, count, metrics
