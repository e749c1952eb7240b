"""Step-GRPO on PyTorch, arranged like the actor of EasyR1.

Every response carries its own copy of the prompt through transformers' model,
one sequence at a time, with gradient checkpointing; logits exist at all
response positions, over the whole vocabulary; old log-probabilities come from a
forward pass of their own; AdamW is PyTorch's fused one.

Two things are better than in the reference: there are no logits at prompt
positions, and there is no padding.
"""

import engine
import engine_transformers
import torch
import transformers
from torch.nn import functional

CLIP = 0.2


def response_logp(
  model: transformers.Qwen2ForCausalLM, sequence: torch.Tensor, new: int
) -> torch.Tensor:
  """Return the log-probabilities of the last `new` tokens of a sequence."""
  # The logits at a position predict the next token, so the last are not needed.
  logits = model(
    sequence,
    attention_mask=torch.ones_like(sequence),
    use_cache=False,
    logits_to_keep=new + 1,
  ).logits[:, :-1]
  return -functional.cross_entropy(
    logits.flatten(0, 1), sequence[:, -new:].flatten(), reduction="none"
  )


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
  """Return the advantages of all responses, [B * G], of rewards [B, G]."""
  centred = rewards - rewards.mean(1, keepdim=True)
  return (centred / (rewards.std(1, keepdim=True) + 1e-6)).flatten()


def run_iteration(
  case: dict,
  model: transformers.Qwen2ForCausalLM,
  adam: torch.optim.Optimizer,
  ids: torch.Tensor,
) -> dict[str, float]:
  """Run one iteration, and return the seconds of its parts."""
  timer, new = engine.LapTimer(), case["new"]
  # 1. Rollout.
  model.eval()
  sequences = engine_transformers.generate(
    model, ids, new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
  )
  timer.end_part("rollout_s")
  # 2. Rewards: the share of odd ids.
  rewards = (sequences[:, -new:] % 2).float().mean(1)
  advantages = group_advantages(rewards.reshape(-1, case["group"]))
  timer.end_part("reward_s")
  # 3. Old log-probabilities.
  rows = sequences.split(1)
  with torch.no_grad():
    old_logps = [response_logp(model, row, new) for row in rows]
  timer.end_part("old_logp_s")
  # 4. Update: gradients are summed over the sequences.
  model.train()
  for row, old_logp, advantage in zip(rows, old_logps, advantages, strict=True):
    ratio = torch.exp(response_logp(model, row, new) - old_logp)
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    (loss / len(rows)).backward()
  torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
  adam.step()
  adam.zero_grad()
  timer.end_part("update_s")
  return timer.parts


def run_iterations(case: dict, count: int) -> list[dict[str, float]]:
  """Run iterations of rollout and update; return the seconds of their parts."""
  model = engine_transformers.make_model(case)
  ids = engine_transformers.make_prompts(case)
  model.gradient_checkpointing_enable()
  adam = torch.optim.AdamW(
    model.parameters(),
    lr=1e-6,
    betas=(0.9, 0.999),
    weight_decay=0.01,
    fused=True,
  )
  return [run_iteration(case, model, adam, ids) for _ in range(count)]


if __name__ == "__main__":
  engine.time_trainer(run_iterations)
