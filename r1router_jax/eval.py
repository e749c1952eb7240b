r"""Policies and baselines on benchmarks: predictions, scores, a report.

  python -m r1router_jax.eval --workdir=runs/eval --kb=runs/kb \
      --policy=warm_start=runs/sft/policy,step_grpo=runs/step_grpo/policy \
      --config.methods=r1_router,direct,rag_all --report=runs/report.html

Every policy routes for itself; the other methods are baselines, and are written
by the last policy.  The questions of all benchmarks go through a method at
once.  Trajectories are appended to <workdir>/predictions.jsonl as they are
made.  A run that was interrupted takes up what it finds there, where policy,
knowledge bases and settings are still the same.

With --config.samples several trajectories of each question are drawn, and
counted alone (means), by pass@k and by majority.

Intervals are 95 % bootstrap intervals over questions, or over steps.

Axes:  N questions   n steps
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
from absl import flags, logging
from ml_collections import config_dict

from r1router_jax import (
    commands,
    drawing,
    fused,
    policy,
    predictions,
    report,
    results,
    score_only,
    scoring,
    telemetry,
)
from r1router_jax.data import georouter, trajectories
from r1router_jax.learning import gold_rewards
from r1router_jax.methods import named
from r1router_jax.models import hf
from r1router_jax.records import Question, Trajectory
from r1router_jax.retrieval import embedders, knowledge_base

_POLICY = flags.DEFINE_list(
    "policy", ["warm_start"], "Policies as NAME=DIR, oldest first.",
    allow_override=True)
_KB = flags.DEFINE_string(
    "kb", "runs/quickstart/kb", "Folder of the knowledge bases, as build_kb "
    "wrote it, or the place of each: text=http://host:port,image=DIR/image,"
    "table=DIR/table.", allow_override=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where predictions and scores are written.",
    allow_override=True)
_SPLIT = flags.DEFINE_enum("split", "test", georouter.SPLITS, "Of questions.")
_QUESTIONS = flags.DEFINE_integer(
    "questions", 0, "How many of them; 0 is all.", lower_bound=0)
_CONFIG = commands.options(config_dict.create(
    methods="r1_router,always_text,always_all,random_route,oracle_route",
    max_steps=trajectories.MAX_HOPS,
    k=1,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    samples=1,
), f"""methods: with commas between them, of {', '.join(named.METHODS)};
max_steps: searches before the last answer; k: passages that each search reads
of a knowledge base; temperature, top_k, top_p: of the drawing of tokens;
samples: of each question.""")
_CHUNK = flags.DEFINE_integer(
    "chunk", 390, "Questions that are answered together, and then saved; no "
    "answer depends on it.", lower_bound=1)
_LOOP = flags.DEFINE_enum(
    "loop", "host", fused.LOOPS, "Who drives the routing loop; all give the "
    "same: the host, the host with one half searching while the other draws, "
    "or the device.")
_STEP_REWARDS = flags.DEFINE_bool(
    "step_rewards", True, "Whether to reward responses to gold steps, too.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all samples.", allow_override=True)
_REPORT = flags.DEFINE_string("report", "", "Page to write, if any.")
_CURVES = flags.DEFINE_list(
    "curves", [], "Runs whose learning curves and samples the report shows, "
    "NAME=WORKDIR.")



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
  max_steps: int = trajectories.MAX_HOPS
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
  def drawn(self) -> drawing.Method:
    """How tokens are."""
    return drawing.Method(self.temperature, self.top_k, self.top_p)


def evaluate(
    trained: policy.Policy,
    kbs: Mapping[str, knowledge_base.KnowledgeBase],
    questions: Sequence[Question],
    settings: Settings,
    *,
    path: pathlib.Path | None = None,
    label: Mapping[str, str] | None = None,
    loop: str = "host",
    chunk: int = 390,
) -> results.Result:
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
  """
  label = dict(label or {}, **dataclasses.asdict(settings))
  known = {} if path is None else _known(path, label, questions)
  if known:
    logging.info("%s: %d of %d questions were answered earlier.",
                 settings.method, len(known), len(questions))
  by = named.METHODS[settings.method](settings.seed)
  left = [question for question in questions if question.id not in known]
  chunks = [left[i:i + chunk] for i in range(0, len(left), chunk)]
  title = (f"{label.get('policy', 'policy')}, {settings.method}, "
           f"{chunk} questions each")
  for part in telemetry.progress(chunks, title) if chunks else ():
    start = time.perf_counter()
    walked = fused.LOOPS[loop](
        trained, kbs, part, settings.key, by=by, method=settings.drawn,
        max_steps=settings.max_steps, k=settings.k)
    seconds = (time.perf_counter() - start) / len(part)
    known |= {t.question.id: (t, seconds) for t in walked}
    if path is not None:
      scores = scoring.score(walked, max_steps=settings.max_steps)
      predictions.append(path, [
          dict(label, **predictions.to_row(t), seconds=seconds,
               scores=scoring.of(scores, i))
          for i, t in enumerate(walked)])
  walked, seconds = zip(*(known[q.id] for q in questions), strict=True)
  return results.Result(
      label.get("policy", "policy"), settings.method, walked,
      scoring.score(walked, max_steps=settings.max_steps),
      # Chunks that compile take longer; the median is of those that do not.
      float(np.median(seconds)))


