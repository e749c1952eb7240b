"""One method over many questions, as far as it was not done before.

Trajectories are appended to a file as they are made, each with what it depends
on: weights, knowledge bases, settings.  What is there is not made again.

Axes:  N questions
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import config_dict

from r1router_jax.common import jsonl, progress, records, trajectory_io
from r1router_jax.common.records import Answer, Question, Trajectory
from r1router_jax.evaluation import llm_judge, tables
from r1router_jax.generation import token_sampling
from r1router_jax.metrics import trajectories
from r1router_jax.policy import interface, openai_policy
from r1router_jax.retrieval import retriever
from r1router_jax.routing import device_loop
from r1router_jax.routing.baselines import registry


@dataclasses.dataclass(frozen=True)
class Settings:
  """What trajectories depend on, beside policy and question.

  Attributes:
    method: a key of `methods.named.METHODS`.
    seed: of all samples.
    max_steps, k: see `router.route`.
    temperature, top_k, top_p: see `drawing.Method`.
    sample: which of several.
  """

  method: str
  seed: int = 0
  max_steps: int = records.MAX_HOPS
  k: int = 1
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  sample: int = 0

  @property
  def key(self) -> jax.Array:
    """Of its samples."""
    key = jax.random.key(self.seed)
    return jax.random.fold_in(key, self.sample) if self.sample else key

  @property
  def drawn(self) -> token_sampling.SamplingParams:
    """How tokens are."""
    return token_sampling.SamplingParams(
      self.temperature, self.top_k, self.top_p
    )


def evaluate(
  trained: interface.Responder,
  kbs: Mapping[str, retriever.KnowledgeBase],
  questions: Sequence[Question],
  settings: Settings,
  *,
  path: pathlib.Path | None = None,
  label: Mapping[str, str] | None = None,
  loop: str = "host",
  chunk: int = 1024,
  judged_by: str = "",
  raw: bool = False,
) -> tables.Result:
  """Runs one method over `questions`.

  Args:
    trained: the policy.
    kbs: by kind.
    questions: with gold answers, and gold hops for routes.
    settings: the method and its settings.
    path: where trajectories are appended; those that are there are kept.
    label: fields that rows of this very run have, and no others.
    loop: a key of `fused.LOOPS`.
    chunk: questions that are answered together.
    judged_by: the address of a judge, see judge.py, whose verdicts are kept
      beside `path`.
    raw: see `scoring.score`.
  """
  label = dict(label or {}, **dataclasses.asdict(settings))
  known = {} if path is None else _known(path, label, questions)
  if known:
    logging.info(
      "%s: %d of %d questions were answered earlier.",
      settings.method,
      len(known),
      len(questions),
    )
  by = registry.METHODS[settings.method](settings.seed)
  left = [question for question in questions if question.id not in known]
  chunks = [left[i : i + chunk] for i in range(0, len(left), chunk)]
  title = (
    f"{label.get('policy', 'policy')}, {settings.method}, "
    f"{chunk} questions each"
  )
  for part in progress.progress(chunks, title) if chunks else ():
    start = time.perf_counter()
    walked = device_loop.LOOPS[loop](
      trained,
      kbs,
      part,
      settings.key,
      by=by,
      method=settings.drawn,
      max_steps=settings.max_steps,
      k=settings.k,
    )
    seconds = (time.perf_counter() - start) / len(part)
    known |= {t.question.id: (t, seconds) for t in walked}
    if path is not None:
      scores = trajectories.score(walked, max_steps=settings.max_steps, raw=raw)
      jsonl.append(
        path,
        [
          dict(
            label,
            **trajectory_io.to_row(t),
            seconds=seconds,
            scores=trajectories.of(scores, i),
          )
          for i, t in enumerate(walked)
        ],
      )
  walked, seconds = zip(*(known[q.id] for q in questions), strict=True)
  columns = trajectories.score(walked, max_steps=settings.max_steps, raw=raw)
  if judged_by:
    columns["judge"] = llm_judge.judge(
      questions,
      [t.final.text if isinstance(t.final, Answer) else "" for t in walked],
      judged_by,
      path.with_name("judge.jsonl"),
    )
  return tables.Result(
    label.get("policy", "policy"),
    settings.method,
    walked,
    columns,
    # Chunks that compile take longer; the median is of those that do not.
    float(np.median(seconds)),
  )


def _known(
  path: pathlib.Path, label: Mapping[str, Any], questions: Sequence[Question]
) -> dict[str, tuple[Trajectory, float]]:
  """Trajectories in the file, with their seconds, by question."""
  texts = {question.id: question for question in questions}
  return {
    row["id"]: (trajectory_io.from_row(row, texts[row["id"]]), row["seconds"])
    for row in jsonl.read(path)
    if row.get("id") in texts
    and row["question"] == texts[row["id"]].text
    and all(row.get(name) == value for name, value in label.items())
  }


def settings_of(
  config: config_dict.ConfigDict, seed: int
) -> dict[str, list[Settings]]:
  """Those of each sample, by method."""
  methods = [name.strip() for name in config.methods.split(",")]
  if unknown := [name for name in methods if name not in registry.METHODS]:
    raise ValueError(
      f"--config.methods: {', '.join(map(repr, unknown))} is no method; "
      f"choose from {', '.join(registry.METHODS)}."
    )
  if config.samples < 1 or config.max_steps < 1 or config.k < 1:
    raise ValueError(
      f"--config: samples {config.samples}, max_steps {config.max_steps} and "
      f"k {config.k}; each is 1 or more."
    )
  if config.samples > 1 and not config.temperature:
    raise ValueError(
      f"--config.samples={config.samples} at temperature 0 would all be the "
      "same: set --config.temperature, too."
    )
  same = {
    name: config[name]
    for name in ("max_steps", "k", "temperature", "top_k", "top_p")
  }
  return {
    method: [
      Settings(method, seed, sample=sample, **same)
      for sample in range(config.samples)
    ]
    for method in methods
  }


def label_of(
  name: str,
  trained: interface.Responder,
  kbs: Mapping[str, retriever.KnowledgeBase],
) -> dict[str, str]:
  """What tells this policy on these knowledge bases from any other."""
  metas = json.dumps([base.meta for base in kbs.values()])
  return dict(
    policy=name,
    weights=openai_policy.fingerprint(trained),
    kbs=hashlib.sha256(metas.encode()).hexdigest()[:16],
  )
