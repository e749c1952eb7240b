"""Step-GRPO on PyTorch, shaped like the actor of EasyR1.

Every response carries its own copy of the prompt through transformers' model,
one sequence at a time, with gradient checkpointing; logits exist at all
response positions, over the whole vocabulary; old log-probabilities come from a
forward pass of their own; AdamW is PyTorch's fused one.

It is given more than the reference takes: no logits at prompt positions, and no
padding.
"""

import engine
import engine_transformers
import torch
from torch.nn import functional

CLIP = 0.2


def run(case, turns):
  policy, ids = (
    engine_transformers.model(case),
    engine_transformers.prompts(case),
  )
  policy.gradient_checkpointing_enable()
  adam = torch.optim.AdamW(
    policy.parameters(),
    lr=1e-6,
    betas=(0.9, 0.999),
    weight_decay=0.01,
    fused=True,
  )
  new = case["new"]

  def logp(sequence):
    logits = policy(
      sequence,
      attention_mask=torch.ones_like(sequence),
      use_cache=False,
      logits_to_keep=new + 1,
    ).logits[:, :-1]
    return -functional.cross_entropy(
      logits.flatten(0, 1), sequence[:, -new:].flatten(), reduction="none"
    )

  def turn():
    laps = engine.Laps()
    policy.eval()
    sequences = engine_transformers.generate(
      policy, ids, new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )
    laps("rollout_s")
    reward = (
      (sequences[:, -new:] % 2).float().mean(1).reshape(-1, case["group"])
    )
    advantage = (
      (reward - reward.mean(1, keepdim=True))
      / (reward.std(1, keepdim=True) + 1e-6)
    ).flatten()
    laps("reward_s")
    with torch.no_grad():
      old = [logp(sequence) for sequence in sequences.split(1)]
    laps("old_logp_s")
    policy.train()
    for sequence, before, gain in zip(
      sequences.split(1), old, advantage, strict=True
    ):
      ratio = torch.exp(logp(sequence) - before)
      clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
      loss = -torch.minimum(ratio * gain, clipped * gain).mean()
      (loss / len(sequences)).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    adam.step()
    adam.zero_grad()
    laps("update_s")
    return laps.parts

  return [turn() for _ in range(turns)]


engine.trainer(run)