def _known(
    path: pathlib.Path, label: Mapping[str, Any], questions: Sequence[Question]
) -> dict[str, tuple[Trajectory, float]]:
  """Trajectories in the file, with their seconds, by question."""
  texts = {question.id: question for question in questions}
  return {
      row["id"]: (predictions.from_row(row, texts[row["id"]]), row["seconds"])
      for row in predictions.read(path)
      if row.get("id") in texts and row["question"] == texts[row["id"]].text
      and all(row.get(name) == value for name, value in label.items())}


def _label(
    name: str, trained: policy.Policy,
    kbs: Mapping[str, knowledge_base.KnowledgeBase],
) -> dict[str, str]:
  """What tells this policy on these knowledge bases from any other."""
  weights = [embedders.fingerprint(path)
             for path in hf.files(str(trained.tokenizer_path.parent))]
  metas = [base.meta for base in kbs.values()]
  digest = hashlib.sha256(json.dumps(metas).encode()).hexdigest()[:16]
  options = [f"{name}={value}"
             for name, value in trained.settings.options().items()]
  return dict(policy=name, weights=" ".join(weights + options), kbs=digest)


def _named(pairs: Sequence[str], flag: str) -> dict[str, str]:
  """["a=x"] as {"a": "x"}; a folder alone is named by its last parts."""
  named = {}
  for pair in pairs:
    name, _, folder = pair.rpartition("=")
    parts = [p for p in pathlib.Path(folder).parts if p != "policy"]
    name = name or (parts[-1] if parts else folder)
    if not folder or name in named:
      raise ValueError(
          f"--{flag}={','.join(pairs)}: write NAME=FOLDER, each name once.")
    named[name] = folder
  return named


def _settings(config: config_dict.ConfigDict, seed: int
              ) -> dict[str, list[Settings]]:
  """Those of each sample, by method."""
  methods = [name.strip() for name in config.methods.split(",")]
  if unknown := [name for name in methods if name not in named.METHODS]:
    raise ValueError(
        f"--config.methods: {', '.join(map(repr, unknown))} is no method; "
        f"choose from {', '.join(named.METHODS)}.")
  if config.samples < 1 or config.max_steps < 1 or config.k < 1:
    raise ValueError(
        f"--config: samples {config.samples}, max_steps {config.max_steps} and "
        f"k {config.k}; each is 1 or more.")
  if config.samples > 1 and not config.temperature:
    raise ValueError(
        f"--config.samples={config.samples} at temperature 0 would all be the "
        "same: set --config.temperature, too.")
  same = {name: config[name] for name in (
      "max_steps", "k", "temperature", "top_k", "top_p")}
  return {method: [Settings(method, seed, sample=sample, **same)
                   for sample in range(config.samples)] for method in methods}


def main(_) -> None:
  if score_only.ASKED.value:
    return score_only.main()
  asked = _settings(_CONFIG.value, _SEED.value)
  questions = georouter.questions(_SPLIT.value)
  questions = questions[:_QUESTIONS.value or len(questions)]
  folders = _named(_POLICY.value, "policy")
  runs = _named(_CURVES.value, "curves")
  curves = results.curves(runs)
  kbs = knowledge_base.open_kbs(_KB.value)
  policies = {name: policy.load(at) for name, at in folders.items()}
  workdir = pathlib.Path(_WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  labels = {name: _label(name, trained, kbs)
            for name, trained in policies.items()}
  last = list(policies)[-1]
  found = [
      results.together([
          evaluate(policies[name], kbs, questions, settings,
                   path=workdir / "predictions.jsonl", label=labels[name],
                   loop=_LOOP.value, chunk=_CHUNK.value)
          for settings in samples])
      for method, samples in asked.items()
      for name in (policies if method == results.ROUTER else [last])]
  for name, value in knowledge_base.report(kbs).items():
    logging.info("%s: %.3g", name, value)
  earned = gold_rewards.of_policies(
      policies, labels, kbs, questions, _SEED.value,
      workdir / "step_rewards.jsonl") if _STEP_REWARDS.value else {}
  predictions.replace(workdir / "scores.json", dict(
      split=_SPLIT.value, questions=len(questions), seed=_SEED.value,
      **results.summary(found, earned)))
  _show(found, earned, runs, curves)


def _show(found: results.Results, earned: results.Earned,
          runs: Mapping[str, str], curves: Mapping[str, Any]) -> None:
  """Prints tables and claims, and writes the page."""
  tables = results.tables(found, earned)
  claims = results.claims(found, earned, _SPLIT.value)
  for name, table in tables.items():
    print(f"\n{name}\n{results.as_text(table)}")
  print("\n" + "\n".join(claims))
  if not _REPORT.value:
    return
  shown = next((r for r in reversed(found) if r.method == results.ROUTER),
               found[-1]).trajectories
  report.write(
      _REPORT.value, title="R1-Router on GeoRouter", claims=claims,
      tables=tables, curves=curves,
      sampled={run: telemetry.read_samples(at) for run, at in runs.items()},
      trajectories=predictions.pick(
          shown, [report.right(t) for t in shown], 12),
      notes=results.NOTES)
  print(f"The report is {_REPORT.value}.")


if __name__ == "__main__":
  flags.register_multi_flags_validator(
      ["workdir", "score_only"], lambda given: any(given.values()),
      "--workdir must have a value, but for --score_only")
  commands.run(main)
