r"""Times answers, phase by phase, to one question at a time and to many.

  python benchmarks/ask.py --kb_dir=runs/quickstart/kb [--policy=warm_start]

Questions of GeoRouter's test split without an image are answered one by one, as
`ask` does, and then all at once, as `eval` does; each way twice, since the
first time compiles programs or reads those of an earlier run.  There is one
JSON line for opening policy and knowledge bases, and one for each pass, with
seconds a question:

  plan_s        until the first plan, at most
  question_s    until the answer, in these phases:
    embed_s       queries become vectors
    search_s      the rest of the searches
    prefill_s     prompts are read
    decode_s      responses are written
    host_s        prompts, texts, batches, the loop itself
  compile_s     of these, programs are traced and compiled, or read
  tokens        response tokens of a question
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import common
import jax

from r1router_jax.common import cli
from r1router_jax.common.records import Question
from r1router_jax.data import georouter
from r1router_jax.generation import continuous_batching
from r1router_jax.policy import policy_factory
from r1router_jax.policy.policy import Policy
from r1router_jax.retrieval import local_kb, retriever
from r1router_jax.routing import router, run_settings

PHASES = ("embed", "search", "prefill", "decode")


class CompileClock:
  """Seconds that JAX takes to make programs.

  Attributes:
    seconds: time so far.
  """

  def __init__(self):
    self.seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._add)

  def _add(self, event: str, seconds: float, **_) -> None:
    if event.startswith("/jax/core/compile/"):
      self.seconds += seconds


@contextlib.contextmanager
def time_programs(clock: common.PhaseClock) -> Iterator[None]:
  """Count the time of the sampler's programs for "prefill" and "decode"."""
  original = continuous_batching.compiled_programs

  def wait(function: Callable) -> Callable:
    return lambda *args: jax.block_until_ready(function(*args))

  def timed_programs(*args):
    programs = original(*args)
    prefill = clock.wrap("prefill", wait(programs.prefill))
    decode = clock.wrap("decode", wait(programs.decode_until))
    return programs._replace(prefill=prefill, decode_until=decode)

  continuous_batching.compiled_programs = timed_programs
  try:
    yield
  finally:
    continuous_batching.compiled_programs = original


def time_searches(
  clock: common.PhaseClock, kbs: Mapping[str, local_kb.LocalKB]
) -> dict[str, local_kb.LocalKB]:
  """Return knowledge bases whose phases are timed, without cached results."""
  timed = {}
  for kind, kb in kbs.items():
    embedder = clock.wrap("embed", kb.stack.embedder)
    timed[kind] = local_kb.LocalKB(
      kb.stack._replace(embedder=embedder), kb.meta
    )
    timed[kind].search = clock.wrap("search", timed[kind].search)
  return timed


def time_questions(
  policy: Policy,
  kbs: Mapping[str, local_kb.LocalKB],
  parts: Sequence[Sequence[Question]],
  compiling: CompileClock,
) -> None:
  """Answer one part of the questions after the other, and print a line."""
  clock = common.PhaseClock(*PHASES)
  kbs = time_searches(clock, kbs)
  # With as many passages as the policy reads.
  settings = run_settings.RunSettings.for_policy(
    policy.config, "r1_router", k=0
  )
  plan_seconds, tokens, count = [], 0, sum(map(len, parts))
  compiled, begin = compiling.seconds, time.perf_counter()
  for questions in parts:
    planned, start = {}, time.perf_counter()

    def note_plan(question, _, planned=planned, start=start):
      planned.setdefault(question.id, time.perf_counter() - start)

    options = settings.rollout_options(on_part=note_plan)
    with time_programs(clock):
      task = policy, kbs, questions, settings.random_key, options
      found = router.run_routing(*task)
    plan_seconds += planned.values()
    tokens += sum(trajectory.tokens for trajectory in found)
  total = time.perf_counter() - begin
  seconds = clock.seconds | dict(host=total - sum(clock.seconds.values()))
  common.print_row(
    questions=count,
    at_a_time=len(parts[0]),
    plan_s=round(max(plan_seconds, default=0.0), 3),
    question_s=round(total / count, 3),
    **{f"{name}_s": round(x / count, 3) for name, x in seconds.items()},
    compile_s=round((compiling.seconds - compiled) / count, 3),
    tokens=round(tokens / count, 1),
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--policy", default="warm_start")
  parser.add_argument("--kb_dir", default="runs/quickstart/kb")
  parser.add_argument(
    "--alone", type=int, default=8, help="questions one by one"
  )
  parser.add_argument("--together", type=int, default=60, help="at once")
  args = parser.parse_args()
  if min(args.alone, args.together) < 1:
    parser.error("--alone and --together should be at least 1.")
  # Where commands keep programs, so that a second run reads those of the first.
  cli.enable_program_cache()
  compiling, start = CompileClock(), time.perf_counter()
  policy = policy_factory.open_policy(args.policy)
  jax.block_until_ready(policy.inference_params)
  kbs = retriever.open_kbs(args.kb_dir)
  common.print_row(open_s=round(time.perf_counter() - start, 2))
  questions = [q for q in georouter.load_questions("test") if not q.image]
  # Spread over the split, which is sorted by family.
  step = max(len(questions) // args.together, 1)
  questions = questions[::step][: args.together]
  one_by_one = [[question] for question in questions[: args.alone]]
  for parts in (one_by_one, [questions]):
    for _ in range(2):
      time_questions(policy, kbs, parts, compiling)


if __name__ == "__main__":
  main()
