r"""Compares policies and baselines on benchmarks, and writes a report.

  python -m r1router_jax.eval --workdir=runs/eval --kb_dir=runs/kb \
      --policy=warm_start=runs/sft/policy,step_grpo=runs/step_grpo/policy \
      --method=r1_router,direct,rag_all --report=runs/report.html

By the method r1_router every policy routes for itself; the other methods are
baselines, and run with the last policy only.  The questions of all benchmarks
go through a method at once.  Trajectories are appended to
<workdir>/predictions.jsonl as they are made.  An interrupted run resumes from
that file, as long as policy, knowledge bases and settings are the same.

With --samples each question is answered several times; the report then has the
means, pass@k and the majority vote.

Intervals are 95 % bootstrap intervals over questions, or over steps.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags, logging
from etils import epy

from r1router_jax.common import cli, files, shared_flags, trajectory_io
from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Question
from r1router_jax.data import benchmarks
from r1router_jax.retrieval import kb_meta

# Imported when used, so that wrong flags are answered before JAX is imported.
with epy.lazy_imports():
  from r1router_jax.common import http_client, run_log
  from r1router_jax.evaluation import runner, score_file, step_rewards, tables
  from r1router_jax.policy import image_questions, policy_factory
  from r1router_jax.report import html
  from r1router_jax.report import table as table_lib
  from r1router_jax.retrieval import retriever
  from r1router_jax.routing import answering_methods, run_settings

# What answers.
_POLICY = flags.DEFINE_list(
  "policy",
  ["warm_start"],
  "Policies as NAME=PLACE, oldest first.  A place is a folder, a model's id on "
  "the Hugging Face hub, warm_start (a tiny policy that comes with the "
  "package), or a served model as openai:http://host:port/v1#model.",
  allow_override=True,
)
_KB_DIR = shared_flags.define_flag("kb_dir")
_KB_ADDRESSES = shared_flags.define_flag("kb_addresses")
_WORKDIR = shared_flags.define_flag("workdir")
_METHOD = flags.DEFINE_list(
  "method",
  "r1_router,always_text,always_all,random_route,oracle_route",
  f"Methods to compare, of {', '.join(shared_flags.METHODS)}.",
  allow_override=True,
)
_SETTINGS = shared_flags.define_settings()
_SAMPLES = flags.DEFINE_integer(
  "samples", 1, "Number of times that each question is answered.", lower_bound=1
)

# The questions.
_BENCHMARK = flags.DEFINE_list(
  "benchmark",
  ["georouter"],
  f"Benchmarks whose questions are asked, of {', '.join(benchmarks.NAMES)}.",
  allow_override=True,
)
_DATA = shared_flags.define_flag("data")
_IMAGES = shared_flags.define_flag("images")
_SPLIT = shared_flags.define_flag("split")
_TFDS_DIR = shared_flags.define_flag("tfds_dir")
_QUESTIONS = shared_flags.define_flag("questions")
_FAMILIES = flags.DEFINE_list(
  "families", [], "Families of questions that are asked; by default all."
)

# How answers are scored.
_RAW_ANSWERS = flags.DEFINE_bool(
  "raw_answers", False, "Whether to score malformed answers as R1-Router does."
)
_JUDGE = flags.DEFINE_string(
  "judge", "", "A model that judges, too: openai:http://host:port/v1#model."
)
_STEP_REWARDS = flags.DEFINE_bool(
  "step_rewards", True, "Whether to reward responses to GeoRouter's gold steps."
)
# How the run proceeds; no answer depends on these.
_CHUNK = flags.DEFINE_integer(
  "chunk", 1024, "Questions that are answered between saves.", lower_bound=1
)
_ROUTING_LOOP = flags.DEFINE_enum(
  "routing_loop",
  shared_flags.ROUTING_LOOPS[0],
  shared_flags.ROUTING_LOOPS,
  "What drives the routing loop; all give the same answers.  host: Python; "
  "halves: Python, and one half of the questions searches while the other "
  "generates; fused: one program on the device, which calls back to search.",
)
# What is shown at the end.
_REPORT = flags.DEFINE_string("report", "", "HTML page to write, if any.")
_CURVES = flags.DEFINE_list(
  "curves", [], "Training runs that the report shows, as NAME=WORKDIR."
)
# The other use of this command: score a file of somebody else's answers.
_SCORE_ONLY = flags.DEFINE_bool(
  "score_only", False, "Whether to only score --predictions (score_file.py)."
)
_PREDICTIONS = flags.DEFINE_string(
  "predictions", "", 'Answers to score: rows of questions with "llm_answer".'
)


def main(_) -> None:
  """Evaluate every method, or score a file of predictions."""
  if _SCORE_ONLY.value:
    # Nothing but predictions and questions is opened, and no policy.
    places = _PREDICTIONS.value, _DATA.value, _TFDS_DIR.value
    name = ",".join(_BENCHMARK.value)
    print(json.dumps(score_file.score_predictions(name, *places)))
    return
  seed = _SETTINGS["seed"].value
  policy_places = _split_names(_POLICY.value, "policy")
  runs = _split_names(_CURVES.value, "curves")
  _check_options(policy_places)

  # 1. Open everything that the run reads.
  workdir = pathlib.Path(_WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  # Questions first: a broken row is found before anything large is loaded.
  questions = _load_questions()
  if "oracle_route" in _METHOD.value:
    for question in questions:
      answering_methods.OracleRoute.check_question(question)
  curves = tables.load_curves(runs)
  http_client.allow_addresses(_KB_ADDRESSES.value)
  kbs = retriever.open_kbs(_KB_DIR.value)
  policies, labels = {}, {}
  for name, place in policy_places.items():
    policies[name] = policy_factory.open_policy(place)
    labels[name] = runner.run_label(name, policies[name], kbs)
    image_questions.log_lacking_vision(name, policies[name].config, questions)

  # 2. Answer all questions by every method.
  opened = policies, labels, kbs
  results = _evaluate_methods(*opened, questions, workdir)
  for name, value in retriever.pop_search_metrics(kbs).items():
    logging.info("%s: %.3g", name, value)

  # 3. Reward each policy's responses to gold steps.
  # A saved reward is known by the number of steps alone, which an edit of one's
  # own questions may leave as it was.
  traced = [
    q for q in questions if q.hops is not None and q.benchmark != "jsonl"
  ]
  rewards, path = {}, workdir / "step_rewards.jsonl"
  if traced and _STEP_REWARDS.value:
    rewards = step_rewards.score_policies(*opened, traced, seed, path)

  # 4. Write scores, print tables, write the report.
  scores = dict(benchmarks=_BENCHMARK.value, split=_SPLIT.value)
  scores |= dict(questions=len(questions), seed=seed)
  scores |= tables.summarize_results(results, rewards)
  files.write_json(workdir / "scores.json", scores)
  _report_results(results, rewards, runs, curves)


def _split_names(pairs: Sequence[str], flag: str) -> dict[str, str]:
  """Return {"a": "x"} for ["a=x"]; a lone folder is named by its last part."""
  named = {}
  for pair in pairs:
    name, _, folder = pair.rpartition("=")
    # "runs/sft/policy" is the policy of the run "sft".
    parts = [part for part in pathlib.Path(folder).parts if part != "policy"]
    name = name or (parts[-1] if parts else folder)
    if not folder or name in named:
      fault = f"--{flag}={','.join(pairs)}"
      raise UserError(f"{fault}: write NAME=FOLDER, each name once.")
    named[name] = folder
  return named


def _check_options(policy_places: Mapping[str, str]) -> None:
  """Check what flags say together, and that the folders they name exist."""
  methods, known = _METHOD.value or [""], shared_flags.METHODS
  # A list flag does not check its items.
  if unknown := ", ".join(repr(m) for m in methods if m not in known):
    cure = f"choose from {', '.join(known)}."
    raise UserError(f"--method: {unknown} is no method; {cure}")
  if _SAMPLES.value > 1 and not _SETTINGS["temperature"].value:
    fault = f"--samples={_SAMPLES.value} at temperature 0 would all be the same"
    raise UserError(f"{fault}: set --temperature, too.")
  if not policy_places:
    raise UserError("--policy names no policy.")
  for place in policy_places.values():
    shared_flags.check_policy(place)
  kb_meta.check_kb_dir(_KB_DIR.value)


def _load_questions() -> list[Question]:
  """Return the questions of all benchmarks, the first --questions of each."""
  questions = []
  for name in dict.fromkeys(_BENCHMARK.value):
    source = _DATA, _IMAGES, _SPLIT, _TFDS_DIR, _SETTINGS["seed"]
    found = benchmarks.load_benchmark(name, *(flag.value for flag in source))
    where = f"--families: {name}, {_SPLIT.value},"
    found = benchmarks.choose_families(found, _FAMILIES.value, where)
    questions += found[: _QUESTIONS.value or None]
  return questions


def _evaluate_methods(
  policies: Mapping[str, Any],
  labels: Mapping[str, dict[str, str]],
  kbs: Mapping[str, Any],
  questions: Sequence[Question],
  workdir: pathlib.Path,
) -> list[Any]:
  """Return a `tables.MethodResult` of each method, and of each router."""
  options = dict(path=workdir / "predictions.jsonl", judge=_JUDGE.value)
  options |= dict(routing_loop=_ROUTING_LOOP.value, chunk_size=_CHUNK.value)
  options |= dict(raw_answers=_RAW_ANSWERS.value)
  common = shared_flags.settings_values(_SETTINGS)
  results = []
  for method in dict.fromkeys(_METHOD.value):
    # Only by the router's method do policies differ in what they search.
    is_router = method == shared_flags.ROUTER
    for name in policies if is_router else list(policies)[-1:]:
      make = functools.partial(
        run_settings.RunSettings.for_policy, policies[name].config, method
      )
      settings = [make(sample=n, **common) for n in range(_SAMPLES.value)]
      task = policies[name], kbs, questions
      options["label"] = labels[name]
      evaluate = functools.partial(runner.evaluate_method, *task, **options)
      samples = list(map(evaluate, settings))
      results.append(tables.aggregate_samples(samples))
  return results


def _report_results(
  results: Sequence[Any],
  rewards: Mapping[str, Any],
  runs: Mapping[str, str],
  curves: Mapping[str, Any],
) -> None:
  """Print tables and a summary, and write the page if one is asked for."""
  subject = ", ".join(_BENCHMARK.value)
  if subject == "georouter":
    # Training never sees the countries of GeoRouter's test questions.
    is_test = _SPLIT.value == "test"
    subject = "unseen countries" if is_test else f"split {_SPLIT.value!r}"
  found = tables.make_tables(results, rewards)
  summary = tables.summary_lines(results, rewards, subject)
  for name, table in found.items():
    print(f"\n{name}\n{table_lib.format_table(table)}")
  print("\n" + "\n".join(summary))
  if not _REPORT.value:
    return

  # The page shows trajectories of the last policy that routes for itself.
  routed = [r for r in results if r.method == shared_flags.ROUTER]
  shown = (routed or results)[-1].trajectories
  is_right = list(map(html.is_exactly_right, shown))
  html.write_page(
    _REPORT.value,
    title=f"R1-Router on {subject}",
    summary=summary,
    tables=found,
    curves=curves,
    sample_groups={run: run_log.read_samples(at) for run, at in runs.items()},
    trajectories=trajectory_io.select_examples(shown, is_right, 12),
  )
  print(f"The report is {_REPORT.value}.")


if __name__ == "__main__":
  flags.register_multi_flags_validator(
    ["workdir", "score_only"],
    lambda given: any(given.values()),
    "--workdir must have a value, but for --score_only",
  )
  cli.run(main)
