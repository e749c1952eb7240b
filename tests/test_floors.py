"""Keeps the floors of the package: a module imports only from floors below.

The rooms are folders; the commands stand at the top of the package.  Each room
can then be read, and tested, with nothing above it in mind.
"""

import ast
import importlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "r1router_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up.  A folder stands for all modules in it, and a module may
# import whatever else its own folder holds.
FLOORS = (
  ("common",),
  ("models", "parallel"),
  ("generation", "retrieval", "protocol", "metrics"),
  ("inputs", "data", "report"),
  ("policy",),
  ("routing", "rewards"),
  ("training", "evaluation", "synthesis"),
  (
    "train",
    "eval",
    "ask",
    "check_questions",
    "make_domains",
    "synthesize",
    "build_kb",
    "serve_kb",
    "convert",
    "train_compile",
  ),
)
FLOOR_OF = {room: n for n, floor in enumerate(FLOORS, 1) for room in floor}

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load"}


def module_name(path: pathlib.Path) -> str:
  """`r1router_jax/data/georouter.py` -> `data.georouter`."""
  return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(module: str) -> str:
  return module.split(".")[0]


def imported_modules(tree: ast.AST) -> list[str]:
  """Every module that is imported, wherever the statement stands."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = "." * node.level + (node.module or "")
      if base == "r1router_jax":  # from r1router_jax import train
        found += [f"{base}.{alias.name}" for alias in node.names]
      else:
        found.append(base)
  return found


def floor_faults(module: str, source: str) -> list[str]:
  """The imports of a module that run upwards or sideways."""
  faults = []
  here = room_of(module)
  for imported in imported_modules(ast.parse(source)):
    if imported.startswith("."):
      faults.append(f"{module}: write `{imported}` in full.")
    if not imported.startswith("r1router_jax."):
      continue
    other = room_of(imported.removeprefix("r1router_jax."))
    if other == here:
      continue
    if other not in FLOOR_OF:
      faults.append(f"{module} imports {imported}, which has no floor.")
    elif FLOOR_OF[other] >= FLOOR_OF[here]:
      faults.append(
        f"{module} (floor {FLOOR_OF[here]}) imports {imported} "
        f"(floor {FLOOR_OF[other]})."
      )
  return faults


def safety_faults(module: str, source: str) -> list[str]:
  """The ways in which a module could run what someone else wrote."""
  tree = ast.parse(source)
  faults = [
    f"{module} imports {used}."
    for used in imported_modules(tree)
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


def test_only_commands_stand_at_the_top():
  """Every room has a floor, and a module beside the rooms is a command."""
  rooms = {room_of(module_name(path)) for path in FILES} - {"__init__"}
  assert rooms == set(FLOOR_OF)
  commands = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
  assert commands == set(FLOORS[-1])


def test_imports_run_down_the_floors():
  faults = []
  for path in FILES:
    if path != PACKAGE / "__init__.py":
      faults += floor_faults(module_name(path), path.read_text())
  assert not faults, "\n".join(faults)


def test_no_module_runs_foreign_code():
  faults = []
  for path in FILES:
    faults += safety_faults(module_name(path), path.read_text())
  assert not faults, "\n".join(faults)


def test_all_modules_can_be_imported_in_one_process():
  """A notebook does so: no two commands may define a flag differently.

  A flag that several commands have is defined with `allow_override=True`.
  """
  for module in map(module_name, FILES):
    importlib.import_module(f"r1router_jax.{module}".removesuffix(".__init__"))


@pytest.mark.parametrize(
  "source, fault",
  [
    ("from r1router_jax.common import records", ""),
    ("from r1router_jax.models import lora", ""),
    ("from r1router_jax.inputs.processor import Processor", ""),
    ("import jax.numpy as jnp", ""),
    ("def f():\n  import r1router_jax.policy", "policy (floor 5)"),
    ("from r1router_jax.routing.router import f", "routing.router (floor 6)"),
    ("from r1router_jax import common, train", "train (floor 8)"),
    ("from . import tokenizer", "in full"),
    ("from r1router_jax.novelty import f", "no floor"),
  ],
)
def test_upward_imports_are_found(source, fault):
  faults = floor_faults("inputs.image_processor", source)
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
def test_foreign_code_is_found(source, safe):
  assert (not safety_faults("train", source)) == safe
