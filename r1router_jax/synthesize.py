r"""Makes training data: a teacher's trajectories, filtered, split and written.

  python -m r1router_jax.synthesize --kb_dir=runs/kb --workdir=runs/synthesis \
      --method=few_shot \
      --policy=openai:http://127.0.0.1:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct

The teacher, which --policy names, answers questions by the routing loop with
live retrieval.  These files are written to <workdir>:

  trajectories.jsonl         every try, with all that was written and found
  grpo_dataset_train.jsonl   the tries that passed, in R1-Router's format and
  grpo_dataset_valid.jsonl   with what the teacher wrote
  pictures                   images of their questions
  tfds                       the same rows as a TensorFlow Dataset
  summary.json               how many passed, and why others did not

An interrupted run resumes from trajectories.jsonl, as long as teacher, prompts,
knowledge bases and settings are the same, and ends with the same files.

Source: arxiv.org/abs/2505.22095 (R1-Router), whose teachers are asked once, at
temperature 1 among the 20 likeliest tokens, and pass by recall.
"""

import pathlib
from typing import Any

from absl import flags
from etils import epy

from r1router_jax.common import cli, records, shared_flags
from r1router_jax.common.errors import UserError
from r1router_jax.data import benchmarks
from r1router_jax.report import table
from r1router_jax.retrieval import kb_meta
from r1router_jax.synthesis import selection

# Imported when used, so that wrong flags are answered before JAX is imported.
with epy.lazy_imports():
  from r1router_jax.common import http_client
  from r1router_jax.policy import image_questions, policy_factory
  from r1router_jax.retrieval import retriever
  from r1router_jax.routing import run_settings
  from r1router_jax.synthesis import output, teacher_runs

# The teacher, and what it searches.
_POLICY = shared_flags.define_flag("policy")
_KB_DIR = shared_flags.define_flag("kb_dir")
_KB_ADDRESSES = shared_flags.define_flag("kb_addresses")
_WORKDIR = shared_flags.define_flag("workdir")
# Baselines write no plans, so they make no rows.
_METHOD = shared_flags.define_flag(
  "method", enum_values=(shared_flags.ROUTER, "few_shot")
)
_SETTINGS = shared_flags.define_settings(
  temperature=dict(default=1.0),
  top_k=dict(default=20),
  # Rows hold no more rounds.
  max_steps=dict(upper_bound=records.MAX_HOPS),
)

# The questions.
_BENCHMARK = flags.DEFINE_enum(
  "benchmark",
  "georouter",
  benchmarks.NAMES,
  "Benchmark to ask; jsonl is a file of your own, see data/benchmarks.py.",
  allow_override=True,
)
_DATA = shared_flags.define_flag("data")
_IMAGES = shared_flags.define_flag("images")
_SPLIT = shared_flags.define_flag("split", default="train")
_TFDS_DIR = shared_flags.define_flag("tfds_dir")
_QUESTIONS = shared_flags.define_flag("questions")

# The selection of rows.
_TRIES = flags.DEFINE_integer(
  "tries", 1, "Tries at a question until one passes, at most.", lower_bound=1
)
_VALID = flags.DEFINE_float(
  "valid", 0.2, "Share of questions held out.", lower_bound=0, upper_bound=1
)
_FILTER = flags.DEFINE_enum(
  "filter",
  "exact",
  selection.METRICS,
  "Score of the final answer that must be 1; recall lets answers say more.",
)
_KEEP_REPEATED = flags.DEFINE_bool(
  "keep_repeated",
  False,
  "Whether to keep trajectories that repeat a sub-question, as R1-Router does.",
)


def main(_) -> None:
  """Run the teacher, write what passed, and print the counts."""
  shared_flags.check_policy(_POLICY.value)
  kb_meta.check_kb_dir(_KB_DIR.value)

  # 1. Open everything that the run reads.
  workdir = pathlib.Path(_WORKDIR.value)
  source = _BENCHMARK, _DATA, _IMAGES, _SPLIT, _TFDS_DIR, _SETTINGS["seed"]
  questions = selection.load_questions(*(flag.value for flag in source))
  questions = questions[: _QUESTIONS.value or None]
  teacher = policy_factory.open_policy(_POLICY.value)
  image_questions.log_lacking_vision(_POLICY.value, teacher.config, questions)
  http_client.allow_addresses(_KB_ADDRESSES.value)
  kbs = retriever.open_kbs(_KB_DIR.value)

  # 2. Run the teacher.
  values = shared_flags.settings_values(_SETTINGS)
  settings = run_settings.RunSettings.for_policy(
    teacher.config, _METHOD.value, **values
  )
  rules = selection.SelectionRules(
    _FILTER.value, _KEEP_REPEATED.value, settings.max_steps
  )
  label = teacher_runs.teacher_label(teacher, kbs)
  options = dict(max_tries=_TRIES.value, label=label, name=_POLICY.value)
  task = teacher, kbs, questions, settings, rules, workdir
  results = teacher_runs.run_teacher(*task, **options)

  # 3. Write the rows, and print the counts.
  # The summary names what the rows depend on, and the filter.
  about = dict(label, teacher=_POLICY.value, filter=_FILTER.value)
  seed, valid = settings.seed, _VALID.value
  summary = output.write_outputs(workdir, results, seed, valid, about)
  outcomes = summary["outcomes"].items()
  rows = tuple((name, *counts.values()) for name, counts in outcomes)
  columns = ("outcome", "questions", "tries")
  print(table.format_table(table.Table(columns, rows)))
  _print_next_step(workdir, summary)


def _print_next_step(workdir: pathlib.Path, summary: dict[str, Any]) -> None:
  """Print the number of trajectories, and the command to train on them."""
  rows, steps = summary["rows"], summary["steps"]
  if not sum(rows.values()):
    raise UserError(
      f"None of {summary['questions']} questions passed, see {workdir}"
      "/summary.json.  Take a better teacher, more --tries, or --filter=recall."
    )
  print(
    f"{rows['train']} trajectories of {steps['train']} steps to train on, "
    f"{rows['valid']} of {steps['valid']} held out.  Next:\n"
    "  python -m r1router_jax.train --config=configs/sft.py:qwen2_5_0_5b \\\n"
    f"      --config.data.train_files={workdir}/grpo_dataset_train.jsonl \\\n"
    f"      --config.data.images={workdir}/pictures --workdir=runs/taught"
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  cli.run(main)
