"""R1-Router's rows train published policies: tiny ones, made as theirs are."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from r1router_jax import train
from r1router_jax.common.records import Passage
from r1router_jax.data import georouter, gold_steps, r1_router_rows
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import policy
from r1router_jax.protocol import templates
from r1router_jax.training import train_data
from tests import tiny_policy
from tests.test_train import config, scalars

CONTROL = (
  "endoftext",
  "im_start",
  "im_end",
  "vision_start",
  "vision_end",
  "image_pad",
)

SIZES = qwen2_5_vl.Config(
  vocab=2048,
  hidden=32,
  mlp=40,
  layers=2,
  heads=4,
  kv_heads=2,
  mrope_section=(1, 2, 1),
  tied=True,
  vision=None,
)

SMALL = {  # Of a run; nothing else of a variant is changed.
  "total_steps": 2,
  "policy.settings.prompt_tokens": (512,),
  "data.batch_rows": 1,
  "every.log": 1,
}

GROUPS = {
  "policy.settings.response_tokens": (8,),
  "step_grpo.group_size": 2,
  "step_grpo.learn_rows": 1,
  "policy.settings.batch_rows": 2,
}


def rows():
  """Eight trajectories as R1-Router publishes them, half of them of flags."""
  evidence = {
    p.id: p for kb in ("text", "image", "table") for p in georouter.passages(kb)
  }
  questions = [q for q in georouter.questions("train") if len(q.hops) == 2]
  flags = [q for q in questions if q.image and "flag" in q.text][:4]
  told = [q for q in questions if not q.image][:4]
  found = iter(
    [
      (Passage(*dataclasses.astuple(evidence[hop.evidence[0]])[:3]),)
      for q in (*told, *flags)
      for hop in q.hops
    ]
  )
  return [
    r1_router_rows.to_reference(steps)
    for steps in gold_steps.gold_steps(
      [*told, *flags], lambda asked: [next(found) for _ in asked]
    )
  ]


def published(folder, sizes):
  """A checkpoint with random weights and a tokenizer of Qwen's kind."""
  from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

  coder = tokenizers.Tokenizer(models.BPE())
  coder.normalizer = tokenizers.normalizers.NFC()
  coder.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  coder.decoder = tokenizers.decoders.ByteLevel()
  texts = [*templates.STYLES["full"].system.values(), *map(json.dumps, rows())]
  coder.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=1500,
      show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=[f"<|{name}|>" for name in CONTROL],
    ),
  )
  path = folder / "tokenizer.json"
  coder.save(str(path))
  known = config_lib.Settings.from_dict(
    config_lib.PUBLISHED | dict(model=sizes)
  )
  policy.create(known, path, seed=0).save(folder / "policy")
  (folder / "policy" / config_lib.FILE).unlink()  # As on the hub.
  return str(folder / "policy")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Changes to a config: rows of `rows`, and where the pictures lie."""
  found = rows()
  (folder,) = {os.path.dirname(path) for row in found for path in row["images"]}
  path = tmp_path_factory.mktemp("rows") / "grpo_dataset_train_new.jsonl"
  moved = [
    row
    | dict(
      images=[
        f"/home/them/{os.path.basename(image)}" for image in row["images"]
      ]
    )
    for row in found
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in moved))
  return {"data.rows": str(path), "data.images": folder}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A policy of texts alone."""
  return published(
    tmp_path_factory.mktemp("texts"),
    dataclasses.replace(SIZES, mrope_section=(4, 0, 0)),
  )


@pytest.mark.slow
def test_step_grpo_of_a_policy_of_texts(data, texts, tmp_path, caplog):
  c = config(
    "step_grpo",
    "qwen2_5_0_5b",
    **SMALL | GROUPS | data | {"policy.start_from": texts},
  )
  with caplog.at_level("WARNING"):
    trained = train.train(c, tmp_path)
  assert "skipped 24 of 48" in caplog.text  # Four have pictures.
  assert "reads texts alone" in caplog.text
  lines = scalars(tmp_path)
  assert len(lines) == 2
  for line in lines:
    assert 0 <= line["reward/total"] <= 1 and not line["skipped"]
  assert trained.settings.style == "full"
  assert trained.settings.compute.dtype == "bfloat16"
  again = policy.load(tmp_path / "policy")
  assert again.settings == trained.settings


@pytest.mark.slow
def test_a_warm_start_of_a_policy_of_texts(data, texts, tmp_path):
  c = config(
    "sft",
    "qwen2_5_0_5b",
    **SMALL
    | data
    | {
      "policy.start_from": texts,
      "total_steps": 6,
      "optim.lr": 1e-2,
      "policy.settings.response_tokens": (64,),
      "sft.side_by_side": 0,
    },
  )
  train.train(c, tmp_path)
  losses = [line["nll"] for line in scalars(tmp_path)]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "step_grpo"])
def test_a_policy_that_sees(data, tmp_path, name, caplog):
  start = published(
    tmp_path, dataclasses.replace(SIZES, vision=tiny_policy.VISION)
  )
  c = config(name, "qwen2_5_0_5b")
  with c.unlocked():
    c.policy.settings.update(min_pixels=64, max_pixels=1024)
  c.update_from_flattened_dict(
    SMALL
    | data
    | {"policy.start_from": start}
    | (GROUPS if name == "step_grpo" else {"sft.side_by_side": 0})
  )
  with caplog.at_level("WARNING"):
    trained = train.train(c, tmp_path / "run")
  assert "skipped" not in caplog.text
  assert len(scalars(tmp_path / "run")) == 2
  before = policy.load(start, dtype=np.float32).params["vision"]
  after = policy.load(tmp_path / "run" / "policy", dtype=np.float32)
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), before, after.params["vision"]
  )
  assert trained.model.config.vision == tiny_policy.VISION
  if name == "sft":
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(
  "name, given", [("step_grpo", "0.5"), ("sft", r"\(0.9, 0.3\)")]
)
def test_names_of_the_world_are_not_those_of_rows(name, given):
  with pytest.raises(ValueError, match=f"config.{name}.rename is {given}"):
    train_data.of_run(
      config(name, **{"data.rows": "x"}),
      policy.Policy(tiny_policy.SETTINGS, tiny_policy.TOKENIZER, {}),
      {},
      online=False,
    )


@pytest.mark.slow
def test_the_tiny_policy_reads_rows(data, tmp_path):
  """Those of its own world, in its own spelling."""
  c = config("step_grpo", **data | {"step_grpo.rename": 0.0})
  train.train(c, tmp_path)
  assert all(line["reward/total"] > 0.3 for line in scalars(tmp_path))
