"""Training on R1-Router's rows, of tiny policies made like published ones."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from r1router_jax.common.records import Passage
from r1router_jax.data import georouter, gold_steps, r1_router_rows
from r1router_jax.models import qwen2_5_vl
from r1router_jax.policy import config as config_lib
from r1router_jax.policy import policy
from r1router_jax.protocol import templates
from r1router_jax.train import train
from tests import tiny_policy
from tests.train_runs import load_config, read_scalars

CONTROL_TOKENS = (
  "endoftext",
  "im_start",
  "im_end",
  "vision_start",
  "vision_end",
  "image_pad",
)

MODEL = qwen2_5_vl.Config(
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

# Changes to a variant that make its run short; nothing else is changed.
SHORT_RUN = {
  "total_steps": 2,
  "policy.overrides.prompt_tokens": (512,),
  "log_every": 1,
}

ONE_ROW = {"data.batch_size_per_device": 1}

SMALL_GROUPS = {
  "data.prompts_per_shard": 1,
  "policy.overrides.response_tokens": (8,),
  "step_grpo.group_size": 2,
  "step_grpo.update_batch_size": 1,
  "policy.overrides.decode_batch_size": 2,
}


def make_rows():
  """Return eight rows like R1-Router's, half of them about images of flags."""
  evidence = {
    p.id: p
    for kb in ("text", "image", "table")
    for p in georouter.load_passages(kb)
  }
  questions = [q for q in georouter.load_questions("train") if len(q.hops) == 2]
  flags = [q for q in questions if q.image and "flag" in q.text][:4]
  told = [q for q in questions if not q.image][:4]
  # Only the first three fields of a passage are published.
  found = iter(
    [
      (Passage(*dataclasses.astuple(evidence[hop.evidence[0]])[:3]),)
      for q in (*told, *flags)
      for hop in q.hops
    ]
  )
  return [
    r1_router_rows.to_published_row(steps)
    for steps in gold_steps.make_gold_steps(
      [*told, *flags], lambda asked: [next(found) for _ in asked]
    )
  ]


def save_checkpoint(folder, model):
  """Save random weights and a tokenizer like Qwen's, and return the folder."""
  from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

  # Qwen's normalizer, splits and byte level, with a small vocabulary.
  coder = tokenizers.Tokenizer(models.BPE())
  coder.normalizer = tokenizers.normalizers.NFC()
  coder.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  coder.decoder = tokenizers.decoders.ByteLevel()
  texts = [
    *templates.STYLES["full"].system.values(),
    *map(json.dumps, make_rows()),
  ]
  coder.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=1500,
      show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=[f"<|{name}|>" for name in CONTROL_TOKENS],
    ),
  )
  path = folder / "tokenizer.json"
  coder.save(str(path))
  # Random weights of the published form.
  known = config_lib.PolicyConfig.from_dict(
    config_lib.HF_DEFAULTS | dict(model=model)
  )
  policy.init_policy(known, path, seed=0).save(folder / "policy")
  (folder / "policy" / config_lib.POLICY_FILE).unlink()  # As on the hub.
  return str(folder / "policy")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Changes to a config: the file of `make_rows`, and the folder of images."""
  found = make_rows()
  (folder,) = {os.path.dirname(path) for row in found for path in row["images"]}
  path = tmp_path_factory.mktemp("rows") / "grpo_dataset_train_new.jsonl"
  # Published paths are those of the authors' machine.
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
  return {"data.train_files": str(path), "data.images": folder}


@pytest.fixture(scope="module")
def text_checkpoint(tmp_path_factory):
  """The folder of a policy of texts alone."""
  return save_checkpoint(
    tmp_path_factory.mktemp("texts"),
    dataclasses.replace(MODEL, mrope_section=(4, 0, 0)),
  )


@pytest.mark.slow
def test_step_grpo_trains_a_text_policy_and_skips_images(
  data, text_checkpoint, tmp_path, caplog
):
  c = load_config(
    "step_grpo",
    "qwen2_5_0_5b",
    **SHORT_RUN | SMALL_GROUPS | data | {"policy.start_from": text_checkpoint},
  )
  with caplog.at_level("WARNING"):
    trained = train(c, tmp_path)
  assert "skipped 24 of 48" in caplog.text  # Four have pictures.
  assert "reads texts alone" in caplog.text
  # The rest of the rows is learnt from.
  lines = read_scalars(tmp_path)
  assert len(lines) == 2
  for line in lines:
    assert 0 <= line["reward/total"] <= 1 and not line["skipped"]
  assert trained.config.style == "full"
  assert trained.config.compute.dtype == "bfloat16"
  # The policy that was saved opens like the one that was trained.
  again = policy.load(tmp_path / "policy")
  assert again.config == trained.config


@pytest.mark.slow
def test_sft_trains_a_text_policy(data, text_checkpoint, tmp_path):
  c = load_config(
    "sft",
    "qwen2_5_0_5b",
    **SHORT_RUN
    | ONE_ROW
    | data
    | {
      "policy.start_from": text_checkpoint,
      "total_steps": 6,
      "optim.lr": 1e-2,
      "policy.overrides.response_tokens": (64,),
      "sft.packed_length": 0,
    },
  )
  train(c, tmp_path)
  losses = [line["nll"] for line in read_scalars(tmp_path)]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "step_grpo"])
def test_vision_policy_learns_from_rows_with_images(
  data, tmp_path, name, caplog
):
  start = save_checkpoint(
    tmp_path, dataclasses.replace(MODEL, vision=tiny_policy.VISION)
  )
  c = load_config(name, "qwen2_5_0_5b")
  with c.unlocked():
    c.policy.overrides.update(min_pixels=64, max_pixels=1024)
  c.update_from_flattened_dict(
    SHORT_RUN
    | data
    | {"policy.start_from": start}
    | (
      SMALL_GROUPS
      if name == "step_grpo"
      else ONE_ROW | {"sft.packed_length": 0}
    )
  )
  with caplog.at_level("WARNING"):
    trained = train(c, tmp_path / "run")
  assert "skipped" not in caplog.text
  assert len(read_scalars(tmp_path / "run")) == 2
  # The vision tower learns, too.
  before = policy.load(start, dtype=np.float32).params["vision"]
  after = policy.load(tmp_path / "run" / "policy", dtype=np.float32)
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), before, after.params["vision"]
  )
  assert trained.model.config.vision == tiny_policy.VISION
  if name == "sft":
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_tiny_policy_learns_from_rows(data, tmp_path):
  c = load_config("step_grpo", **data)
  train(c, tmp_path)
  assert all(line["reward/total"] > 0.3 for line in read_scalars(tmp_path))


@pytest.mark.slow
def test_run_by_the_name_of_its_rows_equals_that_by_files(data, tmp_path):
  named = {
    "data.name": "r1_router_rows/mine",
    "data.tfds_dir": str(tmp_path / "tfds"),
    "total_steps": 1,
  }
  for workdir, changes in (("files", named | data), ("name", named)):
    train(load_config("step_grpo", **changes), tmp_path / workdir)
  scalars = read_scalars(tmp_path / "files")
  assert scalars and read_scalars(tmp_path / "name") == scalars
