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

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_dict

from r1router_jax.common import cli, jsonl, records, run_log, trajectory_io
from r1router_jax.common.records import Question
from r1router_jax.data import benchmarks, georouter
from r1router_jax.evaluation import runner, score_file, step_rewards
from r1router_jax.evaluation import tables as tables_lib
from r1router_jax.policy import openai_policy
from r1router_jax.report import html
from r1router_jax.report import table as table_lib
from r1router_jax.retrieval import retriever
from r1router_jax.routing import device_loop
from r1router_jax.routing.baselines import registry

_POLICY = flags.DEFINE_list(
  "policy",
  ["warm_start"],
  "Policies as NAME=DIR, oldest first; a model "
  "elsewhere is NAME=openai:http://host:port/v1#model.",
  allow_override=True,
)

_KB = flags.DEFINE_string(
  "kb",
  "runs/quickstart/kb",
  "Folder of the knowledge bases, as build_kb "
  "wrote it, or the place of each: text=http://host:port,image=DIR/image,"
  "table=DIR/table.",
  allow_override=True,
)

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where predictions and scores are written.",
  allow_override=True,
)

_BENCHMARK = flags.DEFINE_list(
  "benchmark",
  ["georouter"],
  f"Whose questions are asked, of {', '.join(benchmarks.NAMES)}.",
  allow_override=True,
)

_DATA = flags.DEFINE_string(
  "data",
  "",
  "Folder of the question files; of jsonl, the file.",
  allow_override=True,
)

_IMAGES = flags.DEFINE_string(
  "images",
  "",
  "Folder or .zip of the questions' pictures.",
  allow_override=True,
)

_SPLIT = flags.DEFINE_enum("split", "test", georouter.SPLITS, "Of GeoRouter.")

_QUESTIONS = flags.DEFINE_integer(
  "questions", 0, "How many of each benchmark; 0 is all.", lower_bound=0
)

_SCORE_ONLY = flags.DEFINE_bool(
  "score_only",
  False,
  "Whether to score --predictions and do nothing else; see score_only.py.",
)

_PREDICTIONS = flags.DEFINE_string(
  "predictions",
  "",
  "File of answers to score: the question's row and "
  '"llm_answer" in each line.',
)

_JUDGE = flags.DEFINE_string(
  "judge",
  "",
  "A model that judges answers, too: openai:http://host:port/v1#model.",
)

_CONFIG = cli.options(
  config_dict.create(
    methods="r1_router,always_text,always_all,random_route,oracle_route",
    max_steps=records.MAX_HOPS,
    k=1,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    samples=1,
    raw_answers=False,
  ),
  f"""methods: with commas between them, of {", ".join(registry.METHODS)};
max_steps: searches before the last answer; k: passages that each search reads
of a knowledge base; temperature, top_k, top_p: of the drawing of tokens;
samples: of each question; raw_answers: whether a last answer that is not of the
protocol is scored as it stands, as R1-Router does, and not as wrong.""",
)

_CHUNK = flags.DEFINE_integer(
  "chunk",
  1024,
  "Questions that are answered together, and then saved; no "
  "answer depends on it.  Take fewer where a policy is slow.",
  lower_bound=1,
)

_LOOP = flags.DEFINE_enum(
  "loop",
  "host",
  device_loop.LOOPS,
  "Who drives the routing loop; all give the "
  "same: the host, the host with one half searching while the other draws, "
  "or the device.",
)

_STEP_REWARDS = flags.DEFINE_bool(
  "step_rewards",
  True,
  "Whether to reward responses to GeoRouter's gold steps, too.",
)

_SEED = flags.DEFINE_integer("seed", 0, "Of all samples.", allow_override=True)

_REPORT = flags.DEFINE_string("report", "", "Page to write, if any.")

_CURVES = flags.DEFINE_list(
  "curves",
  [],
  "Runs whose learning curves and samples the report shows, NAME=WORKDIR.",
)


