"""R1-Router in JAX: a policy that learns which knowledge base to ask.

The names below are the way in from Python; README.md has an example.  Each is
imported when it is first used, so that `import r1router_jax` takes no time and
does not import JAX.
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
  from r1router_jax.common.records import Passage, Query, Question, Trajectory
  from r1router_jax.data.benchmarks import load_benchmark
  from r1router_jax.metrics.answers import score_answer
  from r1router_jax.policy.policy_factory import open_policy
  from r1router_jax.report.terminal import format_trajectory
  from r1router_jax.retrieval.retriever import open_kbs
  from r1router_jax.routing.router import run_routing

__all__ = [
  "Passage",
  "Query",
  "Question",
  "Trajectory",
  "format_trajectory",
  "load_benchmark",
  "open_kbs",
  "open_policy",
  "run_routing",
  "score_answer",
]
