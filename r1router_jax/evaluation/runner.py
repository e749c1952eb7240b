"""Evaluates one method over many questions, and resumes an interrupted run.

Trajectories are appended to a file as they are made, each with what it depends
on: weights, knowledge bases, settings.  A trajectory that is in the file is not
made again.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1router_jax.common import trajectory_io
from r1router_jax.common.records import Question, Trajectory
from r1router_jax.common.resumable import run_resumable
from r1router_jax.evaluation import tables
from r1router_jax.metrics import trajectories as metrics
from r1router_jax.policy import interface, policy_factory
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from r1router_jax.rewards import llm_judge
from r1router_jax.routing import device_loop, run_settings
from r1router_jax.routing.run_settings import RunSettings


def evaluate_method(
  policy: interface.PolicyInterface,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  settings: RunSettings,
  *,
  path: pathlib.Path,
  label: Mapping[str, str],
  routing_loop: str = "host",
  chunk_size: int = 1024,
  judge: str = "",
  raw_answers: bool = False,
) -> tables.MethodResult:
  """Answer `questions` by one method, and score the answers.

  Routes and evidence are only scored for questions with gold hops.  The file at
  `path` keeps the trajectories for a resumed run, in rows that have the fields
  of `label` (see `run_label`) and of the settings.  `routing_loop` is a key of
  `device_loop.ROUTING_LOOPS`, `judge` the address of a model that judges
  answers, whose verdicts are kept beside `path`, or "".  With `raw_answers` a
  malformed final answer is scored as it stands.
  """
  options, name = settings.rollout_options(), label["policy"]
  drive_loop = device_loop.ROUTING_LOOPS[routing_loop]
  rules = dict(max_steps=settings.max_steps, score_malformed=raw_answers)

  def to_row(trajectory: Trajectory) -> dict[str, Any]:
    # For readers of the file: a resumed run scores its trajectories again.
    scores = metrics.score_trajectory(trajectory, **rules)
    # JSON has no NaN.
    scores = {k: float(x) for k, x in scores.items() if not np.isnan(x)}
    return dict(trajectory_io.to_row(trajectory), scores=scores)

  # 1. Answer what the file does not hold yet.
  folders = [kb.image_folder for kb in kbs.values()]
  answered = run_resumable(
    questions,
    lambda chunk: drive_loop(policy, kbs, chunk, settings.random_key, options),
    to_row=to_row,
    from_row=functools.partial(trajectory_io.from_row, image_folders=folders),
    row_kind=trajectory_io.TrajectoryRow,
    title=f"{name}, {settings.method}",
    label=dict(label, **dataclasses.asdict(settings)),
    path=path,
    chunk_size=chunk_size,
  )
  found, seconds = zip(*(answered[q.id] for q in questions), strict=True)

  # 2. Score all answers, by rules and perhaps by a judge.
  columns = metrics.score_trajectories(found, **rules)
  if judge:
    asked = llm_judge.Judge(judge, path.with_name("judge.jsonl"))
    columns["judge"] = asked.judge_trajectories(found)

  # Chunks that compile take longer; the median is of those that do not.
  median = float(np.median(seconds))
  return tables.MethodResult(name, settings.method, found, columns, median)


def run_label(
  name: str, policy: interface.PolicyInterface, kbs: Mapping[str, KnowledgeBase]
) -> dict[str, str]:
  """Return fields that tell this policy and knowledge bases from others."""
  return dict(
    policy=name,
    weights=policy_factory.fingerprint(policy),
    kbs=run_settings.kbs_digest(kbs),
  )