def _named(pairs: Sequence[str], flag: str) -> dict[str, str]:
  """["a=x"] as {"a": "x"}; a folder alone is named by its last parts."""
  named = {}
  for pair in pairs:
    name, _, folder = pair.rpartition("=")
    parts = [p for p in pathlib.Path(folder).parts if p != "policy"]
    name = name or (parts[-1] if parts else folder)
    if not folder or name in named:
      raise ValueError(
        f"--{flag}={','.join(pairs)}: write NAME=FOLDER, each name once."
      )
    named[name] = folder
  return named


def _questions(workdir: pathlib.Path) -> list[Question]:
  """Those of all benchmarks."""
  asked = []
  for name in dict.fromkeys(_BENCHMARK.value):
    found = benchmarks.load(
      name, _DATA.value, _IMAGES.value, _SPLIT.value, str(workdir / "pictures")
    )
    asked += found[: _QUESTIONS.value or None]
  return asked


def main(_) -> None:
  if _SCORE_ONLY.value:
    print(
      json.dumps(
        score_file.run(
          ",".join(_BENCHMARK.value), _PREDICTIONS.value, _DATA.value
        )
      )
    )
    return
  methods = runner.settings_of(_CONFIG.value, _SEED.value)
  workdir = pathlib.Path(_WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  questions = _questions(workdir)
  folders = _named(_POLICY.value, "policy")
  runs = _named(_CURVES.value, "curves")
  curves = tables_lib.curves(runs)
  kbs = retriever.open_kbs(_KB.value)
  policies = {
    name: openai_policy.open_policy(at) for name, at in folders.items()
  }
  labels = {
    name: runner.label_of(name, trained, kbs)
    for name, trained in policies.items()
  }
  last = list(policies)[-1]
  found = [
    tables_lib.together(
      [
        runner.evaluate(
          policies[name],
          kbs,
          questions,
          settings,
          path=workdir / "predictions.jsonl",
          label=labels[name],
          loop=_LOOP.value,
          chunk=_CHUNK.value,
          judged_by=_JUDGE.value,
          raw=_CONFIG.value.raw_answers,
        )
        for settings in samples
      ]
    )
    for method, samples in methods.items()
    for name in (policies if method == registry.ROUTER else [last])
  ]
  for name, value in retriever.report(kbs).items():
    logging.info("%s: %.3g", name, value)
  traced = [q for q in questions if q.hops is not None]
  earned = (
    step_rewards.of_policies(
      policies, labels, kbs, traced, _SEED.value, workdir / "step_rewards.jsonl"
    )
    if traced and _STEP_REWARDS.value
    else {}
  )
  jsonl.replace(
    workdir / "scores.json",
    dict(
      benchmarks=_BENCHMARK.value,
      split=_SPLIT.value,
      questions=len(questions),
      seed=_SEED.value,
      **tables_lib.summary(found, earned),
    ),
  )
  _show(found, earned, runs, curves)


def _show(
  found: tables_lib.Results,
  earned: tables_lib.Earned,
  runs: Mapping[str, str],
  curves: Mapping[str, Any],
) -> None:
  """Prints tables and claims, and writes the page."""
  tables = tables_lib.tables(found, earned)
  where = ", ".join(_BENCHMARK.value)
  if where == "georouter":
    where = (
      "unseen countries"
      if _SPLIT.value == "test"
      else f"split {_SPLIT.value!r}"
    )
  claims = tables_lib.claims(found, earned, where)
  for name, table in tables.items():
    print(f"\n{name}\n{table_lib.as_text(table)}")
  print("\n" + "\n".join(claims))
  if not _REPORT.value:
    return
  shown = next(
    (r for r in reversed(found) if r.method == registry.ROUTER), found[-1]
  ).trajectories
  html.write(
    _REPORT.value,
    title=f"R1-Router on {where}",
    claims=claims,
    tables=tables,
    curves=curves,
    sampled={run: run_log.read_samples(at) for run, at in runs.items()},
    trajectories=trajectory_io.pick(shown, [html.right(t) for t in shown], 12),
    notes=tables_lib.NOTES,
  )
  print(f"The report is {_REPORT.value}.")


if __name__ == "__main__":
  flags.register_multi_flags_validator(
    ["workdir", "score_only"],
    lambda given: any(given.values()),
    "--workdir must have a value, but for --score_only",
  )
  cli.run(main)
