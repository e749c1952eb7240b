"""The house stands: who may import whom, and how long anything may grow.

A module imports only from floors below its own or from its own folder, so that
each can be read, and tested, with nothing above it in mind.
"""

import ast
import importlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "r1router_jax"

FILES = sorted(PACKAGE.rglob("*.py"))


# From the ground up; a folder stands for all modules in it.
FLOORS = (
  (
    "records",
    "prompts",
    "conversations",
    "ranges",
    "votes",
    "charts",
    "parallel",
    "pods",
    "telemetry",
    "commands",
    "drawing",
  ),
  ("protocol", "models", "predictions", "metrics", "markup"),
  (
    "inputs",
    "sampling",
    "checkpoints",
    "drivers",
    "settings",
    "flops",
    "samples",
    "scoring",
  ),
  ("batching", "planners", "walk"),
  ("policy", "retrieval", "data", "report"),
  ("asking", "results", "score_only", "completions"),
  ("router",),
  ("fused", "methods", "chat", "judge"),
  ("learning", "comparison"),
  (
    "train",
    "eval",
    "ask",
    "synthesize",
    "build_kb",
    "serve_kb",
    "convert",
    "plan",
  ),
)

FLOOR_OF = {room: n for n, floor in enumerate(FLOORS) for room in floor}


MAX_LINES = 300

MAX_LINES_IN = {
  "models": 500,  # A model is one file, however many parts it has.
  "data.georouter_source": 500,  # Tables of fields and of wordings.
}

MAX_FUNCTION = 60  # Without its docstring.

MAX_FUNCTION_NAMED = {"train.train": 100}  # The whole loop in sight.


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal"}

FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load"}


def name(path: pathlib.Path) -> str:
  """`r1router_jax/data/batches.py` -> `data.batches`."""
  return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room(module: str) -> str:
  return module.split(".")[0]


def imports(tree: ast.AST) -> list[str]:
  """Every module that is imported, wherever the statement stands."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = "." * node.level + (node.module or "")
      if base == "r1router_jax":  # from r1router_jax import records
        found += [f"{base}.{alias.name}" for alias in node.names]
      else:
        found.append(base)
  return found


def check_floors(module: str, source: str) -> list[str]:
  """What is wrong with the imports of a module."""
  faults = []
  for imported in imports(ast.parse(source)):
    if imported.startswith("."):
      faults.append(f"{module}: write `{imported}` in full.")
    if not imported.startswith("r1router_jax."):
      continue
    other = imported.removeprefix("r1router_jax.")
    if room(other) == room(module):
      continue
    if room(other) not in FLOOR_OF:
      faults.append(f"{module} imports {other}, which has no floor.")
    elif FLOOR_OF[room(other)] >= FLOOR_OF[room(module)]:
      faults.append(
        f"{module} (floor {FLOOR_OF[room(module)]}) imports {other} "
        f"(floor {FLOOR_OF[room(other)]})."
      )
  return faults


def check_safety(module: str, source: str) -> list[str]:
  """Ways to run what someone else wrote."""
  tree = ast.parse(source)
  faults = [
    f"{module} imports {used}."
    for used in imports(tree)
    if used.split(".")[0] in FORBIDDEN_MODULES
  ]
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      if ast.unparse(node.func) in FORBIDDEN_CALLS:
        faults.append(f"{module}:{node.lineno}: {ast.unparse(node.func)}")
      for keyword in node.keywords:
        if keyword.arg in ("shell", "allow_pickle", "trust_remote_code"):
          if getattr(keyword.value, "value", True):
            faults.append(f"{module}:{node.lineno}: {keyword.arg}")
  return faults


def functions(tree: ast.AST):
  """(name, lines without the docstring) of each function."""
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = node.end_lineno - node.lineno + 1
      if ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
      yield node.name, lines


@pytest.mark.parametrize("path", FILES, ids=name)
def test_module(path):
  module, source = name(path), path.read_text()
  if path == PACKAGE / "__init__.py":
    assert not [i for i in imports(ast.parse(source)) if "r1router" in i]
    return
  assert room(module) in FLOOR_OF, f"Give {module} a floor in {__file__}."
  faults = check_floors(module, source) + check_safety(module, source)
  limit = MAX_LINES_IN.get(module.rpartition(".")[0], MAX_LINES)
  length = len(source.splitlines())
  if length > limit:
    faults.append(f"{module} has {length} lines, more than {limit}: split it.")
  for function, lines in functions(ast.parse(source)):
    limit = MAX_FUNCTION_NAMED.get(f"{module}.{function}", MAX_FUNCTION)
    if lines > limit:
      faults.append(
        f"{module}.{function} has {lines} lines, more than {limit}."
      )
  assert not faults, "\n".join(faults)


def test_all_modules_live_together():
  """In one process, as in a notebook: no two commands define the same flag.

  A flag that several commands have is defined with `allow_override=True`.
  """
  for module in map(name, FILES):
    if "georouter_source" not in module:  # Needs what only its builder has.
      importlib.import_module(
        f"r1router_jax.{module}".removesuffix(".__init__")
      )


@pytest.mark.parametrize(
  "source, fault",
  [
    ("from r1router_jax import records", ""),
    ("from r1router_jax.models import hf", ""),
    ("from r1router_jax.inputs.pack import pack", ""),
    ("import jax.numpy as jnp", ""),
    ("from r1router_jax import records, router", "router (floor 6)"),
    ("def f():\n  import r1router_jax.policy", "policy (floor 4)"),
    ("from r1router_jax.sampling import respond", "sampling (floor 2)"),
    ("from . import pack", "in full"),
    ("from r1router_jax.novelty import f", "no floor"),
  ],
)
def test_the_rule_of_floors(source, fault):
  faults = check_floors("inputs.images", source)
  assert (fault in faults[0]) if fault else not faults


@pytest.mark.parametrize(
  "source, safe",
  [
    ("jax.eval_shape(f)", True),
    ("subprocess.run(['ls'], shell=False)", True),
    ("np.load(f, allow_pickle=False)", True),
    ("eval('1')", False),
    ("from pickle import loads", False),
    ("subprocess.run('ls', shell=True)", False),
    ("np.load(f, allow_pickle=flag)", False),
    ("AutoModel.from_pretrained(d, trust_remote_code=True)", False),
  ],
)
def test_the_rule_of_safety(source, safe):
  assert (not check_safety("train", source)) == safe
