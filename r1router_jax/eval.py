r"""Policies and baselines on a benchmark: predictions, scores, a report.

  python -m r1router_jax.eval --workdir=runs/eval --kb=runs/kb \
      --policy=warm_start=runs/sft/policy,step_grpo=runs/step_grpo/policy \
      --report=runs/report.html

Every policy routes for itself; the other methods are baselines, and are read
by the last policy.  Trajectories are appended to <workdir>/predictions.jsonl
as they are made.  A run that was interrupted takes up what it finds there,
where policy, knowledge bases and settings are still the same.

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
from jaxtyping import Float

from r1router_jax import (
    commands,
    drawing,
    fused,
    planners,
    policy,
    predictions,
    report,
    results,
    score_only,
    scoring,
    telemetry,
)
from r1router_jax.data import georouter, trajectories
from r1router_jax.learning import rewards
from r1router_jax.models import hf
from r1router_jax.records import Query, Question, Step, Trajectory
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
_METHODS = flags.DEFINE_list(
    "methods", [results.ROUTER, "always_text", "always_all", "random_route",
                "oracle_route"], f"Of {', '.join(planners.METHODS)}.")
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

STEP_EVERY = 8  # Of so many questions one has its gold steps rewarded.
CHUNK = 390  # Questions, or steps, between two lines of progress and saves.
SAMPLES = 1  # Per gold step; more would need programs of other shapes.


@dataclasses.dataclass(frozen=True)
class Settings:
  """What trajectories depend on, beside policy and question."""

  method: str
  seed: int = 0
  max_steps: int = trajectories.MAX_HOPS
  k: int = 1


def evaluate(
    trained: policy.Policy,
    kbs: Mapping[str, knowledge_base.KnowledgeBase],
    questions: Sequence[Question],
    settings: Settings,
    *,
    path: pathlib.Path | None = None,
    label: Mapping[str, str] | None = None,
    loop: str = "host",
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
  """
  label = dict(label or {}, **dataclasses.asdict(settings))
  known = {} if path is None else _known(path, label, questions)
  if known:
    logging.info("%s: %d of %d questions were answered earlier.",
                 settings.method, len(known), len(questions))
  key = jax.random.key(settings.seed)
  planner = planners.METHODS[settings.method](settings.seed)
  left = [question for question in questions if question.id not in known]
  chunks = [left[i:i + CHUNK] for i in range(0, len(left), CHUNK)]
  title = (f"{label.get('policy', 'policy')}, {settings.method}, "
           f"{CHUNK} questions each")
  for chunk in telemetry.progress(chunks, title) if chunks else ():
    start = time.perf_counter()
    walked = fused.LOOPS[loop](
        trained, kbs, chunk, key, planner=planner,
        max_steps=settings.max_steps, k=settings.k)
    seconds = (time.perf_counter() - start) / len(chunk)
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


def step_rewards(
    trained: policy.Policy,
    steps: Sequence[Step],
    reward: rewards.StepReward,
    key: jax.Array,
    *,
    samples: int = 0,
) -> Float[np.ndarray, " n"]:
  """The reward of the response to each gold step.

  Args:
    trained: the policy.
    steps: with the passages that answer steps read.
    reward: of each.
    key: of the samples.
    samples: 0 for the greedy response, else the mean of so many drawn at
      temperature 1.
  """
  members = max(samples, 1)
  conversations = list(map(trained.settings.conversation, steps))
  earned = []
  for i in telemetry.progress(
      range(0, len(steps), CHUNK), f"step rewards, {CHUNK} steps each"):
    chunk = steps[i:i + CHUNK]
    groups = trained.respond(
        conversations[i:i + CHUNK], key, members,
        drawing.Method(float(samples > 0)))
    flat = reward([step for step in chunk for _ in range(members)],
                  [each.text for group in groups for each in group])
    earned.append(flat.reshape(len(chunk), members).mean(axis=1))
  return np.concatenate(earned)


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


def _all_step_rewards(
    policies: Mapping[str, policy.Policy], labels: Mapping[str, dict],
    kbs, questions: Sequence[Question], seed: int, path: pathlib.Path,
) -> dict[str, dict[str, np.ndarray]]:
  """Rewards by policy, greedy and sampled; what the file holds is kept."""
  retrieve = knowledge_base.retriever(kbs)
  some = questions[::STEP_EVERY]
  steps = [step for each in trajectories.gold_steps(some, retrieve)
           for step in each]
  minilm = embedders.make("minilm")
  reward = rewards.StepReward(
      lambda texts: minilm([Query(text) for text in texts]),
      preset="reference")
  known, found = predictions.read(path), {}
  for name, trained in policies.items():
    label = dict(labels[name], seed=seed, steps=len(steps))
    row = next((row for row in known if label.items() <= row.items()), None)
    if row is None:
      logging.info("%s: %d gold steps, greedy, then sampled.", name, len(steps))
      row = dict(label, **{
          way: step_rewards(trained, steps, reward, jax.random.key(seed),
                            samples=samples).tolist()
          for way, samples in (("greedy", 0), ("sampled", SAMPLES))})
      predictions.append(path, [row])
    found[name] = {way: np.array(row[way]) for way in ("greedy", "sampled")}
  return found


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


def main(_) -> None:
  if score_only.ASKED.value:
    return score_only.main()
  if unknown := set(_METHODS.value) - set(planners.METHODS):
    raise ValueError(
        f"--methods: {', '.join(sorted(unknown))} is no method; choose from "
        f"{', '.join(planners.METHODS)}.")
  questions = georouter.questions(_SPLIT.value)[:_QUESTIONS.value or None]
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
      evaluate(policies[name], kbs, questions, Settings(method, _SEED.value),
               path=workdir / "predictions.jsonl", label=labels[name],
               loop=_LOOP.value)
      for method in _METHODS.value
      for name in (policies if method == results.ROUTER else [last])]
  for name, value in knowledge_base.report(kbs).items():
    logging.info("%s: %.3g", name, value)
  earned = _all_step_rewards(
      policies, labels, kbs, questions, _SEED.value,
      workdir / "step_rewards.jsonl") if _STEP_REWARDS.value else {}
  predictions.replace(workdir / "scores.json", dict(
      split=_SPLIT.value, questions=len(questions), seed=_SEED.value,
      **results.summary(found, earned)))
  tables = results.tables(found, earned)
  claims = results.claims(found, earned, _SPLIT.value)
  for name, table in tables.items():
    print(f"\n{name}\n{results.as_text(table)}")
  print("\n" + "\n".join(claims))
  if _REPORT.value:
    shown = next((r for r in found if r.policy == last
                  and r.method == results.ROUTER), found[-1]).trajectories
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
