"""Trajectories of teachers, from GeoRouter's questions to a trained policy."""

import dataclasses
import pathlib

import numpy as np
import pytest
from absl.testing import flagsaver

from r1router_jax import synthesize
from r1router_jax.common.row_files import RejectedRow
from r1router_jax.data import georouter, gold_steps, r1_router_rows
from r1router_jax.policy import interface, policy_factory
from r1router_jax.retrieval import kb_meta, retriever
from r1router_jax.synthesis import output, selection, teacher_runs
from r1router_jax.train import train
from r1router_jax.training import sft_targets, train_data
from tests import fakes, train_runs
from tests.retrieval import kb_servers
from tests.synthesis.scripted_teacher import (
  SETTINGS,
  GoldTeacher,
  answer,
  plan,
  question,
  read_lines,
  read_trajectories,
  run_teacher,
)


@pytest.fixture(scope="module")
def gold_rows(tmp_path_factory):
  """Rows of a teacher that knows the gold traces, half of them with images."""
  workdir = tmp_path_factory.mktemp("gold_rows")
  questions = [q for q in georouter.load_questions("train") if q.hops]
  # Every tenth question; one of each text and image.
  some = {
    (q.text, q.image): q
    for q in [q for q in questions if q.image][:40:10]
    + [q for q in questions if not q.image][:40:10]
  }
  teacher = GoldTeacher(some.values())
  results, _ = run_teacher(workdir, *some.values(), teacher=teacher)
  summary = output.write_outputs(workdir, results, 0, 0.3, {})
  assert min(summary["rows"].values()) > 0
  assert sum(summary["rows"].values()) == len(some) == 8
  return workdir, {q.id: q for q in some.values()}


def step_fields(step):
  return step.kind, step.sub_question, step.answers[:1], step.routes[:1]


@pytest.mark.parametrize("side", selection.SIDES)
def test_gold_trace_comes_back(gold_rows, side):
  workdir, questions = gold_rows
  path = workdir / f"grpo_dataset_{side}.jsonl"
  for row, loaded in zip(
    read_lines(path), read_trajectories(workdir, side), strict=True
  ):
    asked = questions[row["question_id"]]
    # Passages do not matter here, so none are searched.
    (wanted,) = gold_steps.make_gold_steps(
      [asked], lambda queries: [()] * len(queries)
    )
    assert list(map(step_fields, loaded.steps)) == list(
      map(step_fields, wanted)
    )
    image = loaded.steps[0].question.image
    assert bool(image) == bool(asked.image)
    if image:
      # The image was copied under a name made of its content.
      copy = pathlib.Path(image).read_bytes()
      assert copy == pathlib.Path(asked.image).read_bytes()
  rows = r1_router_rows.read_rows(str(path), str(workdir / "pictures"))
  assert not [row for row in rows if isinstance(row, RejectedRow)]


def test_trainer_takes_every_row(gold_rows):
  workdir, _ = gold_rows
  policy = policy_factory.open_policy("warm_start")
  steps = [step for row in read_trajectories(workdir) for step in row.steps]
  kept, shapes = train_data.filter_trainable(policy, steps, "rows")
  assert kept == steps and len(shapes) == len(steps)


def test_training_target_is_what_the_teacher_wrote(tmp_path):
  results, _ = run_teacher(tmp_path, question("good"))
  output.write_outputs(tmp_path, results, 0, 0.0, {})
  ((first, *_),) = [row.steps for row in read_trajectories(tmp_path)]
  assert first.response == plan("How MANY people?", "table")
  assert sft_targets.sft_target(first) == (
    "<think>One thing.</think><sub-question>How MANY people?</sub-question>"
    "<ret>Table Retriever</ret>"
  )


@pytest.mark.slow
def test_loss_of_the_rows_falls_in_training(gold_rows, tmp_path):
  workdir, _ = gold_rows
  config = train_runs.load_config(
    "sft",
    **{
      "data.train_files": str(workdir / "grpo_dataset_train.jsonl"),
      "data.images": str(workdir / "pictures"),
      "sft.recall_warmup_steps": 0,
      "sft.recall_prob": 0.0,
      "total_steps": 12,
      "optim.muon_lr": 1e-3,
    },
  )
  train(config, tmp_path)
  losses = [line["nll"] for line in train_runs.read_scalars(tmp_path)]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_command_prints_counts_and_the_next_command(
  tmp_path, monkeypatch, parsed_flags, capsys
):
  # The first run passes everything, the second nothing.
  good = GoldTeacher(georouter.load_questions("val"))
  bad = fakes.ScriptedPolicy(lambda *_: answer("17"))
  teachers = iter([good, bad])
  monkeypatch.setattr(policy_factory, "open_policy", lambda _: next(teachers))
  monkeypatch.setattr(
    policy_factory, "fingerprint", lambda teacher: repr(type(teacher))
  )
  monkeypatch.setattr(kb_meta, "check_kb_dir", lambda kb_dir: None)
  monkeypatch.setattr(retriever, "open_kbs", lambda kb_dir: fakes.make_kbs())
  with flagsaver.flagsaver(
    workdir=str(tmp_path),
    kb_dir="unused",
    policy="warm_start",
    benchmark="georouter",
    method="r1_router",
    split="val",
    questions=6,
    seed=0,
    valid=0.5,
  ):
    synthesize.main([])
    printed = capsys.readouterr().out
    assert "kept                        6      6" in printed
    counts = {
      side: len(read_lines(tmp_path / f"grpo_dataset_{side}.jsonl"))
      for side in selection.SIDES
    }
    assert f"{counts['train']} trajectories of" in printed
    assert sum(counts.values()) == 6
    train_file = f"{tmp_path}/grpo_dataset_train.jsonl"
    assert f"--config.data.train_files={train_file}" in printed
    with pytest.raises(ValueError, match="None of 6 questions passed"):
      synthesize.main([])
    assert not pathlib.Path(train_file).read_text()


@pytest.mark.slow
def test_shipped_policy_can_teach(tmp_path):
  """Its rows are its own words."""
  kbs = {
    kb: kb_servers.make_georouter_kb(kb) for kb in ("text", "image", "table")
  }
  # Only questions whose evidence these small knowledge bases hold.
  known = {p.id for kb in kbs for p in georouter.load_passages(kb)[:80]}
  questions = [
    q
    for q in georouter.load_questions("train")
    if q.hops and all({*hop.evidence} & known for hop in q.hops)
  ][:8]
  teacher = policy_factory.open_policy("warm_start")
  assert len(questions) == 8
  assert isinstance(teacher, interface.PolicyInterface)
  results, _ = run_teacher(
    tmp_path,
    *questions,
    teacher=teacher,
    kbs=kbs,
    settings=dataclasses.replace(SETTINGS, temperature=0.0, k=1),
    label=teacher_runs.teacher_label(teacher, kbs),
  )
  summary = output.write_outputs(tmp_path, results, 0, 0.0, {})
  assert summary["rows"]["train"] >= 2
  for row in read_trajectories(tmp_path):
    for step in row.steps:
      assert sft_targets.sft_target(step) == step.response.replace("> ", ">")
