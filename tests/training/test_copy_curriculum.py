"""Look-up rows hold their answers."""

import re

import numpy as np

from r1router_jax.training import copy_curriculum
from tests import tiny_policy


def test_recall_answer_can_be_looked_up():
  tokenizer = tiny_policy.tokenizer()
  recall = copy_curriculum.RecallSampler(tokenizer)
  forms = set()
  for seed in range(200):
    prompt, response = recall(np.random.default_rng(seed))
    text = tokenizer.decode(response)
    body = re.fullmatch(r"<think>\s*</think><answer>(.*)</answer>", text)[1]
    assert response[-1] == tokenizer.eos_id and body.strip()
    # The tokens of the answer stand somewhere in the prompt.
    inner = response[len(recall.before_answer) : -len(recall.after_answer)]
    spots = [
      i
      for i in range(len(prompt.ids))
      if prompt.ids[i : i + len(inner)] == inner
    ]
    assert spots, seed
    shown = tokenizer._trusted.decode(prompt.ids, skip_special_tokens=False)
    assert shown.startswith("<|answer|>") and shown.endswith("<|im_start|>")
    forms.add("table" if "[Row]" in shown else "text or caption")
    assert not prompt.images and tokenizer.image_id not in prompt.ids
  assert forms == {"table", "text or caption"}


def test_recall_rows_depend_on_the_generator_alone():
  recall = copy_curriculum.RecallSampler(tiny_policy.tokenizer())
  first, again, other = (
    recall(np.random.default_rng(seed))[0].ids for seed in (3, 3, 4)
  )
  assert first == again != other
